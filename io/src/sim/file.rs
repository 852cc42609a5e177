//! The files of a process on a simulated machine: from the calls of the layer to operations.
//!
//! Invariants:
//! 1. Nothing is submitted before the first poll, and what is refused without waiting (offsets,
//!    alignment, empty transfers) has no number: the same as on the real backends.
//! 2. A future owns nothing but the wish for the answer; the buffer is with the operation.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::channel::oneshot;

use super::disk::Ino;
use super::effect::{Action, Answer, FileRef};
use super::errno::{EINVAL, EIO, error};
use super::machine::{Closing, Machine, Patience, Request, Submitted};
use super::trace::OpKind;
use crate::buf::{AlignedBuf, BUF_ALIGN};
use crate::env::SimEnv;
use crate::error::{Error, Operation, Result};
use crate::fs::{BufResult, DirEntry, File, LockFile, Op, OpenOptions, SimFile, SimFs};
use crate::transfer::Kind;

/// Keeps an environment of a process open; its end lets the tasks of the lanes end.
pub(super) struct Keeper {
    pub(super) machine: Arc<Machine>,
    pub(super) life: u64,
    pub(super) env: u64,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let mut state = self.machine.state.lock();
        if state.life == self.life
            && let Some(env) = state.envs.get_mut(&self.env)
        {
            env.closing = env.closing.max(Closing::Quiesce);
        }
    }
}

impl SimEnv for Keeper {
    fn in_flight(&self) -> usize {
        let state = self.machine.state.lock();
        if state.life == self.life {
            state.in_flight(Some(self.env), OpKind::is_transfer)
        } else {
            0
        }
    }

    fn shutdown(&self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut state = self.machine.state.lock();
        if state.life == self.life
            && let Some(env) = state.envs.get_mut(&self.env)
            && env.closing < Closing::Ended
        {
            env.closing = Closing::Stop;
            env.waiting.push(sender);
        }
        receiver
    }
}

/// An operation in flight.
struct Running {
    keeper: Arc<Keeper>,
    number: u64,
    answered: bool,
}

impl Future for Running {
    type Output = (io::Result<Answer>, AlignedBuf);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.keeper.machine.poll(self.number, cx.waker());
        self.answered = answer.is_ready();
        answer
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.answered {
            self.keeper.machine.abandon(self.number);
        }
    }
}

impl Keeper {
    fn request(&self, action: Action, path: &Arc<Path>) -> Request {
        Request {
            life: self.life,
            env: self.env,
            action,
            path: Arc::clone(path),
            offset: 0,
            buf: AlignedBuf::new(),
            patience: Patience::Waits,
        }
    }
}

/// Submits now and waits for the end.
async fn perform(keeper: Arc<Keeper>, request: Request) -> (io::Result<Answer>, AlignedBuf) {
    match keeper.machine.submit(request) {
        Submitted::Ready(result, buf) => (result, buf),
        Submitted::Waiting(number) => Running { keeper, number, answered: false }.await,
        Submitted::Never => std::future::pending().await,
    }
}

/// The file system of a process.
pub(super) struct Names(pub(super) Arc<Keeper>);

impl Names {
    fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        path: PathBuf,
        action: Action,
        take: impl FnOnce(&Arc<Keeper>, &Arc<Path>, Answer) -> Option<T> + Send + 'static,
    ) -> Op<Result<T>> {
        let keeper = Arc::clone(&self.0);
        Op::simulated(async move {
            let path: Arc<Path> = Arc::from(path);
            let (result, _) = perform(keeper.clone(), keeper.request(action, &path)).await;
            let taken = result.and_then(|a| take(&keeper, &path, a).ok_or_else(|| error(EIO)));
            taken.map_err(|e| Error::shared(operation, path, None, e))
        })
    }

    fn change(&self, operation: Operation, path: PathBuf, action: Action) -> Op<Result<()>> {
        self.call(operation, path, action, |_, _, _| Some(()))
    }
}

impl SimFs for Names {
    fn open(&self, path: PathBuf, options: OpenOptions) -> Op<Result<File>> {
        self.call(Operation::Open, path, Action::Open(options), |keeper, path, answer| {
            let Answer::Opened(file) = answer else { return None };
            let (keeper, path) = (Arc::clone(keeper), Arc::clone(path));
            Some(File::simulated(Arc::new(OpenFile(Arc::new(Shared { keeper, file, path })))))
        })
    }

    fn create_dir(&self, path: PathBuf) -> Op<Result<()>> {
        self.change(Operation::CreateDir, path, Action::CreateDir)
    }

    fn rename(&self, from: PathBuf, to: PathBuf) -> Op<Result<()>> {
        self.change(Operation::Rename, from, Action::Rename(to))
    }

    fn remove_file(&self, path: PathBuf) -> Op<Result<()>> {
        self.change(Operation::Remove, path, Action::Remove)
    }

    fn list_dir(&self, path: PathBuf) -> Op<Result<Vec<DirEntry>>> {
        self.call(Operation::ListDir, path, Action::ListDir, |_, _, answer| match answer {
            Answer::Entries(entries) => Some(entries),
            _ => None,
        })
    }

    fn sync_dir(&self, path: PathBuf) -> Op<Result<()>> {
        self.change(Operation::SyncDir, path, Action::SyncDir)
    }

    fn lock(&self, path: PathBuf) -> Op<Result<Option<LockFile>>> {
        self.call(Operation::Lock, path, Action::Lock, |keeper, _, answer| match answer {
            Answer::Locked(Some(ino)) => {
                let machine = Arc::clone(&keeper.machine);
                let held = HeldLock { machine, life: keeper.life, ino };
                Some(Some(LockFile::simulated(Box::new(held))))
            }
            Answer::Locked(None) => Some(None),
            _ => None,
        })
    }
}

/// A lock that is held; as on the real backends, it keeps no environment open.
struct HeldLock {
    machine: Arc<Machine>,
    life: u64,
    ino: Ino,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        self.machine.unlock(self.life, self.ino);
    }
}

/// What the handles of an open file and its operations share.
struct Shared {
    keeper: Arc<Keeper>,
    file: FileRef,
    path: Arc<Path>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.keeper.machine.close_file(self.keeper.life, self.file.id);
    }
}

impl Shared {
    fn error(&self, operation: Operation, offset: Option<u64>, e: io::Error) -> Error {
        Error::shared(operation, Arc::clone(&self.path), offset, e)
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > i64::MAX.cast_unsigned()) {
            return Err(error(EINVAL));
        }
        let align = BUF_ALIGN as u64;
        let aligned = offset.is_multiple_of(align) && len.is_multiple_of(BUF_ALIGN);
        if self.file.direct && !aligned { Err(error(EINVAL)) } else { Ok(()) }
    }

    /// An operation that happens before the call returns.
    fn at_once(
        &self,
        action: Action,
        offset: u64,
        buf: AlignedBuf,
    ) -> (io::Result<usize>, AlignedBuf) {
        let request = self.keeper.request(action, &self.path);
        let request = Request { offset, buf, patience: Patience::AtOnce, ..request };
        match self.keeper.machine.submit(request) {
            Submitted::Ready(Ok(Answer::Count(count)), buf) => (Ok(count), buf),
            Submitted::Ready(Err(e), buf) => (Err(e), buf),
            _ => (Err(io::Error::other("the simulated process has ended")), AlignedBuf::new()),
        }
    }
}

/// An open file of a process.
struct OpenFile(Arc<Shared>);

impl OpenFile {
    fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        action: Action,
        take: impl FnOnce(Answer) -> Option<T> + Send + 'static,
    ) -> Op<Result<T>> {
        let shared = Arc::clone(&self.0);
        Op::simulated(async move {
            let request = shared.keeper.request(action, &shared.path);
            let (result, _) = perform(Arc::clone(&shared.keeper), request).await;
            let taken = result.and_then(|answer| take(answer).ok_or_else(|| error(EIO)));
            taken.map_err(|e| shared.error(operation, None, e))
        })
    }
}

impl SimFile for OpenFile {
    fn transfer(&self, kind: Kind, buf: AlignedBuf, offset: u64) -> Op<BufResult> {
        let shared = Arc::clone(&self.0);
        Op::simulated(async move {
            let operation = kind.operation();
            if let Err(e) = shared.check(offset, buf.len()) {
                return (Err(shared.error(operation, Some(offset), e)), buf);
            }
            if buf.is_empty() {
                return (Ok(0), buf);
            }
            let action = match kind {
                Kind::Read => Action::Read(shared.file),
                Kind::Write => Action::Write(shared.file, OpKind::Write),
                Kind::WriteDurable => Action::Write(shared.file, OpKind::WriteDurable),
                Kind::Sync => Action::Sync(shared.file),
            };
            let request = shared.keeper.request(action, &shared.path);
            let request = Request { offset, buf, ..request };
            let (result, buf) = perform(Arc::clone(&shared.keeper), request).await;
            let count = result.and_then(|answer| match answer {
                Answer::Count(count) => Ok(count),
                _ => Err(error(EIO)),
            });
            (count.map_err(|e| shared.error(operation, Some(offset), e)), buf)
        })
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> Option<Result<usize>> {
        let shared = &self.0;
        if shared.file.direct || !shared.keeper.machine.is_cached() {
            return None;
        }
        let failed = |e| shared.error(Operation::Read, Some(offset), e);
        if let Err(e) = shared.check(offset, buf.len()) {
            return Some(Err(failed(e)));
        }
        let own = AlignedBuf::zeroed(buf.len());
        let (result, own) = shared.at_once(Action::Read(shared.file), offset, own);
        if let (Ok(count), Some(from)) = (&result, own.get(..buf.len()))
            && *count <= buf.len()
        {
            buf.copy_from_slice(from);
        }
        Some(result.map_err(failed))
    }

    fn write_cached(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let shared = &self.0;
        let failed = |e| shared.error(Operation::Write, Some(offset), e);
        if shared.file.direct {
            let text = "a direct file has no page cache to write into";
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, text)));
        }
        shared.check(offset, bytes.len()).map_err(failed)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let mut buf = AlignedBuf::with_capacity(bytes.len());
        buf.extend_from_slice(bytes);
        let action = Action::Write(shared.file, OpKind::WriteCached);
        shared.at_once(action, offset, buf).0.map(drop).map_err(failed)
    }

    fn sync_data(&self) -> Op<Result<()>> {
        self.call(Operation::Sync, Action::Sync(self.0.file), |_| Some(()))
    }

    fn allocate(&self, len: u64) -> Op<Result<()>> {
        self.call(Operation::Resize, Action::Allocate(self.0.file, len), |_| Some(()))
    }

    fn set_len(&self, len: u64) -> Op<Result<()>> {
        self.call(Operation::Resize, Action::SetLen(self.0.file, len), |_| Some(()))
    }

    fn len(&self) -> Op<Result<u64>> {
        self.call(Operation::Inspect, Action::Len(self.0.file), |answer| match answer {
            Answer::Len(len) => Some(len),
            _ => None,
        })
    }

    fn is_direct(&self) -> bool {
        self.0.file.direct
    }

    fn path(&self) -> &Path {
        &self.0.path
    }
}
