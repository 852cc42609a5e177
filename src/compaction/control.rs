//! Merges held up, and watched.
//!
//! Invariants:
//! 1. While anybody pauses, no merge goes beyond its next [`Control::pass`]; who begins merges asks
//!    [`Control::is_paused`] first.
//! 2. The end of the last pause wakes the merge that waits.
//! 3. The progress is that of the one merge that runs; there is never more than one.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use event_listener::Event;

/// See the invariants of the module.
#[derive(Default)]
pub(crate) struct Control {
    pauses: AtomicUsize,
    resumed: Event,
    /// The entries of the running merge: those it has met, and all. None run while all are 0.
    met: AtomicU64,
    all: AtomicU64,
}

impl Control {
    /// Pauses merging until as many calls of [`Control::resume`] have followed.
    pub(crate) fn pause(&self) {
        self.pauses.fetch_add(1, Ordering::SeqCst);
    }

    /// Takes a pause back.
    pub(crate) fn resume(&self) {
        let pauses = self.pauses.fetch_sub(1, Ordering::SeqCst);
        assert!(pauses > 0, "merging goes on already");
        if pauses == 1 {
            self.resumed.notify(usize::MAX);
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.pauses.load(Ordering::SeqCst) > 0
    }

    /// A merge of so many entries begins.
    pub(crate) fn begin(&self, entries: u64) {
        // Order: figures for people, here and below.
        self.met.store(0, Ordering::Relaxed);
        self.all.store(entries, Ordering::Relaxed);
    }

    /// The merge has met so many of its entries; it goes on when nobody pauses.
    pub(crate) async fn pass(&self, met: u64) {
        self.met.store(met, Ordering::Relaxed);
        while self.is_paused() {
            let listener = self.resumed.listen();
            if self.is_paused() {
                listener.await;
            }
        }
    }

    /// The merge is over.
    pub(crate) fn end(&self) {
        self.begin(0);
    }

    /// The entries that the running merge has met, and all of them.
    pub(crate) fn progress(&self) -> Option<(u64, u64)> {
        let all = self.all.load(Ordering::Relaxed);
        let met = self.met.load(Ordering::Relaxed).min(all);
        (all > 0).then_some((met, all))
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::{FutureExt, pin_mut, poll};

    use super::*;

    #[test]
    fn merges_pass_when_the_last_pause_is_over() {
        let control = Control::default();
        assert!(control.pass(0).now_or_never().is_some());
        control.pause();
        control.pause();
        let pass = control.pass(7);
        pin_mut!(pass);
        block_on(async {
            assert!(poll!(pass.as_mut()).is_pending());
            control.resume();
            assert!(control.is_paused() && poll!(pass.as_mut()).is_pending());
            control.resume();
            pass.await;
        });
    }

    #[test]
    fn progress_is_that_of_the_merge_that_runs() {
        let control = Control::default();
        assert_eq!(control.progress(), None);
        control.begin(10);
        assert_eq!(control.progress(), Some((0, 10)));
        block_on(control.pass(4));
        assert_eq!(control.progress(), Some((4, 10)));
        control.end();
        assert_eq!(control.progress(), None);
    }
}
