//! Values that are not with the kernel yet, for those who read them already.
//!
//! Invariants:
//! 1. A value is here before its commit can be visible, and until the record that holds it was
//!    written: a reader that does not find it here finds it in the file.
//! 2. What is here is bounded by what the log holds unwritten.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::Place;
use crate::key::SeqNo;
use crate::pointer::Pointer;
use crate::sync::{AtomicU64, AtomicUsize, Mutex, Ordering};

/// The values of unwritten commits, as they are stored.
#[derive(Default)]
pub(crate) struct FreshValues {
    /// Everything up to here was written.
    written: AtomicU64,
    count: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    values: HashMap<Place, (Pointer, Bytes)>,
    /// In the order of their commits.
    order: VecDeque<(SeqNo, Place)>,
}

impl FreshValues {
    /// Keeps the value that the commit `seqno` writes where `pointer` leads, unless it was written
    /// already; whether it is kept.
    pub(crate) fn insert(&self, seqno: SeqNo, pointer: Pointer, value: &Bytes) -> bool {
        // Order: SeqCst here and in `mark_written` and `give_written`, which store and load the
        // same two the other way round: one of both sees what the other one stored.
        if self.written.load(Ordering::SeqCst) >= seqno {
            return false;
        }
        let place = Place::of(&pointer);
        let mut state = self.state.lock();
        state.values.insert(place, (pointer, value.clone()));
        // Writers come here one after the other, but not quite in the order of their commits.
        let at = state.order.partition_point(|(other, _)| *other <= seqno);
        state.order.insert(at, (seqno, place));
        self.count.store(state.order.len(), Ordering::SeqCst);
        true
    }

    /// The value at `place`, if it is not written yet.
    pub(crate) fn get(&self, place: Place) -> Option<Bytes> {
        if self.count.load(Ordering::SeqCst) == 0 {
            return None;
        }
        self.state.lock().values.get(&place).map(|(_, value)| value.clone())
    }

    /// The records of all commits up to `seqno` are written.
    pub(crate) fn mark_written(&self, seqno: SeqNo) {
        self.written.fetch_max(seqno, Ordering::SeqCst);
    }

    /// Gives the values away whose records are written. To be called after [`Self::mark_written`],
    /// and after an insert that may have come behind it.
    pub(crate) fn give_written(&self, mut give: impl FnMut(Pointer, Bytes)) {
        while self.count.load(Ordering::SeqCst) > 0 {
            let mut state = self.state.lock();
            let written = self.written.load(Ordering::SeqCst);
            let Some((_, place)) = state.order.front().copied().filter(|(s, _)| *s <= written)
            else {
                return;
            };
            state.order.pop_front();
            let value = state.values.remove(&place);
            self.count.store(state.order.len(), Ordering::SeqCst);
            drop(state);
            if let Some((pointer, value)) = value {
                give(pointer, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer(position: u32) -> Pointer {
        Pointer::new(1, position, b"key", b"value", 5, 9)
    }

    fn place(position: u32) -> Place {
        Place { segment: 1, position }
    }

    #[test]
    fn values_leave_in_the_order_of_their_commits() {
        let fresh = FreshValues::default();
        for seqno in [2u8, 1, 4, 3] {
            let value = Bytes::from(vec![seqno]);
            assert!(fresh.insert(u64::from(seqno), pointer(u32::from(seqno)), &value));
        }
        let mut given = Vec::new();
        fresh.mark_written(3);
        fresh.give_written(|pointer, value| given.push((pointer.position, value[0])));
        assert_eq!(given, [(1, 1), (2, 2), (3, 3)]);
        assert_eq!(fresh.get(place(3)), None);
        assert_eq!(fresh.get(place(4)).as_deref(), Some([4].as_slice()));
    }

    #[test]
    fn what_is_written_already_is_not_kept() {
        let fresh = FreshValues::default();
        fresh.mark_written(5);
        fresh.give_written(|_, _| panic!("there is nothing to give"));
        assert!(!fresh.insert(5, pointer(1), &Bytes::from_static(b"five")));
        assert!(fresh.insert(6, pointer(2), &Bytes::from_static(b"six")));
        assert_eq!(fresh.get(place(1)), None);
        assert!(fresh.get(place(2)).is_some());
    }
}
