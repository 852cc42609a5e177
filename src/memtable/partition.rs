//! One skiplist of internal keys.
//!
//! Invariants:
//! 1. The order of entries is [`crate::key::compare`].
//! 2. A lookup allocates nothing: the skiplist compares through [`InternalKey`], which both the
//!    stored key and a borrowed one implement.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Bound;

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use crossbeam_skiplist::map::Entry;

use crate::iter::Direction;
use crate::key::{KeyBuf, SeqNo, Trailer, compare};

/// A version of a key that a lookup found.
pub(crate) type Found = (Trailer, Bytes);

/// The key of a skiplist entry.
pub(super) struct MemKey {
    pub(super) key: KeyBuf,
    pub(super) trailer: Trailer,
}

/// What the skiplist compares.
trait InternalKey {
    fn parts(&self) -> (&[u8], Trailer);
}

impl InternalKey for MemKey {
    fn parts(&self) -> (&[u8], Trailer) {
        (&self.key, self.trailer)
    }
}

impl InternalKey for (&[u8], Trailer) {
    fn parts(&self) -> (&[u8], Trailer) {
        *self
    }
}

impl<'a> Borrow<dyn InternalKey + 'a> for MemKey {
    fn borrow(&self) -> &(dyn InternalKey + 'a) {
        self
    }
}

impl Ord for dyn InternalKey + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.parts(), other.parts())
    }
}

impl PartialOrd for dyn InternalKey + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn InternalKey + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for dyn InternalKey + '_ {}

impl Ord for MemKey {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(self.parts(), other.parts())
    }
}

impl PartialOrd for MemKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for MemKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for MemKey {}

/// One of the skiplists of a memtable.
pub(super) struct Partition {
    map: SkipMap<MemKey, Bytes>,
}

impl Partition {
    pub(super) fn new() -> Self {
        Partition { map: SkipMap::new() }
    }

    pub(super) fn insert(&self, key: KeyBuf, trailer: Trailer, value: Bytes) {
        self.map.insert(MemKey { key, trailer }, value);
    }

    pub(super) fn get(&self, key: &[u8], seqno: SeqNo) -> Option<Found> {
        let target = (key, Trailer::seek(seqno));
        let target: &dyn InternalKey = &target;
        let entry = self.map.lower_bound(Bound::Included(target))?;
        let found = entry.key();
        (*found.key == *key).then(|| (found.trailer, entry.value().clone()))
    }

    /// The first entry in `direction` at `bound`, or at the extreme.
    pub(super) fn seek(
        &self,
        direction: Direction,
        bound: Bound<(&[u8], Trailer)>,
    ) -> Option<Entry<'_, MemKey, Bytes>> {
        let included;
        let bound: Bound<&dyn InternalKey> = match bound {
            Bound::Included(target) => {
                included = target;
                Bound::Included(&included)
            }
            Bound::Excluded(target) => {
                included = target;
                Bound::Excluded(&included)
            }
            Bound::Unbounded => Bound::Unbounded,
        };
        match direction {
            Direction::Forward => self.map.lower_bound(bound),
            Direction::Reverse => self.map.upper_bound(bound),
        }
    }
}
