//! The blocking file calls of the system: the only module that names `std::fs`.
//!
//! Invariants:
//! 1. Every call is one system call, or a loop of which the caller cannot observe the middle.
//! 2. Nothing outside the blocks marked `target_os = "linux"` needs Linux.
//! 3. Files are created with mode 0600 and directories with 0700; descriptors are close-on-exec,
//!    which is the default of the standard library.
#![expect(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the boundary")]

use std::io;
use std::path::Path;

#[cfg(target_os = "linux")]
use rustix::io::{Errno, ReadWriteFlags};

use crate::fs::{Class, DirEntry, OpenOptions};

pub(crate) type StdFile = std::fs::File;

/// Opens a file; the flag says whether it bypasses the page cache.
pub(crate) fn open(path: &Path, options: OpenOptions) -> io::Result<(StdFile, bool)> {
    let mut buffered = options;
    if options.direct {
        match open_direct(path, options) {
            Ok(file) => return Ok((file, true)),
            Err(e) if e.raw_os_error() == refused_direct() => {
                // The file system has no direct I/O, and some notice only after they created the
                // file. An older file of that name would have been refused with another error.
                buffered.create_new = options.create_new && path.symlink_metadata().is_err();
            }
            Err(e) => return Err(e),
        }
    }
    let file = base(buffered).open(path)?;
    advise(&file, options.class);
    Ok((file, false))
}

#[cfg(target_os = "linux")]
fn refused_direct() -> Option<i32> {
    Some(Errno::INVAL.raw_os_error())
}

#[cfg(not(target_os = "linux"))]
fn refused_direct() -> Option<i32> {
    None
}

#[cfg(target_os = "linux")]
fn open_direct(path: &Path, options: OpenOptions) -> io::Result<StdFile> {
    use std::os::unix::fs::OpenOptionsExt;
    let direct = rustix::fs::OFlags::DIRECT.bits();
    base(options).custom_flags(direct.cast_signed()).open(path)
}

// Elsewhere direct files are ordinary ones; the flag of `open` must then say so.
#[cfg(not(target_os = "linux"))]
fn open_direct(_path: &Path, _options: OpenOptions) -> io::Result<StdFile> {
    Err(io::ErrorKind::Unsupported.into())
}

fn base(options: OpenOptions) -> std::fs::OpenOptions {
    let mut base = std::fs::OpenOptions::new();
    base.read(true).write(options.write).create_new(options.create_new);
    owner_only(&mut base);
    base
}

#[cfg(unix)]
fn owner_only(options: &mut std::fs::OpenOptions) {
    use std::os::unix::fs::OpenOptionsExt;
    options.mode(0o600);
}

#[cfg(not(unix))]
fn owner_only(_options: &mut std::fs::OpenOptions) {}

/// Point reads must not drag the device's read-ahead window (8 MiB on some disks) with them.
#[cfg(target_os = "linux")]
fn advise(file: &StdFile, class: Class) {
    if class == Class::Foreground {
        // Only a hint: a file system that does not know it reads the same bytes.
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random).ok();
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_file: &StdFile, _class: Class) {}

/// One positioned read.
pub(crate) fn read_once(file: &StdFile, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, buf, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, buf, offset);
}

/// One positioned write.
pub(crate) fn write_once(file: &StdFile, bytes: &[u8], offset: u64) -> io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::write_at(file, bytes, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_write(file, bytes, offset);
}

/// One positioned write that is durable when it returns.
#[cfg(target_os = "linux")]
pub(crate) fn write_durable_once(file: &StdFile, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let slices = [io::IoSlice::new(bytes)];
    match rustix::io::pwritev2(file, &slices, offset, ReadWriteFlags::DSYNC) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let n = write_once(file, bytes, offset)?;
            file.sync_data()?;
            Ok(n)
        }
        result => Ok(result?),
    }
}

/// One positioned write that is durable when it returns.
#[cfg(not(target_os = "linux"))]
pub(crate) fn write_durable_once(file: &StdFile, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let n = write_once(file, bytes, offset)?;
    file.sync_data()?;
    Ok(n)
}

/// What the page cache said.
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "nobody else can answer"))]
pub(crate) enum Cached {
    /// All bytes, or all up to the end of the file, were there.
    Hit(usize),
    /// The read would have to wait, or ended early for an unknown reason.
    Miss,
    /// This file cannot be read without waiting; asking again is useless.
    Unsupported,
    /// The read failed.
    Failed(io::Error),
}

/// Reads what the page cache holds, without waiting for the device.
#[cfg(target_os = "linux")]
pub(crate) fn read_cached(file: &StdFile, buf: &mut [u8], offset: u64) -> Cached {
    let wanted = buf.len();
    let mut slices = [io::IoSliceMut::new(buf)];
    match rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT) {
        Ok(n) if n == wanted => Cached::Hit(n),
        // A short count may mean the end of the file or a page that is not there. Only the length,
        // asked for after the read, can prove the first.
        Ok(n) => match file.metadata() {
            Ok(meta) if meta.len() <= offset + n as u64 => Cached::Hit(n),
            _ => Cached::Miss,
        },
        Err(Errno::AGAIN | Errno::INTR) => Cached::Miss,
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Cached::Unsupported,
        Err(e) => Cached::Failed(e.into()),
    }
}

/// Reads what the page cache holds, without waiting for the device.
#[cfg(not(target_os = "linux"))]
pub(crate) fn read_cached(_file: &StdFile, _buf: &mut [u8], _offset: u64) -> Cached {
    Cached::Unsupported
}

/// Writes all of `bytes` into the page cache.
pub(crate) fn write_all(file: &StdFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match write_once(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = bytes.get(n..).expect("the system wrote at most what it was given");
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Makes the data and the length of a file durable.
pub(crate) fn sync_data(file: &StdFile) -> io::Result<()> {
    file.sync_data()
}

/// The length of a file.
pub(crate) fn len(file: &StdFile) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// Sets the length of a file.
pub(crate) fn set_len(file: &StdFile, len: u64) -> io::Result<()> {
    file.set_len(len)
}

/// Reserves space for the first `len` bytes and extends the file to them.
pub(crate) fn allocate(file: &StdFile, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    #[cfg(target_os = "linux")]
    loop {
        match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(e) => return Err(e.into()),
        }
    }
    if file.metadata()?.len() < len {
        file.set_len(len)?;
    }
    Ok(())
}

/// Creates a directory; an existing one is fine.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result,
    }
}

/// Renames a file.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)
}

/// Removes a file.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

/// Lists a directory.
pub(crate) fn list_dir(path: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(meta) => entries.push(DirEntry {
                name: entry.file_name(),
                is_file: meta.is_file(),
                len: meta.len(),
            }),
            // Removed since the directory was read: then it is not there.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(entries)
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    // Windows has no such call: NTFS journals its directories.
    if cfg!(windows) {
        return Ok(());
    }
    StdFile::open(path)?.sync_all()
}

/// An exclusive lock on a file; its drop gives it back.
pub(crate) struct Lock {
    file: StdFile,
    process: u32,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that was forked a moment ago, and has not yet executed its
        // program, has the file open too. And such a child must not give back what is ours.
        if std::process::id() == self.process
            && let Err(error) = self.file.unlock()
        {
            tracing::warn!(%error, "a lock could not be given back");
        }
    }
}

/// Takes the exclusive lock on a file, creating it if need be.
pub(crate) fn lock(path: &Path) -> io::Result<Option<Lock>> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    owner_only(&mut options);
    let file = options.open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { file, process: std::process::id() })),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(e)) => Err(e),
    }
}
