//! In which order commits become visible, and who waits for that.
//!
//! Invariants:
//! 1. Commits are published in the order of their seqnos; one is published when it, and all before
//!    it, are inserted into their memtable and, as far as they asked for it, written or durable.
//! 2. A reader that has seen a seqno in [`Progress::visible`] finds all inserts up to it.
//! 3. Who polls a commit that is not published leaves a waker under the lock of the queue, which
//!    its publication holds: the waker is taken along by it.
//!
//! The model in `tests/models` tries all orders of this file.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use smallvec::SmallVec;

use crate::key::SeqNo;
use crate::options::Durability;
use crate::sync::{AtomicU64, Ordering};

pub(super) type Wakers = SmallVec<[Waker; 8]>;

/// How far a database has come.
pub(super) struct Progress {
    visible: AtomicU64,
    durable: AtomicU64,
}

impl Progress {
    pub(super) fn new(last: SeqNo) -> Self {
        Progress { visible: AtomicU64::new(last), durable: AtomicU64::new(last) }
    }

    /// The newest seqno that reads may use.
    pub(super) fn visible(&self) -> SeqNo {
        // Order: Acquire pairs with the Release in `publish`: what was inserted before is seen.
        self.visible.load(Ordering::Acquire)
    }

    /// The newest seqno that is durable together with all before it.
    pub(super) fn durable(&self) -> SeqNo {
        self.durable.load(Ordering::Acquire)
    }

    /// Everything up to `seqno` is durable; whether that is news. Called under the lock of the
    /// queue.
    pub(super) fn made_durable(&self, seqno: SeqNo) -> bool {
        let is_news = seqno > self.durable();
        if is_news {
            // Order: Release pairs with the Acquire of `durable`.
            self.durable.store(seqno, Ordering::Release);
        }
        is_news
    }

    /// Shows what is not published yet: the bug `SeeBeforeDurable`, and nothing else.
    pub(super) fn show_early(&self, seqno: SeqNo) {
        self.visible.store(seqno, Ordering::Release);
    }
}

struct Pending {
    last_seqno: SeqNo,
    durability: Durability,
    inserted: bool,
    waker: Option<Waker>,
}

/// The commits that are in the log buffer and not published yet; guarded by the commit lock.
#[derive(Default)]
pub(super) struct Queue {
    pending: VecDeque<Pending>,
    /// The number of the first pending commit.
    front: u64,
}

impl Queue {
    /// A commit has entered the log; its number.
    pub(super) fn push(&mut self, last_seqno: SeqNo, durability: Durability) -> u64 {
        let number = self.front + self.pending.len() as u64;
        let inserted = false;
        self.pending.push_back(Pending { last_seqno, durability, inserted, waker: None });
        number
    }

    fn get(&mut self, number: u64) -> Option<&mut Pending> {
        let index = usize::try_from(number.checked_sub(self.front)?).ok()?;
        self.pending.get_mut(index)
    }

    /// The commit is in its memtable; whether it is the first one.
    pub(super) fn inserted(&mut self, number: u64) -> bool {
        let pending = self.get(number).expect("a commit is published once inserted");
        pending.inserted = true;
        number == self.front
    }

    /// Publishes what can be (invariant 1), and collects who waits for it; whether anything was.
    pub(super) fn publish(
        &mut self,
        progress: &Progress,
        grouped: bool,
        wakers: &mut Wakers,
    ) -> bool {
        let durable = progress.durable();
        let mut visible = None;
        while let Some(front) = self.pending.front() {
            let safe = match front.durability {
                Durability::Buffered => true,
                Durability::Written => !grouped || front.last_seqno <= durable,
                Durability::Synced => front.last_seqno <= durable,
            };
            if !(front.inserted && (safe || planted!(PublishUnsynced))) {
                break;
            }
            visible = Some(front.last_seqno);
            let published = self.pending.pop_front();
            wakers.extend(published.and_then(|p| p.waker));
            self.front += 1;
        }
        if let Some(visible) = visible {
            // Order: Release, see `visible`.
            progress.visible.store(visible, Ordering::Release);
        }
        visible.is_some()
    }

    /// Whether the commit is published; if not, leaves a waker (invariant 3).
    pub(super) fn poll(&mut self, number: u64, cx: &mut Context<'_>) -> Poll<()> {
        if number < self.front {
            return Poll::Ready(());
        }
        if let Some(pending) = self.get(number) {
            pending.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Everybody who waits, to be told of a failure.
    pub(super) fn take_wakers(&mut self) -> Wakers {
        self.pending.iter_mut().filter_map(|p| p.waker.take()).collect()
    }
}
