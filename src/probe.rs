//! What one read did, counted for those who ask.
//!
//! Invariants:
//! 1. A read that nobody asked about pays one branch at each place that counts.
//! 2. A probe follows its read wherever it goes: what is counted after a wait counts as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

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
        }
    }

    pub(crate) fn block(&self, origin: Origin) {
        if let Some(counters) = &self.0 {
            counters.blocks.bump(origin);
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
