//! Files and directories: owned-buffer operations with one contract for all backends.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::buf::{AlignedBuf, BUF_ALIGN};
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
    served: Served,
}

/// Who serves a file system.
#[derive(Clone)]
enum Served {
    System(Arc<Handle>),
    #[cfg(feature = "sim")]
    Sim(Arc<dyn SimFs>),
}

/// The file system of a simulated machine.
#[cfg(feature = "sim")]
pub(crate) trait SimFs: Send + Sync {
    fn open(&self, path: PathBuf, options: OpenOptions) -> Op<Result<File>>;
    fn create_dir(&self, path: PathBuf) -> Op<Result<()>>;
    fn rename(&self, from: PathBuf, to: PathBuf) -> Op<Result<()>>;
    fn remove_file(&self, path: PathBuf) -> Op<Result<()>>;
    fn list_dir(&self, path: PathBuf) -> Op<Result<Vec<DirEntry>>>;
    fn sync_dir(&self, path: PathBuf) -> Op<Result<()>>;
    fn lock(&self, path: PathBuf) -> Op<Result<Option<LockFile>>>;
}

/// The handle of a real file system, or the answer of a simulated one.
macro_rules! system_or {
    ($served:expr, $sim:ident => $simulated:expr) => {{
        match $served {
            Served::System(handle) => handle,
            #[cfg(feature = "sim")]
            Served::Sim($sim) => return $simulated,
        }
    }};
}

impl Fs {
    pub(crate) fn new(handle: Arc<Handle>) -> Fs {
        Fs { served: Served::System(handle) }
    }

    #[cfg(feature = "sim")]
    pub(crate) fn simulated(sim: Arc<dyn SimFs>) -> Fs {
        Fs { served: Served::Sim(sim) }
    }

    /// Opens or creates a file (mode 0600).
    pub fn open(&self, path: impl Into<PathBuf>, options: OpenOptions) -> Op<Result<File>> {
        let handle = system_or!(&self.served, sim => sim.open(path.into(), options));
        let owned = Arc::clone(handle);
        Op::call(handle, Operation::Open, path, move |path| {
            let (file, direct) = sys::open(path, options)?;
            let inner = FileInner {
                file,
                path: Arc::from(path),
                direct,
                class: options.class,
                cached_reads: AtomicBool::new(true),
                handle: owned,
            };
            Ok(File { opened: Opened::System(Arc::new(inner)) })
        })
    }

    /// Creates a directory (mode 0700). An existing one is fine, a missing parent is an error.
    pub fn create_dir(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        let handle = system_or!(&self.served, sim => sim.create_dir(path.into()));
        Op::call(handle, Operation::CreateDir, path, sys::create_dir)
    }

    /// Renames a file, replacing what has the new name.
    pub fn rename(&self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Op<Result<()>> {
        let to = to.into();
        let handle = system_or!(&self.served, sim => sim.rename(from.into(), to));
        Op::call(handle, Operation::Rename, from, move |from| sys::rename(from, &to))
    }

    /// Removes a file.
    pub fn remove_file(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        let handle = system_or!(&self.served, sim => sim.remove_file(path.into()));
        Op::call(handle, Operation::Remove, path, sys::remove_file)
    }

    /// The entries of a directory, in no particular order.
    pub fn list_dir(&self, path: impl Into<PathBuf>) -> Op<Result<Vec<DirEntry>>> {
        let handle = system_or!(&self.served, sim => sim.list_dir(path.into()));
        Op::call(handle, Operation::ListDir, path, sys::list_dir)
    }

    /// Makes the entries of a directory durable.
    pub fn sync_dir(&self, path: impl Into<PathBuf>) -> Op<Result<()>> {
        let handle = system_or!(&self.served, sim => sim.sync_dir(path.into()));
        Op::call(handle, Operation::SyncDir, path, sys::sync_dir)
    }

    /// Takes the exclusive lock on `path`, creating the file if need be; `None` when another
    /// handle, of this process or another, holds it. Held until the [`LockFile`] is dropped.
    pub fn lock(&self, path: impl Into<PathBuf>) -> Op<Result<Option<LockFile>>> {
        let handle = system_or!(&self.served, sim => sim.lock(path.into()));
        Op::call(handle, Operation::Lock, path, |path| {
            Ok(sys::lock(path)?.map(|file| LockFile { held: Held::System(file) }))
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
    held: Held,
}

#[expect(dead_code, reason = "held for its drop")]
enum Held {
    System(sys::Lock),
    #[cfg(feature = "sim")]
    Sim(Box<dyn std::any::Any + Send + Sync>),
}

#[cfg(feature = "sim")]
impl LockFile {
    pub(crate) fn simulated(held: Box<dyn std::any::Any + Send + Sync>) -> LockFile {
        LockFile { held: Held::Sim(held) }
    }
}

/// An open file. A clone is another handle to the same open file; operations in flight keep it
/// open.
#[derive(Clone)]
pub struct File {
    opened: Opened,
}

/// Who serves an open file.
#[derive(Clone)]
enum Opened {
    System(Arc<FileInner>),
    #[cfg(feature = "sim")]
    Sim(Arc<dyn SimFile>),
}

/// A file of a simulated machine.
#[cfg(feature = "sim")]
pub(crate) trait SimFile: Send + Sync {
    fn transfer(&self, kind: Kind, buf: AlignedBuf, offset: u64) -> Op<BufResult>;
    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<Result<usize>>;
    fn write_cached(&self, bytes: &[u8], offset: u64) -> Result<()>;
    fn sync_data(&self) -> Op<Result<()>>;
    fn allocate(&self, len: u64) -> Op<Result<()>>;
    fn set_len(&self, len: u64) -> Op<Result<()>>;
    fn len(&self) -> Op<Result<u64>>;
    fn is_direct(&self) -> bool;
    fn path(&self) -> &Path;
}

/// The real open file, or the answer of a simulated one.
macro_rules! real_or {
    ($opened:expr, $sim:ident => $simulated:expr) => {{
        match $opened {
            Opened::System(inner) => inner,
            #[cfg(feature = "sim")]
            Opened::Sim($sim) => return $simulated,
        }
    }};
}

impl File {
    /// The file as a real backend sees it.
    #[cfg(all(test, target_os = "linux", not(seerdb_no_uring)))]
    pub(crate) fn system(&self) -> Option<&Arc<FileInner>> {
        match &self.opened {
            Opened::System(inner) => Some(inner),
            #[cfg(feature = "sim")]
            Opened::Sim(_) => None,
        }
    }

    #[cfg(feature = "sim")]
    pub(crate) fn simulated(file: Arc<dyn SimFile>) -> File {
        File { opened: Opened::Sim(file) }
    }

    /// Reads `buf.len()` bytes at `offset` into `buf`; fewer only at the end of the file. The
    /// first poll tries the page cache without waiting.
    pub fn read_at(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        self.transfer(Kind::Read, buf, offset)
    }

    /// Reads from the page cache without waiting: the number of bytes when all of `buf`, or all up
    /// to the end of the file, was there; `None` when the read would have to wait or the platform
    /// cannot tell.
    pub fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<Result<usize>> {
        let inner = real_or!(&self.opened, sim => sim.try_read_at(buf, offset));
        let read = inner.read_cached(buf, offset)?;
        Some(read.map_err(|e| inner.error(Operation::Read, Some(offset), e)))
    }

    /// Where a read of the `len` bytes at `offset` has to begin, and how long it has to be: as
    /// asked, or widened to [`BUF_ALIGN`] for a direct file.
    pub fn cover(&self, offset: u64, len: usize) -> (u64, usize) {
        if !self.is_direct() {
            return (offset, len);
        }
        let skip = usize::try_from(offset % BUF_ALIGN as u64).expect("below BUF_ALIGN");
        (offset - skip as u64, (skip + len).next_multiple_of(BUF_ALIGN))
    }

    /// Writes all of `buf` at `offset`.
    pub fn write_at(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        self.transfer(Kind::Write, buf, offset)
    }

    /// Writes all of `buf` at `offset`; durable when it resolves.
    pub fn write_at_durable(&self, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        self.transfer(Kind::WriteDurable, buf, offset)
    }

    /// Writes all of `bytes` into the page cache, on the calling thread: one system call and one
    /// copy. Not for files opened with `direct`.
    ///
    /// # Errors
    ///
    /// When the system refuses; any prefix may have been written.
    pub fn write_cached(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let inner = real_or!(&self.opened, sim => sim.write_cached(bytes, offset));
        if inner.direct {
            let text = "a direct file has no page cache to write into";
            let e = io::Error::new(io::ErrorKind::InvalidInput, text);
            return Err(inner.error(Operation::Write, Some(offset), e));
        }
        let written = inner.handle.system().shared.check_process();
        let written = written.and_then(|()| sys::write_all(&inner.file, bytes, offset));
        written.map_err(|e| inner.error(Operation::Write, Some(offset), e))
    }

    /// Makes all resolved writes, and the length, durable.
    pub fn sync_data(&self) -> Op<Result<()>> {
        let inner = real_or!(&self.opened, sim => sim.sync_data());
        Op::sync(Transfer::new(Kind::Sync, Arc::clone(inner), AlignedBuf::new(), 0))
    }

    /// Reserves disk space for the first `len` bytes, extending the file with zeros to `len`; a
    /// longer file stays as it is.
    pub fn allocate(&self, len: u64) -> Op<Result<()>> {
        let inner = real_or!(&self.opened, sim => sim.allocate(len));
        call(inner, Operation::Resize, move |file| sys::allocate(file, len))
    }

    /// Sets the length.
    pub fn set_len(&self, len: u64) -> Op<Result<()>> {
        let inner = real_or!(&self.opened, sim => sim.set_len(len));
        call(inner, Operation::Resize, move |file| sys::set_len(file, len))
    }

    /// The length in bytes.
    pub fn len(&self) -> Op<Result<u64>> {
        let inner = real_or!(&self.opened, sim => sim.len());
        call(inner, Operation::Inspect, sys::len)
    }

    /// Whether reads and writes bypass the page cache, with the alignment duties that follow.
    pub fn is_direct(&self) -> bool {
        real_or!(&self.opened, sim => sim.is_direct()).direct
    }

    /// The path it was opened with.
    pub fn path(&self) -> &Path {
        &real_or!(&self.opened, sim => sim.path()).path
    }

    fn transfer(&self, kind: Kind, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        let inner = real_or!(&self.opened, sim => sim.transfer(kind, buf, offset));
        Op::buffer(Transfer::new(kind, Arc::clone(inner), buf, offset))
    }
}

/// A blocking call for an open file.
fn call<T: Send + 'static>(
    inner: &Arc<FileInner>,
    operation: Operation,
    call: impl FnOnce(&sys::StdFile) -> io::Result<T> + Send + 'static,
) -> Op<Result<T>> {
    let file = Arc::clone(inner);
    Op::call(&inner.handle, operation, &*inner.path, move |_| call(&file.file))
}
