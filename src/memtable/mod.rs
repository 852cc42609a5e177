//! The memtable: recent commits in memory, as 16 skiplists by key range.
//!
//! Invariants:
//! 1. An internal key enters once: (user key, seqno) is unique. Overwriting a key of
//!    crossbeam-skiplist 0.1.3 would make concurrent readers miss it.
//! 2. All seqnos of a memtable are smaller than those of the memtable that follows it.
//! 3. Entries never leave; the memtable goes as a whole when its flush is installed.
//! 4. `bytes` counts the memory of an entry, about, before the entry is visible.
//! 5. The ranges are fixed when the memtable is made (`bounds.rs`, ADR 3).

mod bounds;
mod partition;
mod source;
mod value;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;

use crate::filename::FileNumber;
use crate::key::{KeyBuf, SeqNo, Trailer, ValueKind};
use crate::pointer::Pointer;
use bounds::{Bounds, Sample};
use partition::{Found, INLINE_BYTES, Partition};
use value::{MemValue, is_short};

pub(crate) use source::MemSource;

/// The number of skiplists.
const PARTITIONS: usize = 16;
/// What a node of a skiplist takes, with a short key and a short value in it and a tower of mean
/// height.
const NODE_BYTES: usize = 112;
/// What memory of their own costs long keys.
const KEY_EXTRA_BYTES: usize = 16;
/// What memory of their own costs long values: what the allocator rounds up, and a reference count.
const VALUE_EXTRA_BYTES: usize = 40;

/// A segment of each stream: those with smaller numbers are older. Before the first one of a
/// stream it is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Floor {
    pub(crate) wal: FileNumber,
    pub(crate) values: FileNumber,
}

/// Recent commits, sorted.
pub(crate) struct Memtable {
    partitions: [Partition; PARTITIONS],
    bounds: Bounds,
    sample: Sample,
    bytes: AtomicUsize,
    entries: AtomicUsize,
    /// The bytes in the value log that its pointers lead to.
    referred_bytes: AtomicUsize,
    /// The last seqno that belongs here; set when the memtable is sealed.
    last_seqno: AtomicU64,
    /// The oldest segment of each stream that may hold a record of this memtable.
    first_segments: Floor,
}

/// What an entry adds to the size of a memtable, in bytes; whatever a pointer leads to, it adds
/// the same.
pub(crate) fn entry_bytes(key_len: usize, kind: ValueKind, value_len: usize) -> usize {
    let key = if key_len <= INLINE_BYTES { 0 } else { key_len + KEY_EXTRA_BYTES };
    let value = if is_short(kind, value_len) { 0 } else { value_len + VALUE_EXTRA_BYTES };
    NODE_BYTES + key + value
}

impl Memtable {
    /// An empty memtable whose records begin in `first_segments`, and of whose keys nothing is
    /// known: all go into one partition.
    pub(crate) fn new(first_segments: Floor) -> Self {
        Memtable::with_bounds(first_segments, Bounds::default())
    }

    /// An empty memtable to follow this one, for keys that are spread as those here are.
    pub(crate) fn follower(&self, first_segments: Floor) -> Self {
        Memtable::with_bounds(first_segments, self.sample.bounds())
    }

    fn with_bounds(first_segments: Floor, bounds: Bounds) -> Self {
        Memtable {
            partitions: std::array::from_fn(|_| Partition::new()),
            bounds,
            sample: Sample::new(),
            bytes: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
            referred_bytes: AtomicUsize::new(0),
            last_seqno: AtomicU64::new(0),
            first_segments,
        }
    }

    /// Adds an entry.
    pub(crate) fn insert(&self, key: KeyBuf, trailer: Trailer, value: Bytes) {
        self.insert_stored(key, trailer, MemValue::new(value));
    }

    fn insert_stored(&self, key: KeyBuf, trailer: Trailer, value: MemValue) {
        let len = value.bytes().len();
        let bytes = entry_bytes(key.len(), trailer.kind(), len);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let count = self.entries.fetch_add(1, Ordering::Relaxed);
        self.sample.offer(count, &key);
        self.partition(self.bounds.locate(&key)).insert(key, trailer, value);
    }

    /// Adds an entry whose value is elsewhere.
    pub(crate) fn insert_pointer(&self, key: KeyBuf, seqno: SeqNo, pointer: &Pointer) {
        let bytes = pointer.body(key.len(), seqno).len as usize;
        self.referred_bytes.fetch_add(bytes, Ordering::Relaxed);
        let trailer = Trailer::new(seqno, ValueKind::Pointer);
        self.insert_stored(key, trailer, MemValue::pointer(pointer));
    }

    /// The bytes in the value log that its pointers lead to.
    pub(crate) fn referred_bytes(&self) -> usize {
        self.referred_bytes.load(Ordering::Relaxed)
    }

    /// The newest version of `key` that is not newer than `seqno`.
    pub(crate) fn get(&self, key: &[u8], seqno: SeqNo) -> Option<Found> {
        self.partition(self.bounds.locate(key)).get(key, seqno)
    }

    fn partition(&self, index: usize) -> &Partition {
        self.partitions.get(index).expect("there are fewer bounds than partitions")
    }

    /// The accounted size in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The number of entries.
    pub(crate) fn entries(&self) -> usize {
        self.entries.load(Ordering::Relaxed)
    }

    /// Marks the memtable as complete up to `last_seqno`.
    pub(crate) fn seal(&self, last_seqno: SeqNo) {
        // Order: Release pairs with the Acquire of `last_seqno`.
        self.last_seqno.store(last_seqno, Ordering::Release);
    }

    /// The last seqno that belongs here; only for sealed memtables.
    pub(crate) fn last_seqno(&self) -> SeqNo {
        self.last_seqno.load(Ordering::Acquire)
    }

    /// The oldest segment of each stream that may hold a record of this memtable.
    pub(crate) fn first_segments(&self) -> Floor {
        self.first_segments
    }
}

#[cfg(test)]
mod tests;
