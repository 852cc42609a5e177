//! Merging under the user's hand: paused, waited for, watched.

use super::{DB, merge_task};
use crate::error::{Error, Result};
use crate::limits::CompactionLimits;

/// Holds up merging while it lives; made by [`DB::pause_compaction`].
#[must_use = "merging goes on when it is dropped"]
pub struct CompactionPause {
    db: DB,
}

impl Drop for CompactionPause {
    fn drop(&mut self) {
        self.db.core().control.resume();
        self.db.core().version_event.notify(usize::MAX);
    }
}

/// How far a merge is; see [`DB::compaction_progress`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactionProgress {
    /// The entries that it has met.
    pub entries: u64,
    /// All entries of its inputs.
    pub entries_total: u64,
    /// Whether it is held up.
    pub is_paused: bool,
}

impl DB {
    /// Holds up merging until what this returns is dropped: for a time when the disk belongs to
    /// others. A merge that runs stops within a mebibyte of work and goes on later; none begins.
    ///
    /// Writes, flushes and the collection of the value log go on. Level 0 gets a run with each
    /// flush meanwhile: reads look into ever more of them, and what was overwritten stays on disk.
    /// [`DB::compact_range`] and [`DB::wait_for_compaction`] wait for the end of the pause. The
    /// pause keeps the database open as any handle does.
    ///
    /// ```
    /// # async fn backup(db: &seerdb::DB) {
    /// let pause = db.pause_compaction();
    /// // Copy files.
    /// drop(pause);
    /// # }
    /// ```
    pub fn pause_compaction(&self) -> CompactionPause {
        self.core().control.pause();
        // Flushes no longer wait for merges.
        self.core().version_event.notify(usize::MAX);
        CompactionPause { db: self.clone() }
    }

    /// How far the merge is that runs now, if one does.
    pub fn compaction_progress(&self) -> Option<CompactionProgress> {
        let control = &self.core().control;
        let (entries, entries_total) = control.progress()?;
        Some(CompactionProgress { entries, entries_total, is_paused: control.is_paused() })
    }

    /// Calls off what [`DB::compact_range`] asked for, within about a mebibyte of work; its callers
    /// get `Cancelled`. What was merged by then stays merged, and what is due anyhow goes on:
    /// [`DB::pause_compaction`] holds that up.
    pub fn cancel_compaction(&self) {
        let core = self.core();
        core.refuse_requests(&Error::cancelled());
        core.control.cancel();
    }

    /// Changes what merges and rewrites of values keep to, from now on and until the database is
    /// closed. Limits give way where writers would have to wait otherwise.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a limit out of its range; nothing is changed then.
    pub fn set_compaction_limits(&self, limits: CompactionLimits) -> Result<()> {
        limits.check()?;
        self.core().pacer.set(limits);
        Ok(())
    }

    /// What merges and rewrites of values keep to.
    pub fn compaction_limits(&self) -> CompactionLimits {
        self.core().pacer.limits()
    }

    /// Waits until no merge is due: the tree has the shape that the options ask for, for what is
    /// flushed. With writes going on that may not happen for long.
    ///
    /// # Errors
    ///
    /// `Corruption` when merging has stopped because a table is damaged, the failure that stopped
    /// writing, and `Closed`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub async fn wait_for_compaction(&self) -> Result<()> {
        let core = self.core();
        core.check_process()?;
        loop {
            let listener = core.version_event.listen();
            core.check_open()?;
            if let Some(error) = core.merge_error.lock().clone().filter(Error::is_corruption) {
                return Err(error);
            }
            if let Some(failure) = core.pipeline.failure() {
                return Err(failure);
            }
            if merge_task::is_idle(core) {
                return Ok(());
            }
            listener.await;
        }
    }
}
