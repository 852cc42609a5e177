//! The merge task: runs what the picker chooses, one merge at a time.
//!
//! Invariants:
//! 1. The snapshots that a merge honours are read after its inputs are fixed: a reader that begins
//!    later sees at least what is visible then, and every version it may need is kept.
//! 2. A merge that fails changed nothing. Damage in an input stops merging until the database is
//!    reopened, so that damaged bytes are never dropped or copied; other failures are repeated.

use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;

use super::{Core, stats};
use crate::compaction::job::Outcome;
use crate::compaction::policy::Shape;
use crate::compaction::{Choice, MergeReason, Tree, job, picker};
use crate::error::{Error, Result};
use crate::filename::FileName;
use crate::sstable::Table;
use crate::version::Version;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Somebody who waits for everything to be merged.
pub(super) type Request = oneshot::Sender<Result<()>>;

/// Asks for everything to be merged, and waits for it.
pub(super) async fn request(core: &Core) -> Result<()> {
    let (sender, receiver) = oneshot::channel();
    {
        // Under the lock: a task that ends refuses what was asked before, and says so first.
        let mut requests = core.compact_requests.lock();
        if let Some(error) = core.merge_error.lock().clone().filter(Error::is_corruption) {
            return Err(error);
        }
        if let Some(failure) = core.pipeline.failure() {
            return Err(failure);
        }
        core.check_open()?;
        requests.push(sender);
    }
    core.version_event.notify(usize::MAX);
    receiver.await.unwrap_or_else(|_| Err(Error::closed()))
}

fn answer(requests: Vec<Request>, outcome: &Result<()>) {
    for request in requests {
        // Who gave up waiting needs no answer.
        request.send(outcome.clone()).ok();
    }
}

/// Merges until the database is closed.
pub(super) async fn run(core: Arc<Core>) {
    let mut pause = RETRY_MIN;
    loop {
        let listener = core.version_event.listen();
        if core.is_closed() || core.pipeline.failure().is_some() {
            return core.refuse_requests(&core.pipeline.failure().unwrap_or_else(Error::closed));
        }
        if core.control.is_paused() {
            listener.await;
            continue;
        }
        let version = core.versions.current();
        let requests = std::mem::take(&mut *core.compact_requests.lock());
        let choice = core.next_merge(&version, !requests.is_empty());
        let Some(choice) = choice else {
            if requests.is_empty() {
                listener.await;
            }
            answer(requests, &Ok(()));
            continue;
        };
        let outcome = merge(&core, &version, choice).await;
        // It is over when its counters are right, for those who wait for that.
        core.control.end();
        // The tables that the merge replaced are gone with it.
        drop(version);
        core.resize_cache();
        answer(requests, &outcome);
        match outcome {
            Ok(()) => {
                pause = RETRY_MIN;
                *core.merge_error.lock() = None;
                core.version_event.notify(usize::MAX);
            }
            Err(error) if core.is_closed() => return core.refuse_requests(&error),
            Err(error) if error.is_corruption() => {
                tracing::error!(%error, "merging has stopped: a table is damaged");
                *core.merge_error.lock() = Some(error.clone());
                core.version_event.notify(usize::MAX);
                return core.refuse_requests(&error);
            }
            Err(error) => {
                tracing::warn!(%error, "a merge failed and will be repeated");
                *core.merge_error.lock() = Some(error);
                core.version_event.notify(usize::MAX);
                core.pause(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Whether there is nothing to merge; who waits for that looks again with every version.
pub(super) fn is_idle(core: &Core) -> bool {
    core.compact_requests.lock().is_empty()
        && core.control.progress().is_none()
        && core.next_merge(&core.versions.current(), false).is_none()
}

async fn merge(core: &Arc<Core>, version: &Arc<Version>, choice: Choice) -> Result<()> {
    let rewritten = choice.rewrite_bytes;
    tracing::debug!(inputs = choice.inputs.len(), rewritten, "merge begins");
    let mut context = core.job_context(&|_| ());
    context.control = Some(&core.control);
    let outcome = core.unless_closed(job::run(&context, version, &choice)).await?;
    let bytes: u64 = outcome.opened.iter().map(|t| t.meta().file_bytes).sum();
    if planted!(DeleteInputsEarly) {
        for number in &outcome.edit.tables_removed {
            super::background::remove(core.env.fs(), &core.dir, FileName::Table(*number)).await;
        }
    }
    learn_overwritten(core, version, &choice, &outcome);
    core.apply(outcome.edit, outcome.opened, |version| {
        core.read_states.install(version.clone(), None);
    })
    .await?;
    stats::add(&core.metrics.compactions, 1);
    stats::add(&core.metrics.compacted_bytes, bytes);
    tracing::debug!(bytes, "merge ended");
    Ok(())
}

/// Learns from a merge into the last run how much of what came was there already.
fn learn_overwritten(core: &Core, version: &Version, choice: &Choice, outcome: &Outcome) {
    if !choice.bottommost {
        return;
    }
    let runs = version.runs().filter(|run| choice.inputs.iter().any(|(_, id)| *id == run.id));
    let referred: Vec<u64> = runs
        .map(|run| run.tables.iter().map(|table| table.meta().referenced_bytes()).sum())
        .collect();
    let (Some(last), taken) = (referred.last(), referred.iter().sum::<u64>()) else { return };
    let is_moved = |table: &&Arc<Table>| choice.moved.binary_search(&table.meta().number).is_ok();
    let moved: u64 = version.tables().filter(is_moved).map(|t| t.meta().referenced_bytes()).sum();
    let written: u64 = outcome.opened.iter().map(|table| table.meta().referenced_bytes()).sum();
    core.overwritten.learn(taken - last, taken.saturating_sub(moved + written));
}

impl Core {
    /// The shape that the tree shall have.
    pub(super) fn shape(&self) -> Shape {
        Shape::new(&self.settings)
    }

    /// The task ends: nobody will be merged for any more.
    pub(super) fn refuse_requests(&self, error: &Error) {
        let requests = std::mem::take(&mut *self.compact_requests.lock());
        answer(requests, &Err(error.clone()));
    }

    /// The merge that is due in `version`, of everything when `all` is asked for.
    pub(super) fn next_merge(&self, version: &Version, all: bool) -> Option<Choice> {
        let (tree, shape) = (Tree::of(version), self.shape());
        if all {
            return picker::pick_all(&tree, &shape);
        }
        picker::pick(&tree, &shape).or_else(|| {
            let hides = tree.runs().count() > 1 && self.hides_too_much(version);
            let choice = if hides { picker::pick_all(&tree, &shape)? } else { return None };
            Some(Choice { reason: MergeReason::HiddenValues, ..choice })
        })
    }

    /// Filter bits for a new run of level 0.
    pub(super) fn flush_filter_bits(&self) -> f64 {
        let last = self.versions.current().last_level();
        self.shape().filter_bits_for(0, last)
    }
}
