//! The database handle and what all its parts share.
//!
//! Invariants:
//! 1. User handles hold a [`Handle`], background tasks hold the [`Core`]: when the last user
//!    handle goes, the engine closes itself on its own threads, and nothing blocks the dropper.
//! 2. The directory stays locked until the last background task has ended.

mod ages;
mod background;
mod collect;
mod commit;
mod control;
mod cursor;
mod explain;
mod flush;
mod keys;
mod log_task;
mod log_work;
mod merge_task;
mod monitor;
mod open;
mod pacer;
mod publish;
mod read;
mod segments;
mod signal;
mod snapshot;
mod state;
mod stats;
mod stream;
mod streams;
mod throttle;
mod values;
mod write;

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::Event;
use parking_lot::Mutex;
use seerdb_io::{Env, IoBackend, LockFile, Panicked, Task};

use crate::allowance::Allowance;
use crate::compaction::control::Control;
use crate::error::{Error, ErrorKind, Result};
use crate::key::SeqNo;
use crate::options::{DBOptions, Settings};
use crate::range::KeyRange;
use crate::snapshot::Registry;
use crate::sstable::BlockCache;
use crate::version::set::VersionSet;
use crate::vlog::bodies;
use ages::Ages;
use collect::Overwritten;
use commit::Pipeline;
use monitor::Monitor;
use pacer::Pacer;
use segments::Segments;
use state::ReadStates;
use stats::Metrics;
use throttle::Throttle;

pub use control::{CompactionPause, CompactionProgress};
pub use cursor::Cursor;
pub use explain::{CompactionReport, LevelReport, NextMerge, RunReport};
pub use keys::{KeyStream, SizeStream};
pub use read::{Get, GetFuture, GetStats, GetStatsFuture};
pub use snapshot::Snapshot;
pub use stats::{
    FilterStats, IndexStats, LevelStats, Pressure, Stats, ValueFileStats, ValueLogStats,
};
pub use stream::RangeStream;
pub use write::{Batch, BatchCommit, IntoValue, Write, WriteFuture};

/// An open database. A clone is another handle to the same database; any task may use any handle.
///
/// ```
/// # futures::executor::block_on(async {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("db");
/// let db = seerdb::DB::open(path).await?;
/// db.put(b"key1", b"value1").await?;
/// assert_eq!(db.get(b"key1").await?.as_deref(), Some(b"value1".as_slice()));
/// db.delete(b"key1").await?;
/// assert_eq!(db.get(b"key1").await?, None);
/// db.close().await
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct DB {
    handle: Arc<Handle>,
}

/// Closes the engine when the last user handle goes.
struct Handle {
    core: Arc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.begin_close();
    }
}

/// What the handles and the background tasks share.
pub(crate) struct Core {
    pub(crate) env: Env,
    pub(crate) dir: PathBuf,
    pub(crate) settings: Settings,
    pub(crate) read_states: Arc<ReadStates>,
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) versions: VersionSet,
    pub(crate) cache: Arc<BlockCache>,
    /// What streams have read ahead.
    pub(crate) ahead: Arc<Allowance>,
    pub(crate) snapshots: Arc<Registry>,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) metrics: Arc<Metrics>,
    monitor: Monitor,
    segments: Segments,
    overwritten: Overwritten,
    ages: Ages,
    pacer: Arc<Pacer>,
    /// The value log is at its bound, and collection is at work on it: it gets no new segment.
    is_overfull: AtomicBool,
    closed: AtomicBool,
    /// A memtable was flushed, or its flush failed.
    flushed_event: Event,
    /// A version was installed.
    version_event: Event,
    /// Why the last flush failed, until one succeeds.
    flush_error: Mutex<Option<Error>>,
    /// Merges, held up and watched.
    control: Arc<Control>,
    /// Who waits for everything to be merged.
    compact_requests: Mutex<Vec<merge_task::Request>>,
    /// Why the last merge failed, until one succeeds.
    merge_error: Mutex<Option<Error>>,
    tasks: Mutex<Vec<Task<()>>>,
    trash: Mutex<Option<Task<()>>>,
    lock: Mutex<Option<Arc<LockFile>>>,
}

impl Core {
    /// Refuses calls on a closed database.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Relaxed) { Err(Error::closed()) } else { Ok(()) }
    }

    /// Refuses to wait for threads that a forked process does not have.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.env.is_forked() { Err(Error::forked()) } else { Ok(()) }
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Turns new calls away and sends the background tasks home; whether this call did it.
    fn begin_close(&self) -> bool {
        if self.closed.swap(true, Ordering::SeqCst) {
            return false;
        }
        self.throttle.refuse(&Error::closed());
        self.pipeline.close();
        self.flushed_event.notify(usize::MAX);
        self.version_event.notify(usize::MAX);
        true
    }
}

impl DB {
    /// Opens the database in the directory `path` with default options, creating it if need be.
    ///
    /// # Errors
    ///
    /// - `Locked`: another handle, in this process or another, has the directory open.
    /// - `Corruption`: something that was durable cannot be read back; the error names the file
    ///   and the offset. No data was changed: the open can be repeated with the same outcome.
    /// - `NotSupported`: a newer version of seerdb wrote the database.
    /// - `Io`, `NoSpace`: the system refused; among others a missing parent directory.
    ///
    /// # Durability
    ///
    /// Everything that was acknowledged as durable is there when this resolves, or the open fails.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future releases the directory; opening again starts over.
    pub async fn open(path: impl AsRef<Path>) -> Result<DB> {
        DBOptions::default().open(path).await
    }

    fn core(&self) -> &Arc<Core> {
        &self.handle.core
    }

    /// Sets `key` to `value`. Awaiting the result resolves to the seqno of the write; see
    /// [`Write::durability`] for the options of one call.
    ///
    /// # Errors
    ///
    /// - `InvalidArgument`: a limit was exceeded.
    /// - `NoSpace`: the disk is full. Nothing was changed; the write may be retried later.
    /// - `FailStop`: an earlier failure stopped writing; reopen. Nothing was changed.
    /// - `Indeterminate`: the log failed with this write in it; it may or may not survive.
    /// - `Closed`; `Forked`.
    ///
    /// # Durability
    ///
    /// As the database's [`crate::Durability`], or the call's own. A durable write makes all
    /// earlier ones durable.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future before its first poll, or while it waits for memory, does nothing.
    /// Afterwards the write takes place as if it had been awaited. A future that waits for memory
    /// keeps its place in the queue: one that is held without being polled holds up the writers
    /// behind it.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl IntoValue) -> Write {
        Write::put(self, key.as_ref(), value.into_value())
    }

    /// As [`DB::put`], but where that would wait for memory this fails with `WouldStall`.
    ///
    /// # Errors
    ///
    /// As for [`DB::put`]; `WouldStall` when the write would have to wait for a flush, with
    /// [`Error::retry_after`].
    ///
    /// # Cancel safety
    ///
    /// As for [`DB::put`].
    pub fn try_put(&self, key: impl AsRef<[u8]>, value: impl IntoValue) -> Write {
        self.put(key, value).without_waiting()
    }

    /// Removes `key`; removing a missing key is fine.
    ///
    /// # Errors
    ///
    /// As for [`DB::put`].
    ///
    /// # Cancel safety
    ///
    /// As for [`DB::put`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Write {
        Write::delete(self, key.as_ref())
    }

    /// An empty batch; see [`Batch`].
    pub fn batch(&self) -> Batch {
        Batch::new(self)
    }

    /// The newest value of `key`. A hit in memory resolves on the first poll and allocates
    /// nothing. The value shares the memory of the block or memtable entry it was found in.
    ///
    /// # Errors
    ///
    /// - `Corruption`: the bytes on disk are damaged; other keys stay readable.
    /// - `Io`: the system refused a read.
    /// - `InvalidArgument`: the key is above its limit.
    /// - `Closed`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub fn get<K: AsRef<[u8]>>(&self, key: K) -> Get<'_, K> {
        Get::new(self, key, None)
    }

    /// A stream over the keys of `range`, as they are now.
    pub fn range(&self, range: impl KeyRange) -> RangeStream {
        RangeStream::new(self, self.core().pin_visible(), range)
    }

    /// A stream over the keys that begin with `prefix`, as they are now.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> RangeStream {
        RangeStream::prefix(self, self.core().pin_visible(), prefix.as_ref())
    }

    /// A stream over all keys, as they are now.
    pub fn iter(&self) -> RangeStream {
        RangeStream::new(self, self.core().pin_visible(), ..)
    }

    /// A view of the database as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self)
    }

    /// The newest seqno that is durable together with all before it.
    pub fn durable_seqno(&self) -> SeqNo {
        self.core().pipeline.durable()
    }

    /// Resolves when `seqno`, and all before it, are durable. The sync is started at once.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for a seqno that was never given out; `FailStop` when the log has failed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the sync.
    pub async fn wait_durable(&self, seqno: SeqNo) -> Result<()> {
        if seqno > self.durable_seqno() {
            self.core().check_process()?;
        }
        self.core().pipeline.wait_durable(seqno).await
    }

    /// How hard writers press against the memory for unflushed data.
    pub fn pressure(&self) -> Pressure {
        Pressure { level: self.core().throttle.level(), debt: self.core().debt() }
    }

    /// Which file backend serves, and why.
    pub fn io_backend(&self) -> IoBackend {
        self.core().env.io_backend().clone()
    }

    /// Writes all memtables to tables.
    ///
    /// # Errors
    ///
    /// What the flush failed with; it is repeated in the background.
    ///
    /// # Durability
    ///
    /// Everything visible when this was called is durable when it resolves.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the flush.
    pub async fn flush(&self) -> Result<()> {
        let core = self.core();
        core.check_open()?;
        core.check_process()?;
        let upto = core.pipeline.seal()?;
        core.wait_flushed(upto).await
    }

    /// Flushes, and merges everything down to the last level if a key of `range` is stored: what
    /// was overwritten or deleted, and no snapshot needs, leaves the disk. Merges work on whole
    /// runs: more than the range is rewritten.
    ///
    /// # Errors
    ///
    /// What the flush or the merge failed with; `Cancelled` after [`DB::cancel_compaction`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not stop the merge.
    pub async fn compact_range(&self, range: impl KeyRange) -> Result<()> {
        let (start, end) = range.into_bounds();
        self.flush().await?;
        let version = self.core().versions.current();
        let is_stored = version.runs().any(|run| {
            let starts_in_time = match &end {
                Bound::Included(end) => run.smallest() <= end.as_ref(),
                Bound::Excluded(end) => run.smallest() < end.as_ref(),
                Bound::Unbounded => true,
            };
            let ends_in_time = match &start {
                Bound::Included(start) => run.largest() >= start.as_ref(),
                Bound::Excluded(start) => run.largest() > start.as_ref(),
                Bound::Unbounded => true,
            };
            starts_in_time && ends_in_time
        });
        // What the merge replaces shall not stay for the sake of the question.
        drop(version);
        if is_stored { merge_task::request(self.core()).await } else { Ok(()) }
    }

    /// Reads every table from disk and checks every byte of it against its checksums, its entries
    /// against what the manifest says of them, and every value in the value log that it refers to.
    /// Reads and writes go on meanwhile.
    ///
    /// # Errors
    ///
    /// `Corruption` at the first damage, with the file and the offset; `Io`; `Closed`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the reading.
    pub async fn verify(&self) -> Result<()> {
        let core = self.core();
        let version = core.versions.current();
        for table in version.tables() {
            core.check_open()?;
            table.verify().await?;
            for reference in &table.meta().references {
                core.check_open()?;
                let listed = table.bodies(reference).await?;
                let file = version.value_file(reference.segment);
                let file = file.expect("a version has all files that its tables refer to");
                bodies::verify(file, reference.segment, &listed).await?;
            }
        }
        core.check_open()
    }

    /// Closes the database for all handles: what is in the log becomes durable, background work
    /// ends, and the directory may be opened again. Unflushed memtables are read back from the
    /// log by the next open.
    ///
    /// # Errors
    ///
    /// `FailStop` when writing had failed before; `Closed` when the database was closed already;
    /// `Forked`.
    ///
    /// # Durability
    ///
    /// Every write that resolved is durable when this resolves with `Ok`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the closing to the engine's own threads.
    pub async fn close(&self) -> Result<()> {
        let core = self.core();
        core.check_process()?;
        if !core.begin_close() {
            return Err(Error::closed());
        }
        let tasks = std::mem::take(&mut *core.tasks.lock());
        let trash = core.trash.lock().take();
        for task in tasks {
            task.await.map_err(panicked)?;
        }
        // No task is left to retire anything. What a stream still holds becomes an orphan.
        core.versions.end_trash();
        if let Some(trash) = trash {
            trash.await.map_err(panicked)?;
        }
        drop(core.lock.lock().take());
        match core.pipeline.failure() {
            Some(failure) => Err(failure),
            None => Ok(()),
        }
    }

    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        self.core().stats()
    }
}

fn panicked(panic: Panicked) -> Error {
    Error::caused(ErrorKind::FailStop, "a background task ended with a panic", panic)
}

impl std::fmt::Debug for DB {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DB").field("dir", &self.core().dir).finish_non_exhaustive()
    }
}
