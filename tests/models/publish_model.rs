//! Commits that insert and wait, a log task that makes them durable, and readers.

use std::task::{Poll, Waker};

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;

use crate::options::Durability;
use crate::publish::{Progress, Queue, Wakers};
use crate::sync::{AtomicBool, Mutex, Ordering};

struct Pipeline {
    state: Mutex<State>,
    progress: Progress,
    /// The memtable: relaxed on purpose, it must not order anything by itself.
    inserted: [AtomicBool; 3],
}

#[derive(Default)]
struct State {
    queue: Queue,
    last_seqno: u64,
    failed: bool,
}

impl Pipeline {
    fn new() -> Arc<Pipeline> {
        let inserted = [(); 3].map(|()| AtomicBool::new(false));
        let state = Mutex::new(State::default());
        Arc::new(Pipeline { state, progress: Progress::new(0), inserted })
    }

    /// As a write: append, insert, `finish`, and then `poll_done` until it is published.
    async fn commit(&self, durability: Durability) -> Option<u64> {
        let (seqno, number) = {
            let mut state = self.state.lock();
            state.last_seqno += 1;
            let seqno = state.last_seqno;
            (seqno, state.queue.push(seqno, durability))
        };
        let slot = usize::try_from(seqno).unwrap();
        self.inserted.get(slot).unwrap().store(true, Ordering::Relaxed);
        let mut is_first = true;
        std::future::poll_fn(|cx| {
            let mut wakers = Wakers::new();
            let mut state = self.state.lock();
            if std::mem::take(&mut is_first) && state.queue.inserted(number) && !state.failed {
                state.queue.publish(&self.progress, true, &mut wakers);
            }
            let poll = match state.queue.poll(number, cx) {
                Poll::Pending if state.failed => Poll::Ready(None),
                poll => poll.map(|()| Some(seqno)),
            };
            drop(state);
            wakers.into_iter().for_each(Waker::wake);
            poll
        })
        .await
    }

    /// As `made_durable`.
    fn sync(&self) {
        let mut wakers = Wakers::new();
        let mut state = self.state.lock();
        self.progress.made_durable(state.last_seqno);
        state.queue.publish(&self.progress, true, &mut wakers);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// As `fail` and `wake_failed`.
    fn fail(&self) {
        let mut state = self.state.lock();
        state.failed = true;
        let wakers = state.queue.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn check_visible(&self) -> u64 {
        let visible = self.progress.visible();
        for seqno in 1..=visible {
            let slot = usize::try_from(seqno).unwrap();
            let is_inserted = self.inserted.get(slot).unwrap().load(Ordering::Relaxed);
            assert!(is_inserted, "{visible} is visible, {seqno} is not inserted");
        }
        visible
    }
}

pub(crate) fn what_is_visible_is_inserted() {
    let pipeline = Pipeline::new();
    let commits: Vec<_> = (0..2)
        .map(|_| {
            let pipeline = Arc::clone(&pipeline);
            thread::spawn(move || {
                let seqno = block_on(pipeline.commit(Durability::Buffered)).unwrap();
                assert!(pipeline.progress.visible() >= seqno, "a commit does not see itself");
            })
        })
        .collect();
    let before = pipeline.check_visible();
    assert!(pipeline.check_visible() >= before, "what was visible is not any more");
    for commit in commits {
        commit.join().unwrap();
    }
    assert_eq!(pipeline.check_visible(), 2);
}

/// One commit waits for its sync, the other is behind it; a waiter that is forgotten is a deadlock.
pub(crate) fn every_waiter_is_told() {
    let pipeline = Pipeline::new();
    let log = {
        let pipeline = Arc::clone(&pipeline);
        thread::spawn(move || {
            pipeline.sync();
            assert!(pipeline.progress.visible() <= pipeline.progress.durable());
        })
    };
    let other = {
        let pipeline = Arc::clone(&pipeline);
        thread::spawn(move || {
            let seqno = block_on(pipeline.commit(Durability::Synced)).unwrap();
            assert!(pipeline.progress.durable() >= seqno);
            assert!(pipeline.check_visible() >= seqno);
        })
    };
    log.join().unwrap();
    // What the first sync came too early for.
    let second = {
        let pipeline = Arc::clone(&pipeline);
        thread::spawn(move || pipeline.sync())
    };
    second.join().unwrap();
    // The appended commits are known to the log only from their append on: sync until all are.
    while pipeline.progress.durable() < 1 {
        thread::yield_now();
        pipeline.sync();
    }
    other.join().unwrap();
}

pub(crate) fn every_waiter_is_told_of_a_failure() {
    let pipeline = Pipeline::new();
    let commits: Vec<_> = [Durability::Synced, Durability::Buffered]
        .map(|durability| {
            let pipeline = Arc::clone(&pipeline);
            thread::spawn(move || block_on(pipeline.commit(durability)))
        })
        .into_iter()
        .collect();
    pipeline.fail();
    for commit in commits {
        if let Some(seqno) = commit.join().unwrap() {
            assert!(pipeline.progress.visible() >= seqno);
        }
    }
}
