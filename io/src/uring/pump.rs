//! Reads on the caller's tokio runtime: one shared ring for each, and a task there that answers.
//!
//! A read that goes to the thread of the foreground ring wakes that thread, and is woken by it: two
//! changes of thread beside the one that the device costs. On a runtime whose workers wait in epoll
//! anyway, the worker submits, and epoll tells it of the completion.
//!
//! Invariants:
//! 1. Only multi-threaded runtimes have a pump: the workers of another kind are driven by a user's
//!    thread, which may stop doing so at any time. Only reads take this way: one that the kernel
//!    dropped, because the thread that submitted it has ended, is repeated by a blocking call.
//! 2. Nothing relies on a user's future being polled again, nor on a runtime: while anything is in
//!    flight the thread of the foreground ring looks every [`TICK`], and does the task's work when
//!    there was no progress. So reads end also when all workers are blocked, or gone.
//! 3. The task ends with the runtime, or with the environment; it leaves the rest to that thread,
//!    which does not end before it.
//! 4. No waker is called, and the kernel is not entered, under a lock.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::RwLock;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, Id, RuntimeFlavor};

use super::shared::{Answers, Progress, SharedRing, Submitted, Watched};
use crate::armed::Armed;
use crate::lane::{Mailbox, plug};
use crate::system::Shared;
use crate::transfer::{Kind, Request};

/// How often the thread of the foreground ring looks while something is in flight.
const TICK: Duration = Duration::from_millis(10);

/// Looks without anything in flight before it sleeps: waking it costs a reader some microseconds,
/// so it stays awake for about a second.
const QUIET_MAX: u32 = 100;

/// The pumps of all runtimes that have read.
pub(crate) struct Pumps {
    table: RwLock<Table>,
    /// Armed while the thread of the foreground ring does not look.
    unwatched: Armed,
}

#[derive(Default)]
struct Table {
    closed: bool,
    /// A runtime without a pump is one that can have none. What has ended is taken out: another
    /// runtime may get its number.
    pumps: Vec<(Id, Option<Arc<Pump>>)>,
}

/// The ring of one runtime.
pub(crate) struct Pump {
    ring: Arc<SharedRing>,
    /// The task.
    task: AtomicWaker,
    /// The thread of the foreground ring.
    watcher: Arc<Mailbox>,
    shared: Weak<Shared>,
    /// A thread of the runtime may not submit.
    is_refused: AtomicBool,
}

impl Pumps {
    pub(crate) fn new() -> Pumps {
        let unwatched = Armed::new();
        unwatched.arm(|| true);
        Pumps { table: RwLock::default(), unwatched }
    }

    /// Starts a read on the current runtime, or gives the request back.
    pub(crate) fn push(
        &self,
        shared: &Arc<Shared>,
        watcher: &Arc<Mailbox>,
        request: Request,
    ) -> Result<(), Request> {
        if request.transfer.kind != Kind::Read {
            return Err(request);
        }
        let Some(pump) = self.current(shared, watcher) else { return Err(request) };
        let queued = pump.ring.push(request)?;
        if self.unwatched.must_ring() {
            pump.watcher.nudge();
        }
        if queued > 0 && !plug::holds_back(&pump) {
            pump.submit();
        }
        Ok(())
    }

    fn current(&self, shared: &Arc<Shared>, watcher: &Arc<Mailbox>) -> Option<Arc<Pump>> {
        let runtime = Handle::try_current().ok()?;
        if runtime.runtime_flavor() != RuntimeFlavor::MultiThread {
            return None;
        }
        let id = runtime.id();
        if let Some((_, pump)) = self.table.read().pumps.iter().find(|(of, _)| *of == id) {
            return pump.clone();
        }
        let mut table = self.table.write();
        if table.closed {
            return None;
        }
        if let Some((_, pump)) = table.pumps.iter().find(|(of, _)| *of == id) {
            return pump.clone();
        }
        let pump = Pump::start(&runtime, shared, watcher);
        let pump = pump.inspect_err(|e| {
            tracing::info!(reason = %e, "reads do not use the ring on the caller's runtime");
        });
        table.pumps.push((id, pump.ok()));
        table.pumps.last()?.1.clone()
    }

    /// Takes no new operations, and lets the tasks end.
    pub(crate) fn close(&self) {
        let mut table = self.table.write();
        table.closed = true;
        let pumps: Vec<_> = table.pumps.iter().filter_map(|(_, pump)| pump.clone()).collect();
        drop(table);
        for pump in pumps {
            pump.ring.close();
            pump.task.wake();
        }
    }

    /// Lets go a ring that is through.
    fn forget(&self, id: Id) {
        let mut table = self.table.write();
        let Some(place) = table.pumps.iter().position(|(of, _)| *of == id) else { return };
        let (_, forgotten) = table.pumps.swap_remove(place);
        // Order: Relaxed, it was set before the ring was closed, under its lock.
        if forgotten.as_ref().is_some_and(|pump| pump.is_refused.load(Ordering::Relaxed)) {
            table.pumps.push((id, None));
        }
        drop(table);
        drop(forgotten);
    }

    /// Whether nothing is in flight on any of them.
    pub(crate) fn are_idle(&self) -> bool {
        let table = self.table.read();
        table.pumps.iter().flat_map(|(_, pump)| pump).all(|pump| pump.ring.progress().pending == 0)
    }
}

/// The look of the foreground ring's thread at the pumps.
#[derive(Default)]
pub(super) struct Watch {
    due: Option<Duration>,
    quiet: u32,
    seen: Vec<(Id, Progress)>,
}

impl Watch {
    /// Does what is due; how long the thread may sleep, if not for ever.
    pub(super) fn look(&mut self, shared: &Shared, nudged: bool) -> Option<Duration> {
        let now = shared.timers.now();
        if nudged {
            self.quiet = 0;
            self.due.get_or_insert(now + TICK);
        }
        let due = self.due?;
        if now < due {
            return Some(due - now);
        }
        self.due = None;
        self.quiet = if self.tick(shared) { 0 } else { self.quiet + 1 };
        if self.quiet > QUIET_MAX && shared.pumps.unwatched.arm(|| shared.pumps.are_idle()) {
            return None;
        }
        self.due = Some(now + TICK);
        Some(TICK)
    }

    /// Helps where there was no progress; whether there was anything to do anywhere.
    fn tick(&mut self, shared: &Shared) -> bool {
        let pumps = shared.pumps.table.read().pumps.clone();
        let mut now = Vec::with_capacity(pumps.len());
        let mut active = false;
        for (id, pump) in pumps {
            let Some(pump) = pump else { continue };
            let progress = pump.ring.progress();
            let seen = self.seen.iter().find(|(of, _)| *of == id).map(|(_, seen)| *seen);
            if progress.pending > 0 && seen.is_none_or(|seen| seen.reaped == progress.reaped) {
                pump.turn(Some(shared));
            }
            active |= progress.pending > 0 || seen != Some(progress);
            if pump.ring.is_over() {
                shared.pumps.forget(id);
            } else {
                now.push((id, progress));
            }
        }
        self.seen = now;
        active
    }
}

impl Pump {
    fn start(
        runtime: &Handle,
        shared: &Arc<Shared>,
        watcher: &Arc<Mailbox>,
    ) -> std::io::Result<Arc<Pump>> {
        if cfg!(panic = "abort") {
            // What comes below would end the process on a runtime without an I/O driver.
            return Err(std::io::Error::other("panics abort"));
        }
        let ring = Arc::new(SharedRing::new()?);
        // A runtime does not say whether it has an I/O driver, other than by a panic.
        let watched = std::panic::catch_unwind(AssertUnwindSafe(|| ring.watched()));
        let Ok(watched) = watched else {
            return Err(std::io::Error::other("the runtime has no I/O driver"));
        };
        let watched = watched?;
        let pump = Arc::new(Pump {
            ring,
            task: AtomicWaker::new(),
            watcher: Arc::clone(watcher),
            shared: Arc::downgrade(shared),
            is_refused: AtomicBool::new(false),
        });
        let running = Running(Arc::clone(&pump));
        drop(runtime.spawn(async move {
            std::future::poll_fn(|cx| running.0.poll(&watched, cx)).await;
        }));
        Ok(pump)
    }

    fn poll(&self, watched: &AsyncFd<Watched>, cx: &mut Context<'_>) -> Poll<()> {
        self.task.register(cx.waker());
        loop {
            self.turn(None);
            if self.ring.is_over() {
                return Poll::Ready(());
            }
            match watched.poll_read_ready(cx) {
                Poll::Ready(Ok(mut ready)) => ready.clear_ready(),
                // The runtime ends.
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Submits and answers, as long as there is something.
    fn turn(&self, watcher: Option<&Shared>) {
        loop {
            let (answers, _) = self.ring.reap();
            self.answer(answers);
            match self.ring.submit() {
                Ok(Submitted::Some) => {}
                Ok(Submitted::All | Submitted::Later) => return,
                Err(e) => return self.refused(&e, watcher),
            }
        }
    }

    /// Submits what the current thread has queued, and answers what has completed meanwhile: the
    /// runtime looks for completions only when a worker has nothing else to do.
    fn submit(&self) {
        match self.ring.submit() {
            Ok(Submitted::All) => {}
            Ok(Submitted::Some) => self.task.wake(),
            // The thread that watches tries again.
            Ok(Submitted::Later) => return,
            Err(e) => return self.refused(&e, None),
        }
        if let Some((answers, again)) = self.ring.try_reap() {
            self.answer(answers);
            if again {
                self.task.wake();
            }
        }
    }

    /// The current thread may not submit. A worker may be confined further than the process, so
    /// only a refusal to the thread that watches is the end of the ring.
    fn refused(&self, e: &std::io::Error, watcher: Option<&Shared>) {
        self.is_refused.store(true, Ordering::Relaxed);
        self.ring.close();
        self.task.wake();
        match watcher {
            Some(shared) => self.fail(shared, &format!("io_uring_enter: {e}")),
            None => self.watcher.nudge(),
        }
    }

    fn fail(&self, shared: &Shared, reason: &str) {
        shared.fail(reason);
        self.ring.abandon(reason);
    }

    fn answer(&self, answers: Answers) {
        let count = answers.count;
        let shared = self.shared.upgrade();
        for (request, result) in answers.finished {
            request.finish(result);
        }
        for request in answers.detours {
            match &shared {
                Some(shared) => shared.detour(request),
                None => request.run_blocking(),
            }
        }
        self.ring.answered(count);
        if let (Some(reason), Some(shared)) = (answers.failure, shared) {
            self.fail(&shared, &reason);
        }
    }
}

impl plug::Held for Pump {
    fn release(&self) {
        self.submit();
    }
}

/// The task while it lives; its end, or that of the runtime, hands the ring over.
struct Running(Arc<Pump>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.ring.close();
        self.0.watcher.nudge();
    }
}

#[cfg(test)]
mod tests;
