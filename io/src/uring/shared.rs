//! A ring that many threads feed and reap; none of them owns it.
//!
//! Invariants:
//! 1. Both queues are touched only under the lock of `state`. Nobody enters the kernel under it:
//!    submitting direct reads takes microseconds each, which the others must not wait for.
//! 2. Who has queued an operation then submits, at least as many entries as it queued, or has
//!    somebody else submit. It does not matter whose entries those are.
//! 3. The ring is set up without SINGLE_ISSUER, DEFER_TASKRUN and COOP_TASKRUN: whoever submitted,
//!    and whatever that thread does afterwards, completions arrive.
//! 4. At most [`IN_FLIGHT_MAX`] operations are in flight, so neither queue can run full; what is
//!    beyond waits in order.
//! 5. A closed ring takes no new operations. After a failure it is closed, everything that was in
//!    flight is leaked, and the ring with it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::{EnterFlags, IoUring};
use parking_lot::Mutex;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::op::{InFlight, Outcome};
use super::ring::{BATCH_MAX, IN_FLIGHT_MAX};
use crate::transfer::Request;

/// Entries of the submission queue: all that can be in flight.
const ENTRIES: u32 = 128;

pub(super) struct SharedRing {
    ring: IoUring,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ops: InFlight,
    waiting: VecDeque<Request>,
    /// Operations that have completed and are being answered.
    answering: usize,
    /// Completions taken in so far.
    reaped: u64,
    closed: bool,
    failed: bool,
}

impl State {
    fn pending(&self) -> usize {
        self.ops.len() + self.waiting.len() + self.answering
    }
}

/// What completions brought; to be answered without the lock.
#[derive(Default)]
pub(super) struct Answers {
    /// How many there are.
    pub(super) count: usize,
    pub(super) finished: Vec<(Request, io::Result<usize>)>,
    /// Operations to be done by blocking calls.
    pub(super) detours: Vec<Request>,
    /// Why the ring has to be given up.
    pub(super) failure: Option<String>,
}

/// How far a ring is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Operations that have not been answered.
    pub(super) pending: usize,
    /// Completions taken in so far.
    pub(super) reaped: u64,
}

/// What is left after some entries were submitted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Submitted {
    All,
    /// There is more.
    Some,
    /// The kernel cannot take any now.
    Later,
}

impl SharedRing {
    pub(super) fn new() -> io::Result<SharedRing> {
        let mut all = IoUring::builder();
        all.setup_submit_all().dontfork();
        let mut plain = IoUring::builder();
        plain.dontfork();
        let ring = all.build(ENTRIES).or_else(|_| plain.build(ENTRIES))?;
        Ok(SharedRing { ring, state: Mutex::default() })
    }

    /// Queues a request; the number of entries that nobody has submitted yet. A closed ring gives
    /// it back.
    pub(super) fn push(&self, request: Request) -> Result<usize, Request> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(request);
        }
        if state.ops.len() == IN_FLIGHT_MAX {
            state.waiting.push_back(request);
        } else {
            #[cfg(test)]
            if request.transfer.file.path.ends_with("forged") {
                self.forge(&state);
            }
            let key = state.ops.insert(request);
            self.push_slot(&mut state, key);
        }
        Ok(self.queued(&state))
    }

    fn push_slot(&self, state: &mut State, key: usize) {
        let entry = state.ops.entry(key);
        // SAFETY: the lock is held, so this is the only view of the submission queue.
        let mut queue = unsafe { self.ring.submission_shared() };
        // SAFETY: the slot owns buffer and file until its CQE (op.rs, invariant 1), or leaks them.
        let pushed = unsafe { queue.push(&entry) };
        pushed.expect("there are as many entries as operations (invariant 4)");
    }

    /// Has the kernel complete an operation that nobody started.
    #[cfg(test)]
    fn forge(&self, _: &State) {
        let entry = io_uring::opcode::Nop::new().build().user_data(0x5EED << 32 | 3);
        // SAFETY: the lock is held, so this is the only view of the submission queue.
        let mut queue = unsafe { self.ring.submission_shared() };
        // SAFETY: a no-op names no memory and no file.
        unsafe { queue.push(&entry) }.unwrap();
    }

    fn queued(&self, _: &State) -> usize {
        // SAFETY: the lock is held, so this is the only view of the submission queue.
        let mut queue = unsafe { self.ring.submission_shared() };
        queue.sync();
        queue.len()
    }

    /// Submits up to a batch of what is queued.
    pub(super) fn submit(&self) -> io::Result<Submitted> {
        let queued = {
            let state = self.state.lock();
            if state.failed { 0 } else { self.queued(&state) }
        };
        if queued == 0 {
            return Ok(Submitted::All);
        }
        let batch = u32::try_from(queued.min(BATCH_MAX)).expect("a small number");
        let submitter = self.ring.submitter();
        // SAFETY: no argument is passed; the entries name what their slots own.
        let entered = unsafe { submitter.enter::<()>(batch, 0, EnterFlags::empty().bits(), None) };
        match entered {
            Ok(_) if queued > BATCH_MAX => Ok(Submitted::Some),
            Ok(_) => Ok(Submitted::All),
            // What was queued stays queued.
            Err(e) => match Errno::from_io_error(&e) {
                Some(Errno::INTR | Errno::BUSY | Errno::AGAIN) => Ok(Submitted::Later),
                _ => Err(e),
            },
        }
    }

    /// Takes in all completions, and queues what they make room for: the answers, and whether
    /// something has to be submitted.
    pub(super) fn reap(&self) -> (Answers, bool) {
        self.reap_locked(&mut self.state.lock())
    }

    /// As [`SharedRing::reap`], unless another thread is about to.
    pub(super) fn try_reap(&self) -> Option<(Answers, bool)> {
        let mut state = self.state.try_lock()?;
        Some(self.reap_locked(&mut state))
    }

    fn reap_locked(&self, state: &mut State) -> (Answers, bool) {
        let mut answers = Answers::default();
        if state.failed {
            return (answers, false);
        }
        // SAFETY: the lock is held, so this is the only view of the completion queue.
        let mut queue = unsafe { self.ring.completion_shared() };
        let mut again = false;
        for cqe in &mut queue {
            state.reaped += 1;
            match state.ops.complete(cqe.user_data(), cqe.result()) {
                Ok(Outcome::Finished(request, result)) => answers.finished.push((request, result)),
                Ok(Outcome::Detour(request)) => answers.detours.push(request),
                Ok(Outcome::Again(key)) => {
                    self.push_slot(state, key);
                    again = true;
                }
                Err(reason) => {
                    answers.failure = Some(reason);
                    break;
                }
            }
        }
        drop(queue);
        answers.count = answers.finished.len() + answers.detours.len();
        state.answering += answers.count;
        if answers.failure.is_some() {
            return (answers, false);
        }
        while state.ops.len() < IN_FLIGHT_MAX {
            let Some(request) = state.waiting.pop_front() else { break };
            let key = state.ops.insert(request);
            self.push_slot(state, key);
            again = true;
        }
        (answers, again)
    }

    /// What [`SharedRing::reap`] brought has been answered.
    pub(super) fn answered(&self, count: usize) {
        if count > 0 {
            self.state.lock().answering -= count;
        }
    }

    pub(super) fn progress(&self) -> Progress {
        let state = self.state.lock();
        Progress { pending: state.pending(), reaped: state.reaped }
    }

    /// Whether it is closed and nothing is in flight.
    pub(super) fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.closed && state.pending() == 0
    }

    /// Takes no new operations from now on.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Gives up the ring: every operation fails, and what the kernel may still use is leaked.
    pub(super) fn abandon(self: &Arc<Self>, reason: &str) {
        let mut state = self.state.lock();
        if state.failed {
            return;
        }
        (state.closed, state.failed) = (true, true);
        let mut ops = std::mem::take(&mut state.ops);
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        // Its memory may still be written to as well.
        std::mem::forget(Arc::clone(self));
        ops.abandon(reason);
        for request in waiting {
            request.finish(Err(io::Error::other(format!("the ring has failed: {reason}"))));
        }
    }

    /// Has the current runtime watch for completions.
    ///
    /// # Panics
    ///
    /// When the runtime has no I/O driver.
    pub(super) fn watched(self: &Arc<Self>) -> io::Result<AsyncFd<Watched>> {
        let watched = Watched(Arc::clone(self));
        // SAFETY: the descriptor is open, and the same, as long as the ring lives, which the
        // registered value keeps alive.
        let registered = unsafe { AsyncFd::register_with_interest(watched, Interest::READABLE) };
        Ok(registered?)
    }
}

/// A ring whose completions a runtime watches for.
pub(super) struct Watched(Arc<SharedRing>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.ring.as_raw_fd()
    }
}
