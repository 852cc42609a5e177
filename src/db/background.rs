//! Background tasks: how they are started, what their end means, and what they share.
//!
//! Invariants:
//! 1. A task that panics stops writing. Once writing has stopped nobody waits for it for ever.
//! 2. All tasks but the trash end after `begin_close`; `close` awaits them, then the trash.
//! 3. A manifest edit that failed once it had begun stops writing: what is on disk then is no
//!    longer known. One that found no space for itself changed nothing, and may be repeated.
//! 4. The trash holds the lock of the directory: no file is removed from one that may be another
//!    database's by now.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{FutureExt, StreamExt};
use seerdb_io::{Fs, Lane, LockFile, Task};

use super::stats::{FilterStats, IndexStats, LevelStats, Stats, ValueFileStats, ValueLogStats};
use super::{Core, collect, flush, log_task, merge_task, monitor, segments};
use crate::compaction::Tree;
use crate::error::{Error, ErrorKind, Result};
use crate::filename::FileName;
use crate::version::edit::VersionEdit;
use crate::version::{Opened, Version};

/// Starts the tasks of an open database; `trash` are the files that nothing refers to.
pub(super) fn start(core: &Arc<Core>, trash: UnboundedReceiver<FileName>) {
    let log = log_and_note(core.clone());
    let tasks = vec![
        spawn(core, Lane::Log, "log", log),
        spawn(core, Lane::Flush, "segments", segments::run(core.clone())),
        spawn(core, Lane::Flush, "flush", flush::run(core.clone())),
        spawn(core, Lane::Compaction, "collect", collect::run(core.clone())),
        spawn(core, Lane::Compaction, "watch", monitor::run(core.clone())),
    ];
    let merging = ["merge", "upper merge", "uppermost merge"];
    let merging =
        merging.map(|name| spawn(core, Lane::Compaction, name, merge_task::run(core.clone())));
    core.tasks.lock().extend(tasks.into_iter().chain(merging));
    let (fs, dir, lock) = (core.env.fs().clone(), core.dir.clone(), core.lock.lock().clone());
    let trash = core.env.spawner().spawn(Lane::Flush, "trash", empty_trash(fs, dir, trash, lock));
    *core.trash.lock() = Some(trash);
}

/// Writes the log until the database is closed, and notes in the manifest how far it goes: without
/// the note an older copy of the last segment would look like a shorter log.
async fn log_and_note(core: Arc<Core>) {
    let (pipeline, clock) = (core.pipeline.clone(), core.env.clock().clone());
    log_task::run(pipeline, clock, core.metrics.clone(), core.pacer.clone()).await;
    core.tell_failure();
    if core.pipeline.failure().is_some()
        || core.pipeline.durable() <= core.versions.durable_seqno().await
    {
        return;
    }
    if let Err(error) = core.apply(VersionEdit::default(), Opened::default(), |_| ()).await {
        tracing::warn!(%error, "the end of the log could not be noted");
    }
}

fn spawn<F>(core: &Arc<Core>, lane: Lane, name: &'static str, task: F) -> Task<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let shared = core.clone();
    core.env.spawner().spawn(lane, name, async move {
        if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
            if planted!(PanicUnnoticed) {
                return;
            }
            let sentence = format!("the background task \"{name}\" panicked");
            let failure = Error::new(ErrorKind::FailStop, sentence);
            shared.pipeline.fail(&failure);
            shared.refuse_requests(&failure);
            shared.tell_failure();
            std::panic::resume_unwind(panic);
        }
    })
}

/// Removes retired files until the database is closed, or every table and the core are gone.
async fn empty_trash(
    fs: Fs,
    dir: PathBuf,
    mut trash: UnboundedReceiver<FileName>,
    lock: Option<Arc<LockFile>>,
) {
    while let Some(name) = trash.next().await {
        remove(&fs, &dir, name).await;
    }
    drop(lock);
}

/// Removes a file that nothing refers to; what stays is an orphan that the next open removes.
pub(super) async fn remove(fs: &Fs, dir: &Path, name: FileName) {
    match fs.remove_file(name.in_dir(dir)).await {
        Err(error) if !error.is_not_found() => {
            tracing::warn!(%error, "a file that is no longer needed cannot be removed");
        }
        Ok(()) | Err(_) => {}
    }
}

impl Core {
    /// If writing has stopped, tells those who wait for what will not come any more: memory, a
    /// flush, a merge. The log task ends with every failure, and calls this then.
    pub(super) fn tell_failure(&self) {
        if let Some(failure) = self.pipeline.failure() {
            self.throttle.refuse(&failure);
            self.flushed_event.notify(usize::MAX);
            self.version_event.notify(usize::MAX);
        }
    }

    /// Applies an edit to the manifest and hands the new version to `install` before any other
    /// edit is applied. A failure stops writing unless nothing was changed (invariant 3): then
    /// the files that the edit would have added are removed.
    pub(super) async fn apply(
        &self,
        mut edit: VersionEdit,
        opened: impl Into<Opened>,
        install: impl FnOnce(&Arc<Version>),
    ) -> Result<()> {
        // For free: what the log alone could not tell from a shorter one.
        edit.durable_seqno = Some(self.pipeline.durable());
        let opened = opened.into();
        let tables = opened.tables.iter().map(|table| FileName::Table(table.meta().number));
        let values = opened.values.iter().map(|file| FileName::Values(file.number()));
        let added: Vec<FileName> = tables.chain(values).collect();
        if let Err(error) = self.versions.apply(edit, opened, install).await {
            if self.versions.failure().is_some() {
                self.pipeline.fail(&error);
                self.flushed_event.notify(usize::MAX);
            } else {
                for name in added {
                    remove(self.env.fs(), &self.dir, name).await;
                }
            }
            return Err(error);
        }
        self.resize_cache();
        self.version_event.notify(usize::MAX);
        Ok(())
    }

    /// The cache has what its share leaves beside the filters and indexes of open tables, and a
    /// little always: without it every look would be one of the disk.
    pub(super) fn resize_cache(&self) {
        let resident = self.versions.resident_bytes();
        let share = self.settings.cache_bytes;
        self.cache.set_capacity(share.saturating_sub(resident).max(share / 16));
    }

    /// Counters and sizes.
    pub(super) fn stats(&self) -> Stats {
        use std::sync::atomic::Ordering::Relaxed;
        let state = self.read_states.load();
        let metrics = &self.metrics;
        let shape = self.shape();
        let last = Tree::of(&state.version).last_level();
        let levels = state.version.levels().iter().enumerate().map(|(at, level)| LevelStats {
            runs: level.runs.len(),
            tables: level.runs.iter().map(|run| run.tables.len()).sum(),
            bytes: level.runs.iter().map(|run| run.bytes()).sum(),
            entries: level.runs.iter().map(|run| run.entries()).sum(),
            indexes: IndexStats::of(
                level
                    .runs
                    .iter()
                    .flat_map(|run| &run.tables)
                    .map(|t| (t.index_report(), t.blocks())),
            ),
            run_indexes: IndexStats::of(
                level.runs.iter().map(|run| (run.report(), run.tables.len())),
            ),
            filters: FilterStats::of(
                level.runs.iter().flat_map(|run| &run.tables),
                shape.filter_bits_for(at, last),
            ),
        });
        Stats {
            commits: metrics.commits.load(Relaxed),
            user_bytes: metrics.user_bytes.load(Relaxed),
            visible_seqno: self.pipeline.visible(),
            durable_seqno: self.pipeline.durable(),
            log_groups: metrics.log_groups.load(Relaxed),
            log_bytes: self.pipeline.log_bytes() + self.segments.prepared_bytes(),
            manifest_bytes: self.versions.manifest_bytes(),
            log_syncs: metrics.log_syncs.load(Relaxed),
            memtables: state.memtables.len(),
            memtable_bytes: state.memtables.iter().map(|m| m.bytes()).sum(),
            cache_bytes: self.cache.usage(),
            cache_hits: self.cache.hits(),
            cache_misses: self.cache.misses(),
            cache_capacity: self.cache.capacity(),
            table_memory_bytes: self.versions.resident_bytes(),
            buffer_bytes: self.settings.buffer_bytes,
            ahead_bytes: self.ahead.used(),
            memory_budget: self.settings.memory_budget,
            flushes: metrics.flushes.load(Relaxed),
            flushed_bytes: metrics.flushed_bytes.load(Relaxed),
            compactions: metrics.compactions.load(Relaxed),
            compacted_bytes: metrics.compacted_bytes.load(Relaxed),
            stalled_writes: self.throttle.waits(),
            snapshots: self.snapshots.count(),
            levels: levels.collect(),
            value_log: self.value_stats(&state.version),
        }
    }

    fn value_stats(&self, version: &Version) -> ValueLogStats {
        use std::sync::atomic::Ordering::Relaxed;
        let live = collect::live_by_segment(version);
        let files = version.values().iter().map(|values| {
            let view = collect::view(values, &live);
            let segments = values.meta.segments().len();
            let (number, bytes, live_bytes) = (view.number, values.meta.bytes, view.live);
            ValueFileStats { number, segments, bytes, live_bytes }
        });
        let state = self.read_states.load();
        ValueLogStats {
            files: files.collect(),
            open_bytes: state.memtables.iter().map(|m| m.referred_bytes() as u64).sum(),
            hidden_bytes: self.accounts(version).hidden,
            pinned_bytes: self.versions.pinned_bytes(),
            rewrites: self.metrics.rewrites.load(Relaxed),
            rewritten_bytes: self.metrics.rewritten_bytes.load(Relaxed),
        }
    }
}
