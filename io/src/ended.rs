//! The end of a thread that others bring work to: nothing is left lying in its queues.
//!
//! Invariants:
//! 1. The thread says that it has ended, then empties its queues. Who brings work puts it into a
//!    queue, then asks [`Ended::is_over`], and if so empties the queues itself. A full fence stands
//!    between the two steps on both sides, so at least one side sees the other.
//!
//! The model in `tests/sleep_model.rs` compiles this same file with loom's atomics and tries all
//! orders.

use super::atomic::{AtomicBool, Ordering, fence};

/// Set when the thread takes no more work.
pub(crate) struct Ended(AtomicBool);

impl Ended {
    pub(crate) fn new() -> Self {
        Ended(AtomicBool::new(false))
    }

    /// The thread has ended; the caller empties the queues next.
    pub(crate) fn end(&self) {
        self.0.store(true, Ordering::Relaxed);
        // Order: invariant 1.
        fence(Ordering::SeqCst);
    }

    /// Whether the caller, who has just brought work, has to empty the queues.
    pub(crate) fn is_over(&self) -> bool {
        // Order: invariant 1.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}
