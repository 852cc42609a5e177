//! The registry of live seqnos: what merges must keep readable.
//!
//! Invariants:
//! 1. A seqno is read and registered under one lock, and [`Registry::strata`] reads the newest
//!    visible seqno under the same lock: no reader can begin at a seqno that a merge has already
//!    decided to forget.
//! 2. Whoever waits for the oldest seqno to go is told when it has gone: [`Registry::await_oldest`]
//!    looks whether it is still there under the lock that it goes under.

use std::collections::BTreeMap;
use std::sync::Arc;

use event_listener::{Event, EventListener};

use crate::key::SeqNo;
use crate::sync::Mutex;

/// The seqnos that snapshots and streams read at, with their number of readers.
#[derive(Default)]
pub(crate) struct Registry {
    live: Mutex<Live>,
    /// The oldest seqno has gone, and somebody waited for that.
    freed: Event,
}

#[derive(Default)]
struct Live {
    readers: BTreeMap<SeqNo, usize>,
    /// Whether somebody waits for the oldest of them to go.
    is_awaited: bool,
}

impl Registry {
    /// Registers a reader at the seqno that `visible` returns.
    pub(crate) fn pin(self: &Arc<Self>, visible: impl FnOnce() -> SeqNo) -> Pin {
        let mut live = self.live.lock();
        let seqno = visible();
        *live.readers.entry(seqno).or_insert(0) += 1;
        Pin { registry: self.clone(), seqno }
    }

    /// All seqnos that reads may use from now on, ascending: the registered ones and the newest
    /// visible one.
    pub(crate) fn strata(&self, visible: impl FnOnce() -> SeqNo) -> Vec<SeqNo> {
        let live = self.live.lock();
        let newest = visible();
        let mut strata: Vec<SeqNo> = live.readers.keys().copied().collect();
        if strata.last() != Some(&newest) {
            strata.push(newest);
        }
        debug_assert!(strata.is_sorted(), "a reader is ahead of what is visible");
        strata
    }

    /// Asks for [`Registry::freed`] to be told when the reader of `seqno` has gone; `false` if it
    /// is not the oldest one any more.
    pub(crate) fn await_oldest(&self, seqno: SeqNo) -> bool {
        let mut live = self.live.lock();
        let is_oldest = live.readers.keys().next() == Some(&seqno);
        live.is_awaited |= is_oldest;
        is_oldest
    }

    /// Hears from now on that what somebody waited for has gone.
    pub(crate) fn freed(&self) -> EventListener {
        self.freed.listen()
    }

    /// The number of live readers.
    pub(crate) fn count(&self) -> usize {
        self.live.lock().readers.values().sum()
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
        let count = live.readers.get_mut(&self.seqno).expect("a pin is registered until its drop");
        *count -= 1;
        if *count > 0 {
            return;
        }
        let was_oldest = live.readers.keys().next() == Some(&self.seqno);
        live.readers.remove(&self.seqno);
        if was_oldest && std::mem::take(&mut live.is_awaited) && !planted!(FreedUnnoticed) {
            drop(live);
            self.registry.freed.notify(usize::MAX);
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

    #[test]
    fn who_waits_for_the_oldest_is_told_once() {
        use futures::FutureExt;
        let registry = Arc::new(Registry::default());
        let (old, new) = (registry.pin(|| 5), registry.pin(|| 9));
        assert!(!registry.await_oldest(9) && registry.await_oldest(5));
        let mut freed = registry.freed();
        drop(new);
        assert!((&mut freed).now_or_never().is_none(), "the oldest is still there");
        let newer = registry.pin(|| 9);
        drop(old);
        assert!(freed.now_or_never().is_some());
        let freed = registry.freed();
        drop(newer);
        assert!(freed.now_or_never().is_none(), "nobody waits any more");
    }
}
