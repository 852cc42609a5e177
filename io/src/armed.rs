//! The agreement between a thread that wants to sleep and those who have work for it.
//!
//! Invariants:
//! 1. Who brings work makes it visible, then asks [`Armed::must_ring`]. The thread arms itself,
//!    then looks for work, and sleeps only if there is none. A full fence stands between the two
//!    steps on both sides, so at least one side sees the other: no wake is lost.
//! 2. Of all who bring work between two sleeps, exactly one rings; while the thread is awake,
//!    nobody does.
//!
//! The model in `tests/sleep_model.rs` compiles this same file with loom's atomics and tries all
//! orders.

use super::atomic::{AtomicBool, Ordering, fence};

/// Set while the thread sleeps, or is about to.
#[derive(Debug)]
pub(crate) struct Armed(AtomicBool);

impl Armed {
    pub(crate) fn new() -> Self {
        Armed(AtomicBool::new(false))
    }

    /// Whether the caller, who has just brought work, has to wake the thread.
    pub(crate) fn must_ring(&self) -> bool {
        // Order: the fence is invariant 1. The first look spares the others the cache line.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::AcqRel)
    }

    /// Arms the thread, unless `idle` finds something to do; true when it may sleep.
    pub(crate) fn arm(&self, idle: impl FnOnce() -> bool) -> bool {
        // Order: an exchange, so that this arming comes after all that took back an earlier one.
        self.0.swap(true, Ordering::AcqRel);
        // Order: invariant 1.
        fence(Ordering::SeqCst);
        let idle = idle();
        if !idle {
            self.disarm();
        }
        idle
    }

    /// The thread is awake.
    pub(crate) fn disarm(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}
