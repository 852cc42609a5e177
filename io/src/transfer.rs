//! One read, write or sync of a file, and its progress through short results and retries.
//!
//! Invariants:
//! 1. A [`Transfer`] owns its buffer and a handle to its file until it is finished; whoever holds
//!    the transfer keeps both alive, whatever became of the future.
//! 2. [`Progress`] is pure: it sees results and says what to do next, so that every backend treats
//!    short results, retries and the end of a file alike.
//! 3. `done <= len`; on a direct file `done` is a multiple of [`BUF_ALIGN`], or `len`.
//! 4. Every [`Request`] is answered exactly once, or leaked together with its buffer.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use futures::channel::oneshot;

use crate::buf::{AlignedBuf, BUF_ALIGN};
use crate::error::{Error, Operation, Result};
use crate::fs::{BufResult, Class};
use crate::sys::{self, Cached, StdFile};
use crate::system::Handle;

/// An open file as the backends see it.
pub(crate) struct FileInner {
    pub(crate) file: StdFile,
    pub(crate) path: Arc<Path>,
    pub(crate) direct: bool,
    pub(crate) class: Class,
    /// Whether reading without waiting is worth a try; cleared when the file system refuses it.
    pub(crate) cached_reads: AtomicBool,
    /// Keeps the backend's threads alive while the file is open.
    pub(crate) handle: Arc<Handle>,
}

impl FileInner {
    pub(crate) fn error(&self, operation: Operation, offset: Option<u64>, e: io::Error) -> Error {
        Error::shared(operation, Arc::clone(&self.path), offset, e)
    }

    /// Reads from the page cache without waiting; `None` when that cannot answer.
    pub(crate) fn read_cached(&self, buf: &mut [u8], offset: u64) -> Option<io::Result<usize>> {
        // Order: Relaxed, a hint; a stale value costs one useless system call.
        if self.direct || !self.cached_reads.load(Ordering::Relaxed) {
            return None;
        }
        match sys::read_cached(&self.file, buf, offset) {
            Cached::Hit(n) => Some(Ok(n)),
            Cached::Miss => None,
            Cached::Unsupported => {
                self.cached_reads.store(false, Ordering::Relaxed);
                None
            }
            Cached::Failed(e) => Some(Err(e)),
        }
    }
}

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    WriteDurable,
    Sync,
}

impl Kind {
    pub(crate) fn operation(self) -> Operation {
        match self {
            Kind::Read => Operation::Read,
            Kind::Write | Kind::WriteDurable => Operation::Write,
            Kind::Sync => Operation::Sync,
        }
    }
}

/// What to do after a result of the kernel.
#[derive(Debug)]
pub(crate) enum Next {
    /// The transfer is over.
    Done(io::Result<usize>),
    /// Submit [`Progress::chunk`].
    Again,
    /// The ring cannot do it (again); a blocking call shall.
    Detour,
    /// The kernel claims to have moved more than it was asked for.
    Impossible,
}

/// Transient refusals in a row before the ring is given up for an operation: each retry is
/// immediate, and a blocking call is the back-off that does not spin.
const REFUSALS_MAX: u8 = 16;

/// The most bytes for one call: the result of a completion is an `i32`.
pub(crate) const CHUNK_MAX: usize = 1 << 30;

/// How far a transfer has come.
#[derive(Debug, Clone)]
pub(crate) struct Progress {
    kind: Kind,
    direct: bool,
    len: usize,
    done: usize,
    /// Where the last short read of a direct file ended; ending there twice is the end of file.
    ended: Option<usize>,
    refusals: u8,
}

impl Progress {
    pub(crate) fn new(kind: Kind, direct: bool, len: usize) -> Self {
        Progress { kind, direct, len, done: 0, ended: None, refusals: 0 }
    }

    /// The part of the buffer for the next call; empty for a sync.
    pub(crate) fn chunk(&self) -> Range<usize> {
        let end = self.len.min(self.done.saturating_add(chunk_max()));
        self.done..end
    }

    /// Takes in the result of a call: bytes moved, or the error number.
    pub(crate) fn advance(&mut self, result: std::result::Result<usize, i32>) -> Next {
        let code = match result {
            Ok(n) if n > self.chunk().len() => return Next::Impossible,
            Ok(n) => return self.moved(n),
            Err(code) => code,
        };
        let error = io::Error::from_raw_os_error(code);
        match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {
                self.refusals += 1;
                if self.refusals >= REFUSALS_MAX { Next::Detour } else { Next::Again }
            }
            _ if detours(code) => Next::Detour,
            _ => Next::Done(Err(error)),
        }
    }

    fn moved(&mut self, n: usize) -> Next {
        self.refusals = 0;
        let end = self.done + n;
        match self.kind {
            Kind::Sync => return Next::Done(Ok(0)),
            Kind::Read if n == 0 => return Next::Done(Ok(self.done)),
            Kind::Write | Kind::WriteDurable if n == 0 => return Next::Done(Err(no_progress())),
            _ if end == self.len => return Next::Done(Ok(end)),
            _ => {}
        }
        // A direct file can only be resumed at an aligned place.
        let resume = if self.direct { end - end % BUF_ALIGN } else { end };
        if resume < end {
            if self.kind == Kind::Read {
                if self.ended == Some(end) {
                    return Next::Done(Ok(end));
                }
                self.ended = Some(end);
            } else if resume == self.done {
                return Next::Done(Err(no_progress()));
            }
        }
        self.done = resume;
        Next::Again
    }
}

fn no_progress() -> io::Error {
    io::Error::new(io::ErrorKind::WriteZero, "the system wrote nothing")
}

/// EFAULT and ECANCELED: the kernel dropped the request with the thread that had submitted it (or
/// its worker), without having done it.
#[cfg(target_os = "linux")]
fn detours(code: i32) -> bool {
    use rustix::io::Errno;
    [Errno::FAULT, Errno::CANCELED].into_iter().any(|e| e.raw_os_error() == code)
}

#[cfg(not(target_os = "linux"))]
fn detours(_code: i32) -> bool {
    false
}

#[cfg(not(test))]
fn chunk_max() -> usize {
    CHUNK_MAX
}

/// Short results on demand: under test, every call moves at most this many bytes. Short I/O has to
/// be harmless at any time, so tests that run beside each other may share the value.
#[cfg(test)]
pub(crate) static CHUNK_CAP: std::sync::atomic::AtomicUsize =
    std::sync::atomic::AtomicUsize::new(CHUNK_MAX);

#[cfg(test)]
fn chunk_max() -> usize {
    CHUNK_CAP.load(Ordering::Relaxed)
}

/// A transfer that nobody has started yet, or that a backend works on.
pub(crate) struct Transfer {
    pub(crate) kind: Kind,
    pub(crate) file: Arc<FileInner>,
    pub(crate) buf: AlignedBuf,
    pub(crate) offset: u64,
    pub(crate) progress: Progress,
}

impl Transfer {
    pub(crate) fn new(kind: Kind, file: Arc<FileInner>, buf: AlignedBuf, offset: u64) -> Self {
        let progress = Progress::new(kind, file.direct, buf.len());
        Transfer { kind, file, buf, offset, progress }
    }

    /// Where in the file the next chunk belongs.
    pub(crate) fn position(&self) -> u64 {
        self.offset + self.progress.chunk().start as u64
    }

    /// The answer when no waiting is needed: refusals, empty transfers, the page cache.
    pub(crate) fn without_waiting(&mut self) -> Option<Result<usize>> {
        if self.kind == Kind::Sync {
            return None;
        }
        if let Err(e) = self.check() {
            return Some(Err(self.error(e)));
        }
        if self.buf.is_empty() {
            return Some(Ok(0));
        }
        if self.kind != Kind::Read {
            return None;
        }
        // What failed without waiting is tried again the ordinary way, which then reports it.
        self.file.read_cached(&mut self.buf, self.offset)?.ok().map(Ok)
    }

    fn check(&self) -> io::Result<()> {
        // Both preadv2 and io_uring take the offset -1 for "the current position".
        let end = self.offset.checked_add(self.buf.len() as u64);
        if end.is_none_or(|end| end > i64::MAX.cast_unsigned()) {
            let text = "the offset is beyond what a file can have";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let align = BUF_ALIGN as u64;
        let aligned = self.offset.is_multiple_of(align) && self.buf.len().is_multiple_of(BUF_ALIGN);
        if self.file.direct && !aligned {
            let text = "offset and length on a direct file must be multiples of 4096";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(())
    }

    pub(crate) fn error(&self, e: io::Error) -> Error {
        let offset = (self.kind != Kind::Sync).then_some(self.offset);
        self.file.error(self.kind.operation(), offset, e)
    }

    /// Does the rest with blocking calls.
    pub(crate) fn run_blocking(&mut self) -> io::Result<usize> {
        let mut patience = 1000;
        loop {
            match self.step_blocking() {
                Ok(n) => match self.progress.advance(Ok(n)) {
                    Next::Done(result) => return result,
                    Next::Again => {}
                    Next::Detour | Next::Impossible => {
                        return Err(io::Error::other("the system moved more than asked for"));
                    }
                },
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && patience > 0 => {
                    patience -= 1;
                    std::thread::park_timeout(std::time::Duration::from_millis(1));
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn step_blocking(&mut self) -> io::Result<usize> {
        let (file, position) = (Arc::clone(&self.file), self.position());
        let chunk = self.progress.chunk();
        let bytes = self.buf.get_mut(chunk).expect("a chunk lies inside the buffer");
        match self.kind {
            Kind::Read => sys::read_once(&file.file, bytes, position),
            Kind::Write => sys::write_once(&file.file, bytes, position),
            Kind::WriteDurable => sys::write_durable_once(&file.file, bytes, position),
            Kind::Sync => sys::sync_data(&file.file).map(|()| 0),
        }
    }

    pub(crate) fn finish(self, result: io::Result<usize>) -> BufResult {
        let result = result.map_err(|e| self.error(e));
        (result, self.buf)
    }
}

/// A started transfer and the way back to its future.
pub(crate) struct Request {
    pub(crate) transfer: Transfer,
    reply: oneshot::Sender<BufResult>,
}

impl Request {
    pub(crate) fn new(transfer: Transfer) -> (Request, oneshot::Receiver<BufResult>) {
        transfer.file.handle.system().shared.started();
        let (reply, receiver) = oneshot::channel();
        (Request { transfer, reply }, receiver)
    }

    pub(crate) fn run_blocking(mut self) {
        let result = self.transfer.run_blocking();
        self.finish(result);
    }

    /// Answers. The file is let go first, so that who gets the answer may count on it.
    pub(crate) fn finish(self, result: io::Result<usize>) {
        self.transfer.file.handle.system().shared.finished();
        let answer = self.transfer.finish(result);
        // Nobody waits any more: then the buffer ends here.
        crate::lane::guarded("the waker of a file operation", || self.reply.send(answer).ok());
    }

    /// Answers without giving the buffer back, because the kernel may still write into it.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only a ring loses buffers"))]
    #[cfg_attr(all(target_os = "linux", seerdb_no_uring), expect(dead_code, reason = "as above"))]
    pub(crate) fn abandon(self, e: io::Error) {
        let error = self.transfer.error(e);
        std::mem::forget(self.transfer);
        let answer = (Err(error), AlignedBuf::new());
        crate::lane::guarded("the waker of a file operation", || self.reply.send(answer).ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EINTR: i32 = 4;
    const EIO: i32 = 5;
    const EAGAIN: i32 = 11;
    const ENOSPC: i32 = 28;

    fn done(next: Next) -> io::Result<usize> {
        match next {
            Next::Done(result) => result,
            other => panic!("not done: {other:?}"),
        }
    }

    fn again(next: Next) {
        assert!(matches!(next, Next::Again), "not again: {next:?}");
    }

    #[test]
    fn a_short_read_resumes_behind_what_it_got() {
        let mut p = Progress::new(Kind::Read, false, 100);
        assert_eq!(p.chunk(), 0..100);
        again(p.advance(Ok(30)));
        assert_eq!(p.chunk(), 30..100);
        again(p.advance(Ok(69)));
        assert_eq!(done(p.advance(Ok(1))).unwrap(), 100);
    }

    #[test]
    fn a_read_of_nothing_is_the_end_of_the_file() {
        let mut p = Progress::new(Kind::Read, false, 100);
        again(p.advance(Ok(30)));
        assert_eq!(done(p.advance(Ok(0))).unwrap(), 30);
        let mut p = Progress::new(Kind::Read, false, 100);
        assert_eq!(done(p.advance(Ok(0))).unwrap(), 0);
    }

    #[test]
    fn a_short_write_resumes_and_a_write_of_nothing_fails() {
        for kind in [Kind::Write, Kind::WriteDurable] {
            let mut p = Progress::new(kind, false, 100);
            again(p.advance(Ok(99)));
            assert_eq!(p.chunk(), 99..100);
            let e = done(p.advance(Ok(0))).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::WriteZero);
        }
    }

    #[test]
    fn a_direct_read_resumes_aligned_and_ends_where_it_ended_twice() {
        let mut p = Progress::new(Kind::Read, true, 16384);
        again(p.advance(Ok(5000)));
        assert_eq!(p.chunk(), 4096..16384);
        again(p.advance(Ok(4096)));
        assert_eq!(p.chunk(), 8192..16384);
        again(p.advance(Ok(10)));
        assert_eq!(p.chunk(), 8192..16384);
        assert_eq!(done(p.advance(Ok(10))).unwrap(), 8202);
    }

    #[test]
    fn a_direct_write_repeats_the_broken_block_and_fails_without_progress() {
        let mut p = Progress::new(Kind::Write, true, 8192);
        again(p.advance(Ok(4608)));
        assert_eq!(p.chunk(), 4096..8192);
        let e = done(p.advance(Ok(512))).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn interruptions_are_repeated_and_then_leave_the_ring() {
        for code in [EINTR, EAGAIN] {
            let mut p = Progress::new(Kind::Read, false, 10);
            for _ in 1..REFUSALS_MAX {
                again(p.advance(Err(code)));
            }
            assert!(matches!(p.advance(Err(code)), Next::Detour));
            let mut p = Progress::new(Kind::Sync, false, 0);
            again(p.advance(Err(code)));
            assert_eq!(done(p.advance(Ok(0))).unwrap(), 0);
        }
    }

    #[test]
    fn progress_forgives_earlier_interruptions() {
        let mut p = Progress::new(Kind::Write, false, 100);
        for _ in 0..50 {
            again(p.advance(Err(EINTR)));
            again(p.advance(Ok(1)));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_the_ring_dropped_takes_the_detour() {
        for errno in [rustix::io::Errno::FAULT, rustix::io::Errno::CANCELED] {
            let mut p = Progress::new(Kind::Read, false, 10);
            assert!(matches!(p.advance(Err(errno.raw_os_error())), Next::Detour));
        }
    }

    #[test]
    fn other_errors_end_the_transfer() {
        for (kind, code) in [(Kind::Read, EIO), (Kind::WriteDurable, ENOSPC), (Kind::Sync, EIO)] {
            let mut p = Progress::new(kind, false, 10);
            assert_eq!(done(p.advance(Err(code))).unwrap_err().raw_os_error(), Some(code));
        }
    }

    #[test]
    fn a_result_beyond_the_request_is_impossible() {
        let mut p = Progress::new(Kind::Read, false, 10);
        assert!(matches!(p.advance(Ok(11)), Next::Impossible));
        let mut p = Progress::new(Kind::Sync, false, 0);
        assert!(matches!(p.advance(Ok(1)), Next::Impossible));
    }

    #[test]
    fn huge_transfers_are_split() {
        let mut p = Progress::new(Kind::Write, false, 3 * CHUNK_MAX - 1);
        assert!(p.chunk().len() <= CHUNK_MAX);
        let mut rest = p.len;
        loop {
            let n = p.chunk().len();
            rest -= n;
            match p.advance(Ok(n)) {
                Next::Again => {}
                next => break assert_eq!(done(next).unwrap(), p.len),
            }
        }
        assert_eq!(rest, 0);
    }
}
