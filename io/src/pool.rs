//! A bounded pool of threads for blocking calls, started one by one as they are needed.
//!
//! Invariants:
//! 1. `threads <= threads_max`; a thread leaves only after the pool was closed and the queue is
//!    empty, so that every accepted job runs.
//! 2. After [`Pool::close`] no job is accepted.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::lane::guarded;
use crate::op::Call;
use crate::threads::Threads;
use crate::transfer::Request;

/// Work for the pool.
pub(crate) enum Job {
    Transfer(Request),
    Call(Call),
}

pub(crate) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    threads_max: usize,
    threads: Arc<Threads>,
}

struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Pool {
    pub(crate) fn new(threads: Arc<Threads>) -> Arc<Pool> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Pool {
            state: Mutex::new(State { jobs: VecDeque::new(), threads: 0, idle: 0, closed: false }),
            work: Condvar::new(),
            threads_max: (4 * cores).clamp(8, 64),
            threads,
        })
    }

    /// Queues `job`; gives it back when the pool is closed or has no thread and can start none.
    pub(crate) fn push(self: &Arc<Self>, job: Job) -> Result<(), Job> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(job);
        }
        // An idle thread that was woken for an earlier job still counts as idle; hence the
        // comparison with the queue.
        if state.idle <= state.jobs.len() && state.threads < self.threads_max {
            let pool = Arc::clone(self);
            match self.threads.start("seerdb-pool", move || pool.serve()) {
                Ok(()) => state.threads += 1,
                Err(_) if state.threads == 0 => return Err(job),
                // Those that run will get to it.
                Err(e) => tracing::warn!(error = %e, "cannot start another I/O thread"),
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.work.notify_one();
        Ok(())
    }

    /// Refuses new jobs and lets the threads end when the queue is empty.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.work.notify_all();
    }

    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                match job {
                    Job::Transfer(request) => {
                        guarded("a file operation", || request.run_blocking())
                    }
                    Job::Call(call) => guarded("a file operation", call),
                };
                state = self.state.lock();
            } else if state.closed {
                state.threads -= 1;
                return;
            } else {
                state.idle += 1;
                self.work.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}
