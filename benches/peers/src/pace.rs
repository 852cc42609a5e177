//! Puts by the clock, whatever the engine does: what arrives while it pauses waits, and counts.
//!
//! Arrivals are spread evenly and come at the next tick: in little bursts, because no caller can
//! be woken for each of a hundred thousand in a second, and so that tasks and threads are woken
//! alike. The latency of a put begins when it arrives, not when somebody comes to send it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

const TICK: Duration = Duration::from_micros(500);

/// Hands out arrivals to any number of callers.
pub struct Pace {
    start: Instant,
    rate: f64,
    next: AtomicU64,
    tick: Notify,
}

impl Pace {
    /// `rate` arrivals in a second, from now on and as long as anybody has a handle.
    pub fn start(rate: f64) -> Arc<Self> {
        let start = Instant::now();
        let pace = Arc::new(Self { start, rate, next: AtomicU64::new(0), tick: Notify::new() });
        let clock = Arc::downgrade(&pace);
        std::thread::spawn(move || {
            while let Some(pace) = clock.upgrade() {
                pace.tick.notify_waiters();
                drop(pace);
                std::thread::sleep(TICK);
            }
        });
        pace
    }

    /// Waits for the next arrival that nobody else has: when it was due.
    pub async fn next(&self) -> Instant {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let ticks = (number as f64 / self.rate / TICK.as_secs_f64()).ceil();
        let due = self.start + TICK.mul_f64(ticks);
        loop {
            let mut tick = std::pin::pin!(self.tick.notified());
            tick.as_mut().enable();
            if Instant::now() >= due {
                return due;
            }
            tick.await;
        }
    }

    /// How many were due by now.
    pub fn due(&self) -> f64 {
        self.start.elapsed().as_secs_f64() * self.rate
    }
}
