//! Which K suits what is being done: what a window of time saw, what each K would cost for it, and
//! when the difference is worth a switch. Pure: it is told the time, and what was counted.
//!
//! The cost of an operation, in nanoseconds, with W, the runs and R of [`TreeCosts`]:
//!
//! | of | costs |
//! |---|---|
//! | a put | its bytes in a table x W x the time to merge a byte |
//! | a get of an absent key | runs x probe + R x block |
//! | a get that a run answers | 0.7 x runs x probe + (1 + R) x block |
//! | a scan | runs x seek |
//!
//! What memtables answer costs nothing that K changes, and what a scan reads beyond its first key
//! is the same for every K: the last run dominates it.
//!
//! A window is priced by shares of its operations, so that a busy window does not outweigh the
//! quiet ones behind it. Puts count when they are committed, at the bytes that the last flush made
//! of each: a window needs no flush of its own.
//!
//! Invariants:
//! 1. K changes only when another one, on the same side of it, has been worth a switch for
//!    [`STREAK`] windows in a row, and is not held.
//! 2. A window of fewer than [`OPERATIONS_MIN`] operations decides nothing, and goes on.
//! 3. Time that goes back begins its window anew; time that leaps ends one window, not several.
//! 4. After a switch K is held until the level above the last has been written once over, or for
//!    [`QUIET_MAX`] of windows in which nothing was flushed. To turn K down merges what the upper
//!    levels hold; to turn it to and fro costs again only as much as was written meanwhile. So
//!    without writes nothing needs to be held for long, and a phase of three minutes has room for
//!    the hold, for the windows before it and behind it, and for a gain.

mod report;

use std::time::Duration;

pub use report::{RunsChoice, RunsCost, RunsSwitch, Workload};

use super::cost::TreeCosts;

/// The length of a window.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
/// In so many windows in a row another K must be worth a switch.
pub(crate) const STREAK: u32 = 3;
/// What it must save, as a share of the cost.
const GAIN_MIN: f64 = 0.15;
/// What the newest window counts in the mix of operations. A put may cost a hundred gets, so that
/// with half a share the puts of a phase that is over would outweigh gets for two minutes.
const NEWEST_SHARE: f64 = 0.75;
/// A window of fewer operations says nothing.
pub(crate) const OPERATIONS_MIN: u64 = 1000;
/// See invariant 4.
const QUIET_MAX: Duration = Duration::from_secs(60);
/// From so many samples on a term is what was measured, and nothing else.
const SAMPLES_MIN: u64 = 10_000;
/// A get that a run answers asks so much of all runs: those behind the answer are spared.
const ASKED_SHARE: f64 = 0.7;
/// Merges are timed by pieces of so many bytes written.
pub(crate) const PIECE_BYTES: u64 = 4096;
/// Scans of at most so many keys are short.
pub(crate) const SHORT_KEYS: u64 = 64;

/// Things that took some time together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sample {
    pub(crate) count: u64,
    pub(crate) nanos: u64,
}

impl Sample {
    /// So many things took `time` together.
    pub(crate) fn of(count: u64, time: Duration) -> Sample {
        Sample { count, nanos: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) }
    }

    pub(crate) fn add(&mut self, other: Sample) {
        self.count = self.count.saturating_add(other.count);
        self.nanos = self.nanos.saturating_add(other.nanos);
    }

    fn since(self, before: Sample) -> Sample {
        Sample {
            count: self.count.saturating_sub(before.count),
            nanos: self.nanos.saturating_sub(before.nanos),
        }
    }
}

/// Defines what is counted, and how counts are added and subtracted.
macro_rules! totals {
    ($($(#[$doc:meta])* $name:ident: $type:ident,)*) => {
        /// What was counted since the open.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub(crate) struct Totals {
            $($(#[$doc])* pub(crate) $name: $type,)*
        }

        impl Totals {
            /// Adds what somebody else counted.
            pub(crate) fn add(&mut self, other: &Totals) {
                $(totals!(@add $type, self.$name, other.$name);)*
            }

            fn since(&self, before: &Totals) -> Totals {
                Totals { $($name: totals!(@since $type, self.$name, before.$name),)* }
            }
        }
    };
    (@add u64, $to:expr, $from:expr) => { $to = $to.saturating_add($from) };
    (@add Sample, $to:expr, $from:expr) => { $to.add($from) };
    (@since u64, $now:expr, $before:expr) => { $now.saturating_sub($before) };
    (@since Sample, $now:expr, $before:expr) => { $now.since($before) };
}

totals! {
    /// Puts and deletes that were committed, and their bytes.
    puts: u64,
    put_bytes: u64,
    /// Of these, those that are in tables, and the bytes of the tables.
    flushed_puts: u64,
    flushed_bytes: u64,
    /// Gets that a memtable answered, that a run did, and that found nothing.
    gets_memory: u64,
    gets_found: u64,
    gets_absent: u64,
    /// The runs whose filters they asked, and those looked into in vain.
    runs_asked: u64,
    false_positives: u64,
    /// Scans that yielded at most [`SHORT_KEYS`], the others, and the keys of both.
    scans_short: u64,
    scans_long: u64,
    scan_keys: u64,
    /// Filters asked, and the way from one to the next.
    probes: Sample,
    /// Blocks that were in the block cache, and those that were not.
    hits: Sample,
    misses: Sample,
    /// The runs that a scan stood at first.
    seeks: Sample,
    /// Pieces of [`PIECE_BYTES`] that merges wrote.
    merges: Sample,
}

impl Totals {
    /// All operations.
    pub(crate) fn operations(&self) -> u64 {
        let gets = self.gets_memory + self.gets_found + self.gets_absent;
        self.puts + gets + self.scans_short + self.scans_long
    }
}

/// A term of the cost: a default that gives way to what is measured.
#[derive(Debug, Clone, Copy)]
struct Term {
    default: f64,
    seen: Sample,
}

impl Term {
    const fn new(default: f64) -> Term {
        Term { default, seen: Sample { count: 0, nanos: 0 } }
    }

    fn fold(&mut self, sample: Sample) {
        if self.seen.count >= 2 * SAMPLES_MIN {
            // What is old counts half with every window, but never for too little.
            self.seen = Sample { count: self.seen.count / 2, nanos: self.seen.nanos / 2 };
        }
        self.seen.add(sample);
    }

    fn nanos(&self) -> f64 {
        let missing = SAMPLES_MIN.saturating_sub(self.seen.count) as f64;
        let count = self.seen.count.max(SAMPLES_MIN) as f64;
        (self.default * missing + self.seen.nanos as f64) / count
    }
}

/// The terms of the cost.
#[derive(Debug, Clone, Copy)]
struct Terms {
    probe: Term,
    hit: Term,
    miss: Term,
    seek: Term,
    merge: Term,
}

impl Terms {
    const DEFAULT: Terms = Terms {
        probe: Term::new(120.0),
        hit: Term::new(200.0),
        miss: Term::new(1500.0),
        seek: Term::new(700.0),
        merge: Term::new(27_000.0),
    };
    /// A merge that somebody paused is not one of a disk that is slower than so many times.
    const MERGE_TIMES: f64 = 16.0;

    fn fold(&mut self, window: &Totals) {
        self.probe.fold(window.probes);
        self.hit.fold(window.hits);
        self.miss.fold(window.misses);
        self.seek.fold(window.seeks);
        self.merge.fold(window.merges);
    }

    fn merge_nanos(&self) -> f64 {
        let default = Terms::DEFAULT.merge.default;
        self.merge.nanos().clamp(default / Terms::MERGE_TIMES, default * Terms::MERGE_TIMES)
    }
}

/// What an average operation is, smoothed: shares of all, and the table bytes that one puts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Mix {
    puts: f64,
    bytes: f64,
    memory: f64,
    found: f64,
    absent: f64,
    short: f64,
    long: f64,
}

impl Mix {
    fn of(window: &Totals, bytes_per_put: f64) -> Mix {
        let share = |count: u64| count as f64 / window.operations().max(1) as f64;
        Mix {
            puts: share(window.puts),
            bytes: share(window.puts) * bytes_per_put,
            memory: share(window.gets_memory),
            found: share(window.gets_found),
            absent: share(window.gets_absent),
            short: share(window.scans_short),
            long: share(window.scans_long),
        }
    }

    /// What was fades soon: three windows in a row have to agree anyhow.
    fn fold(&mut self, other: Mix) {
        let fold = |was: &mut f64, is: f64| *was += (is - *was) * NEWEST_SHARE;
        fold(&mut self.puts, other.puts);
        fold(&mut self.bytes, other.bytes);
        fold(&mut self.memory, other.memory);
        fold(&mut self.found, other.found);
        fold(&mut self.absent, other.absent);
        fold(&mut self.short, other.short);
        fold(&mut self.long, other.long);
    }
}

/// What keeps K for a while.
#[derive(Debug, Clone, Copy)]
struct Hold {
    /// The bytes that flushes had written when it began.
    flushed_bytes: u64,
    /// The length of the windows since in which nothing was flushed.
    quiet: Duration,
}

/// What a look came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// K is this from now on.
    pub(crate) switched: Option<usize>,
    /// When to look again; never as long as nothing is done.
    pub(crate) again_in: Option<Duration>,
}

/// The tree as a look sees it.
#[derive(Debug, Clone)]
pub(crate) struct Sight {
    /// What each K from 1 on is expected to cost.
    pub(crate) costs: Vec<TreeCosts>,
    /// The capacity of the level above the last.
    pub(crate) turnover_bytes: u64,
}

/// Chooses K; see the invariants of the module.
#[derive(Debug)]
pub(crate) struct Chooser {
    runs: usize,
    /// When the last look that was due took place, and what was counted then.
    looked: (Duration, u64),
    /// The same of the window under way.
    begun: (Duration, Totals),
    mix: Option<Mix>,
    terms: Terms,
    /// The share of blocks that are not in the cache.
    missed: Option<f64>,
    bytes_per_put: Option<f64>,
    costs: Vec<f64>,
    /// Whether more runs are better, and for how many windows now.
    better: Option<(bool, u32)>,
    hold: Option<Hold>,
    /// When, from what, for what share of the cost.
    switched: Option<(Duration, usize, f64)>,
    switches: u64,
}

impl Chooser {
    /// Begins with this K at this time.
    pub(crate) fn new(runs: usize, now: Duration) -> Chooser {
        assert!(runs >= 1, "K = {runs} is none to begin with");
        Chooser {
            runs,
            looked: (now, 0),
            begun: (now, Totals::default()),
            mix: None,
            terms: Terms::DEFAULT,
            missed: None,
            bytes_per_put: None,
            costs: Vec::new(),
            better: None,
            hold: None,
            switched: None,
            switches: 0,
        }
    }

    /// Looks at what was counted, and at the tree if a window has ended.
    pub(crate) fn look(
        &mut self,
        now: Duration,
        totals: &Totals,
        sight: impl FnOnce() -> Sight,
    ) -> Look {
        let operations = totals.operations();
        if now < self.looked.0 {
            (self.looked.0, self.begun.0) = (now, now);
        }
        let is_active = operations != self.looked.1;
        let passed = now.saturating_sub(self.looked.0);
        if passed < WINDOW {
            let again_in = is_active.then_some(WINDOW.saturating_sub(passed));
            return Look { switched: None, again_in };
        }
        self.looked = (now, operations);
        let window = totals.since(&self.begun.1);
        let mut switched = None;
        if window.operations() >= OPERATIONS_MIN {
            let length = now.saturating_sub(self.begun.0).min(WINDOW * 2);
            self.begun = (now, *totals);
            switched = self.fold(now, length, &window, totals, &sight());
        }
        Look { switched, again_in: is_active.then_some(WINDOW) }
    }

    /// A window has ended; the new K, if it changes.
    fn fold(
        &mut self,
        now: Duration,
        length: Duration,
        window: &Totals,
        totals: &Totals,
        sight: &Sight,
    ) -> Option<usize> {
        self.terms.fold(window);
        self.learn(window, totals);
        let mix = Mix::of(window, self.bytes_per_put.unwrap_or(0.0));
        let smoothed = self.mix.get_or_insert(mix);
        smoothed.fold(mix);
        let smoothed = *smoothed;
        self.costs = sight.costs.iter().map(|tree| self.cost(&smoothed, tree)).collect();
        if let Some(hold) = &mut self.hold {
            if window.flushed_bytes == 0 {
                hold.quiet = hold.quiet.saturating_add(length);
            }
            let flushed = totals.flushed_bytes.saturating_sub(hold.flushed_bytes);
            if flushed >= sight.turnover_bytes || hold.quiet >= QUIET_MAX {
                self.hold = None;
            }
        }
        let (best, ratio) = self.best()?;
        if best == self.runs || ratio > 1.0 - GAIN_MIN {
            self.better = None;
            return None;
        }
        let more = best > self.runs;
        let before = self.better.filter(|(was_more, _)| *was_more == more);
        let windows = before.map_or(0, |(_, windows)| windows).saturating_add(1);
        self.better = Some((more, windows));
        if windows < STREAK || self.hold.is_some() {
            return None;
        }
        self.switched = Some((now, self.runs, ratio));
        self.switches += 1;
        self.better = None;
        self.hold = Some(Hold { flushed_bytes: totals.flushed_bytes, quiet: Duration::ZERO });
        self.runs = best;
        Some(best)
    }

    /// Learns what the terms do not tell.
    fn learn(&mut self, window: &Totals, totals: &Totals) {
        let blocks = window.hits.count + window.misses.count;
        if blocks > 0 {
            let missed = window.misses.count as f64 / blocks as f64;
            self.missed = Some(self.missed.map_or(missed, |before| before.midpoint(missed)));
        }
        let per_put = |bytes: u64, puts: u64| bytes as f64 / puts as f64;
        if window.flushed_puts > 0 {
            self.bytes_per_put = Some(per_put(window.flushed_bytes, window.flushed_puts));
        } else if totals.flushed_puts == 0 && totals.puts > 0 {
            self.bytes_per_put = Some(per_put(totals.put_bytes, totals.puts));
        }
    }

    /// What an operation of `mix` costs in such a tree, in nanoseconds.
    fn cost(&self, mix: &Mix, tree: &TreeCosts) -> f64 {
        let terms = &self.terms;
        let missed = self.missed.unwrap_or(1.0);
        let block = missed * terms.miss.nanos() + (1.0 - missed) * terms.hit.nanos();
        let (runs, vain) = (tree.runs, tree.false_positives);
        let probes = runs * terms.probe.nanos();
        let merged = mix.bytes * tree.merge_amplification;
        merged * terms.merge_nanos() / PIECE_BYTES as f64
            + mix.absent * (probes + vain * block)
            + mix.found * (ASKED_SHARE * probes + (1.0 + vain) * block)
            + (mix.short + mix.long) * runs * terms.seek.nanos()
    }

    /// The cheapest K, and what it costs as a share of what the present one does.
    fn best(&self) -> Option<(usize, f64)> {
        let present = *self.costs.get(self.runs.checked_sub(1)?)?;
        if present <= 0.0 {
            return None;
        }
        let cheapest = self.costs.iter().zip(1..).min_by(|(a, _), (b, _)| a.total_cmp(b));
        cheapest.map(|(cost, runs)| (runs, cost / present))
    }
}

#[cfg(test)]
mod tests;
