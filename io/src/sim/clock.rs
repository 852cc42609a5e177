//! Virtual time and the lanes, as a process sees them.
//!
//! Invariants:
//! 1. Time passes only in the scheduler. R9: a reading may show the time of an earlier reading, and
//!    the wall clock may jump; sleeps go by the true time.
//! 2. After the end of its life a process sleeps for ever and starts nothing.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use futures::future::BoxFuture;

use super::machine::{Closing, Machine, NewTask};
use crate::env::SimLanes;
use crate::timer::SimClock;

/// The clock of one life.
pub(super) struct LifeClock {
    pub(super) machine: Arc<Machine>,
    pub(super) life: u64,
}

impl SimClock for LifeClock {
    fn now(&self) -> Duration {
        let mut state = self.machine.state.lock();
        if !state.planner.stalls_clock() {
            state.last_reading = state.now;
        }
        state.last_reading
    }

    fn unix_time(&self) -> Duration {
        let mut state = self.machine.state.lock();
        state.wall_offset_s += state.planner.wall_jump();
        let offset = u64::try_from(state.wall_offset_s).unwrap_or(0);
        state.now + Duration::from_secs(offset)
    }

    fn wait(&self, deadline: Duration, entry: Option<u64>, waker: &Waker) -> Option<u64> {
        let mut state = self.machine.state.lock();
        if !state.alive || state.life != self.life {
            return Some(0);
        }
        if state.now >= deadline {
            let old = entry.and_then(|entry| state.timers.remove(&(deadline, entry)));
            drop(state);
            drop(old);
            return None;
        }
        let entry = entry.unwrap_or_else(|| {
            state.timers_made += 1;
            state.timers_made
        });
        let old = state.timers.insert((deadline, entry), waker.clone());
        drop(state);
        drop(old);
        Some(entry)
    }

    fn forget(&self, deadline: Duration, entry: u64) {
        let mut state = self.machine.state.lock();
        let old = state.timers.remove(&(deadline, entry));
        drop(state);
        drop(old);
    }
}

/// The lanes of one environment; keeps nothing open.
pub(super) struct LifeLanes {
    pub(super) machine: Arc<Machine>,
    pub(super) life: u64,
    pub(super) env: u64,
}

impl SimLanes for LifeLanes {
    fn spawn(&self, name: &'static str, task: BoxFuture<'static, ()>) {
        let mut state = self.machine.state.lock();
        let closing = state.envs.get(&self.env).map_or(Closing::Ended, |env| env.closing);
        if state.alive && state.life == self.life && closing < Closing::Ended {
            let env = self.env;
            state.incoming.push(NewTask { env, name, future: task });
            return;
        }
        drop(state);
        // Refused: who waits for it hears that its lane has ended.
        drop(task);
    }
}
