//! The version set: the one place that changes which tables make up the database.
//!
//! Invariants:
//! 1. The state in memory is what the manifest says, from `open` until the first failure.
//! 2. Versions are installed in the order of their edits; a reader that loads [`current`] sees one
//!    of them, whole.
//! 3. After a manifest write or sync that failed, or was dropped midway, nothing is applied and
//!    nothing is deleted any more: the set is fail-stop until the database is reopened.
//! 4. A file number is drawn once. Numbers drawn but in no edit are covered by the directory
//!    listing at the next open.
//!
//! [`current`]: VersionSet::current

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use futures::channel::mpsc::UnboundedSender;
use futures::lock::Mutex;
use seerdb_io::{Env, Fs, Rng};

use crate::error::{Error, ErrorKind, Result};
use crate::filename::{FileName, FileNumber};
use crate::key::SeqNo;
use crate::options::Settings;
use crate::record::FileId;
use crate::sstable::PinnedMemory;
use crate::vlog::file::Pinned;

use super::edit::{SegmentName, VersionEdit};
use super::manifest::{self, Writer};
use super::recover::{self, Found};
use super::state::State;
use super::{Opened, RunId, Version};

/// A manifest that outgrows this is replaced by a fresh one, unless its first edit alone is that
/// large.
const MANIFEST_BYTES: u64 = 4 << 20;

/// What [`VersionSet::open`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Recovered {
    /// Whether the database was created by this open.
    pub(crate) created: bool,
    /// The log segments to replay, by number.
    pub(crate) segments: Vec<SegmentName>,
    /// Every seqno up to this one is in tables.
    pub(crate) flushed_seqno: SeqNo,
    /// Every seqno up to this one was durable.
    pub(crate) durable_seqno: SeqNo,
    /// The files of the value log that need no replay.
    pub(crate) values: Vec<FileNumber>,
}

/// The versions of one open database.
pub(crate) struct VersionSet {
    fs: Fs,
    rng: Rng,
    dir: PathBuf,
    trash: UnboundedSender<FileName>,
    current: ArcSwap<Version>,
    next_file: AtomicU64,
    next_run: AtomicU64,
    /// The number of the manifest that this open wrote first: files with smaller numbers are older
    /// than this open.
    first_number: FileNumber,
    /// The bytes of value files that only readers of older versions need.
    pinned: Pinned,
    /// The memory of tables that only such readers need.
    pinned_memory: PinnedMemory,
    /// What was written to manifests since the open.
    manifest_bytes: AtomicU64,
    /// Why nothing is applied any more.
    failure: parking_lot::Mutex<Option<Error>>,
    log: Mutex<Log>,
}

/// What `apply` owns while it runs.
struct Log {
    writer: Writer,
    state: State,
    /// The size at which the manifest is replaced.
    roll_bytes: u64,
}

/// Makes the set fail-stop unless it is defused: `apply` was dropped or panicked midway.
struct Midway<'a> {
    set: &'a VersionSet,
    is_armed: bool,
}

impl Drop for Midway<'_> {
    fn drop(&mut self) {
        if self.is_armed {
            let what = "a manifest write was abandoned midway";
            self.set.fail(Error::new(ErrorKind::Indeterminate, what));
        }
    }
}

impl VersionSet {
    /// Creates or recovers the database in `dir`, which exists and is locked by the caller. Every
    /// name that `trash` receives is a file that nobody refers to any more.
    ///
    /// # Errors
    ///
    /// `Corruption` when files are damaged or missing, `NotSupported` for a newer format,
    /// `InvalidArgument` when the options forbid to create or to open.
    pub(crate) async fn open(
        env: &Env,
        dir: &Path,
        settings: &Settings,
        trash: UnboundedSender<FileName>,
    ) -> Result<(VersionSet, Recovered)> {
        let fs = env.fs().clone();
        let (created, state) = match recover::find(&fs, dir).await? {
            Found::Nothing if !settings.create_if_missing => {
                let what = format!("there is no database in {}", dir.display());
                return Err(Error::invalid(what));
            }
            Found::Database(_) if settings.error_if_exists => {
                let what = format!("there is a database in {} already", dir.display());
                return Err(Error::invalid(what));
            }
            Found::Nothing => (true, State::empty()),
            Found::Database(state) => (false, *state),
        };
        let opened = Opened {
            tables: recover::open_tables(&fs, dir, &state, settings.reading()).await?,
            values: recover::open_values(&fs, dir, &state, settings.reading()).await?,
        };
        let recovered = Recovered {
            created,
            segments: state.segments().copied().collect(),
            flushed_seqno: state.flushed_seqno(),
            durable_seqno: state.durable_seqno(),
            values: state.values().map(|meta| meta.number).collect(),
        };
        // A fresh manifest at every open: whether the old one's tail is whole is never decided
        // twice, and nothing is appended to a file of another life.
        let number = state.next_file();
        let id = FileId { number, salt: env.rng().next_u64() };
        let next = VersionEdit { next_file: Some(number + 1), ..VersionEdit::default() };
        let state = state.apply(&next).expect("a rising counter contradicts nothing");
        let writer = Writer::create(&fs, dir, id, &state.snapshot()).await?;
        manifest::point_current(&fs, dir, id).await?;
        let version = Version::build(&state, &Version::default(), &opened);
        let set = VersionSet {
            fs,
            rng: env.rng().clone(),
            dir: dir.to_path_buf(),
            trash,
            current: ArcSwap::from_pointee(version),
            next_file: AtomicU64::new(state.next_file()),
            next_run: AtomicU64::new(state.next_run()),
            first_number: number,
            pinned: Pinned::default(),
            pinned_memory: PinnedMemory::default(),
            manifest_bytes: AtomicU64::new(writer.bytes()),
            failure: parking_lot::Mutex::new(None),
            log: Mutex::new(Log { roll_bytes: roll_bytes(&writer), writer, state }),
        };
        Ok((set, recovered))
    }

    /// The newest version.
    pub(crate) fn current(&self) -> Arc<Version> {
        self.current.load_full()
    }

    /// A number for a new file.
    pub(crate) fn new_file_number(&self) -> FileNumber {
        // Order: only the uniqueness of the number matters.
        self.next_file.fetch_add(1, Ordering::Relaxed)
    }

    /// The id of a new run: flushes only, in the order in which their runs are applied. A merge
    /// gives its output the id of its newest input.
    pub(crate) fn new_run_id(&self) -> RunId {
        // Order: only the uniqueness of the id matters.
        self.next_run.fetch_add(1, Ordering::Relaxed)
    }

    /// What was written to manifests since the open, in bytes.
    pub(crate) fn manifest_bytes(&self) -> u64 {
        self.manifest_bytes.load(Ordering::Relaxed)
    }

    /// The bytes of value files that only readers of older versions need.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    /// The memory that open files hold, those included that only readers of older versions need.
    pub(crate) fn resident_bytes(&self) -> usize {
        self.current().resident_bytes() + self.pinned_memory.load(Ordering::Relaxed)
    }

    /// Why the set is fail-stop, if it is.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.lock().clone()
    }

    /// The highest seqno that the manifest says was durable, or in tables.
    pub(crate) async fn durable_seqno(&self) -> SeqNo {
        let log = self.log.lock().await;
        log.state.durable_seqno().max(log.state.flushed_seqno())
    }

    /// Makes `edit` durable, builds and installs the version after it and calls `install` with
    /// that version before any later edit can be applied. `opened` are the tables that the edit
    /// adds. Tables that left are deleted when their last reader is gone.
    ///
    /// # Errors
    ///
    /// `NoSpace` or `Io` when the manifest could not be extended: nothing changed, and the same
    /// edit may be applied again. `FailStop` when it is unknown whether the edit is durable, and
    /// for every later call: nothing may be deleted, not even the files of this edit.
    ///
    /// # Cancel safety
    ///
    /// Belongs on a task of the engine's. Dropped while it waits for its turn nothing happened;
    /// dropped later it leaves the set fail-stop.
    ///
    /// # Panics
    ///
    /// When the edit contradicts the state: a bug of ours, found before anything is written.
    pub(crate) async fn apply<R>(
        &self,
        mut edit: VersionEdit,
        opened: impl Into<Opened>,
        install: impl FnOnce(&Arc<Version>) -> R,
    ) -> Result<R> {
        let opened = opened.into();
        let mut log = self.log.lock().await;
        self.check_alive()?;
        self.roll(&mut log).await?;
        // Order: numbers used by this edit were drawn before it was made, by tasks that handed
        // their work over with synchronisation of its own.
        edit.next_file = Some(self.next_file.load(Ordering::Relaxed));
        edit.next_run = Some(self.next_run.load(Ordering::Relaxed));
        let state = log.state.apply(&edit);
        let state = state.unwrap_or_else(|what| panic!("a wrong version edit: {what}"));
        assert_eq!(edit.tables_added.len(), opened.tables.len(), "tables added and opened");
        let old = self.current();
        let version = Arc::new(Version::build(&state, &old, &opened));
        let payload = manifest::encode(&edit);
        log.writer.reserve(&payload).await?;

        let mut midway = Midway { set: self, is_armed: true };
        let before = log.writer.bytes();
        let appended = log.writer.append(&payload).await;
        self.manifest_bytes.fetch_add(log.writer.bytes() - before, Ordering::Relaxed);
        midway.is_armed = false;
        if planted!(AppendAfterFailedAppend) {
            appended?;
        } else {
            appended.map_err(|error| self.fail(error))?;
        }
        log.state = state;
        self.current.store(Arc::clone(&version));
        let stays: HashSet<FileNumber> = version.tables().map(|t| t.meta().number).collect();
        for table in old.tables().filter(|table| !stays.contains(&table.meta().number)) {
            table.retire(self.trash.clone(), &self.pinned_memory);
        }
        self.retire_values(&old, &version);
        Ok(install(&version))
    }

    /// Sees to it that the value files that left go with their last reader.
    fn retire_values(&self, old: &Version, version: &Version) {
        let stays: HashSet<FileNumber> = version.value_files().map(|file| file.number()).collect();
        let bytes = |number: FileNumber| {
            let values = old.values().iter().find(|values| values.meta.number == number);
            values.map_or(0, |values| values.meta.bytes)
        };
        for file in old.value_files().filter(|file| !stays.contains(&file.number())) {
            file.retire(self.trash.clone(), bytes(file.number()), &self.pinned);
        }
    }

    /// Replaces the manifest by a fresh one when it has grown too large. Until CURRENT is touched
    /// a failure changes nothing, and the old manifest serves on.
    async fn roll(&self, log: &mut Log) -> Result<()> {
        if log.writer.bytes() < log.roll_bytes {
            return Ok(());
        }
        let id = FileId { number: self.new_file_number(), salt: self.rng.next_u64() };
        let counters = VersionEdit {
            next_file: Some(self.next_file.load(Ordering::Relaxed)),
            next_run: Some(self.next_run.load(Ordering::Relaxed)),
            ..VersionEdit::default()
        };
        let state = log.state.apply(&counters).expect("rising counters contradict nothing");
        assert!(id.number < state.next_file(), "the manifest's number is not covered");
        let writer = match Writer::create(&self.fs, &self.dir, id, &state.snapshot()).await {
            Ok(writer) => writer,
            Err(error) => {
                tracing::warn!(%error, "the manifest could not be replaced; it grows on");
                log.roll_bytes += MANIFEST_BYTES;
                return Ok(());
            }
        };
        let mut midway = Midway { set: self, is_armed: true };
        let pointed = manifest::point_current(&self.fs, &self.dir, id).await;
        midway.is_armed = false;
        pointed.map_err(|error| self.fail(error))?;
        let old = FileName::Manifest(log.writer.id().number);
        self.manifest_bytes.fetch_add(writer.bytes(), Ordering::Relaxed);
        *log = Log { roll_bytes: roll_bytes(&writer), writer, state };
        self.discard(old);
        Ok(())
    }

    /// Deletes files of ours that nothing refers to: tables, manifests and log segments that are
    /// older than this open, and a left-over CURRENT.tmp. To be called after `open` and before
    /// tasks start; `kept` are the segments to leave. Foreign names are left alone.
    ///
    /// # Errors
    ///
    /// When the directory cannot be listed or synced, or a file cannot be removed; the next open
    /// tries again.
    pub(crate) async fn remove_orphans(&self, kept: &[FileNumber]) -> Result<usize> {
        let log = self.log.lock().await;
        self.check_alive()?;
        let in_force = log.writer.id().number;
        let tables: HashSet<FileNumber> = log.state.tables().map(|t| t.number).collect();
        let values: HashSet<FileNumber> = log.state.values().map(|meta| meta.number).collect();
        let mut removed = 0;
        for entry in self.fs.list_dir(&self.dir).await? {
            let Some(name) = FileName::parse(&entry.name).filter(|_| entry.is_file) else {
                continue;
            };
            let is_old = name.number().is_none_or(|number| number < self.first_number);
            let is_orphan = match name {
                FileName::Current | FileName::Lock => false,
                FileName::CurrentTemp => true,
                FileName::Manifest(number) => is_old && number != in_force,
                FileName::Table(number) => is_old && !tables.contains(&number),
                FileName::Wal(number) => is_old && !kept.contains(&number),
                FileName::Values(number) => {
                    is_old && !kept.contains(&number) && !values.contains(&number)
                }
            };
            if is_orphan {
                match self.fs.remove_file(name.in_dir(&self.dir)).await {
                    // Gone is gone, whoever removed it.
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => removed += 1,
                }
            }
        }
        if removed > 0 {
            // A dropped tail must not come back behind commits of this life.
            self.fs.sync_dir(&self.dir).await?;
        }
        Ok(removed)
    }

    fn check_alive(&self) -> Result<()> {
        match &*self.failure.lock() {
            None => Ok(()),
            Some(cause) => Err(fail_stop(cause)),
        }
    }

    /// Makes the set fail-stop; the first cause stays. Returns the error for the caller.
    fn fail(&self, cause: Error) -> Error {
        let mut failure = self.failure.lock();
        fail_stop(failure.get_or_insert(cause))
    }

    /// Nothing is handed over for deletion any more: what is not yet is left to the next open.
    pub(crate) fn end_trash(&self) {
        self.trash.close_channel();
    }

    /// Hands a file over for deletion.
    fn discard(&self, name: FileName) {
        if self.trash.unbounded_send(name).is_err() {
            tracing::debug!(%name, "nobody deletes files any more; the next open will");
        }
    }
}

fn fail_stop(cause: &Error) -> Error {
    cause.with_kind(ErrorKind::FailStop, "the manifest failed, nothing is changed any more")
}

/// When the manifest that begins with this size is due for replacement.
fn roll_bytes(writer: &Writer) -> u64 {
    assert!(writer.bytes() > 0, "a manifest has a header page");
    MANIFEST_BYTES.max(writer.bytes().saturating_mul(2))
}

#[cfg(test)]
mod tests;
