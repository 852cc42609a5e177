//! What the log task has to do next: the part of the commit pipeline that runs on the log lane.
//!
//! Invariants:
//! 1. A unit is taken when somebody waits for it, when its oldest buffered record is due, when it
//!    is large, or when the log closes; a lone commit waits for no timer.
//! 2. When the log has been idle for [`MARK_DELAY`] and the last sync is not yet told by a record,
//!    a mark tells it. The sync of a mark asks for no further mark.
//! 3. Nothing becomes durable after a failure: what succeeds then may stand behind a gap.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use seerdb_io::AlignedBuf;
use smallvec::SmallVec;

use super::commit::{GROUP_BYTES_MAX, Pipeline, State};
use super::publish::Wakers;
use super::streams::Unit;
use crate::error::Error;
use crate::key::SeqNo;
use crate::log::segment::Segment;

/// Buffers above this size are not kept for the next group.
const SPARE_BYTES_MAX: usize = 4 << 20;
/// Group writes in flight: the second one overlaps the first one's way to the device and back.
const IN_FLIGHT_MAX: usize = 2;
/// How long the log stays idle before a mark says what is durable.
const MARK_DELAY: Duration = Duration::from_millis(5);

/// What the log task has to do.
pub(crate) enum Work {
    /// Write a unit durably.
    Write(Unit),
    /// Sync segments, side by side; then everything up to the seqno is durable.
    Sync(Vec<Arc<Segment>>, SeqNo),
    /// Sleep, until the given time if there is one.
    Sleep(Option<Duration>),
    /// The log is closed or has failed.
    Exit,
}

impl Pipeline {
    /// What the log task shall do now, with `in_flight` writes or syncs under way.
    pub(crate) fn next_work(&self, in_flight: usize) -> Work {
        let mut state = self.state.lock();
        state.log_sleeps = false;
        if state.failure.is_some() {
            return Work::Exit;
        }
        let now = self.clock.now();
        let (work, room) = if self.grouped {
            (self.next_group(&mut state, in_flight, now), in_flight < IN_FLIGHT_MAX)
        } else {
            (self.next_sync(&mut state, in_flight, now), in_flight == 0)
        };
        // Without room for more in flight, the next completion asks again anyway.
        state.log_sleeps = room && matches!(work, Work::Sleep(_));
        drop(state);
        self.give_written_values();
        work
    }

    /// When a buffered record is due, if there is one.
    fn buffered_due(&self, state: &State) -> Option<Duration> {
        let since = state.oldest_buffered.filter(|_| !planted!(BufferedForEver));
        since.map(|since| since + self.buffered_delay)
    }

    fn group_due(&self, state: &State, now: Duration) -> bool {
        !state.log.is_empty()
            && (state.closing
                || state.sync_wanted > state.taken
                || state.log.group_bytes() >= GROUP_BYTES_MAX
                || self.buffered_due(state).is_some_and(|due| due <= now))
    }

    /// The next step when the log is idle: write a mark, wait for its time, or end.
    fn idle(&self, state: &mut State, now: Duration) -> Result<(), Work> {
        let durable = self.durable();
        if state.log.stamped() < durable {
            let due = state.durable_at + MARK_DELAY;
            if !state.closing && now < due {
                return Err(Work::Sleep(Some(due)));
            }
            if state.log.append_mark(durable) {
                return Ok(());
            }
        }
        Err(if state.closing { Work::Exit } else { Work::Sleep(None) })
    }

    fn next_group(&self, state: &mut State, in_flight: usize, now: Duration) -> Work {
        if in_flight >= IN_FLIGHT_MAX {
            return Work::Sleep(None);
        }
        if state.log.has_unit() {
            let unit = state.log.take_unit(&mut state.spares);
            return Work::Write(unit.expect("it was there"));
        }
        if !self.group_due(state, now) {
            if !state.log.is_empty() || in_flight > 0 {
                return Work::Sleep(self.buffered_due(state));
            }
            if let Err(work) = self.idle(state, now) {
                return work;
            }
        }
        state.oldest_buffered = None;
        let unit = state.log.take_unit(&mut state.spares).expect("what is due has a record");
        state.taken = unit.last_seqno;
        Work::Write(unit)
    }

    fn next_sync(&self, state: &mut State, in_flight: usize, now: Duration) -> Work {
        if self.group_due(state, now) && self.write_cached(state).is_err() {
            return Work::Exit;
        }
        if in_flight > 0 {
            return Work::Sleep(self.buffered_due(state));
        }
        if state.sync_wanted <= self.durable() {
            if !state.log.is_empty() {
                return Work::Sleep(self.buffered_due(state));
            }
            if let Err(work) = self.idle(state, now) {
                return work;
            }
            if self.write_cached(state).is_err() {
                return Work::Exit;
            }
            // The sync of a mark proves nothing new: counting it would ask for another mark.
            return Work::Sync(state.log.take_unsynced(), self.durable());
        }
        state.log.pad(self.durable());
        if self.write_cached(state).is_err() {
            return Work::Exit;
        }
        state.taken = state.log.last_seqno();
        Work::Sync(state.log.take_unsynced(), state.taken)
    }

    /// The unit or sync that ends with `seqno` has succeeded: everything up to it is durable,
    /// unless one before it has failed. `bufs` may serve again.
    pub(crate) fn made_durable(&self, seqno: SeqNo, bufs: SmallVec<[AlignedBuf; 2]>) {
        let mut wakers = Wakers::new();
        let mut state = self.state.lock();
        let seqno = if planted!(DurableTooEarly) { state.log.last_seqno() } else { seqno };
        if state.failure.is_some() {
            return;
        }
        if self.progress.made_durable(seqno) {
            state.durable_at = self.clock.now();
        }
        state.spares.extend(bufs.into_iter().filter(|b| b.capacity() <= SPARE_BYTES_MAX));
        self.publish(&mut state, &mut wakers);
        drop(state);
        self.fresh.mark_written(seqno);
        self.give_written_values();
        self.progress_event.notify(usize::MAX);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The log task has ended: what is not durable now never will be.
    pub(super) fn log_ended(&self) {
        let mut state = self.state.lock();
        if state.failure.is_none() && self.durable() < state.log.last_seqno() {
            self.fail_locked(&mut state, &Error::closed());
        }
        drop(state);
        self.wake_failed();
    }
}
