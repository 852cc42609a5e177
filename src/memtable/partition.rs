//! One skiplist of internal keys.
//!
//! Invariants:
//! 1. The order of entries is [`crate::key::compare`].
//! 2. A lookup allocates nothing. A key that fits a [`KeyBuf`] inline is looked up as a stored
//!    key, so that comparisons are inlined; a longer one through [`InternalKey`], which both the
//!    stored key and a borrowed one implement.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Bound;

use bytes::Bytes;
use crossbeam_epoch::Guard;
use crossbeam_skiplist::base::{Entry, SkipList};

use crate::iter::Direction;
use crate::key::{KeyBuf, SeqNo, Trailer, compare};

use super::value::MemValue;

/// A version of a key that a lookup found.
pub(crate) type Found = (Trailer, Bytes);

/// The longest key that a [`KeyBuf`] holds without an allocation.
pub(super) const INLINE_BYTES: usize = 24;

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
///
/// The list is used below `SkipMap`, with a guard of the caller's: one pin serves a whole chunk of
/// a scan, and cursors need no reference counts.
pub(super) struct Partition {
    list: SkipList<MemKey, MemValue>,
}

impl Partition {
    pub(super) fn new() -> Self {
        Partition { list: SkipList::new(crossbeam_epoch::default_collector().clone()) }
    }

    pub(super) fn insert(&self, key: KeyBuf, trailer: Trailer, value: MemValue) {
        let guard = &crossbeam_epoch::pin();
        self.list.insert(MemKey { key, trailer }, value, guard).release(guard);
    }

    pub(super) fn get(&self, key: &[u8], seqno: SeqNo) -> Option<Found> {
        let guard = &crossbeam_epoch::pin();
        let bound = Bound::Included((key, Trailer::seek(seqno)));
        let entry = self.seek(Direction::Forward, bound, guard)?;
        let MemKey { key: found, trailer } = entry.key();
        (**found == *key).then(|| (*trailer, entry.value().to_bytes()))
    }

    /// The first entry in `direction` at `bound`, or at the extreme.
    pub(super) fn seek<'a: 'g, 'g>(
        &'a self,
        direction: Direction,
        bound: Bound<(&[u8], Trailer)>,
        guard: &'g Guard,
    ) -> Option<Entry<'a, 'g, MemKey, MemValue>> {
        let (Bound::Included((key, trailer)) | Bound::Excluded((key, trailer))) = bound else {
            return self.seek_for::<MemKey>(direction, Bound::Unbounded, guard);
        };
        if key.len() <= INLINE_BYTES {
            let target = MemKey { key: KeyBuf::from_slice(key), trailer };
            self.seek_for(direction, bound.map(|_| &target), guard)
        } else {
            let target: &dyn InternalKey = &(key, trailer);
            self.seek_for(direction, bound.map(|_| target), guard)
        }
    }

    fn seek_for<'a: 'g, 'g, Q: Ord + ?Sized>(
        &'a self,
        direction: Direction,
        bound: Bound<&Q>,
        guard: &'g Guard,
    ) -> Option<Entry<'a, 'g, MemKey, MemValue>>
    where
        MemKey: Borrow<Q>,
    {
        match direction {
            Direction::Forward => self.list.lower_bound(bound, guard),
            Direction::Reverse => self.list.upper_bound(bound, guard),
        }
    }
}
