//! The one error type: what the caller should do (kind), what happened (context), and why (source).
//!
//! Invariants:
//! 1. `Corruption` always names a file and an offset.
//! 2. `Display` is a sentence for a person; programs look at [`Error::kind`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A result whose error is an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller should do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The call was wrong (a limit, a contradiction): mend the caller. Nothing was changed.
    InvalidArgument,
    /// This version or configuration cannot do it, for instance read a newer format.
    NotSupported,
    /// Accepting the write now would have to wait: shed load or retry later.
    WouldStall,
    /// The disk is full. Nothing was changed; retry when there is room, without reopening.
    NoSpace,
    /// The system refused a file operation; reads may be retried.
    Io,
    /// Bytes on disk are not what was written there: restore from a copy.
    Corruption,
    /// The commit may or may not survive: reopen the database and look.
    Indeterminate,
    /// Writing has stopped after a failure that cannot be undone; reads go on. Reopen.
    FailStop,
    /// Another handle has the directory open.
    Locked,
    /// The database is closed.
    Closed,
    /// Somebody called it off. What was done stays done; it may be asked for again.
    Cancelled,
    /// The handle came into this process by a fork: use it in the process that opened it, or open
    /// the database here once that one has closed it. Nothing was changed.
    Forked,
}

/// Everything that can go wrong. Cheap to clone, so that one failure can reach many waiters.
#[derive(Clone)]
pub struct Error(Arc<Repr>);

struct Repr {
    kind: ErrorKind,
    context: String,
    location: Option<(PathBuf, u64)>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Repr {
    fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Repr { kind, context: context.into(), location: None, retry_after: None, source: None }
    }
}

impl Error {
    /// An error of `kind` that says what happened.
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Error(Arc::new(Repr::new(kind, context)))
    }

    /// The caller passed something wrong.
    pub(crate) fn invalid(context: impl Into<String>) -> Self {
        Error::new(ErrorKind::InvalidArgument, context)
    }

    /// Bytes at `offset` of `file` are not what was written.
    pub(crate) fn corruption(
        file: impl Into<PathBuf>,
        offset: u64,
        what: impl Into<String>,
    ) -> Self {
        let location = Some((file.into(), offset));
        Error(Arc::new(Repr { location, ..Repr::new(ErrorKind::Corruption, what) }))
    }

    /// The database is closed.
    pub(crate) fn closed() -> Self {
        Error::new(ErrorKind::Closed, "the database is closed")
    }

    /// What was asked for was called off.
    pub(crate) fn cancelled() -> Self {
        Error::new(ErrorKind::Cancelled, "the compaction was called off")
    }

    /// The handle was carried into another process.
    pub(crate) fn forked() -> Self {
        let sentence = "the database was opened by another process, from which this one was forked";
        Error::new(ErrorKind::Forked, sentence)
    }

    /// A write would have to wait, for about so long.
    pub(crate) fn would_stall(retry_after: Duration) -> Self {
        let context = "the write would have to wait for a flush";
        let retry_after = Some(retry_after);
        Error(Arc::new(Repr { retry_after, ..Repr::new(ErrorKind::WouldStall, context) }))
    }

    /// An error of `kind` caused by `source`.
    pub(crate) fn caused(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let source: Arc<dyn std::error::Error + Send + Sync> = Arc::new(source);
        Error(Arc::new(Repr { source: Some(source), ..Repr::new(kind, context) }))
    }

    /// The same failure, told with what it means for the caller.
    pub(crate) fn with_kind(&self, kind: ErrorKind, context: impl Into<String>) -> Self {
        Error::caused(kind, context, self.clone())
    }

    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// For corruption: the file, and the byte offset in it where the damage was noticed.
    pub fn location(&self) -> Option<(&Path, u64)> {
        self.0.location.as_ref().map(|(file, offset)| (file.as_path(), *offset))
    }

    /// For `WouldStall`: when to try again. A guess from the pace of recent flushes.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the same call may succeed later without anybody mending anything.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, ErrorKind::WouldStall | ErrorKind::NoSpace)
    }

    /// Whether bytes on disk are damaged.
    pub fn is_corruption(&self) -> bool {
        self.0.kind == ErrorKind::Corruption
    }
}

impl From<seerdb_io::Error> for Error {
    fn from(source: seerdb_io::Error) -> Self {
        let kind = if source.is_no_space() { ErrorKind::NoSpace } else { ErrorKind::Io };
        Error::caused(kind, "a file operation failed", source)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        if let Some((file, offset)) = &self.0.location {
            write!(f, " in {} at offset {offset}", file.display())?;
        }
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as &(dyn std::error::Error + 'static))
    }
}
