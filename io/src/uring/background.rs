//! A lane inside a tokio-uring runtime: streaming reads and writes as plain local tasks.
//!
//! Invariants:
//! 1. The runtime's main future runs the lane's tasks; files are served by local tasks beside it,
//!    at most [`RUNNING_MAX`] of them. Requests beyond that wait in order.
//! 2. tokio-uring owns buffer and descriptor of an operation until its CQE, also when a task of
//!    its own is dropped. The descriptor is a duplicate, which lives as long as the request.
//! 3. tokio-uring submits when its thread parks, or when its queue is full. A lane whose tasks are
//!    always ready never parks; so the queue has one entry, and a busy lane pushes a no-op behind
//!    the operations it started, which submits them.
//! 4. The main future ends only when no request is running; so the runtime is idle when dropped.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll};

use tokio_uring::buf::BoundedBuf;

use super::{Outcome, START_MAX};
use crate::env::Lane;
use crate::lane::{self, Bell, Local, Mailbox};
use crate::system::Shared;
use crate::transfer::{Kind, Next, Request};

/// Operations in flight on one lane; flushes and merges keep two to four.
const RUNNING_MAX: usize = 128;

/// Entries of the completion queue: at least as many as can be in flight, and some no-ops.
const COMPLETIONS: u32 = 512;

/// The requests of a lane's own tasks.
#[derive(Clone)]
pub(crate) struct Queue {
    state: Rc<RefCell<State>>,
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: VecDeque<Request>,
}

impl Queue {
    /// Serves a request; called on the lane's thread, inside its runtime.
    pub(crate) fn push(&self, request: Request) {
        let mut state = self.state.borrow_mut();
        if state.running == RUNNING_MAX {
            state.waiting.push_back(request);
            return;
        }
        state.running += 1;
        let running = Running(self.clone());
        drop(tokio_uring::spawn(async move {
            let mut next = Some(request);
            while let Some(request) = next {
                serve(request, &running.0.shared).await;
                next = running.0.state.borrow_mut().waiting.pop_front();
            }
        }));
    }

    fn is_idle(&self) -> bool {
        self.state.borrow().running == 0
    }
}

/// One of the tasks that serve files; also counts when the task panics.
struct Running(Queue);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.borrow_mut().running -= 1;
        // The main future may wait for this to end the lane.
        self.0.mailbox.kick();
    }
}

/// Starts the thread of a lane and waits until its runtime is there.
pub(super) fn start(shared: &Arc<Shared>, name: &'static str, lane: Lane) -> Outcome {
    let mailbox = Mailbox::new(Bell::Waker(futures::task::AtomicWaker::new()), false);
    let (report, started) = mpsc::channel();
    let (own, own_shared) = (Arc::clone(&mailbox), Arc::clone(shared));
    let thread = move || {
        let mut ring = tokio_uring::uring_builder();
        ring.dontfork().setup_cqsize(COMPLETIONS);
        let made = std::panic::catch_unwind(AssertUnwindSafe(|| {
            tokio_uring::Runtime::new(tokio_uring::builder().entries(1).uring_builder(&ring))
        }));
        let made = made.unwrap_or_else(|_| Err(io::Error::other("its runtime panicked")));
        let (runtime, result) = match made {
            Ok(runtime) => (Some(runtime), Ok(Vec::new())),
            Err(e) => (None, Err(format!("tokio-uring: {e}"))),
        };
        let wanted = report.send(result).is_ok();
        if let Some(runtime) = runtime.filter(|_| wanted) {
            run(&runtime, &own, lane, &own_shared);
        }
        own.end();
        lane::leave();
    };
    shared.threads.start(name, thread).map_err(|e| format!("cannot start a thread: {e}"))?;
    match started.recv_timeout(START_MAX) {
        Ok(result) => result.map(|features| (mailbox, features)),
        Err(_) => Err("the tokio-uring runtime does not start".to_owned()),
    }
}

fn run(runtime: &tokio_uring::Runtime, mailbox: &Arc<Mailbox>, lane: Lane, shared: &Arc<Shared>) {
    let queue =
        Queue { state: Rc::default(), mailbox: Arc::clone(mailbox), shared: Arc::clone(shared) };
    lane::enter(mailbox, lane, Local::TokioUring(queue.clone()));
    let main = std::future::poll_fn(|cx| turn(mailbox, &queue, cx));
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(main))) {
        shared.fail(&format!("tokio-uring panicked: {}", crate::env::message(&*panic)));
    }
}

fn turn(mailbox: &Mailbox, queue: &Queue, cx: &mut Context<'_>) -> Poll<()> {
    let Bell::Waker(waker) = mailbox.bell() else { unreachable!("`start` made it so") };
    mailbox.disarm();
    waker.register(cx.waker());
    let more = mailbox.run_tasks();
    if mailbox.shall_end(queue.is_idle()) {
        return Poll::Ready(());
    }
    if more || !mailbox.arm(true, queue.is_idle()) {
        // The files come first, then the rest of the tasks.
        cx.waker().wake_by_ref();
        if !queue.is_idle() {
            submit();
        }
    }
    Poll::Pending
}

/// Submits what is queued, by means of an operation that nobody waits for (invariant 3).
fn submit() {
    let no_op = std::pin::pin!(tokio_uring::no_op());
    let mut nobody = Context::from_waker(std::task::Waker::noop());
    let polled: Poll<io::Result<()>> = no_op.poll(&mut nobody);
    drop(polled);
}

async fn serve(mut request: Request, shared: &Shared) {
    let Ok(file) = request.transfer.file.file.try_clone() else {
        // Out of descriptors; a blocking call needs no other one.
        return shared.detour(request);
    };
    let file = tokio_uring::fs::File::from_std(file);
    loop {
        let result = step(&file, &mut request).await;
        let result = result.map_err(|e| e.raw_os_error().ok_or(e));
        let next = match result {
            Ok(n) => request.transfer.progress.advance(Ok(n)),
            Err(Ok(code)) => request.transfer.progress.advance(Err(code)),
            Err(Err(e)) => Next::Done(Err(e)),
        };
        match next {
            Next::Again => {}
            Next::Done(Ok(n)) if request.transfer.kind == Kind::WriteDurable => {
                let synced = file.sync_data().await;
                return request.finish(synced.map(|()| n));
            }
            Next::Done(result) => return request.finish(result),
            Next::Detour => return shared.detour(request),
            Next::Impossible => {
                shared.fail("tokio-uring moved more bytes than it was asked for");
                return request.finish(Err(io::Error::other("moved too many bytes")));
            }
        }
    }
}

/// One call for the next chunk. tokio-uring has no flags for writes, so a durable one is synced
/// when all of it is written.
async fn step(file: &tokio_uring::fs::File, request: &mut Request) -> io::Result<usize> {
    let transfer = &mut request.transfer;
    if transfer.kind == Kind::Sync {
        return file.sync_data().await.map(|()| 0);
    }
    let position = transfer.position();
    let chunk = transfer.progress.chunk();
    let slice = std::mem::take(&mut transfer.buf).slice(chunk);
    let (result, slice) = match transfer.kind {
        Kind::Read => file.read_at(slice, position).await,
        _ => file.write_at(slice, position).submit().await,
    };
    transfer.buf = slice.into_inner();
    result
}
