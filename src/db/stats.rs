//! Counters of an open database, and what [`crate::DB::stats`] reports.
//!
//! Invariants:
//! 1. Counters only grow, relaxed: they order nothing.

use std::sync::atomic::{AtomicU64, Ordering};

/// Defines the counters once: the atomics that the engine bumps.
#[derive(Default)]
pub(crate) struct Metrics {
    pub(crate) commits: AtomicU64,
    pub(crate) log_groups: AtomicU64,
    pub(crate) log_bytes: AtomicU64,
    pub(crate) log_syncs: AtomicU64,
    pub(crate) flushes: AtomicU64,
    pub(crate) flushed_bytes: AtomicU64,
    pub(crate) compactions: AtomicU64,
    pub(crate) compacted_bytes: AtomicU64,
}

/// Adds `value` to a counter.
pub(crate) fn add(counter: &AtomicU64, value: u64) {
    counter.fetch_add(value, Ordering::Relaxed);
}

impl Metrics {
    /// A group of `bytes` goes to the log.
    pub(crate) fn log_group(&self, bytes: usize) {
        add(&self.log_groups, 1);
        add(&self.log_bytes, bytes as u64);
    }

    /// The log is synced.
    pub(crate) fn log_sync(&self) {
        add(&self.log_syncs, 1);
    }
}

/// The shape of one level.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// A look at an open database.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Commits since the open.
    pub commits: u64,
    /// The newest seqno that reads see.
    pub visible_seqno: u64,
    /// The newest seqno that is durable in the log, with all before it.
    pub durable_seqno: u64,
    /// Groups written durably by the log task since the open.
    pub log_groups: u64,
    /// Their size, padding included, in bytes.
    pub log_bytes: u64,
    /// Data syncs of page-cached log segments since the open.
    pub log_syncs: u64,
    /// Memtables, the active one included.
    pub memtables: usize,
    /// Their accounted size, in bytes.
    pub memtable_bytes: usize,
    /// Blocks in the cache, in bytes.
    pub cache_bytes: u64,
    /// Cache look-ups that found their block, since the open.
    pub cache_hits: u64,
    /// Cache look-ups that did not.
    pub cache_misses: u64,
    /// Filters and indexes of open tables, in bytes.
    pub table_memory_bytes: usize,
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
}

/// How hard writers press; see [`crate::DB::pressure`].
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Pressure {
    /// Unflushed bytes over what may be unflushed; at 1 and above writers wait.
    pub level: f64,
}

impl Pressure {
    /// Whether a write of ordinary size would have to wait now.
    pub fn is_stalling(&self) -> bool {
        self.level >= 1.0
    }
}
