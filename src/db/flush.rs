//! Flushes: the oldest sealed memtable becomes a run of level 0.
//!
//! Invariants:
//! 1. Memtables are flushed in their order; one at a time.
//! 2. A flush begins when every seqno of its memtable is visible: nothing that could still turn
//!    out not to be durable enters a table.
//! 3. Log segments leave the log in the edit that brings the table, and never earlier: those of
//!    the WAL for good, those of the value log to be read only. What a table refers to is durable
//!    before its edit is.
//! 4. A flush that fails changed nothing; it is repeated with a pause, under new file numbers.
//!    While the disk is full, writes that would have to wait are refused with `NoSpace`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::select;

use super::background::remove;
use super::{Core, stats};
use crate::compaction::job::{self, Outcome, Pace};
use crate::compaction::pace;
use crate::error::{Error, ErrorKind, Result};
use crate::iter::Direction;
use crate::key::SeqNo;
use crate::log::format::Stream;
use crate::log::segment::Segment;
use crate::memtable::{MemSource, Memtable};
use crate::version::edit::VersionEdit;
use crate::vlog::{Kind, ValuesMeta};

/// What a flush that slows down pauses at once.
const STEP: Duration = Duration::from_millis(2);
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Flushes sealed memtables until the database is closed.
pub(super) async fn run(core: Arc<Core>) {
    let mut pause = RETRY_MIN;
    loop {
        let listener = core.pipeline.sealed_event.listen();
        if core.is_closed() || core.pipeline.failure().is_some() {
            // Whoever was refused for want of space must not hear that it may come back.
            return core.tell_failure();
        }
        if core.throttle.is_waited_for() && core.oldest_sealed().is_none() {
            // The credits that somebody waits for are in the active memtable. When sealing is
            // refused the pipeline has failed or is closing, and the loop ends.
            core.pipeline.seal().ok();
        }
        let Some((memtable, next)) = core.oldest_sealed() else {
            listener.await;
            continue;
        };
        match flush(&core, &memtable, &next).await {
            Ok(()) => {
                pause = RETRY_MIN;
                *core.flush_error.lock() = None;
                core.throttle.admit();
                // The admission may have undone a refusal that came between.
                if core.is_closed() {
                    core.throttle.refuse(&Error::closed());
                } else if let Some(failure) = core.pipeline.failure() {
                    core.throttle.refuse(&failure);
                }
            }
            Err(_) if core.is_closed() => return,
            Err(error) => {
                tracing::warn!(%error, "a flush failed and will be repeated");
                if error.kind() == ErrorKind::NoSpace {
                    core.throttle.refuse(&error);
                }
                *core.flush_error.lock() = Some(error);
                core.flushed_event.notify(usize::MAX);
                core.pause(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
        core.flushed_event.notify(usize::MAX);
    }
}

async fn flush(core: &Arc<Core>, memtable: &Arc<Memtable>, next: &Arc<Memtable>) -> Result<()> {
    core.pipeline.wait_visible(memtable.last_seqno()).await?;
    if memtable.referred_bytes() > 0 && !planted!(ReferBeforeDurable) {
        core.pipeline.wait_durable(memtable.last_seqno()).await?;
    }
    core.wait_for_merges().await?;
    let span = tracing::debug_span!("flush", entries = memtable.entries());
    let (total, began) = (memtable.bytes(), core.env.clock().now());
    let pace = FlushPace::new(core, total);
    let mut source = MemSource::new(memtable, Direction::Forward, usize::MAX);
    let context = core.job_context(&pace);
    let writing = job::write_level_0(&context, &mut source, core.flush_filter_bits());
    let outcome = match core.unless_closed(writing).await {
        Ok(outcome) => install(core, memtable, next, outcome).await,
        Err(error) => Err(error),
    };
    let released = pace.released.load(Ordering::Relaxed);
    match &outcome {
        Ok(()) if planted!(LeakCredits) => {}
        Ok(()) => {
            core.throttle.release(total - released);
            let took = core.env.clock().now().saturating_sub(began);
            core.metrics.learn_flush(total, took, Duration::from_nanos(pace.paused()));
        }
        // The memtable is still there, and so is its memory.
        Err(_) => core.throttle.take_back(released),
    }
    span.in_scope(|| tracing::debug!(ok = outcome.is_ok(), "flush ended"));
    outcome
}

/// Gives the credits of a memtable back while it is written, and slows down for merges that are
/// behind: in small steps, so that nobody who waits for credits waits for long.
struct FlushPace<'a> {
    core: &'a Core,
    /// The bytes of the memtable, and those whose credits are back.
    total: usize,
    released: AtomicUsize,
    /// The time spent on slowing down, in nanoseconds.
    paused: AtomicU64,
}

impl<'a> FlushPace<'a> {
    fn new(core: &'a Core, total: usize) -> Self {
        FlushPace { core, total, released: AtomicUsize::new(0), paused: AtomicU64::new(0) }
    }

    fn paused(&self) -> u64 {
        self.paused.load(Ordering::Relaxed)
    }

    fn release(&self, bytes: usize) {
        let before = self.released.load(Ordering::Relaxed);
        let bytes = bytes.min(self.total - before);
        self.released.store(before + bytes, Ordering::Relaxed);
        self.core.throttle.release(bytes);
    }
}

#[async_trait]
impl Pace for FlushPace<'_> {
    async fn pass(&self, bytes: u64, _: u64) -> Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let speed = pace::speed(self.core.debt());
        let pause = self.core.metrics.time_to_write(bytes).mul_f64(1.0 / speed - 1.0);
        let steps = u32::try_from(pause.as_nanos() / STEP.as_nanos()).unwrap_or(u32::MAX).min(1000);
        for _ in 0..steps {
            match planted!(SlowFlushKeepsCredits) {
                true => drop(self.released.fetch_add(bytes / steps as usize, Ordering::Relaxed)),
                false => self.release(bytes / steps as usize),
            }
            self.core.pause(pause / steps).await;
        }
        if steps == 0 {
            self.release(bytes);
        }
        self.paused.fetch_add(u64::try_from(pause.as_nanos()).unwrap_or(0), Ordering::Relaxed);
        Ok(())
    }
}

async fn install(
    core: &Arc<Core>,
    memtable: &Arc<Memtable>,
    next: &Arc<Memtable>,
    outcome: Outcome,
) -> Result<()> {
    let mut first_live = next.first_segments();
    if planted!(RetireTooMuch) {
        first_live.wal += 1;
    }
    if planted!(SealTooMuch) {
        first_live.values += 1;
    }
    let bytes: u64 = outcome.opened.iter().map(|t| t.meta().file_bytes).sum();
    let closed = core.segments.below(first_live);
    if planted!(DeleteLogEarly) {
        for segment in &closed {
            remove(core.env.fs(), &core.dir, segment.stream.file_name(segment.id.number)).await;
        }
    }
    let referred: u64 = outcome.opened.iter().map(|t| t.meta().referenced_bytes()).sum();
    let came = memtable.referred_bytes() as u64;
    core.overwritten.learn_from_flush(came, came.saturating_sub(referred));
    let sealed: Vec<_> = closed.iter().filter(|s| s.stream == Stream::Values).collect();
    let edit = VersionEdit {
        segments_removed: closed.iter().map(|segment| segment.id.number).collect(),
        values_added: sealed.iter().map(|segment| sealed_meta(segment)).collect(),
        flushed_seqno: Some(memtable.last_seqno() + u64::from(planted!(FlushedSeqnoTooHigh))),
        ..outcome.edit
    };
    core.apply(edit, outcome.opened, |version| {
        core.read_states.install(version.clone(), Some(memtable));
    })
    .await?;
    stats::add(&core.metrics.flushes, 1);
    stats::add(&core.metrics.flushed_bytes, bytes);
    core.metrics.learn_unit(bytes + referred, memtable.bytes(), core.settings.memtable_bytes);
    core.monitor.flushed(memtable.last_seqno());
    core.pipeline.retire_segments(first_live);
    for name in core.segments.retire(first_live) {
        remove(core.env.fs(), &core.dir, name).await;
    }
    for segment in sealed {
        cut_off(segment).await;
    }
    Ok(())
}

/// What the manifest says about a segment of the value log that is complete.
fn sealed_meta(segment: &Segment) -> ValuesMeta {
    let bytes = segment.end.load(Ordering::Relaxed);
    ValuesMeta { number: segment.id.number, bytes, kind: Kind::Segment { salt: segment.id.salt } }
}

/// Gives back what a sealed segment did not need of its length.
async fn cut_off(segment: &Segment) {
    let mut bytes = segment.end.load(Ordering::Relaxed);
    if planted!(CutOffTooMuch) {
        bytes -= bytes / 16;
    }
    if bytes < segment.bytes
        && let Err(error) = segment.file.set_len(bytes).await
    {
        tracing::warn!(%error, "the unused end of a segment stays");
    }
}

impl Core {
    /// The oldest sealed memtable and the one that follows it.
    fn oldest_sealed(&self) -> Option<(Arc<Memtable>, Arc<Memtable>)> {
        let state = self.read_states.load();
        let mut oldest_first = state.memtables.iter().rev();
        let oldest = oldest_first.next()?.clone();
        Some((oldest, oldest_first.next()?.clone()))
    }

    /// How a write is turned away that would have to wait for so many bytes of memtables.
    pub(super) fn would_stall(&self, bytes: usize) -> Error {
        Error::would_stall(self.metrics.time_to_free(self.throttle.missing(bytes)))
    }

    /// Waits while level 0 has too many runs, unless nobody may merge them.
    async fn wait_for_merges(&self) -> Result<()> {
        let runs_max = pace::runs_max(&self.shape());
        self.wait_while(|| {
            let runs = self.versions.current().levels().first().map_or(0, |l| l.runs.len());
            let is_paused = self.control.is_paused() && !planted!(FlushWaitsForPause);
            let is_merged = self.merge_error.lock().is_none() && !is_paused;
            runs >= runs_max && is_merged
        })
        .await
    }

    /// Waits as long as `holds`, which changes with versions, or until nothing will change.
    pub(super) async fn wait_while(&self, holds: impl Fn() -> bool) -> Result<()> {
        loop {
            let listener = self.version_event.listen();
            let stopped = self.pipeline.progress_event.listen();
            self.check_open()?;
            if let Some(failure) = self.pipeline.failure() {
                return Err(failure);
            }
            if !holds() {
                return Ok(());
            }
            select(listener, stopped).await;
        }
    }

    /// Resolves when everything up to `seqno` is in tables.
    pub(super) async fn wait_flushed(&self, seqno: SeqNo) -> Result<()> {
        loop {
            let listener = self.flushed_event.listen();
            {
                let state = self.read_states.load();
                let mut sealed = state.memtables.iter().skip(1);
                if sealed.all(|memtable| memtable.last_seqno() > seqno) {
                    return Ok(());
                }
            }
            if let Some(failure) = self.pipeline.failure() {
                return Err(failure);
            }
            if let Some(error) = self.flush_error.lock().clone() {
                return Err(error);
            }
            self.check_open()?;
            listener.await;
        }
    }
}
