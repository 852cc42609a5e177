//! The pace of background work: what is urgent runs freely, what can wait gives way.
//!
//! Flushes come first: writers wait for them, so nothing here slows them but the debt of merges,
//! smoothly. Merges of newer runs come before those of older ones (see [`control`]), and both
//! before rewrites of values. What is not urgent stays within limits that may change at any time.
//!
//! Invariants:
//! 1. Limits hold only while merges keep up: with debt they give way, the more the larger it is.
//! 2. The rate under a latency target falls at once when reads or syncs take longer, and rises
//!    slowly while they do not, after AIMD (Chiu and Jain, 1989).
//! 3. A clock that jumps makes no pause longer than [`PAUSE_MAX`].
//!
//! [`control`]: crate::compaction::control

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use seerdb_io::Clock;

use crate::limits::CompactionLimits;

/// No pause is longer.
const PAUSE_MAX: Duration = Duration::from_millis(2000);
/// How often the rate under a latency target is looked at.
const WINDOW: Duration = Duration::from_millis(100);
/// The rates that a latency target may lead to, in bytes a second.
const RATE_MIN: f64 = 4_194_304.0;
const RATE_MAX: f64 = 4_294_967_296.0;
/// What becomes of the rate in a window with a slow operation of so many, and in one without.
const SLOW_SHARE: u64 = 100;
const DOWN: f64 = 0.7;
const UP: f64 = 1.1;
/// See the invariants of the module.
pub(super) struct Pacer {
    limits: Mutex<CompactionLimits>,
    /// The latency target in nanoseconds; 0 without one: nobody measures for nothing.
    target: AtomicU64,
    /// Operations since the last window, and those that took longer than the target.
    seen: AtomicU64,
    slow: AtomicU64,
    state: Mutex<State>,
}

struct State {
    /// What the latency target allows, in bytes a second.
    rate: f64,
    /// When the last window ended.
    window: Duration,
    /// When what was let pass will have been worked off.
    free_at: Duration,
}

impl Pacer {
    pub(super) fn new(limits: CompactionLimits) -> Pacer {
        let zero = Duration::ZERO;
        let pacer = Pacer {
            limits: Mutex::default(),
            target: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            slow: AtomicU64::new(0),
            state: Mutex::new(State { rate: RATE_MAX, window: zero, free_at: zero }),
        };
        pacer.set(limits);
        pacer
    }

    pub(super) fn limits(&self) -> CompactionLimits {
        *self.limits.lock()
    }

    pub(super) fn set(&self, limits: CompactionLimits) {
        let nanos = limits.latency.map_or(0, |target| target.as_nanos());
        // Order: figures that are only compared, here and below.
        self.target.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
        *self.limits.lock() = limits;
    }

    /// Does `work` of the foreground, and looks how long it takes if anybody wants to know.
    ///
    /// # Cancel safety
    ///
    /// That of `work`.
    pub(super) async fn timed<T>(&self, clock: &Clock, work: impl Future<Output = T>) -> T {
        if self.target.load(Ordering::Relaxed) == 0 {
            return work.await;
        }
        let began = clock.now();
        let done = work.await;
        self.note(clock.now().saturating_sub(began));
        done
    }

    fn note(&self, took: Duration) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        if took.as_nanos() > u128::from(self.target.load(Ordering::Relaxed)) {
            self.slow.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How long work shall pause that has just done so many bytes, at these times of the two
    /// clocks, with merges so far behind.
    pub(super) fn pause(
        &self,
        bytes: u64,
        now: Duration,
        unix_time: Duration,
        debt: f64,
    ) -> Duration {
        let limits = self.limits();
        let mut state = self.state.lock();
        self.adapt(&mut state, &limits, now);
        let is_off_peak = limits.window.is_some_and(|window| window.contains(unix_time));
        let fixed = limits.rate.map_or(RATE_MAX, |bytes| bytes as f64);
        let rate = if limits.latency.is_some() { state.rate.min(fixed) } else { fixed };
        let is_off_peak = is_off_peak && !planted!(IgnoreWindow) || planted!(IgnoreRate);
        if is_off_peak || rate >= RATE_MAX || debt >= 1.0 {
            state.free_at = now;
            return Duration::ZERO;
        }
        let took = Duration::from_secs_f64(bytes as f64 / rate * (1.0 - debt));
        // A time far from now is one of before a jump.
        let from = state.free_at.clamp(now.saturating_sub(WINDOW), now + PAUSE_MAX);
        state.free_at = from + took;
        state.free_at.saturating_sub(now).min(PAUSE_MAX)
    }

    fn adapt(&self, state: &mut State, limits: &CompactionLimits, now: Duration) {
        if limits.latency.is_none() {
            state.rate = RATE_MAX;
            return;
        }
        if now.abs_diff(state.window) < WINDOW {
            return;
        }
        state.window = now;
        let seen = self.seen.swap(0, Ordering::Relaxed);
        let slow = self.slow.swap(0, Ordering::Relaxed);
        let is_slow = slow * SLOW_SHARE > seen;
        // From no limit at all it begins where it can be felt.
        let known = if is_slow { state.rate.min(RATE_MAX / 4.0) } else { state.rate };
        state.rate = (known * if is_slow { DOWN } else { UP }).clamp(RATE_MIN, RATE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::DailyWindow;

    const MIB: u64 = 1 << 20;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// The bytes that pass in ten seconds, mebibyte after mebibyte, from time `at` on.
    fn passed(pacer: &Pacer, at: Duration, debt: f64, took: Option<Duration>) -> u64 {
        let (mut now, mut bytes) = (at, 0);
        while now < at + millis(10_000) && bytes < 100_000 * MIB {
            if let Some(took) = took {
                pacer.note(took);
            }
            bytes += MIB;
            now += pacer.pause(MIB, now, now, debt) + Duration::from_micros(100);
        }
        bytes
    }

    #[test]
    fn a_rate_holds_and_gives_way_to_debt() {
        let limits = CompactionLimits::default();
        let pacer = Pacer::new(limits.bytes_per_second(16 * MIB));
        let slow = passed(&pacer, millis(0), 0.0, None) / MIB;
        assert!((155..=170).contains(&slow), "{slow} MiB");
        let faster = passed(&pacer, millis(60_000), 0.5, None) / MIB;
        assert!((310..=340).contains(&faster), "{faster} MiB");
        assert!(passed(&pacer, millis(120_000), 1.0, None) > 9_000 * MIB);
        pacer.set(limits);
        assert!(passed(&pacer, millis(180_000), 0.0, None) > 9_000 * MIB);
    }

    #[test]
    fn a_latency_target_finds_its_rate() {
        let pacer = Pacer::new(CompactionLimits::default().latency_target(millis(2)));
        let (fast, slow) = (Some(millis(1)), Some(millis(3)));
        assert!(passed(&pacer, millis(0), 0.0, fast) > 9_000 * MIB);
        passed(&pacer, millis(20_000), 0.0, slow);
        let held = passed(&pacer, millis(40_000), 0.0, slow) / MIB;
        assert!((40..=60).contains(&held), "{held} MiB at the least rate");
        passed(&pacer, millis(60_000), 0.0, fast);
        assert!(passed(&pacer, millis(80_000), 0.0, fast) > 5_000 * MIB);
    }

    #[test]
    fn nothing_is_limited_off_peak() {
        let hours = |hours: u64| millis(hours * 3_600_000);
        for (from, to, inside, outside) in [(1, 5, 3, 6), (23, 5, 0, 22), (23, 5, 23, 5)] {
            let window = DailyWindow::new(hours(from), hours(to));
            let limits = CompactionLimits::default().bytes_per_second(MIB).off_peak(window);
            let pacer = Pacer::new(limits);
            assert_eq!(pacer.pause(100 * MIB, millis(1), hours(24 * 9 + inside), 0.0), millis(0));
            assert_eq!(pacer.pause(100 * MIB, millis(1), hours(24 * 9 + outside), 0.0), PAUSE_MAX);
        }
    }

    #[test]
    fn a_clock_that_jumps_makes_no_long_pause() {
        let pacer = Pacer::new(CompactionLimits::default().bytes_per_second(MIB));
        for now in [0, 1_000_000_000, 5, 3, u64::MAX / 4] {
            let pause = pacer.pause(64 * MIB, millis(now), millis(now), 0.0);
            assert!(pause <= PAUSE_MAX, "{pause:?}");
            let after = millis(now) + pause;
            assert!(pacer.pause(1, after, after, 0.0) <= PAUSE_MAX);
        }
    }
}
