//! The bell of the log task: rung by whoever has work for it, heard at its next sleep.
//!
//! Invariants:
//! 1. The task clears the signal, then looks for work, and waits only when there was none. Who
//!    brings work makes it visible, then raises. So a wait that begins after work was brought ends
//!    at once, and one that began before is woken.
//!
//! The model in `tests/models` tries all orders of this file.

use std::task::{Context, Poll};

use crate::sync::{AtomicBool, AtomicWaker, Ordering};

pub(super) struct Signal {
    raised: AtomicBool,
    waker: AtomicWaker,
}

impl Signal {
    pub(super) fn new() -> Self {
        Signal { raised: AtomicBool::new(false), waker: AtomicWaker::new() }
    }

    /// There is work. Of all who raise between two clears one wakes the task.
    pub(super) fn raise(&self) {
        // Order: Release hands over the work, Acquire is for the waker that `poll_or` left.
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// The task is about to look for work.
    pub(super) fn clear(&self) {
        // Order: an exchange with Acquire: what was brought before a raise that this takes back is
        // seen by the look that follows.
        self.raised.swap(false, Ordering::AcqRel);
    }

    /// Waits for `other`, or, answering `None`, for a raise since the last clear.
    pub(super) fn poll_or<T>(
        &self,
        cx: &mut Context<'_>,
        other: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<Option<T>> {
        // Before the look at the flag: a raise after that look finds the waker.
        self.waker.register(cx.waker());
        if let Poll::Ready(output) = other(cx) {
            return Poll::Ready(Some(output));
        }
        if self.raised.load(Ordering::Acquire) { Poll::Ready(None) } else { Poll::Pending }
    }
}
