//! Files and directories: owned-buffer operations with one contract for all backends.

use std::ffi::OsString;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::buf::AlignedBuf;
use crate::error::Result;
use crate::portable;

/// The result of a buffer operation: the number of bytes moved, and the buffer back.
pub type BufResult = (Result<usize>, AlignedBuf);

/// What a file is used for; decides which threads and which ring serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Class {
    /// Reads that somebody waits for.
    #[default]
    Foreground,
    /// The log: few, ordered, durable writes.
    Log,
    /// Flush and compaction: large streaming reads and writes.
    Background,
}

/// How to open a file.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    /// Open for writing as well as reading.
    pub write: bool,
    /// Create the file; it is an error if it exists.
    pub create_new: bool,
    /// Bypass the page cache where the file system can; [`File::is_direct`] says whether it does.
    /// Then offsets, lengths and buffers of every read and write must be multiples of
    /// [`crate::BUF_ALIGN`].
    pub direct: bool,
    /// What the file is used for.
    pub class: Class,
}

/// One entry of a directory listing.
#[derive(Debug, Clone)]
pub struct DirEntry {
    /// The name without the directory.
    pub name: OsString,
    /// Whether it is a regular file (symbolic links are not followed).
    pub is_file: bool,
    /// The length in bytes.
    pub len: u64,
}

/// A pending file operation; `'static` and `Send`, whatever the backend.
///
/// # Cancel safety
///
/// Dropping it before the first poll means that nothing happened. Later a read has no effect and a
/// write or a change of names may or may not take place; memory stays owned until the kernel is
/// done with it.
pub struct Op<T> {
    pub(crate) inner: Pin<Box<dyn Future<Output = T> + Send>>,
}

impl<T> Future for Op<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.inner.as_mut().poll(cx)
    }
}

/// Holds back the submission of operations started on this thread until it is dropped, so that
/// several first polls reach the ring in one go.
pub struct Plug {
    pub(crate) _not_send: std::marker::PhantomData<*const ()>,
}

/// The file system.
#[derive(Clone)]
pub struct Fs {
    pub(crate) pool: Arc<portable::Pool>,
}

impl Fs {
    /// Opens or creates a file (mode 0600).
    pub fn open(&self, path: impl Into<PathBuf>, options: OpenOptions) -> Op<Result<File>> {
        self.pool.open(path.into(), options)
    }

    /// Creates a directory (mode 0700). An existing one is fine, a missing parent is an error.
    pub fn create_dir(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        self.pool.create_dir(path.into())
    }

    /// Renames a file, replacing what has the new name.
    pub fn rename(&self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Op<Result<()>> {
        self.pool.rename(from.into(), to.into())
    }

    /// Removes a file.
    pub fn remove_file(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        self.pool.remove_file(path.into())
    }

    /// The entries of a directory, in no particular order.
    pub fn list_dir(&self, path: impl Into<PathBuf>) -> Op<Result<Vec<DirEntry>>> {
        self.pool.list_dir(path.into())
    }

    /// Makes the entries of a directory durable.
    pub fn sync_dir(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        self.pool.sync_dir(path.into())
    }

    /// Takes the exclusive lock on `path`, creating the file if need be; `None` when another
    /// handle, of this process or another, holds it. Held until the [`LockFile`] is dropped.
    pub fn lock(&self, path: impl Into<PathBuf>) -> Op<Result<Option<LockFile>>> {
        self.pool.lock(path.into())
    }

    /// Holds submissions of this thread back until the guard is dropped.
    pub fn plug(&self) -> Plug {
        Plug { _not_send: std::marker::PhantomData }
    }
}

/// An exclusive lock on a file; dropping it releases the lock.
pub struct LockFile {
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) file: portable::StdFile,
}

/// An open file. A clone is another handle to the same open file; operations in flight keep it
/// open.
#[derive(Clone)]
pub struct File {
    pub(crate) inner: Arc<portable::FileInner>,
}

impl File {
    /// Reads `buf.len()` bytes at `offset` into `buf`; fewer only at the end of the file. The
    /// first poll tries the page cache without waiting.
    pub fn read_at(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        portable::read_at(self.clone(), buf, offset)
    }

    /// Reads from the page cache without waiting: the number of bytes when all of `buf`, or all up
    /// to the end of the file, was there; `None` when the read would have to wait or the platform
    /// cannot tell.
    pub fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<Result<usize>> {
        portable::try_read_at(self, buf, offset)
    }

    /// Writes all of `buf` at `offset`.
    pub fn write_at(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        portable::write_at(self.clone(), buf, offset, false)
    }

    /// Writes all of `buf` at `offset`; durable when it resolves.
    pub fn write_at_durable(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        portable::write_at(self.clone(), buf, offset, true)
    }

    /// Writes all of `bytes` into the page cache, on the calling thread: one system call and one
    /// copy. Not for files opened with `direct`.
    ///
    /// # Errors
    ///
    /// When the system refuses; any prefix may have been written.
    pub fn write_cached(&self, bytes: &[u8], offset: u64) -> Result<()> {
        portable::write_cached(self, bytes, offset)
    }

    /// Makes all resolved writes, and the length, durable.
    pub fn sync_data(&self) -> Op<Result<()>> {
        portable::sync_data(self.clone())
    }

    /// Reserves disk space for the first `len` bytes, extending the file with zeros to `len`; a
    /// longer file stays as it is.
    pub fn allocate(&self, len: u64) -> Op<Result<()>> {
        portable::allocate(self.clone(), len)
    }

    /// Sets the length.
    pub fn set_len(&self, len: u64) -> Op<Result<()>> {
        portable::set_len(self.clone(), len)
    }

    /// The length in bytes.
    pub fn len(&self) -> Op<Result<u64>> {
        portable::len(self.clone())
    }

    /// Whether reads and writes bypass the page cache, with the alignment duties that follow.
    pub fn is_direct(&self) -> bool {
        self.inner.direct
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}
