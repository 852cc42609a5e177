//! Backpressure: the byte credits that a write acquires before it may enter the log.
//!
//! A credit is a byte of memtable, or of a value on its way to the value log. Flushes give credits
//! back while they write, not at their end, so that waiting writers trickle in at the pace of the
//! disk instead of in bursts; those of a value come back when it is written.
//!
//! Invariants:
//! 1. Grants are first come, first served; a newcomer never overtakes a waiter.
//! 2. `used` is what granted writes hold and flushes have not given back. It exceeds the limit
//!    only by one write larger than the limit, which goes when nothing else is in.
//! 3. A grant to a waiter that has gone is given back.
//! 4. A waiter's credits may all be in the active memtable, which nobody would seal while all
//!    writers wait: the flush task seals it when [`Throttle::is_waited_for`] and nothing else is
//!    left to flush. It is told when a write begins to wait, and when one enters the memtable
//!    while others wait.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::error::{Error, Result};
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering, oneshot};

/// Byte credits with a first-come, first-served queue.
pub(crate) struct Throttle {
    state: Mutex<State>,
    limit: usize,
    waits: AtomicU64,
    /// The length of the queue, changed under the lock of `state`.
    queued: AtomicUsize,
}

struct State {
    used: usize,
    waiting: VecDeque<(usize, oneshot::Sender<Result<()>>)>,
    /// Why nobody may wait at present.
    refusal: Option<Error>,
}

impl State {
    fn fits(&self, bytes: usize, limit: usize) -> bool {
        self.used == 0 || self.used.saturating_add(bytes) <= limit
    }
}

impl Throttle {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        let state = State { used: 0, waiting: VecDeque::new(), refusal: None };
        Arc::new(Throttle {
            state: Mutex::new(state),
            limit,
            waits: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
        })
    }

    /// Takes `bytes` if nobody has to wait for them.
    pub(crate) fn try_acquire(&self, bytes: usize) -> bool {
        let mut state = self.state.lock();
        let granted = state.waiting.is_empty() && state.fits(bytes, self.limit);
        if granted {
            state.used += bytes;
        }
        granted
    }

    /// Queues for `bytes`.
    pub(crate) fn acquire(self: &Arc<Self>, bytes: usize) -> Acquire {
        let (sender, receiver) = oneshot::channel();
        self.waits.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        match &state.refusal {
            // The receiver lives on in the result: the send cannot fail.
            Some(refusal) => drop(sender.send(Err(refusal.clone()))),
            None => {
                state.waiting.push_back((bytes, sender));
                self.grant(&mut state);
            }
        }
        drop(state);
        Acquire { throttle: self.clone(), bytes, receiver, taken: false }
    }

    /// Gives `bytes` back.
    pub(crate) fn release(&self, bytes: usize) {
        let mut state = self.state.lock();
        assert!(state.used >= bytes, "more credits came back than were granted");
        state.used -= bytes;
        self.grant(&mut state);
    }

    /// Takes back `bytes` that were given back too early, whether they fit or not.
    pub(crate) fn take_back(&self, bytes: usize) {
        self.state.lock().used += bytes;
    }

    fn grant(&self, state: &mut State) {
        while let Some((bytes, _)) = state.waiting.front() {
            if !state.fits(*bytes, self.limit) {
                break;
            }
            let Some((bytes, sender)) = state.waiting.pop_front() else { break };
            if sender.send(Ok(())).is_ok() {
                state.used += bytes;
            }
        }
        self.queued.store(state.waiting.len(), Ordering::Relaxed);
    }

    /// Whether a write waits for credits.
    pub(crate) fn is_waited_for(&self) -> bool {
        // Order: whoever asks holds, or has held, a lock that the waiter's notice went through.
        self.queued.load(Ordering::Relaxed) > 0
    }

    /// Turns all waiters away with `refusal`, and those who come later and would have to wait,
    /// until [`Throttle::admit`].
    pub(crate) fn refuse(&self, refusal: &Error) {
        let mut state = self.state.lock();
        state.refusal = Some(refusal.clone());
        for (_, sender) in state.waiting.drain(..) {
            // A waiter that has gone needs no answer.
            sender.send(Err(refusal.clone())).ok();
        }
        self.queued.store(0, Ordering::Relaxed);
    }

    /// Lets writes wait again.
    pub(crate) fn admit(&self) {
        self.state.lock().refusal = None;
    }

    /// The credits that have to come back before `bytes` more are to be had.
    pub(crate) fn missing(&self, bytes: usize) -> usize {
        self.wanted(bytes).saturating_sub(self.limit)
    }

    /// The credits that are used or waited for, and `bytes` more.
    fn wanted(&self, bytes: usize) -> usize {
        let state = self.state.lock();
        let waiting: usize = state.waiting.iter().map(|(bytes, _)| bytes).sum();
        state.used.saturating_add(waiting).saturating_add(bytes)
    }

    /// Used credits over all credits; above 1 while writers wait.
    pub(crate) fn level(&self) -> f64 {
        self.wanted(0) as f64 / self.limit as f64
    }

    /// How many writes had to wait since the open.
    pub(crate) fn waits(&self) -> u64 {
        self.waits.load(Ordering::Relaxed)
    }
}

/// A place in the queue; resolves when the credits are granted.
pub(crate) struct Acquire {
    throttle: Arc<Throttle>,
    bytes: usize,
    receiver: oneshot::Receiver<Result<()>>,
    taken: bool,
}

impl Future for Acquire {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.receiver).poll(cx).map(|granted| {
            self.taken = true;
            granted.unwrap_or_else(|_| Err(Error::closed()))
        })
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        // The grant may have been sent and never received (invariant 3).
        if !self.taken {
            self.receiver.close();
            if matches!(self.receiver.try_recv(), Ok(Some(Ok(())))) {
                self.throttle.release(self.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn waiters_are_served_in_order_and_dropped_grants_come_back() {
        let throttle = Throttle::new(100);
        assert!(throttle.try_acquire(60));
        assert!(!throttle.try_acquire(50));
        let mut first = throttle.acquire(50);
        let mut second = throttle.acquire(10);
        assert!((&mut first).now_or_never().is_none());
        assert!(!throttle.try_acquire(1), "a newcomer must not overtake");
        throttle.release(30);
        // Both fit now; the first is dropped with its grant unread.
        drop(first);
        assert!((&mut second).now_or_never().is_some());
        throttle.release(30);
        throttle.release(10);
        assert_eq!(throttle.level(), 0.0);
    }

    #[test]
    fn an_oversized_write_goes_alone_and_a_refusal_turns_waiters_away() {
        let throttle = Throttle::new(10);
        assert!(throttle.try_acquire(1000));
        let mut waiter = throttle.acquire(1);
        assert_eq!((throttle.missing(0), throttle.missing(5)), (991, 996));
        throttle.refuse(&Error::closed());
        assert!(matches!((&mut waiter).now_or_never(), Some(Err(_))));
        assert!(matches!(throttle.acquire(1).now_or_never(), Some(Err(_))));
        throttle.admit();
        assert!(throttle.acquire(1).now_or_never().is_none());
    }
}
