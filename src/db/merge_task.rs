//! The merge task: runs what the picker chooses, one merge at a time.
//!
//! Invariants:
//! 1. The snapshots that a merge honours are read after its inputs are fixed: a reader that begins
//!    later sees at least what is visible then, and every version it may need is kept.
//! 2. A merge that fails changed nothing. Damage in an input stops merging until the database is
//!    reopened, so that damaged bytes are never dropped or copied; other failures are repeated.

use std::sync::Arc;
use std::time::Duration;

use super::{Core, stats};
use crate::compaction::policy::Shape;
use crate::compaction::{Choice, Tree, job, picker};
use crate::error::Result;
use crate::version::Version;

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Merges until the database is closed.
pub(super) async fn run(core: Arc<Core>) {
    let mut pause = RETRY_MIN;
    loop {
        let listener = core.version_event.listen();
        if core.is_closed() || core.pipeline.failure().is_some() {
            return;
        }
        let version = core.versions.current();
        let Some(choice) = picker::pick(&Tree::of(&version), &core.shape()) else {
            listener.await;
            continue;
        };
        match merge(&core, &version, choice).await {
            Ok(()) => {
                pause = RETRY_MIN;
                *core.merge_error.lock() = None;
            }
            Err(_) if core.is_closed() => return,
            Err(error) if error.is_corruption() => {
                tracing::error!(%error, "merging has stopped: a table is damaged");
                *core.merge_error.lock() = Some(error);
                core.version_event.notify(usize::MAX);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "a merge failed and will be repeated");
                *core.merge_error.lock() = Some(error);
                core.version_event.notify(usize::MAX);
                core.env.clock().sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn merge(core: &Arc<Core>, version: &Arc<Version>, choice: Choice) -> Result<()> {
    let rewritten = choice.rewrite_bytes;
    tracing::debug!(inputs = choice.inputs.len(), rewritten, "merge begins");
    let context = core.job_context(&|_| ());
    let outcome = core.unless_closed(job::run(&context, version, &choice)).await?;
    let bytes: u64 = outcome.opened.iter().map(|t| t.meta().file_bytes).sum();
    core.apply(outcome.edit, outcome.opened, |version| {
        core.read_states.install(version.clone(), None);
    })
    .await?;
    stats::add(&core.metrics.compactions, 1);
    stats::add(&core.metrics.compacted_bytes, bytes);
    tracing::debug!(bytes, "merge ended");
    Ok(())
}

impl Core {
    /// The shape that the tree shall have.
    pub(super) fn shape(&self) -> Shape {
        Shape::new(&self.settings)
    }

    /// Filter bits for a new run of level 0.
    pub(super) fn flush_filter_bits(&self) -> f64 {
        let last = self.versions.current().last_level();
        self.shape().filter_bits_for(0, last)
    }
}
