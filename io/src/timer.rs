//! Clocks and timers: ordered queues of wakers, served by a lane or by one thread of their own.
//!
//! Invariants:
//! 1. A queue is ordered by deadline; an entry lives exactly as long as its [`SystemSleep`] waits
//!    in it.
//! 2. A sleep that is polled on a lane with a queue of its own is registered there, and that lane
//!    ends its waits at the earliest deadline. Every other sleep is in the common queue, whose
//!    thread waits on a condition until the earliest deadline. Nothing polls.
//! 3. A closed queue takes no entry and has woken all it had: its sleeps register elsewhere.
#![expect(clippy::disallowed_types, reason = "this is the boundary")]

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};

use crate::lane::{self, guarded};

/// A deadline, and a number that tells equal deadlines apart.
type Key = (Duration, u64);

/// Wakers by deadline.
#[derive(Default)]
pub(crate) struct TimerQueue {
    state: Mutex<Queue>,
    earlier: Condvar,
}

#[derive(Default)]
struct Queue {
    entries: BTreeMap<Key, Waker>,
    next: u64,
    closed: bool,
    /// Whether the common queue's thread runs; lanes leave it false.
    served: bool,
    /// Set when the environment ends: that thread then ends with the last entry.
    ending: bool,
}

impl TimerQueue {
    /// Wakes what is due; the earliest deadline of the rest.
    pub(crate) fn fire(&self, now: Duration) -> Option<Duration> {
        loop {
            let mut state = self.state.lock();
            let entry = state.entries.first_entry()?;
            if entry.key().0 > now {
                return Some(entry.key().0);
            }
            let waker = entry.remove();
            drop(state);
            guarded("the waker of a timer", || waker.wake());
        }
    }

    /// Refuses new entries and wakes all there are.
    pub(crate) fn close(&self) {
        let entries = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.entries)
        };
        for waker in entries.into_values() {
            guarded("the waker of a timer", || waker.wake());
        }
    }

    fn insert(&self, deadline: Duration, waker: &Waker) -> Option<Key> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        let key = (deadline, state.next);
        state.next += 1;
        let earliest = state.entries.first_key_value().is_none_or(|(first, _)| key < *first);
        state.entries.insert(key, waker.clone());
        drop(state);
        if earliest {
            self.earlier.notify_one();
        }
        Some(key)
    }

    /// Replaces the waker of an entry; false when it is no longer there.
    fn update(&self, key: &Key, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        let Some(old) = state.entries.get_mut(key) else { return false };
        if !old.will_wake(waker) {
            let old = std::mem::replace(old, waker.clone());
            drop(state);
            drop(old);
        }
        true
    }

    fn remove(&self, key: &Key) {
        let mut state = self.state.lock();
        let waker = state.entries.remove(key);
        let last = state.ending && state.entries.is_empty();
        drop(state);
        drop(waker);
        if last {
            self.earlier.notify_one();
        }
    }
}

/// The clocks of an environment and its common timer queue.
pub(crate) struct Timers {
    queue: Arc<TimerQueue>,
}

/// The fixed point of all clocks of the process: a sleep of one environment may be polled on a lane
/// of another.
fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

impl Timers {
    pub(crate) fn new() -> Arc<Timers> {
        start();
        Arc::new(Timers { queue: Arc::default() })
    }

    pub(crate) fn now(&self) -> Duration {
        start().elapsed()
    }

    pub(crate) fn unix_time(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    /// Lets the timer thread end as soon as nobody sleeps.
    pub(crate) fn end(&self) {
        self.queue.state.lock().ending = true;
        self.queue.earlier.notify_one();
    }

    /// Starts the timer thread unless it runs.
    fn serve(self: &Arc<Self>) -> std::io::Result<()> {
        let mut state = self.queue.state.lock();
        if !state.served {
            let timers = Arc::clone(self);
            let builder = std::thread::Builder::new().name("seerdb-timer".into());
            builder.spawn(move || timers.run())?;
            state.served = true;
        }
        Ok(())
    }

    fn run(&self) {
        loop {
            let next = self.queue.fire(self.now());
            let mut state = self.queue.state.lock();
            match state.entries.first_key_value() {
                None if state.ending => {
                    state.served = false;
                    return;
                }
                None => self.queue.earlier.wait(&mut state),
                // Something came in between `fire` and the lock.
                Some((first, _)) if Some(first.0) != next => {}
                Some((first, _)) => match start().checked_add(first.0) {
                    Some(at) => {
                        self.queue.earlier.wait_until(&mut state, at);
                    }
                    None => self.queue.earlier.wait(&mut state),
                },
            }
        }
    }
}

/// The clock of a simulated machine.
#[cfg(feature = "sim")]
pub(crate) trait SimClock: Send + Sync {
    fn now(&self) -> Duration;
    fn unix_time(&self) -> Duration;
    /// Wakes at `deadline`; none when it has come already. `entry` is an earlier answer.
    fn wait(&self, deadline: Duration, entry: Option<u64>, waker: &Waker) -> Option<u64>;
    fn forget(&self, deadline: Duration, entry: u64);
}

/// Where time comes from.
#[derive(Clone)]
pub(crate) enum Time {
    System(Arc<Timers>),
    #[cfg(feature = "sim")]
    Sim(Arc<dyn SimClock>),
}

impl Time {
    pub(crate) fn now(&self) -> Duration {
        match self {
            Time::System(timers) => timers.now(),
            #[cfg(feature = "sim")]
            Time::Sim(clock) => clock.now(),
        }
    }

    pub(crate) fn unix_time(&self) -> Duration {
        match self {
            Time::System(timers) => timers.unix_time(),
            #[cfg(feature = "sim")]
            Time::Sim(clock) => clock.unix_time(),
        }
    }

    pub(crate) fn sleep(&self, duration: Duration) -> Sleep {
        let deadline = self.now().saturating_add(duration);
        let wait = match self {
            Time::System(timers) => {
                Wait::System(SystemSleep { timers: Arc::clone(timers), deadline, entry: None })
            }
            #[cfg(feature = "sim")]
            Time::Sim(clock) => {
                Wait::Sim(SimSleep { clock: Arc::clone(clock), deadline, entry: None })
            }
        };
        Sleep { wait }
    }
}

/// The future of [`crate::Clock::sleep`].
#[must_use = "a sleep does nothing unless polled"]
pub struct Sleep {
    wait: Wait,
}

enum Wait {
    System(SystemSleep),
    #[cfg(feature = "sim")]
    Sim(SimSleep),
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.wait {
            Wait::System(sleep) => Pin::new(sleep).poll(cx),
            #[cfg(feature = "sim")]
            Wait::Sim(sleep) => Pin::new(sleep).poll(cx),
        }
    }
}

/// A sleep by the clock of a simulated machine.
#[cfg(feature = "sim")]
struct SimSleep {
    clock: Arc<dyn SimClock>,
    deadline: Duration,
    entry: Option<u64>,
}

#[cfg(feature = "sim")]
impl Future for SimSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.entry = self.clock.wait(self.deadline, self.entry, cx.waker());
        if self.entry.is_some() { Poll::Pending } else { Poll::Ready(()) }
    }
}

#[cfg(feature = "sim")]
impl Drop for SimSleep {
    fn drop(&mut self) {
        if let Some(entry) = self.entry {
            self.clock.forget(self.deadline, entry);
        }
    }
}

/// A sleep by the system's clock.
struct SystemSleep {
    timers: Arc<Timers>,
    deadline: Duration,
    entry: Option<(Arc<TimerQueue>, Key)>,
}

impl SystemSleep {
    fn leave(&mut self) {
        if let Some((queue, key)) = self.entry.take() {
            queue.remove(&key);
        }
    }

    /// False when the sleep cannot be served.
    fn enter(&mut self, waker: &Waker) -> bool {
        if let Some(queue) = lane::timers()
            && let Some(key) = queue.insert(self.deadline, waker)
        {
            self.entry = Some((queue, key));
            return true;
        }
        let queue = Arc::clone(&self.timers.queue);
        let Some(key) = queue.insert(self.deadline, waker) else { return false };
        self.entry = Some((queue, key));
        if let Err(e) = self.timers.serve() {
            tracing::error!(error = %e, "cannot start the timer thread: a sleep ends early");
            self.leave();
            return false;
        }
        true
    }
}

impl Future for SystemSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.timers.now() >= self.deadline {
            self.leave();
            return Poll::Ready(());
        }
        if let Some((queue, key)) = &self.entry
            && queue.update(key, cx.waker())
        {
            return Poll::Pending;
        }
        self.entry = None;
        if self.enter(cx.waker()) { Poll::Pending } else { Poll::Ready(()) }
    }
}

impl Drop for SystemSleep {
    fn drop(&mut self) {
        self.leave();
    }
}
