//! The future of a file operation: a request until the first poll, then a place to wait.
//!
//! Invariants:
//! 1. Before the first poll nothing was started; dropping the future drops the request.
//! 2. After the first poll the future owns nothing that the kernel uses: only the receiving end of
//!    a channel. Dropping it loses the answer and nothing else.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::channel::oneshot;

use crate::buf::AlignedBuf;
use crate::error::{Error, Operation, Result};
use crate::fs::BufResult;
use crate::system::{Handle, Started};
use crate::transfer::{Kind, Transfer};

/// A pending file operation; `'static` and `Send`, whatever the backend.
///
/// # Cancel safety
///
/// Dropping it before the first poll means that nothing happened. Later a read has no effect and a
/// write or a change of names may or may not take place; memory stays owned until the kernel is
/// done with it.
#[must_use = "an operation does nothing unless polled"]
pub struct Op<T> {
    state: State<T>,
}

/// A blocking call for a thread of ours.
pub(crate) type Call = Box<dyn FnOnce() + Send>;

enum State<T> {
    Transfer(Transfer, fn(BufResult) -> T),
    Call(Call, Arc<Handle>, oneshot::Receiver<T>, Lost<T>),
    Moving(oneshot::Receiver<BufResult>, Lost<BufResult>, fn(BufResult) -> T),
    Calling(oneshot::Receiver<T>, Lost<T>),
    #[cfg(feature = "sim")]
    Sim(futures::future::BoxFuture<'static, T>),
    Done,
}

/// How to answer when the backend ended without an answer.
struct Lost<T> {
    operation: Operation,
    path: Arc<Path>,
    offset: Option<u64>,
    make: fn(Error) -> T,
}

impl<T> Lost<T> {
    fn answer(&self) -> T {
        let source = io::Error::other("the file layer has been shut down");
        let path = Arc::clone(&self.path);
        (self.make)(Error::shared(self.operation, path, self.offset, source))
    }
}

impl Op<BufResult> {
    pub(crate) fn buffer(transfer: Transfer) -> Self {
        Op { state: State::Transfer(transfer, |answer| answer) }
    }
}

impl Op<Result<()>> {
    pub(crate) fn sync(transfer: Transfer) -> Self {
        debug_assert!(transfer.kind == Kind::Sync, "only a sync has no buffer to give back");
        Op { state: State::Transfer(transfer, |(result, _)| result.map(|_| ())) }
    }
}

impl<T: Send + 'static> Op<Result<T>> {
    /// An operation that is one blocking call on a thread of the backend.
    pub(crate) fn call(
        handle: &Arc<Handle>,
        operation: Operation,
        path: impl Into<PathBuf>,
        call: impl FnOnce(&Path) -> io::Result<T> + Send + 'static,
    ) -> Self {
        let path: Arc<Path> = Arc::from(path.into());
        let lost = Lost { operation, path: Arc::clone(&path), offset: None, make: Err };
        let (reply, answer) = oneshot::channel();
        let call = Box::new(move || {
            let result = call(&path).map_err(|e| Error::shared(operation, path, None, e));
            // Nobody waits any more: the call was made all the same.
            reply.send(result).ok();
        });
        Op { state: State::Call(call, Arc::clone(handle), answer, lost) }
    }
}

impl<T> Op<T> {
    /// An operation of a simulated machine.
    #[cfg(feature = "sim")]
    pub(crate) fn simulated(operation: impl Future<Output = T> + Send + 'static) -> Self {
        Op { state: State::Sim(Box::pin(operation)) }
    }

    fn start(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::Call(call, handle, answer, lost) => {
                // A refused call is dropped, and its answer with it: `poll` sees that.
                handle.system().start_call(call);
                State::Calling(answer, lost)
            }
            started => started,
        };
    }
}

impl<T> Future for Op<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if matches!(self.state, State::Transfer(..)) {
            let State::Transfer(transfer, into) = std::mem::replace(&mut self.state, State::Done)
            else {
                unreachable!("the state was looked at above");
            };
            let lost = Lost {
                operation: transfer.kind.operation(),
                path: Arc::clone(&transfer.file.path),
                offset: (transfer.kind != Kind::Sync).then_some(transfer.offset),
                make: |e| (Err(e), AlignedBuf::new()),
            };
            match crate::system::start(transfer) {
                Started::Ready(answer) => return Poll::Ready(into(answer)),
                Started::Waiting(answer) => self.state = State::Moving(answer, lost, into),
            }
        }
        self.start();
        let answer = match &mut self.state {
            State::Moving(answer, lost, into) => {
                let polled = Pin::new(answer).poll(cx);
                polled.map(|r| into(r.unwrap_or_else(|_| lost.answer())))
            }
            State::Calling(answer, lost) => {
                Pin::new(answer).poll(cx).map(|r| r.unwrap_or_else(|_| lost.answer()))
            }
            #[cfg(feature = "sim")]
            State::Sim(operation) => operation.as_mut().poll(cx),
            _ => panic!("a file operation was polled after it had resolved"),
        };
        if answer.is_ready() {
            self.state = State::Done;
        }
        answer
    }
}
