//! The commit pipeline: seqno -> log -> memtable -> visible.
//!
//! A commit takes one short critical section ([`Pipeline::append`]): it reserves seqnos and log
//! space and copies its record into the log buffer. It then inserts into the memtable without a
//! lock, still in the same poll, and waits until it is published. The engine's log task (see
//! [`super::log_task`]) writes and syncs; no caller's task ever leads work that others wait for.
//!
//! Two ways to write the log, chosen by the default durability when the database is opened:
//! - *grouped* (`Synced`): the log task writes groups durably, at most two in flight.
//! - *cached* (`Written`, `Buffered`): a `Written` commit hands its record to the page cache on
//!   its own thread inside the critical section: one system call, no hop. A `Synced` one is
//!   followed by a data sync of the log task.
//!
//! Invariants:
//! 1. Records enter the log in the order of their seqnos. Everything from `append` to the memtable
//!    insert happens in one poll: dropping the future later cannot leave a commit half done.
//! 2. A seqno is visible only when all before it are inserted and, as far as they asked for it,
//!    written or durable.
//! 3. A memtable holds exactly the seqnos between two seals; seals happen under the same lock.
//! 4. After a failure nothing is appended, published or sealed any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use event_listener::{Event, EventListener};
use parking_lot::Mutex;
use seerdb_io::{AlignedBuf, Clock};

use super::publish::{Progress, Queue, Wakers};
use super::signal::Signal;
use super::state::ReadStates;
use super::streams::{Next, Streams};
use super::throttle::Throttle;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{SEQNO_MAX, SeqNo};
use crate::log::format::Stream;
use crate::log::segment::Segment;
use crate::log::writer::{Payload, segment_bytes_for};
use crate::memtable::{Floor, Memtable};
use crate::options::Durability;
use crate::sstable::BlockCache;
use crate::vlog::fresh::FreshValues;

/// A group that has grown to this size is written without waiting for its time.
pub(super) const GROUP_BYTES_MAX: usize = 1 << 20;

/// The pipeline of one open database.
pub(crate) struct Pipeline {
    pub(super) state: Mutex<State>,
    pub(super) progress: Progress,
    pub(super) grouped: bool,
    memtable_bytes: usize,
    /// A memtable that refers to so many bytes is sealed: what it overwrites cannot be collected
    /// before, and what it refers to is read again after a crash.
    referred_bytes_max: AtomicUsize,
    pub(super) fresh: Arc<FreshValues>,
    pub(super) throttle: Arc<Throttle>,
    /// Where values go when they are written; none when the page cache has them.
    pub(super) written_values: Option<Arc<BlockCache>>,
    pub(super) buffered_delay: Duration,
    pub(super) clock: Clock,
    pub(super) read_states: Arc<ReadStates>,
    /// Wakes the log task.
    pub(super) log_signal: Signal,
    /// A segment is ready, or will not be.
    segment_event: Event,
    /// A segment is wanted.
    pub(super) prepare_event: Event,
    /// A memtable was sealed, or must be.
    pub(super) sealed_event: Event,
    /// `visible` or `durable` has grown, or never will.
    pub(super) progress_event: Event,
}

pub(super) struct State {
    pub(super) log: Streams,
    pub(super) pending: Queue,
    pub(super) active: Arc<Memtable>,
    /// The last seqno before the active memtable.
    pub(super) active_base: SeqNo,
    /// Somebody waits for this seqno to be durable.
    pub(super) sync_wanted: SeqNo,
    /// The last seqno in units that were taken.
    pub(super) taken: SeqNo,
    /// When the oldest record of the group came that nobody waits for.
    pub(super) oldest_buffered: Option<Duration>,
    pub(super) durable_at: Duration,
    pub(super) log_sleeps: bool,
    pub(super) failure: Option<Error>,
    pub(super) closing: bool,
    pub(super) spares: Vec<AlignedBuf>,
}

/// A commit that is in the log buffer.
pub(crate) struct Ticket {
    id: u64,
    pub(crate) first_seqno: SeqNo,
    pub(crate) last_seqno: SeqNo,
    pub(crate) memtable: Arc<Memtable>,
    /// The segment that the record is in, and where its payload stands there.
    pub(crate) segment: Arc<Segment>,
    pub(crate) position: u64,
}

/// Why a commit is not in the log buffer.
pub(crate) enum Refused {
    /// Try again when the listener fires: a segment is being prepared.
    NoSegment(EventListener),
    /// For good.
    Error(Error),
}

/// Where a pipeline begins.
pub(crate) struct Start {
    pub(crate) segment: Arc<Segment>,
    pub(crate) last_seqno: SeqNo,
    pub(crate) active: Arc<Memtable>,
    pub(crate) grouped: bool,
    pub(crate) memtable_bytes: usize,
    pub(crate) fresh: Arc<FreshValues>,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) cache: Arc<BlockCache>,
    pub(crate) buffered_delay: Duration,
    pub(crate) clock: Clock,
    pub(crate) read_states: Arc<ReadStates>,
}

impl Pipeline {
    pub(crate) fn new(start: Start) -> Self {
        let last = start.last_seqno;
        let state = State {
            log: Streams::new(start.segment, last),
            pending: Queue::default(),
            active: start.active,
            active_base: last,
            sync_wanted: last,
            taken: last,
            oldest_buffered: None,
            durable_at: Duration::ZERO,
            log_sleeps: false,
            failure: None,
            closing: false,
            spares: Vec::new(),
        };
        Pipeline {
            state: Mutex::new(state),
            progress: Progress::new(last),
            grouped: start.grouped,
            memtable_bytes: start.memtable_bytes,
            referred_bytes_max: AtomicUsize::new(usize::MAX),
            fresh: start.fresh,
            throttle: start.throttle,
            written_values: Some(start.cache).filter(|_| start.grouped),
            buffered_delay: start.buffered_delay,
            clock: start.clock,
            read_states: start.read_states,
            log_signal: Signal::new(),
            segment_event: Event::new(),
            prepare_event: Event::new(),
            sealed_event: Event::new(),
            progress_event: Event::new(),
        }
    }

    /// The newest seqno that reads may use.
    pub(crate) fn visible(&self) -> SeqNo {
        self.progress.visible()
    }

    /// The newest seqno that is durable together with all before it.
    pub(crate) fn durable(&self) -> SeqNo {
        self.progress.durable()
    }

    /// Reserves seqnos and log space for a commit of `count` operations and copies its record.
    pub(crate) fn append(
        &self,
        stream: Stream,
        payload: &Payload<'_>,
        count: u32,
        durability: Durability,
    ) -> std::result::Result<Ticket, Refused> {
        let mut state = self.state.lock();
        let appended = self.append_locked(&mut state, stream, payload, count, durability);
        let failed = state.failure.is_some();
        drop(state);
        self.give_written_values();
        match appended {
            Ok((ticket, wake)) => {
                if wake {
                    self.signal_log();
                }
                Ok(ticket)
            }
            Err(refused) => {
                if failed {
                    self.wake_failed();
                }
                Err(refused)
            }
        }
    }

    /// The critical section of `append`; whether to wake the log task.
    fn append_locked(
        &self,
        state: &mut State,
        stream: Stream,
        payload: &Payload<'_>,
        count: u32,
        durability: Durability,
    ) -> std::result::Result<(Ticket, bool), Refused> {
        self.check_open(state).map_err(Refused::Error)?;
        while !state.log.has_room(stream, payload.bytes as usize) {
            self.rotate_segment(state, stream, payload.bytes as usize)?;
        }
        // Order: a threshold that moves slowly, it orders nothing.
        let referred_max = self.referred_bytes_max.load(Ordering::Relaxed);
        let active = &state.active;
        if active.bytes() >= self.memtable_bytes || active.referred_bytes() >= referred_max {
            self.seal_active(state);
        }
        let first_seqno = state.log.last_seqno() + 1;
        if first_seqno + u64::from(count) > SEQNO_MAX {
            let sentence = "the database has used up its seqnos";
            return Err(Refused::Error(Error::new(ErrorKind::FailStop, sentence)));
        }
        let durable = match planted!(StampTooEarly) {
            true => state.log.last_seqno(),
            false => self.durable(),
        };
        let (segment, position) = state.log.append(stream, payload, count, durable);
        let last_seqno = state.log.last_seqno();
        let id = state.pending.push(last_seqno, durability);
        let memtable = state.active.clone();
        let wake = self.schedule(state, durability, last_seqno).map_err(Refused::Error)?;
        if planted!(SeeBeforeDurable) {
            self.progress.show_early(last_seqno);
        }
        Ok((Ticket { id, first_seqno, last_seqno, memtable, segment, position }, wake))
    }

    /// Sees to it that the record just appended is written in time; whether to wake the log task.
    fn schedule(&self, state: &mut State, durability: Durability, last: SeqNo) -> Result<bool> {
        let work = match durability {
            Durability::Buffered => {
                let first = state.oldest_buffered.is_none();
                if first {
                    state.oldest_buffered = Some(self.clock.now());
                }
                first || state.log.group_bytes() >= GROUP_BYTES_MAX
            }
            Durability::Written if !self.grouped => {
                self.write_cached(state)?;
                false
            }
            Durability::Written | Durability::Synced => {
                if !self.grouped {
                    self.write_cached(state)?;
                }
                state.sync_wanted = last;
                true
            }
        };
        Ok(work && std::mem::take(&mut state.log_sleeps))
    }

    pub(super) fn write_cached(&self, state: &mut State) -> Result<()> {
        state.oldest_buffered = None;
        match state.log.write_cached() {
            Ok(()) => {
                self.fresh.mark_written(state.log.last_seqno());
                Ok(())
            }
            Err(cause) => Err(self.write_failed(state, &cause)),
        }
    }

    /// What was written to the log since the open, in bytes.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.state.lock().log.written_bytes()
    }

    /// Has memtables sealed that refer to this many bytes of the value log.
    pub(crate) fn limit_referred_bytes(&self, bytes: usize) {
        self.referred_bytes_max.store(bytes, Ordering::Relaxed);
    }

    /// The kernel has refused what stood in the log buffer: writing ends.
    fn write_failed(&self, state: &mut State, cause: &Error) -> Error {
        self.fail_locked(state, cause);
        indeterminate(cause)
    }

    pub(super) fn signal_log(&self) {
        self.log_signal.raise();
    }

    fn check_open(&self, state: &State) -> Result<()> {
        match &state.failure {
            Some(cause) => Err(cause.clone()),
            None if state.closing => Err(Error::closed()),
            None => Ok(()),
        }
    }

    /// Goes on in the next segment, if there is one.
    fn rotate_segment(
        &self,
        state: &mut State,
        stream: Stream,
        payload_bytes: usize,
    ) -> std::result::Result<(), Refused> {
        let lane = state.log.lane(stream);
        lane.wanted_bytes = segment_bytes_for(payload_bytes);
        match std::mem::replace(&mut lane.next, Next::Wanted) {
            Next::Unwanted | Next::Wanted => {
                let listener = self.segment_event.listen();
                self.prepare_event.notify(1);
                Err(Refused::NoSegment(listener))
            }
            Next::Failed(error) => {
                // This commit is refused before it entered the log; the next one finds out
                // whether preparing works again.
                self.prepare_event.notify(1);
                Err(Refused::Error(error))
            }
            Next::Ready(segment) => {
                let State { log, spares, .. } = state;
                let rotated = log.rotate(stream, segment, self.grouped, spares);
                if rotated.map_err(|cause| Refused::Error(self.write_failed(state, &cause)))? {
                    state.taken = state.log.last_seqno();
                }
                state.oldest_buffered = None;
                self.prepare_event.notify(1);
                self.signal_log();
                Ok(())
            }
        }
    }

    /// The stream, of those that may have one, and the length of the segment to prepare next.
    pub(crate) fn segment_wanted(&self, may: impl Fn(Stream) -> bool) -> Option<(Stream, u64)> {
        let mut state = self.state.lock();
        if state.failure.is_some() || state.closing {
            return None;
        }
        // One that failed is tried again, but holds no other up.
        let mut again = None;
        for stream in [Stream::Wal, Stream::Values].into_iter().filter(|stream| may(*stream)) {
            let lane = state.log.lane(stream);
            match lane.next {
                Next::Wanted => return Some((stream, lane.wanted_bytes)),
                Next::Failed(_) => again = Some((stream, lane.wanted_bytes)),
                Next::Unwanted | Next::Ready(_) => {}
            }
        }
        again
    }

    /// The segment is prepared, or could not be.
    pub(crate) fn segment_prepared(&self, stream: Stream, outcome: Result<Arc<Segment>>) {
        let mut state = self.state.lock();
        state.log.lane(stream).next = match outcome {
            Ok(segment) => Next::Ready(segment),
            // Nobody to tell: who comes later shall not be refused for what may be over by then.
            Err(_) if self.segment_event.total_listeners() == 0 => Next::Wanted,
            Err(error) => Next::Failed(error),
        };
        drop(state);
        self.segment_event.notify(usize::MAX);
    }

    /// Seals the active memtable if it has anything; the last seqno that must be flushed then.
    pub(crate) fn seal(&self) -> Result<SeqNo> {
        let mut state = self.state.lock();
        self.check_open(&state)?;
        if state.log.last_seqno() > state.active_base {
            self.seal_active(&mut state);
        }
        Ok(state.active_base)
    }

    /// Has the flush task look whether the active memtable must be sealed for those who wait.
    pub(crate) fn want_flush(&self) {
        self.sealed_event.notify(usize::MAX);
    }

    fn seal_active(&self, state: &mut State) {
        let last = state.log.last_seqno();
        assert!(last > state.active_base, "an empty memtable is never sealed");
        state.active.seal(last - u64::from(planted!(SealTooLow)));
        state.active_base = last;
        let fresh = Arc::new(state.active.follower(state.log.first_segments()));
        state.active = fresh.clone();
        self.read_states.seal(fresh);
        self.sealed_event.notify(usize::MAX);
    }

    /// The caller has inserted the commit: publishes what can be, and says whether it is done.
    pub(crate) fn finish(&self, ticket: &Ticket, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut wakers = Wakers::new();
        let mut state = self.state.lock();
        if state.pending.inserted(ticket.id) {
            self.publish(&mut state, &mut wakers);
        }
        let poll = poll_published(&mut state, ticket.id, cx);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        poll
    }

    /// Whether the commit is published, for later polls.
    pub(crate) fn poll_done(&self, ticket: &Ticket, cx: &mut Context<'_>) -> Poll<Result<()>> {
        poll_published(&mut self.state.lock(), ticket.id, cx)
    }

    /// Makes visible what can be (invariant 2).
    pub(super) fn publish(&self, state: &mut State, wakers: &mut Wakers) {
        if state.failure.is_some() {
            return;
        }
        if state.pending.publish(&self.progress, self.grouped, wakers) {
            self.progress_event.notify(usize::MAX);
        }
    }

    /// Stops writing for good; the first failure is the one that is told.
    pub(crate) fn fail(&self, cause: &Error) {
        let mut state = self.state.lock();
        self.fail_locked(&mut state, cause);
        drop(state);
        self.wake_failed();
    }

    /// Lets everybody who waits find the failure.
    pub(super) fn wake_failed(&self) {
        let mut state = self.state.lock();
        let wakers = state.pending.take_wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        self.notify_all();
    }

    pub(super) fn fail_locked(&self, state: &mut State, cause: &Error) {
        if state.failure.is_none() {
            tracing::error!(%cause, "writing has stopped; reopen the database");
            let sentence = "writing has stopped after a failure; reopen the database";
            state.failure = Some(cause.with_kind(ErrorKind::FailStop, sentence));
        }
    }

    /// Turns new commits away; the log task writes what is in the log and ends.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.closing = true;
        if !planted!(CloseWithoutSync) {
            state.sync_wanted = state.log.last_seqno();
        }
        drop(state);
        self.notify_all();
    }

    fn notify_all(&self) {
        self.signal_log();
        self.segment_event.notify(usize::MAX);
        self.prepare_event.notify(usize::MAX);
        self.sealed_event.notify(usize::MAX);
        self.progress_event.notify(usize::MAX);
    }

    /// The failure that stopped writing, if any.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.state.lock().failure.clone()
    }

    /// The error for a reader that does not find what the commit `seqno` wrote: the log's own
    /// failure, when that has lost it.
    pub(crate) fn explain_loss(&self, seqno: SeqNo, error: Error) -> Error {
        match self.failure() {
            Some(failure) if error.is_corruption() && seqno > self.durable() => failure,
            _ => error,
        }
    }

    /// Resolves when `visible` has reached `seqno`.
    pub(crate) async fn wait_visible(&self, seqno: SeqNo) -> Result<()> {
        self.wait_progress(|| self.visible() >= seqno).await
    }

    /// Asks for a sync and resolves when `seqno` is durable.
    pub(crate) async fn wait_durable(&self, seqno: SeqNo) -> Result<()> {
        {
            let mut state = self.state.lock();
            let last = state.log.last_seqno();
            if seqno > last {
                let sentence = format!("seqno {seqno} was never given out, the last is {last}");
                return Err(Error::invalid(sentence));
            }
            state.sync_wanted = state.sync_wanted.max(seqno);
        }
        self.signal_log();
        self.wait_progress(|| self.durable() >= seqno).await
    }

    async fn wait_progress(&self, reached: impl Fn() -> bool) -> Result<()> {
        loop {
            let listener = self.progress_event.listen();
            if reached() {
                return Ok(());
            }
            if let Some(failure) = self.failure() {
                return Err(failure);
            }
            listener.await;
        }
    }

    /// Forgets closed segments below `first_live`: their records are in tables.
    pub(crate) fn retire_segments(&self, first_live: Floor) {
        self.state.lock().log.retire(first_live);
    }
}

fn poll_published(state: &mut State, id: u64, cx: &mut Context<'_>) -> Poll<Result<()>> {
    match (state.pending.poll(id, cx), &state.failure) {
        (Poll::Pending, Some(cause)) => Poll::Ready(Err(indeterminate(cause))),
        (published, _) => published.map(Ok),
    }
}

fn indeterminate(cause: &Error) -> Error {
    let sentence = "the commit may or may not survive; reopen the database and look";
    cause.with_kind(ErrorKind::Indeterminate, sentence)
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use seerdb_io::{Env, EnvOptions};

    use super::*;
    use crate::codec::crc32c;
    use crate::log::segment::{Plan, prepare};

    #[test]
    fn beyond_the_last_seqno_nothing_is_taken() {
        let env = Env::new(&EnvOptions::default()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let plan =
            Plan { stream: Stream::Wal, number: 1, bytes: 1 << 16, direct: false, recycled: None };
        let active = Arc::new(Memtable::new(Floor { wal: 1, values: 0 }));
        let pipeline = Pipeline::new(Start {
            segment: Arc::new(block_on(prepare(&env, dir.path(), plan)).unwrap()),
            last_seqno: SEQNO_MAX - 3,
            active: active.clone(),
            grouped: false,
            memtable_bytes: 1 << 20,
            fresh: Arc::default(),
            throttle: Throttle::new(1 << 20),
            cache: Arc::new(BlockCache::new(0)),
            buffered_delay: Duration::ZERO,
            clock: env.clock().clone(),
            read_states: Arc::new(ReadStates::new(active, Arc::default())),
        });
        let payload = Payload { parts: &[b"op"], bytes: 2, crc: crc32c(b"op") };
        let append =
            |count| match pipeline.append(Stream::Wal, &payload, count, Durability::Buffered) {
                Ok(ticket) => Ok(ticket.last_seqno),
                Err(Refused::Error(error)) => Err(error.kind()),
                Err(Refused::NoSegment(_)) => panic!("the segment has room"),
            };
        assert_eq!(append(3), Err(ErrorKind::FailStop), "a batch is refused whole");
        assert_eq!(append(2), Ok(SEQNO_MAX - 1));
        assert_eq!(append(1), Err(ErrorKind::FailStop));
        assert!(pipeline.failure().is_none(), "reading and closing go on");
    }
}
