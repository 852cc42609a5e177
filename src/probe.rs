//! What one read did, counted for those who ask.
//!
//! Invariants:
//! 1. A read that nobody asked about pays one branch at each place that counts.
//! 2. A probe follows its read wherever it goes: what is counted after a wait counts as well.
//! 3. Time is taken of what begins where the probe was asked last: from filter to filter, and from
//!    a filter to the block behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// How many parts of an answer came from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Sources {
    /// From the engine's memory: its cache, or what is not written yet.
    pub memory: u32,
    /// From the kernel's page cache, on the caller's thread.
    pub page_cache: u32,
    /// By a read that had to be waited for: of the disk, as a rule.
    pub disk: u32,
}

/// What one read did; see [`crate::Get::stats`] and [`crate::RangeStream::stats`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReadStats {
    /// The memtables that were searched.
    pub memtables: u32,
    /// The filters that were asked: one for each table that might have the key.
    pub filters: u32,
    /// Those of them that knew that their table does not have it.
    pub filtered: u32,
    /// Data blocks of tables.
    pub blocks: Sources,
    /// Values that stand in the value log.
    pub values: Sources,
    /// From the first poll of a get to the last: how long the caller waited.
    pub waited: Duration,
}

/// Where something came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Memory,
    PageCache,
    Disk,
}

#[derive(Default)]
struct Counts {
    memory: AtomicU32,
    page_cache: AtomicU32,
    disk: AtomicU32,
}

// Order: one read counts at a time, and whoever asks has seen it end; the counts order nothing.
fn bump(count: &AtomicU32) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl Counts {
    fn bump(&self, origin: Origin) {
        bump(match origin {
            Origin::Memory => &self.memory,
            Origin::PageCache => &self.page_cache,
            Origin::Disk => &self.disk,
        });
    }

    fn load(&self) -> Sources {
        Sources {
            memory: self.memory.load(Ordering::Relaxed),
            page_cache: self.page_cache.load(Ordering::Relaxed),
            disk: self.disk.load(Ordering::Relaxed),
        }
    }
}

#[derive(Default)]
struct Counters {
    memtables: AtomicU32,
    filters: AtomicU32,
    filtered: AtomicU32,
    blocks: Counts,
    values: Counts,
    /// A memtable or a run had the key.
    is_found: AtomicBool,
    times: Option<Times>,
}

/// A clock.
pub(crate) type Now = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Takes the time of what a read does.
struct Times {
    now: Now,
    /// Locked by nobody else: one read counts at a time.
    taken: Mutex<Taken>,
}

/// How often something happened, and how long that took together.
pub(crate) type Took = (u64, Duration);

/// The times of a read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Taken {
    /// From one filter to the next, blocks aside.
    pub(crate) filters: Took,
    /// From a filter to a block in the engine's memory, and to one that is not.
    pub(crate) hits: Took,
    pub(crate) misses: Took,
    /// When the last filter was asked, unless something else came since.
    asked: Option<Duration>,
}

impl Times {
    fn take(&self, is_filter: bool, part: impl FnOnce(&mut Taken) -> &mut Took) {
        let now = (self.now)();
        let mut taken = self.taken.lock();
        let before = taken.asked.take();
        taken.asked = is_filter.then_some(now);
        if let Some(before) = before {
            let (count, time) = part(&mut taken);
            *count += 1;
            *time += now.saturating_sub(before);
        }
    }
}

/// Counts what a read does, or nothing. A clone counts for the same read.
#[derive(Clone, Default)]
pub(crate) struct Probe(Option<Arc<Counters>>);

impl Probe {
    /// Counts nothing.
    pub(crate) const NONE: &Probe = &Probe(None);

    /// A probe for a read that begins.
    pub(crate) fn new() -> Probe {
        Probe(Some(Arc::default()))
    }

    /// A probe that takes times too.
    pub(crate) fn timed(now: Now) -> Probe {
        let times = Some(Times { now, taken: Mutex::default() });
        Probe(Some(Arc::new(Counters { times, ..Counters::default() })))
    }

    /// Makes it a probe for another read; whether that can be done: nobody else may have it.
    pub(crate) fn renew(&mut self) -> bool {
        let Some(counters) = self.0.as_mut().and_then(Arc::get_mut) else { return false };
        let now = counters.times.take().map(|times| times.now);
        let times = now.map(|now| Times { now, taken: Mutex::default() });
        *counters = Counters { times, ..Counters::default() };
        true
    }

    pub(crate) fn counts(&self) -> bool {
        self.0.is_some()
    }

    /// Something has the key, if only to say that it was removed.
    pub(crate) fn found(&self) {
        if let Some(counters) = &self.0 {
            counters.is_found.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn is_found(&self) -> bool {
        self.0.as_ref().is_some_and(|counters| counters.is_found.load(Ordering::Relaxed))
    }

    /// The times that were taken.
    pub(crate) fn taken(&self) -> Taken {
        let times = self.0.as_ref().and_then(|counters| counters.times.as_ref());
        times.map(|times| *times.taken.lock()).unwrap_or_default()
    }

    pub(crate) fn memtable(&self) {
        if let Some(counters) = &self.0 {
            bump(&counters.memtables);
        }
    }

    pub(crate) fn filter(&self, may_contain: bool) {
        if let Some(counters) = &self.0 {
            bump(&counters.filters);
            if !may_contain {
                bump(&counters.filtered);
            }
            if let Some(times) = &counters.times {
                times.take(true, |taken| &mut taken.filters);
            }
        }
    }

    pub(crate) fn block(&self, origin: Origin) {
        if let Some(counters) = &self.0 {
            counters.blocks.bump(origin);
            if let Some(times) = &counters.times {
                times.take(false, |taken| match origin {
                    Origin::Memory => &mut taken.hits,
                    Origin::PageCache | Origin::Disk => &mut taken.misses,
                });
            }
        }
    }

    pub(crate) fn value(&self, origin: Origin) {
        if let Some(counters) = &self.0 {
            counters.values.bump(origin);
        }
    }

    /// What was counted, for a read that took `waited`.
    pub(crate) fn stats(&self, waited: Duration) -> ReadStats {
        let Some(counters) = &self.0 else { return ReadStats { waited, ..ReadStats::default() } };
        ReadStats {
            memtables: counters.memtables.load(Ordering::Relaxed),
            filters: counters.filters.load(Ordering::Relaxed),
            filtered: counters.filtered.load(Ordering::Relaxed),
            blocks: counters.blocks.load(),
            values: counters.values.load(),
            waited,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_from_filter_to_filter_and_to_the_block_behind_it() {
        // Each look at the clock finds it a millisecond later.
        let ticks = AtomicU32::new(0);
        let now = move || Duration::from_millis(ticks.fetch_add(1, Ordering::Relaxed).into());
        let mut probe = Probe::timed(Arc::new(now));
        let millis = |(count, time): Took| (count, time.as_millis());
        for round in 0..2 {
            probe.filter(false);
            probe.filter(false);
            probe.filter(true);
            probe.block(Origin::Memory);
            // What lies behind a block is not a filter's.
            probe.filter(true);
            probe.block(Origin::Disk);
            probe.block(Origin::Disk);
            let taken = probe.taken();
            assert_eq!(millis(taken.filters), (2, 2), "round {round}");
            assert_eq!((millis(taken.hits), millis(taken.misses)), ((1, 1), (1, 1)));
            assert_eq!(probe.stats(Duration::ZERO).filtered, 2);
            probe.found();
            assert!(probe.is_found());
            let other = probe.clone();
            assert!(!probe.renew(), "somebody else has it");
            drop(other);
            assert!(probe.renew() && !probe.is_found());
            assert_eq!(probe.stats(Duration::ZERO), ReadStats::default());
        }
        assert!(!Probe::default().renew());
        assert_eq!(millis(Probe::new().taken().filters), (0, 0));
    }
}
