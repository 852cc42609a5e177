//! The registry of live seqnos: what merges must keep readable.
//!
//! Invariants:
//! 1. A seqno is read and registered under one lock, and [`Registry::strata`] reads the newest
//!    visible seqno under the same lock: no reader can begin at a seqno that a merge has already
//!    decided to forget.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::key::SeqNo;
use crate::sync::Mutex;

/// The seqnos that snapshots and streams read at, with their number of readers.
#[derive(Default)]
pub(crate) struct Registry {
    live: Mutex<BTreeMap<SeqNo, usize>>,
}

impl Registry {
    /// Registers a reader at the seqno that `visible` returns.
    pub(crate) fn pin(self: &Arc<Self>, visible: impl FnOnce() -> SeqNo) -> Pin {
        let mut live = self.live.lock();
        let seqno = visible();
        *live.entry(seqno).or_insert(0) += 1;
        Pin { registry: self.clone(), seqno }
    }

    /// All seqnos that reads may use from now on, ascending: the registered ones and the newest
    /// visible one.
    pub(crate) fn strata(&self, visible: impl FnOnce() -> SeqNo) -> Vec<SeqNo> {
        let live = self.live.lock();
        let newest = visible();
        let mut strata: Vec<SeqNo> = live.keys().copied().collect();
        if strata.last() != Some(&newest) {
            strata.push(newest);
        }
        debug_assert!(strata.is_sorted(), "a reader is ahead of what is visible");
        strata
    }

    /// The number of live readers.
    pub(crate) fn count(&self) -> usize {
        self.live.lock().values().sum()
    }
}

/// A registered reader; dropping it lets merges forget its seqno.
pub(crate) struct Pin {
    registry: Arc<Registry>,
    seqno: SeqNo,
}

impl Pin {
    /// The seqno it reads at.
    pub(crate) fn seqno(&self) -> SeqNo {
        self.seqno
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        self.registry.pin(|| self.seqno)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut live = self.registry.live.lock();
        let count = live.get_mut(&self.seqno).expect("a pin is registered until its drop");
        *count -= 1;
        if *count == 0 {
            live.remove(&self.seqno);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strata_are_the_live_seqnos_and_the_newest() {
        let registry = Arc::new(Registry::default());
        let a = registry.pin(|| 5);
        let b = registry.pin(|| 5);
        let c = registry.pin(|| 9);
        assert_eq!(registry.strata(|| 12), [5, 9, 12]);
        assert_eq!(registry.strata(|| 9), [5, 9]);
        drop(a);
        assert_eq!(registry.strata(|| 9), [5, 9]);
        drop((b, c));
        assert_eq!(registry.strata(|| 9), [9]);
        assert_eq!(registry.count(), 0);
    }
}
