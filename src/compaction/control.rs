//! The merges that run: one above the other in the tree, held up, and watched.
//!
//! Invariants:
//! 1. A merge begins only if all its inputs are newer than those of every merge that runs: the
//!    merges are a stack, the newest inputs on top.
//! 2. Only the top of the stack works. The others wait at their next [`Ticket::pass`]: upper levels
//!    fill up sooner, and what they cost is small.
//! 3. While anybody pauses, no merge begins, and none goes beyond its next pass.
//! 4. Whatever lets a waiting merge go on wakes it: the end of the last pause, or of a merge.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use event_listener::Event;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::version::RunId;

/// See the invariants of the module.
#[derive(Default)]
pub(crate) struct Control {
    pauses: AtomicUsize,
    running: Mutex<Vec<Arc<Running>>>,
    /// The last pause, or a merge, is over.
    resumed: Event,
}

/// A merge that runs.
#[derive(Default)]
struct Running {
    newest: RunId,
    /// Its entries: those that it has met, and all.
    met: AtomicU64,
    all: AtomicU64,
    /// Whether somebody asked for it, and whether it was called off.
    is_asked_for: AtomicBool,
    is_cancelled: AtomicBool,
}

/// The place of a merge among those that run, until it is dropped.
pub(crate) struct Ticket {
    control: Arc<Control>,
    running: Arc<Running>,
    /// The entries that earlier pieces have met.
    before: AtomicU64,
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
        if pauses == 1 && !planted!(ResumeUnnoticed) {
            self.resumed.notify(usize::MAX);
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.pauses.load(Ordering::SeqCst) > 0
    }

    /// The newest input of all merges that run.
    pub(crate) fn busy(&self) -> Option<RunId> {
        self.running.lock().last().map(|top| top.newest)
    }

    /// Begins the merge that `pick` finds beside those that run, whose newest input it is told.
    /// It says the newest input of its own.
    pub(crate) fn begin<T>(
        self: &Arc<Self>,
        pick: impl FnOnce(Option<RunId>) -> Option<(RunId, T)>,
    ) -> Option<(Ticket, T)> {
        let mut running = self.running.lock();
        let top = running.last().map(|top| top.newest);
        let (newest, picked) = pick(top)?;
        let is_above = top.is_none_or(|top| newest > top);
        assert!(is_above || planted!(PassOlderMerge), "run {newest} is below a merge that runs");
        let merge = Arc::new(Running { newest, ..Running::default() });
        running.push(merge.clone());
        drop(running);
        let ticket = Ticket { control: self.clone(), running: merge, before: AtomicU64::new(0) };
        Some((ticket, picked))
    }

    /// Calls off the merges that somebody asked for: they end at their next pass.
    pub(crate) fn cancel(&self) {
        for merge in self.running.lock().iter() {
            let is_asked_for = merge.is_asked_for.load(Ordering::SeqCst);
            merge.is_cancelled.fetch_or(is_asked_for, Ordering::SeqCst);
        }
        if !planted!(CancelUnnoticed) {
            self.resumed.notify(usize::MAX);
        }
    }

    /// The entries that the running merges have met, and all of them.
    pub(crate) fn progress(&self) -> Option<(u64, u64)> {
        let running = self.running.lock();
        // Order: figures for people, here and below.
        let sum = |of: fn(&Running) -> &AtomicU64| -> u64 {
            running.iter().map(|merge| of(merge).load(Ordering::Relaxed)).sum()
        };
        let (met, all) = (sum(|merge| &merge.met), sum(|merge| &merge.all));
        (!running.is_empty()).then_some((met.min(all), all))
    }
}

impl Ticket {
    /// The merge has so many entries, and may be called off if it was asked for.
    pub(crate) fn expect(&self, entries: u64, is_asked_for: bool) {
        self.running.all.store(entries, Ordering::Relaxed);
        self.running.is_asked_for.store(is_asked_for, Ordering::SeqCst);
    }

    /// The merge has met so many entries of its piece; it goes on when nobody pauses and no merge
    /// of newer runs is at work.
    ///
    /// # Errors
    ///
    /// `Cancelled` when it was called off.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub(crate) async fn pass(&self, met: u64) -> Result<()> {
        let before = self.before.load(Ordering::Relaxed);
        self.running.met.store(before + met, Ordering::Relaxed);
        while self.is_held() {
            let listener = self.control.resumed.listen();
            if self.is_held() {
                listener.await;
            }
        }
        match self.running.is_cancelled.load(Ordering::SeqCst) {
            true => Err(Error::cancelled()),
            false => Ok(()),
        }
    }

    /// A piece of so many entries is done.
    pub(crate) fn end_piece(&self, entries: u64) {
        let before = self.before.fetch_add(entries, Ordering::Relaxed);
        self.running.met.store(before + entries, Ordering::Relaxed);
    }

    fn is_held(&self) -> bool {
        if self.running.is_cancelled.load(Ordering::SeqCst) {
            return false;
        }
        let is_paused = self.control.is_paused() && !planted!(WorkWhilePaused);
        is_paused || self.control.busy() != Some(self.running.newest)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.control.running.lock().retain(|merge| !Arc::ptr_eq(merge, &self.running));
        if !planted!(EndUnnoticed) {
            self.control.resumed.notify(usize::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::{FutureExt, pin_mut, poll};

    use super::*;
    use crate::error::ErrorKind;

    fn begin(control: &Arc<Control>, newest: RunId) -> Ticket {
        control.begin(|_| Some((newest, ()))).unwrap().0
    }

    #[test]
    fn merges_pass_when_the_last_pause_is_over() {
        let control = Arc::new(Control::default());
        let ticket = begin(&control, 1);
        assert!(ticket.pass(0).now_or_never().is_some());
        control.pause();
        control.pause();
        let pass = ticket.pass(7);
        pin_mut!(pass);
        block_on(async {
            assert!(poll!(pass.as_mut()).is_pending());
            control.resume();
            assert!(control.is_paused() && poll!(pass.as_mut()).is_pending());
            control.resume();
            pass.await.unwrap();
        });
    }

    #[test]
    fn only_the_merge_of_the_newest_runs_works() {
        let control = Arc::new(Control::default());
        let deep = begin(&control, 5);
        assert_eq!(control.busy(), Some(5));
        let (upper, seen) = control.begin(|busy| Some((9, busy))).unwrap();
        assert_eq!((seen, control.busy()), (Some(5), Some(9)));
        assert!(control.begin(|_| None::<(RunId, ())>).is_none());
        assert!(upper.pass(1).now_or_never().is_some());
        let pass = deep.pass(1);
        pin_mut!(pass);
        block_on(async {
            assert!(poll!(pass.as_mut()).is_pending());
            drop(upper);
            pass.await.unwrap();
        });
        assert_eq!(control.busy(), Some(5));
    }

    #[test]
    #[should_panic(expected = "below a merge that runs")]
    fn no_merge_begins_below_another() {
        let control = Arc::new(Control::default());
        let _deep = begin(&control, 5);
        begin(&control, 4);
    }

    #[test]
    fn only_what_was_asked_for_is_called_off() {
        let control = Arc::new(Control::default());
        let due = begin(&control, 1);
        due.expect(1, false);
        let asked = begin(&control, 2);
        asked.expect(1, true);
        control.pause();
        {
            let pass = asked.pass(1);
            pin_mut!(pass);
            block_on(async {
                assert!(poll!(pass.as_mut()).is_pending());
                control.cancel();
                assert_eq!(pass.await.unwrap_err().kind(), ErrorKind::Cancelled);
            });
        }
        drop(asked);
        control.resume();
        assert!(due.pass(1).now_or_never().unwrap().is_ok());
    }

    #[test]
    fn progress_is_that_of_all_merges_that_run() {
        let control = Arc::new(Control::default());
        assert_eq!(control.progress(), None);
        let deep = begin(&control, 1);
        deep.expect(10, false);
        assert_eq!(control.progress(), Some((0, 10)));
        block_on(deep.pass(4)).unwrap();
        assert_eq!(control.progress(), Some((4, 10)));
        deep.end_piece(5);
        block_on(deep.pass(1)).unwrap();
        let upper = begin(&control, 2);
        upper.expect(3, false);
        assert_eq!(control.progress(), Some((6, 13)));
        drop((deep, upper));
        assert_eq!(control.progress(), None);
    }
}
