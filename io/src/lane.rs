//! The mailbox of a thread of ours, the tasks that run on it, and how it sleeps.
//!
//! Invariants:
//! 1. Who puts something into a mailbox then asks whether to ring; the thread arms itself and then
//!    looks into the mailbox before it sleeps (`armed.rs`).
//! 2. A thread that ends says so and then empties the mailbox; who puts something into a dead
//!    mailbox empties it likewise (`ended.rs`). So nothing is left in it for ever.
//! 3. A task is in `tasks` from its start until its future is dropped, so that the end of the lane
//!    reaches also those that wait for something.
//! 4. Foreign code (tasks, wakers, drops) that panics never ends a thread of ours.

use std::cell::RefCell;
#[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;
use std::time::Duration;

use async_task::Runnable;
use crossbeam_queue::SegQueue;
use futures::channel::oneshot;
use parking_lot::Mutex;
use slab::Slab;

use crate::armed::Armed;
use crate::ended::Ended;
use crate::env::{Lane, Panicked, contained, message};
use crate::fs::Class;
use crate::op::Call;
use crate::timer::{TimerQueue, Timers};
use crate::transfer::{Request, Transfer};

/// Runs foreign code; a panic is logged and swallowed.
pub(crate) fn guarded<R>(what: &str, run: impl FnOnce() -> R) -> Option<R> {
    match std::panic::catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Some(result),
        Err(panic) => {
            tracing::error!(panic = message(&*panic), "{what} panicked");
            None
        }
    }
}

/// How to wake the thread of a mailbox.
pub(crate) enum Bell {
    /// It parks.
    Park(OnceLock<std::thread::Thread>),
    /// It waits on a ring in which this eventfd is polled.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    Event(std::os::fd::OwnedFd),
    /// It runs an executor whose main future waits here.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio-uring"))]
    Waker(futures::task::AtomicWaker),
}

impl Bell {
    fn ring(&self) {
        match self {
            // Unset means that the thread has not looked into the mailbox yet, and so will.
            Bell::Park(thread) => {
                if let Some(thread) = thread.get() {
                    thread.unpark();
                }
            }
            #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
            Bell::Event(fd) => {
                // Only a counter at its maximum would refuse, and then the thread is awake.
                rustix::io::write(fd, &1u64.to_ne_bytes()).ok();
            }
            #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio-uring"))]
            Bell::Waker(waker) => {
                guarded("the waker of a lane", || waker.wake());
            }
        }
    }

    /// The current thread is the one to wake.
    fn own(&self) {
        match self {
            Bell::Park(thread) => {
                thread.get_or_init(std::thread::current);
            }
            #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
            _ => {}
        }
    }

    /// Sleeps until the bell rings; for loops without a ring.
    fn wait(&self, timeout: Option<Duration>) {
        match self {
            Bell::Park(_) => match timeout {
                Some(timeout) => std::thread::park_timeout(timeout),
                None => std::thread::park(),
            },
            #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
            Bell::Event(fd) => {
                use rustix::event::{PollFd, PollFlags, poll};
                let timeout = timeout.and_then(|t| t.try_into().ok());
                poll(&mut [PollFd::new(fd, PollFlags::IN)], timeout.as_ref()).ok();
                rustix::io::read(fd, &mut [0u8; 8]).ok();
            }
            #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio-uring"))]
            Bell::Waker(_) => unreachable!("an executor's lane sleeps in the executor"),
        }
    }
}

/// When a thread shall end.
const OPEN: u8 = 0;
/// When nothing is in flight and no task can run.
const QUIESCE: u8 = 1;
/// When nothing is in flight.
const STOP: u8 = 2;

/// What one thread of ours shall do.
pub(crate) struct Mailbox {
    requests: SegQueue<Request>,
    runnables: SegQueue<Runnable>,
    tasks: Mutex<Slab<Waker>>,
    /// Present when the thread ends its waits for timers itself.
    timers: Option<Arc<TimerQueue>>,
    armed: Armed,
    nudged: AtomicBool,
    closing: AtomicU8,
    ended: Ended,
    bell: Bell,
}

/// Runnables in a row before the thread looks at its files again.
const TASKS_BATCH: usize = 64;

impl Mailbox {
    pub(crate) fn new(bell: Bell, timers: bool) -> Arc<Mailbox> {
        Arc::new(Mailbox {
            requests: SegQueue::new(),
            runnables: SegQueue::new(),
            tasks: Mutex::new(Slab::new()),
            timers: timers.then(Arc::default),
            armed: Armed::new(),
            nudged: AtomicBool::new(false),
            closing: AtomicU8::new(OPEN),
            ended: Ended::new(),
            bell,
        })
    }

    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Hands a request to the thread.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    pub(crate) fn push(self: &Arc<Self>, request: Request) {
        self.requests.push(request);
        if !plug::holds_back(self) {
            self.kick();
        }
        self.bury();
    }

    /// The next request.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    pub(crate) fn pop(&self) -> Option<Request> {
        self.requests.pop()
    }

    fn schedule(&self, runnable: Runnable) {
        self.runnables.push(runnable);
        self.kick();
        self.bury();
    }

    /// Wakes the thread if it sleeps.
    pub(crate) fn kick(&self) {
        if self.armed.must_ring() {
            self.bell.ring();
        }
    }

    /// Has the thread look at what else it is there for.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio"))]
    pub(crate) fn nudge(&self) {
        self.nudged.store(true, Ordering::Release);
        self.kick();
    }

    /// Whether somebody has nudged since the last call.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio"))]
    pub(crate) fn take_nudge(&self) -> bool {
        self.nudged.swap(false, Ordering::AcqRel)
    }

    /// Empties a dead mailbox.
    fn bury(&self) {
        if self.ended.is_over() {
            self.empty();
        }
    }

    fn empty(&self) {
        while let Some(runnable) = self.runnables.pop() {
            guarded("the drop of a background task", || drop(runnable));
        }
        while let Some(request) = self.requests.pop() {
            request.finish(Err(io::Error::other("the file layer has been shut down")));
        }
    }

    /// About to sleep: true when there is nothing to do. Until [`Mailbox::disarm`], callers ring.
    /// Requests are nothing to do when there is no room for them, and the end of the thread is
    /// only when its files are idle.
    pub(crate) fn arm(&self, room: bool, files_idle: bool) -> bool {
        self.armed.arm(|| {
            let requests = room && !self.requests.is_empty();
            let nudged = self.nudged.load(Ordering::Acquire);
            !requests && !nudged && self.runnables.is_empty() && !self.shall_end(files_idle)
        })
    }

    pub(crate) fn disarm(&self) {
        self.armed.disarm();
    }

    fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.runnables.is_empty()
    }

    /// Whether the thread shall end now, given whether its files are idle.
    pub(crate) fn shall_end(&self, files_idle: bool) -> bool {
        match self.closing.load(Ordering::SeqCst) {
            OPEN => false,
            QUIESCE => files_idle && self.is_empty(),
            _ => files_idle && self.requests.is_empty(),
        }
    }

    /// Lets the thread end when it has no work left; `stop` does not wait for tasks.
    pub(crate) fn close(&self, stop: bool) {
        self.closing.fetch_max(if stop { STOP } else { QUIESCE }, Ordering::SeqCst);
        self.kick();
    }

    /// The thread has ended: drops what is left of its tasks.
    pub(crate) fn end(&self) {
        self.ended.end();
        if let Some(timers) = &self.timers {
            timers.close();
        }
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for (_, waker) in tasks {
            // A woken task is scheduled, and what is scheduled on a dead lane is dropped.
            guarded("the drop of a background task", || waker.wake());
        }
        self.empty();
    }

    /// Runs some tasks; true when more are ready.
    pub(crate) fn run_tasks(&self) -> bool {
        for _ in 0..TASKS_BATCH {
            let Some(runnable) = self.runnables.pop() else { return false };
            guarded("a background task", || runnable.run());
        }
        !self.runnables.is_empty()
    }

    /// Wakes the timers that are due; how long the thread may sleep.
    pub(crate) fn fire_timers(&self, clock: &Timers) -> Option<Duration> {
        let next = self.timers.as_ref()?.fire(clock.now())?;
        Some(next.saturating_sub(clock.now()))
    }

    /// The loop of a lane that has no ring: tasks and timers.
    pub(crate) fn serve(&self, clock: &Timers) {
        self.bell.own();
        loop {
            let more = self.run_tasks();
            while let Some(request) = self.requests.pop() {
                request.finish(Err(io::Error::other("the ring has failed")));
            }
            let timeout = self.fire_timers(clock);
            if self.shall_end(true) {
                return;
            }
            if !more && self.arm(true, true) {
                self.bell.wait(timeout);
                self.disarm();
            }
        }
    }

    /// Runs `future` here; the receiver gets its output, or the message of its panic.
    pub(crate) fn spawn<F>(
        self: &Arc<Self>,
        name: &'static str,
        future: F,
    ) -> oneshot::Receiver<Result<F::Output, Panicked>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (task, done) = contained(name, future);
        let mut tasks = self.tasks.lock();
        let entry = tasks.vacant_entry();
        let listed = Listed { mailbox: Arc::clone(self), key: entry.key() };
        let wrapped = async move {
            let _listed = listed;
            task.await;
        };
        let mailbox = Arc::clone(self);
        let (runnable, task) = async_task::spawn(wrapped, move |r| mailbox.schedule(r));
        entry.insert(runnable.waker());
        drop(tasks);
        task.detach();
        runnable.schedule();
        done
    }
}

/// Takes a task off the list of its lane when its future is dropped.
struct Listed {
    mailbox: Arc<Mailbox>,
    key: usize,
}

impl Drop for Listed {
    fn drop(&mut self) {
        // Gone already when the lane has ended.
        let waker = self.mailbox.tasks.lock().try_remove(self.key);
        drop(waker);
    }
}

/// How a thread of ours serves the files of its class.
pub(crate) enum Local {
    /// By blocking.
    Blocking,
    /// By its own ring, which looks into this queue between two tasks.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    Ring(VecDeque<Request>),
    /// By tasks of the tokio-uring runtime around it.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio-uring"))]
    TokioUring(crate::uring::background::Queue),
}

struct Here {
    mailbox: Arc<Mailbox>,
    lane: Lane,
    local: Local,
}

thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// Makes the current thread the one of `mailbox`.
pub(crate) fn enter(mailbox: &Arc<Mailbox>, lane: Lane, local: Local) {
    let here = Here { mailbox: Arc::clone(mailbox), lane, local };
    HERE.set(Some(here));
}

/// The current thread is nobody's any more.
pub(crate) fn leave() {
    drop(HERE.take());
}

/// The timer queue of the current thread, if that is a lane that serves one.
pub(crate) fn timers() -> Option<Arc<TimerQueue>> {
    HERE.with_borrow(|here| here.as_ref()?.mailbox.timers.clone())
}

/// What became of a transfer that was offered to the current thread.
pub(crate) enum Offer {
    /// The thread serves no such file.
    Declined(Transfer),
    /// The thread shall block.
    Block(Transfer),
    /// It is on its way.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    Taken(oneshot::Receiver<crate::fs::BufResult>),
}

/// Offers a transfer to the current thread, if that is one of `lanes`.
pub(crate) fn offer(lanes: &[Arc<Mailbox>; 3], transfer: Transfer) -> Offer {
    HERE.with_borrow_mut(|here| {
        let class = transfer.file.class;
        let Some(here) = here.as_mut().filter(|here| here.is_one_of(lanes)) else {
            return Offer::Declined(transfer);
        };
        let own = match here.lane {
            Lane::Log => Class::Log,
            Lane::Flush | Lane::Compaction => Class::Background,
        };
        match &mut here.local {
            Local::Blocking if class != Class::Foreground => Offer::Block(transfer),
            #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
            Local::Ring(queue) if class == own => {
                let (request, answer) = Request::new(transfer);
                queue.push_back(request);
                Offer::Taken(answer)
            }
            #[cfg(all(target_os = "linux", not(seerdb_no_uring), feature = "tokio-uring"))]
            Local::TokioUring(queue) if class == own => {
                let (request, answer) = Request::new(transfer);
                queue.push(request);
                Offer::Taken(answer)
            }
            _ => {
                let _ = own;
                Offer::Declined(transfer)
            }
        }
    })
}

/// The next request of the current thread's own tasks.
#[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
pub(crate) fn pop_local() -> Option<Request> {
    HERE.with_borrow_mut(|here| match &mut here.as_mut()?.local {
        Local::Ring(queue) => queue.pop_front(),
        _ => None,
    })
}

impl Here {
    fn is_one_of(&self, lanes: &[Arc<Mailbox>; 3]) -> bool {
        lanes.iter().any(|lane| Arc::ptr_eq(lane, &self.mailbox))
    }
}

/// Runs `call` if the current thread is one of `lanes` that may block; else gives it back. The log
/// lane may not: commits wait for it.
pub(crate) fn run_here(lanes: &[Arc<Mailbox>; 3], call: Call) -> Option<Call> {
    let may_block = HERE.with_borrow(|here| {
        here.as_ref().is_some_and(|here| here.lane != Lane::Log && here.is_one_of(lanes))
    });
    if may_block {
        guarded("a file operation", call);
        return None;
    }
    Some(call)
}

impl plug::Held for Mailbox {
    fn release(&self) {
        self.kick();
    }
}

/// Holding back the wake of a thread while several requests are queued for it.
pub(crate) mod plug {
    use super::{Arc, RefCell};

    /// What is told at the end of the plug.
    pub(crate) trait Held: Send + Sync {
        /// The plug is pulled.
        fn release(&self);
    }

    #[derive(Default)]
    struct Plugged {
        depth: usize,
        waiting: Vec<Arc<dyn Held>>,
    }

    thread_local! {
        static PLUGGED: RefCell<Plugged> = RefCell::default();
    }

    /// Whether a plug lives on this thread; if so, `held` is told at its end.
    #[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
    pub(crate) fn holds_back<H: Held + 'static>(held: &Arc<H>) -> bool {
        PLUGGED.with_borrow_mut(|plugged| {
            if plugged.depth == 0 {
                return false;
            }
            let own = Arc::as_ptr(held);
            if !plugged.waiting.iter().any(|other| std::ptr::addr_eq(Arc::as_ptr(other), own)) {
                plugged.waiting.push(Arc::<H>::clone(held));
            }
            true
        })
    }

    pub(crate) fn begin() {
        PLUGGED.with_borrow_mut(|plugged| plugged.depth += 1);
    }

    pub(crate) fn end() {
        let waiting = PLUGGED.with_borrow_mut(|plugged| {
            plugged.depth -= 1;
            if plugged.depth == 0 { std::mem::take(&mut plugged.waiting) } else { Vec::new() }
        });
        for held in waiting {
            held.release();
        }
    }
}
