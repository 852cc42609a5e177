//! The error numbers that a simulated machine answers with.
//!
//! All but one are the same on Linux, macOS and the BSDs.

use std::io;

/// No such file or directory.
pub const ENOENT: i32 = 2;
/// Input or output error.
pub const EIO: i32 = 5;
/// Not open for that.
pub const EBADF: i32 = 9;
/// No memory for it.
pub const ENOMEM: i32 = 12;
/// Permission denied.
pub const EACCES: i32 = 13;
/// The name exists.
pub const EEXIST: i32 = 17;
/// Not a directory.
pub const ENOTDIR: i32 = 20;
/// A directory.
pub const EISDIR: i32 = 21;
/// Invalid argument.
pub const EINVAL: i32 = 22;
/// Too many open files in the system.
pub const ENFILE: i32 = 23;
/// Too many open files in the process.
pub const EMFILE: i32 = 24;
/// The file is too large.
pub const EFBIG: i32 = 27;
/// No space left on the device.
pub const ENOSPC: i32 = 28;
/// A read-only file system.
pub const EROFS: i32 = 30;
/// The quota is used up.
#[cfg(target_os = "linux")]
pub const EDQUOT: i32 = 122;
/// The quota is used up.
#[cfg(not(target_os = "linux"))]
pub const EDQUOT: i32 = 69;

/// The error of a number.
pub(super) fn error(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}
