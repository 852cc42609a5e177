//! What a read looks at: the memtables and the version, as one immutable value.
//!
//! Invariants:
//! 1. Memtables stand newest first; the first is active, the others are sealed.
//! 2. A change replaces the whole value, under one lock; readers load it without one.
//! 3. A flushed memtable leaves in the same change that brings the version with its table.
//! 4. A read loads the state first and its seqno second: then nothing that the seqno can see has
//!    been forgotten by a merge that the state does not know.
//!
//! The model in `tests/models` tries all orders of this file.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::key::SeqNo;
use crate::memtable::Memtable;
use crate::sync::{ArcSwap, Guard, Mutex};
use crate::version::Version;

/// The memtables and the version of one moment.
pub(crate) struct ReadState {
    pub(crate) memtables: SmallVec<[Arc<Memtable>; 4]>,
    pub(crate) version: Arc<Version>,
    /// Grows with every change.
    pub(crate) generation: u64,
}

/// The present [`ReadState`].
pub(crate) struct ReadStates {
    current: ArcSwap<ReadState>,
    change: Mutex<()>,
}

impl ReadStates {
    pub(crate) fn new(active: Arc<Memtable>, version: Arc<Version>) -> Self {
        let memtables = SmallVec::from_iter([active]);
        ReadStates {
            current: ArcSwap::from_pointee(ReadState { memtables, version, generation: 0 }),
            change: Mutex::new(()),
        }
    }

    /// The present state, for the length of one synchronous look.
    pub(crate) fn load(&self) -> Guard<Arc<ReadState>> {
        self.current.load()
    }

    /// The present state, and behind it the seqno to read at (invariant 4).
    pub(crate) fn view(&self, visible: impl FnOnce() -> SeqNo) -> (Guard<Arc<ReadState>>, SeqNo) {
        let state = self.current.load();
        (state, visible())
    }

    /// The present state, to keep.
    pub(crate) fn load_full(&self) -> Arc<ReadState> {
        self.current.load_full()
    }

    /// Makes `fresh` the active memtable; the one before it is sealed now.
    pub(crate) fn seal(&self, fresh: Arc<Memtable>) {
        let _change = self.change.lock();
        let old = self.current.load();
        let mut memtables = SmallVec::with_capacity(old.memtables.len() + 1);
        memtables.push(fresh);
        memtables.extend(old.memtables.iter().cloned());
        let (version, generation) = (old.version.clone(), old.generation + 1);
        self.current.store(Arc::new(ReadState { memtables, version, generation }));
    }

    /// Replaces the version, and drops the memtable `flushed`, the oldest, whose table it has.
    pub(crate) fn install(&self, version: Arc<Version>, flushed: Option<&Arc<Memtable>>) {
        let _change = self.change.lock();
        let old = self.current.load();
        let mut memtables = old.memtables.clone();
        if let Some(flushed) = flushed {
            let oldest = memtables.pop().expect("a state has an active memtable");
            assert!(Arc::ptr_eq(&oldest, flushed), "memtables are flushed in order");
            assert!(!memtables.is_empty(), "the active memtable is never flushed");
        }
        let generation = old.generation + 1;
        self.current.store(Arc::new(ReadState { memtables, version, generation }));
    }
}
