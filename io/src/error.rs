//! The error of a file operation: what was done, to which file, at which offset, and why it failed.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A result whose error is an I/O [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The file operation that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Open or create a file.
    Open,
    /// Read bytes.
    Read,
    /// Write bytes.
    Write,
    /// Make written bytes durable.
    Sync,
    /// Reserve or cut space.
    Resize,
    /// Ask for the length of a file.
    Inspect,
    /// Create a directory.
    CreateDir,
    /// List a directory.
    ListDir,
    /// Make directory entries durable.
    SyncDir,
    /// Rename a file.
    Rename,
    /// Remove a file.
    Remove,
    /// Take the lock of a directory.
    Lock,
    /// Start the backend or one of its threads.
    Start,
}

impl Operation {
    fn verb(self) -> &'static str {
        match self {
            Operation::Open => "open",
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Sync => "sync",
            Operation::Resize => "resize",
            Operation::Inspect => "inspect",
            Operation::CreateDir => "create directory",
            Operation::ListDir => "list directory",
            Operation::SyncDir => "sync directory",
            Operation::Rename => "rename",
            Operation::Remove => "remove",
            Operation::Lock => "lock",
            Operation::Start => "start I/O for",
        }
    }
}

/// Why a file operation failed. Cheap to clone, so that one failure can reach many waiters.
#[derive(Clone)]
pub struct Error {
    operation: Operation,
    path: Arc<Path>,
    offset: Option<u64>,
    source: Arc<io::Error>,
}

impl Error {
    /// An error of `operation` on `path`, with the byte offset where there is one.
    pub fn new(
        operation: Operation,
        path: impl Into<PathBuf>,
        offset: Option<u64>,
        source: io::Error,
    ) -> Self {
        Error::shared(operation, Arc::from(path.into()), offset, source)
    }

    pub(crate) fn shared(
        operation: Operation,
        path: Arc<Path>,
        offset: Option<u64>,
        source: io::Error,
    ) -> Self {
        Error { operation, path, offset, source: Arc::new(source) }
    }

    /// What was attempted.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The file or directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The byte offset, for reads and writes.
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// The kind of the underlying error.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// The error number of the system, where it gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Whether the device, the quota or the file size limit has no room left.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }

    /// Whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}", self.operation.verb(), self.path.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.source)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}
