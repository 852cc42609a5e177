//! The log task's sleep: the bell itself, and the note under the commit lock that spares most
//! commits the bell.

use loom::future::block_on;
use loom::sync::Arc;
use loom::thread;
use std::task::{Context, Poll};

use crate::signal::Signal;
use crate::sync::{AtomicBool, AtomicWaker, Mutex, Ordering};

/// As in the pipeline: the work and the note are guarded by one lock.
struct Pipeline {
    state: Mutex<State>,
    signal: Signal,
}

struct State {
    work: usize,
    log_sleeps: bool,
}

impl Pipeline {
    fn new() -> Arc<Pipeline> {
        let state = Mutex::new(State { work: 0, log_sleeps: false });
        Arc::new(Pipeline { state, signal: Signal::new() })
    }

    /// As `append`: rings only if the task said that it would sleep.
    fn append(&self) {
        let mut state = self.state.lock();
        state.work += 1;
        let wake = std::mem::take(&mut state.log_sleeps);
        drop(state);
        if wake {
            self.signal.raise();
        }
    }

    /// As `next_work`.
    fn next_work(&self) -> usize {
        let mut state = self.state.lock();
        let work = std::mem::take(&mut state.work);
        state.log_sleeps = work == 0;
        work
    }
}

/// A sleep that nobody ends is a deadlock, which loom reports.
pub(crate) fn no_work_is_slept_through() {
    let pipeline = Pipeline::new();
    let commits: Vec<_> = (0..2)
        .map(|_| {
            let pipeline = Arc::clone(&pipeline);
            thread::spawn(move || pipeline.append())
        })
        .collect();
    block_on(async {
        let mut done = 0;
        while done < 2 {
            pipeline.signal.clear();
            match pipeline.next_work() {
                0 => {
                    let asleep =
                        |cx: &mut Context<'_>| pipeline.signal.poll_or::<()>(cx, |_| Poll::Pending);
                    std::future::poll_fn(asleep).await;
                }
                work => done += work,
            }
        }
    });
    for commit in commits {
        commit.join().unwrap();
    }
}

/// The task waits for a write in flight; a commit and the write's end come at the same time, with
/// the work itself ordered by nothing but the signal.
pub(crate) fn either_wakes() {
    let signal = Arc::new(Signal::new());
    let work = Arc::new(AtomicBool::new(false));
    let written = Arc::new((AtomicBool::new(false), AtomicWaker::new()));
    let commit = {
        let (signal, work) = (Arc::clone(&signal), Arc::clone(&work));
        thread::spawn(move || {
            work.store(true, Ordering::Relaxed);
            signal.raise();
        })
    };
    let write = {
        let written = Arc::clone(&written);
        thread::spawn(move || {
            written.0.store(true, Ordering::Release);
            written.1.wake();
        })
    };
    block_on(async {
        let (mut has_work, mut is_written) = (false, false);
        while !(has_work && is_written) {
            signal.clear();
            has_work |= work.load(Ordering::Relaxed);
            if has_work && is_written {
                break;
            }
            let done = std::future::poll_fn(|cx| {
                signal.poll_or(cx, |cx| {
                    written.1.register(cx.waker());
                    let is_new = !is_written && written.0.load(Ordering::Acquire);
                    if is_new { Poll::Ready(()) } else { Poll::Pending }
                })
            });
            is_written |= done.await.is_some();
        }
    });
    commit.join().unwrap();
    write.join().unwrap();
}
