//! Flushes: the oldest sealed memtable becomes a run of level 0.
//!
//! Invariants:
//! 1. Memtables are flushed in their order; one at a time.
//! 2. A flush begins when every seqno of its memtable is visible: nothing that could still turn
//!    out not to be durable enters a table.
//! 3. WAL segments leave the manifest in the edit that brings the table, and never earlier.
//! 4. A flush that fails changed nothing; it is repeated with a pause, under new file numbers.
//!    While the disk is full, writes that would have to wait are refused with `NoSpace`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::select;

use super::background::remove;
use super::{Core, stats};
use crate::compaction::job::{self, Outcome};
use crate::error::{Error, ErrorKind, Result};
use crate::filename::FileName;
use crate::iter::Direction;
use crate::key::SeqNo;
use crate::memtable::{MemSource, Memtable};
use crate::version::edit::VersionEdit;

/// With this many runs in level 0, flushes wait for merges: reads would look at too many runs.
const RUNS_MAX: usize = 24;
/// They wait only with this many runs more than level 0 may keep: then a merge is due for sure.
const RUNS_ABOVE: usize = 8;
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
    core.wait_for_merges().await?;
    let span = tracing::debug_span!("flush", entries = memtable.entries());
    let total = memtable.bytes();
    let released = AtomicUsize::new(0);
    let progress = |written: u64| {
        let before = released.load(Ordering::Relaxed);
        let bytes = usize::try_from(written).unwrap_or(usize::MAX).min(total - before);
        released.store(before + bytes, Ordering::Relaxed);
        core.throttle.release(bytes);
    };
    let mut source = MemSource::new(memtable, Direction::Forward, usize::MAX);
    let context = core.job_context(&progress);
    let writing = job::write_level_0(&context, &mut source, core.flush_filter_bits());
    let outcome = match core.unless_closed(writing).await {
        Ok(outcome) => install(core, memtable, next, outcome).await,
        Err(error) => Err(error),
    };
    let released = released.load(Ordering::Relaxed);
    match &outcome {
        Ok(()) if planted!(LeakCredits) => {}
        Ok(()) => core.throttle.release(total - released),
        // The memtable is still there, and so is its memory.
        Err(_) => core.throttle.take_back(released),
    }
    span.in_scope(|| tracing::debug!(ok = outcome.is_ok(), "flush ended"));
    outcome
}

async fn install(
    core: &Arc<Core>,
    memtable: &Arc<Memtable>,
    next: &Arc<Memtable>,
    outcome: Outcome,
) -> Result<()> {
    let first_live = next.first_wal() + u64::from(planted!(RetireTooMuch));
    let bytes: u64 = outcome.opened.iter().map(|t| t.meta().file_bytes).sum();
    if planted!(DeleteLogEarly) {
        for number in core.segments.below(first_live) {
            remove(core.env.fs(), &core.dir, FileName::Wal(number)).await;
        }
    }
    let edit = VersionEdit {
        wals_removed: core.segments.below(first_live),
        flushed_seqno: Some(memtable.last_seqno() + u64::from(planted!(FlushedSeqnoTooHigh))),
        ..outcome.edit
    };
    core.apply(edit, outcome.opened, |version| {
        core.read_states.install(version.clone(), Some(memtable));
    })
    .await?;
    stats::add(&core.metrics.flushes, 1);
    stats::add(&core.metrics.flushed_bytes, bytes);
    core.pipeline.retire_segments(first_live);
    for number in core.segments.retire(first_live) {
        remove(core.env.fs(), &core.dir, FileName::Wal(number)).await;
    }
    Ok(())
}

impl Core {
    /// The oldest sealed memtable and the one that follows it.
    fn oldest_sealed(&self) -> Option<(Arc<Memtable>, Arc<Memtable>)> {
        let state = self.read_states.load();
        let mut oldest_first = state.memtables.iter().rev();
        let oldest = oldest_first.next()?.clone();
        Some((oldest, oldest_first.next()?.clone()))
    }

    /// Waits while level 0 has too many runs.
    async fn wait_for_merges(&self) -> Result<()> {
        let runs_max = RUNS_MAX.max(self.settings.runs_per_level + RUNS_ABOVE);
        loop {
            let listener = self.version_event.listen();
            let stopped = self.pipeline.progress_event.listen();
            self.check_open()?;
            if let Some(failure) = self.pipeline.failure() {
                return Err(failure);
            }
            let runs = self.versions.current().levels().first().map_or(0, |l| l.runs.len());
            if runs < runs_max || self.merge_error.lock().is_some() {
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
