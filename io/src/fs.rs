//! Files and directories: owned-buffer operations with one contract for all backends.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::buf::AlignedBuf;
use crate::error::{Operation, Result};
use crate::lane::plug;
use crate::sys;
use crate::system::Handle;
use crate::transfer::{FileInner, Kind, Transfer};

pub use crate::op::Op;

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

/// Holds back the submission of operations started on this thread until it is dropped, so that
/// several first polls reach the ring in one go.
#[must_use = "submissions are held back only while the plug lives"]
pub struct Plug {
    /// The count of plugs is the thread's.
    _not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Plug {
    fn drop(&mut self) {
        plug::end();
    }
}

/// The file system.
#[derive(Clone)]
pub struct Fs {
    handle: Arc<Handle>,
}

impl Fs {
    pub(crate) fn new(handle: Arc<Handle>) -> Fs {
        Fs { handle }
    }

    /// Opens or creates a file (mode 0600).
    pub fn open(&self, path: impl Into<PathBuf>, options: OpenOptions) -> Op<Result<File>> {
        let handle = Arc::clone(&self.handle);
        Op::call(&self.handle, Operation::Open, path, move |path| {
            let (file, direct) = sys::open(path, options)?;
            Ok(File {
                inner: Arc::new(FileInner {
                    file,
                    path: Arc::from(path),
                    direct,
                    class: options.class,
                    cached_reads: AtomicBool::new(true),
                    handle,
                }),
            })
        })
    }

    /// Creates a directory (mode 0700). An existing one is fine, a missing parent is an error.
    pub fn create_dir(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        Op::call(&self.handle, Operation::CreateDir, path, sys::create_dir)
    }

    /// Renames a file, replacing what has the new name.
    pub fn rename(&self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Op<Result<()>> {
        let to = to.into();
        Op::call(&self.handle, Operation::Rename, from, move |from| sys::rename(from, &to))
    }

    /// Removes a file.
    pub fn remove_file(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        Op::call(&self.handle, Operation::Remove, path, sys::remove_file)
    }

    /// The entries of a directory, in no particular order.
    pub fn list_dir(&self, path: impl Into<PathBuf>) -> Op<Result<Vec<DirEntry>>> {
        Op::call(&self.handle, Operation::ListDir, path, sys::list_dir)
    }

    /// Makes the entries of a directory durable.
    pub fn sync_dir(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        Op::call(&self.handle, Operation::SyncDir, path, sys::sync_dir)
    }

    /// Takes the exclusive lock on `path`, creating the file if need be; `None` when another
    /// handle, of this process or another, holds it. Held until the [`LockFile`] is dropped.
    pub fn lock(&self, path: impl Into<PathBuf>) -> Op<Result<Option<LockFile>>> {
        Op::call(&self.handle, Operation::Lock, path, |path| {
            Ok(sys::lock(path)?.map(|file| LockFile { file }))
        })
    }

    /// Holds submissions of this thread back until the guard is dropped.
    pub fn plug(&self) -> Plug {
        plug::begin();
        Plug { _not_send: std::marker::PhantomData }
    }
}

/// An exclusive lock on a file; dropping it releases the lock.
pub struct LockFile {
    #[expect(dead_code, reason = "held for its drop")]
    file: sys::StdFile,
}

/// An open file. A clone is another handle to the same open file; operations in flight keep it
/// open.
#[derive(Clone)]
pub struct File {
    pub(crate) inner: Arc<FileInner>,
}

impl File {
    /// Reads `buf.len()` bytes at `offset` into `buf`; fewer only at the end of the file. The
    /// first poll tries the page cache without waiting.
    pub fn read_at(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        Op::buffer(self.transfer(Kind::Read, buf, offset))
    }

    /// Reads from the page cache without waiting: the number of bytes when all of `buf`, or all up
    /// to the end of the file, was there; `None` when the read would have to wait or the platform
    /// cannot tell.
    pub fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<Result<usize>> {
        let read = self.inner.read_cached(buf, offset)?;
        Some(read.map_err(|e| self.inner.error(Operation::Read, Some(offset), e)))
    }

    /// Writes all of `buf` at `offset`.
    pub fn write_at(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        Op::buffer(self.transfer(Kind::Write, buf, offset))
    }

    /// Writes all of `buf` at `offset`; durable when it resolves.
    pub fn write_at_durable(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        Op::buffer(self.transfer(Kind::WriteDurable, buf, offset))
    }

    /// Writes all of `bytes` into the page cache, on the calling thread: one system call and one
    /// copy. Not for files opened with `direct`.
    ///
    /// # Errors
    ///
    /// When the system refuses; any prefix may have been written.
    pub fn write_cached(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if self.inner.direct {
            let text = "a direct file has no page cache to write into";
            let e = io::Error::new(io::ErrorKind::InvalidInput, text);
            return Err(self.inner.error(Operation::Write, Some(offset), e));
        }
        let written = sys::write_all(&self.inner.file, bytes, offset);
        written.map_err(|e| self.inner.error(Operation::Write, Some(offset), e))
    }

    /// Makes all resolved writes, and the length, durable.
    pub fn sync_data(&self) -> Op<Result<()>> {
        Op::sync(self.transfer(Kind::Sync, AlignedBuf::new(), 0))
    }

    /// Reserves disk space for the first `len` bytes, extending the file with zeros to `len`; a
    /// longer file stays as it is.
    pub fn allocate(&self, len: u64) -> Op<Result<()>> {
        self.call(Operation::Resize, move |file| sys::allocate(file, len))
    }

    /// Sets the length.
    pub fn set_len(&self, len: u64) -> Op<Result<()>> {
        self.call(Operation::Resize, move |file| sys::set_len(file, len))
    }

    /// The length in bytes.
    pub fn len(&self) -> Op<Result<u64>> {
        self.call(Operation::Inspect, sys::len)
    }

    /// Whether reads and writes bypass the page cache, with the alignment duties that follow.
    pub fn is_direct(&self) -> bool {
        self.inner.direct
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    fn transfer(&self, kind: Kind, buf: AlignedBuf, offset: u64) -> Transfer {
        Transfer::new(kind, Arc::clone(&self.inner), buf, offset)
    }

    fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        call: impl FnOnce(&sys::StdFile) -> io::Result<T> + Send + 'static,
    ) -> Op<Result<T>> {
        let file = Arc::clone(&self.inner);
        Op::call(&self.inner.handle, operation, &*self.inner.path, move |_| call(&file.file))
    }
}
