//! Counters of an open database, and what [`crate::DB::stats`] reports.
//!
//! Invariants:
//! 1. Counters only grow, relaxed: they order nothing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::alex::{Kind, Report};
use crate::filter::expected_false_positives;
use crate::sstable::Table;

/// How long a flush may take as long as none was seen.
const FLUSH_GUESS: Duration = Duration::from_millis(50);
/// Whoever is turned away is told to come back no earlier and no later.
const RETRY_AFTER: Range<Duration> = Duration::from_millis(1)..Duration::from_secs(5);

/// Defines the counters once: the atomics that the engine bumps.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) commits: AtomicU64,
    pub(crate) user_bytes: AtomicU64,
    pub(crate) log_groups: AtomicU64,
    pub(crate) log_syncs: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) flushed_bytes: AtomicU64,
    /// The bytes of memtables that flushes free in a second, smoothed; 0 before the first.
    flush_rate: AtomicU64,
    /// The same without what they paused.
    write_rate: AtomicU64,
    /// What a flush writes: a mean.
    unit: FlushUnit,
    pub(crate) compactions: AtomicU64,
    pub(crate) compacted_bytes: AtomicU64,
    pub(crate) rewrites: AtomicU64,
    pub(crate) rewritten_bytes: AtomicU64,
}

/// The bytes that a flush brings into the tree: a mean of those since the open, and of a guess that
/// counts for little. A flush counts for as much as its memtable was filled, and the last few
/// together for no less than all before them.
#[derive(Default)]
struct FlushUnit {
    bytes: AtomicU64,
    /// What has come into the mean, in [`FULL`]s.
    weight: AtomicU64,
}

/// The weight of a full memtable, of a guess, and of all that was before.
const FULL: u64 = 1024;
const GUESS_WEIGHT: u64 = FULL / 4;
const WEIGHT_MAX: u64 = 8 * FULL;

impl FlushUnit {
    /// Nothing before the first guess.
    fn bytes(&self) -> Option<u64> {
        (self.weight.load(Ordering::Relaxed) > 0).then(|| self.bytes.load(Ordering::Relaxed))
    }

    /// Order: one task learns.
    fn learn(&self, bytes: u64, weight: u64) {
        let all = (self.weight.load(Ordering::Relaxed) + weight).min(WEIGHT_MAX);
        assert!(weight <= all, "a weight of {weight} in {all}");
        let known = u128::from(self.bytes.load(Ordering::Relaxed)) * u128::from(all - weight);
        let mean = (known + u128::from(bytes) * u128::from(weight)) / u128::from(all.max(1));
        self.bytes.store(u64::try_from(mean).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.weight.store(all, Ordering::Relaxed);
    }
}

const MICROS: u64 = 1_000_000;

fn whole_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Adds `value` to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

impl Metrics {
    /// A flush freed `bytes` of memtable within `took`, of which it `paused` for merges.
    pub(super) fn learn_flush(&self, bytes: usize, took: Duration, paused: Duration) {
        let learn = |learnt: &AtomicU64, took: Duration| {
            let rate = (bytes as u64).saturating_mul(MICROS) / whole_micros(took).max(1);
            let known = learnt.load(Ordering::Relaxed);
            let rate = if known == 0 { rate } else { (known / 4 * 3).saturating_add(rate / 4) };
            learnt.store(rate.max(1), Ordering::Relaxed);
        };
        learn(&self.flush_rate, took);
        learn(&self.write_rate, took.saturating_sub(paused));
    }

    /// A flush of a memtable of `filled` bytes out of `memtable_bytes` brought so many.
    pub(super) fn learn_unit(&self, bytes: u64, filled: usize, memtable_bytes: usize) {
        let full = memtable_bytes.max(1) as u64;
        let weight = (filled as u64).saturating_mul(FULL) / full;
        self.unit.learn(bytes, weight.min(FULL));
    }

    /// Before the first flush: what one may bring.
    pub(super) fn guess_unit(&self, bytes: u64) {
        self.unit.learn(bytes, GUESS_WEIGHT);
    }

    /// What a flush brings into the tree, on average.
    pub(super) fn unit_bytes(&self) -> Option<u64> {
        self.unit.bytes()
    }

    /// How long a flush takes for so many bytes of a memtable if it does not pause; nothing while
    /// nobody knows.
    pub(super) fn time_to_write(&self, bytes: usize) -> Duration {
        let micros = (bytes as u64).saturating_mul(MICROS);
        Duration::from_micros(
            micros.checked_div(self.write_rate.load(Ordering::Relaxed)).unwrap_or(0),
        )
    }

    /// How long flushes will take to free so many bytes of memtables: a guess.
    pub(super) fn time_to_free(&self, bytes: usize) -> Duration {
        let guess = match self.flush_rate.load(Ordering::Relaxed) {
            0 => FLUSH_GUESS,
            rate => Duration::from_micros((bytes as u64).saturating_mul(MICROS) / rate),
        };
        guess.clamp(RETRY_AFTER.start, RETRY_AFTER.end)
    }

    /// A group goes to the log.
    pub(crate) fn log_group(&self) {
        add(&self.log_groups, 1);
    }

    /// The log is synced.
    pub(crate) fn log_sync(&self) {
        add(&self.log_syncs, 1);
    }
}

/// How the tables of a level find the block of a key, or its runs the table of one: each has the
/// search that costs least on its own keys. Counts are of tables, or of runs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct IndexStats {
    /// By models of where keys stand, after ALEX.
    pub learned: usize,
    /// By static trees over eight bytes of each key.
    pub tree: usize,
    /// By such trees over groups of keys, and eight other bytes in each group.
    pub grouped: usize,
    /// By binary search, over eight bytes of each key or over the keys themselves.
    pub binary: usize,
    /// The mean error of the models, in blocks, or in tables.
    pub mean_error: f64,
    /// Their largest error, in blocks, or in tables.
    pub max_error: u64,
    /// What all of them take beyond the keys, in bytes.
    pub bytes: usize,
}

impl IndexStats {
    /// Of these searches, each over so many keys.
    pub(super) fn of(searches: impl Iterator<Item = (Report, usize)>) -> Self {
        let mut stats = IndexStats::default();
        let (mut predicted, mut errors) = (0, 0.0);
        for (report, keys) in searches {
            stats.bytes += report.bytes;
            match report.kind {
                Kind::Plain | Kind::Binary => stats.binary += 1,
                Kind::Tree => stats.tree += 1,
                Kind::Grouped => stats.grouped += 1,
                Kind::Model => {
                    stats.learned += 1;
                    stats.max_error = stats.max_error.max(report.max_error);
                    predicted += keys;
                    errors += report.mean_error * keys as f64;
                }
            }
        }
        stats.mean_error = errors / predicted.max(1) as f64;
        stats
    }
}

/// What the filters of a level let pass.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct FilterStats {
    /// The share of absent keys that pass the filter of a run of the level, on average over its
    /// keys: counted from the bits that are set in its filters. 1 where there is no filter.
    pub false_positives: f64,
    /// The share that filters of the bits which Monkey gives the level in a tree of today's depth
    /// are expected to let pass. Tables that were written for another level, or for a tree of
    /// another depth, keep the filters they have.
    pub expected: f64,
}

impl FilterStats {
    /// The filters of `tables`, in a level that shall have `bits_per_key`.
    pub(super) fn of<'a>(tables: impl Iterator<Item = &'a Arc<Table>>, bits_per_key: f64) -> Self {
        let (mut entries, mut passing) = (0, 0.0);
        for table in tables {
            entries += table.meta().entries;
            passing += table.false_positives() * table.meta().entries as f64;
        }
        if entries == 0 {
            return FilterStats::default();
        }
        let expected = expected_false_positives(bits_per_key);
        FilterStats { false_positives: passing / entries as f64, expected }
    }
}

/// The shape of one level.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LevelStats {
    /// Sorted runs in the level.
    pub runs: usize,
    /// Tables in all its runs.
    pub tables: usize,
    /// Their size on disk, in bytes.
    pub bytes: u64,
    /// Entries, versions and tombstones included.
    pub entries: u64,
    /// How its tables find a block.
    pub indexes: IndexStats,
    /// How its runs find a table.
    pub run_indexes: IndexStats,
    /// What its filters let pass.
    pub filters: FilterStats,
}

/// A look at an open database.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Commits since the open.
    pub commits: u64,
    /// The keys and values of these commits, in bytes.
    pub user_bytes: u64,
    /// The newest seqno that reads see.
    pub visible_seqno: u64,
    /// The newest seqno that is durable in the log, with all before it.
    pub durable_seqno: u64,
    /// Groups written durably by the log task since the open.
    pub log_groups: u64,
    /// What was written to the log since the open, in both streams, padding and prepared zeros
    /// included, in bytes.
    pub log_bytes: u64,
    /// What was written to manifests since the open, in bytes.
    pub manifest_bytes: u64,
    /// Data syncs of page-cached log segments since the open.
    pub log_syncs: u64,
    /// Memtables, the active one included.
    pub memtables: usize,
    /// Their accounted size, in bytes.
    pub memtable_bytes: usize,
    /// Blocks and values in the cache, in bytes.
    pub cache_bytes: u64,
    /// What may be in the cache, in bytes: its share of the memory budget less the memory of
    /// tables.
    pub cache_capacity: u64,
    /// Cache look-ups that found their block or value, since the open.
    pub cache_hits: u64,
    /// Cache look-ups that did not.
    pub cache_misses: u64,
    /// Filters and indexes of open tables, and offsets of open value files, in bytes.
    pub table_memory_bytes: usize,
    /// What of the memory budget is set aside for buffers, in bytes: of the log, of flushes, merges
    /// and rewrites, and of streams.
    pub buffer_bytes: usize,
    /// What streams have read ahead of their consumers, in bytes; at most about half of the
    /// buffers.
    pub ahead_bytes: usize,
    /// [`crate::DBOptions::memory_budget`].
    pub memory_budget: usize,
    /// Memtables flushed since the open.
    pub flushes: u64,
    /// Table bytes that flushes wrote.
    pub flushed_bytes: u64,
    /// Merges since the open.
    pub compactions: u64,
    /// Table bytes that merges wrote.
    pub compacted_bytes: u64,
    /// Writes that had to wait for memtable space since the open.
    pub stalled_writes: u64,
    /// Live snapshots and streams.
    pub snapshots: usize,
    /// The levels, newest data first.
    pub levels: Vec<LevelStats>,
    /// The value log.
    pub value_log: ValueLogStats,
}

impl Stats {
    /// What memtables, cache, open tables and buffers take of the memory budget, in bytes; buffers
    /// count whether they are in use or not.
    pub fn memory_bytes(&self) -> u64 {
        let counted = self.memtable_bytes + self.table_memory_bytes + self.buffer_bytes;
        self.cache_bytes + counted as u64
    }

    /// Everything that was written to files since the open, in bytes: logs, tables, rewritten
    /// values and manifests.
    pub fn written_bytes(&self) -> u64 {
        let tables = self.flushed_bytes + self.compacted_bytes;
        self.log_bytes + self.manifest_bytes + tables + self.value_log.rewritten_bytes
    }

    /// The bytes written to files for each byte of keys and values that was committed; 0 before
    /// the first commit.
    pub fn write_amplification(&self) -> f64 {
        if self.user_bytes == 0 {
            return 0.0;
        }
        self.written_bytes() as f64 / self.user_bytes as f64
    }
}

/// The state of the value log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValueLogStats {
    /// The files that are complete, oldest first; those that commits enter are not among them.
    pub files: Vec<ValueFileStats>,
    /// What memtables refer to, in bytes: it is in files that commits enter, or may still enter.
    pub open_bytes: u64,
    /// What tables refer to and newer entries are thought to hide, in bytes: it becomes garbage
    /// when merges meet it. An estimate from what merges have dropped so far.
    pub hidden_bytes: u64,
    /// The size of files that only streams and reads on older versions need, in bytes.
    pub pinned_bytes: u64,
    /// Rewrites since the open.
    pub rewrites: u64,
    /// What rewrites wrote, in bytes.
    pub rewritten_bytes: u64,
}

impl ValueLogStats {
    /// The size of the complete files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// What tables refer to in them, in bytes.
    pub fn live_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.live_bytes).sum()
    }

    /// What nobody refers to in them, in bytes.
    pub fn garbage_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes.saturating_sub(file.live_bytes)).sum()
    }
}

/// A complete file of the value log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ValueFileStats {
    /// The number in its name.
    pub number: u64,
    /// How many segments it holds values of: one until it is rewritten.
    pub segments: usize,
    /// Its size, in bytes.
    pub bytes: u64,
    /// What tables refer to in it, in bytes: keys and values as they are stored.
    pub live_bytes: u64,
}

/// How hard writers press; see [`crate::DB::pressure`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Pressure {
    /// Unflushed bytes over what may be unflushed; at 1 and above writers wait.
    pub level: f64,
    /// How far merges are behind: flushes slow down from 0 on, and wait for merges at 1.
    pub debt: f64,
}

impl Pressure {
    /// Whether a write of ordinary size would have to wait now.
    pub fn is_stalling(&self) -> bool {
        self.level >= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_to_free_memory_follows_the_flushes() {
        let metrics = Metrics::default();
        assert_eq!(metrics.time_to_free(1 << 20), FLUSH_GUESS);
        metrics.learn_flush(1_000_000, Duration::from_millis(100), Duration::from_millis(50));
        assert_eq!(metrics.time_to_write(1_000_000), Duration::from_millis(50));
        assert_eq!(metrics.time_to_free(1_000_000), Duration::from_millis(100));
        metrics.learn_flush(1_000_000, Duration::from_millis(20), Duration::ZERO);
        assert_eq!(metrics.time_to_free(2_000_000), Duration::from_millis(100));
        assert_eq!(metrics.time_to_free(0), RETRY_AFTER.start);
        assert_eq!(metrics.time_to_free(usize::MAX), RETRY_AFTER.end);
    }

    #[test]
    fn the_unit_is_a_mean_of_flushes_by_what_filled_their_memtables() {
        let metrics = Metrics::default();
        assert_eq!(metrics.unit_bytes(), None);
        metrics.guess_unit(1000);
        assert_eq!(metrics.unit_bytes(), Some(1000));
        let unit_after = |flushes: usize, bytes: u64, filled: usize| {
            (0..flushes).for_each(|_| metrics.learn_unit(bytes, filled, 1000));
            metrics.unit_bytes().unwrap()
        };
        // The guess is soon forgotten.
        assert_eq!([1, 1, 1].map(|flushes| unit_after(flushes, 500, 1000)), [600, 555, 538]);
        assert!(unit_after(30, 500, 1000) < 505);
        // Small flushes count when there are many.
        assert!(unit_after(1, 1, 2) > 498);
        assert!(unit_after(1, 50, 100) > 485);
        assert!(unit_after(1000, 50, 100) < 55);
        // Those that brought more than their memtable held refer to the value log.
        assert!(unit_after(50, u64::MAX, 1 << 40) > 1 << 60);
    }
}
