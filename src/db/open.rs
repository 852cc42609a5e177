//! Opening: lock, recover, clean up, start the tasks, in that order.
//!
//! Invariants:
//! 1. Until the edit that ends the recovery is in force, nothing on disk has changed but for new
//!    files that nothing refers to: a crash, or a failure, leaves the next open the same work.
//! 2. After the recovery every commit of the log is in a table and no old segment is referred to:
//!    a torn tail is decided once, and new records never follow it.
//! 3. Memory during the replay stays within one memtable and one record.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use event_listener::Event;
use futures::FutureExt;
use futures::channel::mpsc::{self, UnboundedReceiver};
use futures::future::{Either, ready, select};
use parking_lot::Mutex;
use seerdb_io::{Env, EnvOptions, LockFile};

use super::ages::Ages;
use super::background;
use super::collect::{Overwritten, survivors};
use super::commit::{Pipeline, Start};
use super::monitor::Monitor;
use super::pacer::Pacer;
use super::segments::{self, Segments, naming};
use super::state::ReadStates;
use super::stats::Metrics;
use super::throttle::Throttle;
use super::{Core, DB, Handle};
use crate::allowance::Allowance;
use crate::batch;
use crate::compaction::job::{self, Context, Pace, Unpaced};
use crate::compaction::policy::Shape;
use crate::error::{Error, ErrorKind, Result};
use crate::filename::{FileName, FileNumber};
use crate::iter::Direction;
use crate::key::{KeyBuf, SeqNo, Trailer, ValueKind};
use crate::log::format::Stream;
use crate::log::reader::SegmentRef;
use crate::log::replay::{self, Known, Origin, Replayed};
use crate::log::segment::Segment;
use crate::memtable::{Floor, MemSource, Memtable};
use crate::options::{DBOptions, Durability, Settings};
use crate::pointer::Pointer;
use crate::record::{FileId, Header};
use crate::snapshot::Registry;
use crate::sstable::{BlockCache, Table, TableMeta};
use crate::version::edit::{SegmentName, VersionEdit};
use crate::version::set::{Recovered, VersionSet};
use crate::version::{Opened, RunId};
use crate::vlog::file::ValueFile;
use crate::vlog::rewrite::{self, Rewrite};
use crate::vlog::{Kind, ValuesMeta};

impl DBOptions {
    /// Opens the database in the directory `path`. The options may be used again.
    ///
    /// # Errors
    ///
    /// As for [`DB::open`]; `InvalidArgument` when an option is out of range or contradicts
    /// another.
    ///
    /// # Durability
    ///
    /// As for [`DB::open`].
    ///
    /// # Cancel safety
    ///
    /// As for [`DB::open`].
    ///
    /// ```
    /// # futures::executor::block_on(async {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("db");
    /// let options = seerdb::DBOptions::default()
    ///     .durability(seerdb::Durability::Written)
    ///     .memory_budget(64 << 20);
    /// let db = options.open(path).await?;
    /// # db.close().await }).unwrap();
    /// ```
    pub async fn open(&self, path: impl AsRef<Path>) -> Result<DB> {
        let settings = self.validate()?;
        let dir = path.as_ref().to_path_buf();
        let env = match &settings.env {
            Some(env) => env.clone(),
            None => start_env(&settings)?,
        };
        if env.is_forked() {
            return Err(Error::forked());
        }
        tracing::debug!(backend = %env.io_backend(), "opening {}", dir.display());
        let lock = lock(&env, &dir, &settings).await?;
        let disk = recover(&env, &dir, &settings).await?;
        let (core, trash) = build(env, dir, settings, lock, disk);
        background::start(&core, trash);
        Ok(DB { handle: Arc::new(Handle { core }) })
    }
}

fn start_env(settings: &Settings) -> Result<Env> {
    let options = EnvOptions { backend: settings.io_backend };
    Env::new(&options).map_err(|error| {
        let sentence = "the file backend that was asked for cannot be used";
        Error::caused(ErrorKind::NotSupported, sentence, error)
    })
}

/// Creates the directory if it may, and locks it.
async fn lock(env: &Env, dir: &Path, settings: &Settings) -> Result<LockFile> {
    let fs = env.fs();
    if settings.create_if_missing {
        fs.create_dir(dir).await?;
        if let Some(parent) = dir.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            fs.sync_dir(parent).await?;
        }
    } else {
        let names = fs.list_dir(dir).await?;
        let current = FileName::Current.to_string();
        if !names.iter().any(|entry| entry.name == *current) {
            let sentence = format!("there is no database in {}", dir.display());
            return Err(Error::invalid(sentence));
        }
    }
    match fs.lock(FileName::Lock.in_dir(dir)).await? {
        Some(lock) => Ok(lock),
        None => {
            let sentence = format!("{} is open already, here or elsewhere", dir.display());
            Err(Error::new(ErrorKind::Locked, sentence))
        }
    }
}

/// What is on disk after the recovery.
struct Disk {
    versions: VersionSet,
    segments: Segments,
    /// The first segment of this open.
    segment: Arc<Segment>,
    last_seqno: SeqNo,
    trash: UnboundedReceiver<FileName>,
}

/// Reads back what the last life left, ends it with one edit, and cleans up.
async fn recover(env: &Env, dir: &Path, settings: &Settings) -> Result<Disk> {
    let (trash, trash_receiver) = mpsc::unbounded();
    let (versions, recovered) = VersionSet::open(env, dir, settings, trash).await?;
    let mut replayer = Replayer::new(env, dir, settings, &versions);
    let replayed = replay_log(env, dir, &versions, &recovered, &mut replayer).await?;
    replayer.flush().await?;
    let is_proven = replayed.last_seqno <= recovered.durable_seqno;
    let sealed = seal(&replayer, &recovered, is_proven).await?;
    let (tables_added, tables) = (replayer.added, replayer.opened);
    tracing::info!(
        created = recovered.created,
        commits = replayed.commits,
        torn = replayed.torn,
        "recovered {}",
        dir.display()
    );
    let segments = Segments::new(settings);
    let segment = segments::first(env, dir, &segments, versions.new_file_number()).await?;
    let edit = VersionEdit {
        tables_added,
        segments_added: vec![naming(&segment)],
        segments_removed: match planted!(KeepReplayedSegments) {
            true => Vec::new(),
            false => recovered.segments.iter().map(|named| named.number).collect(),
        },
        values_added: sealed.metas,
        flushed_seqno: Some(replayed.last_seqno),
        ..VersionEdit::default()
    };
    versions.apply(edit, Opened { tables, values: sealed.opened }, |_| ()).await?;
    versions.remove_orphans(&[segment.id.number]).await?;
    let last_seqno = replayed.last_seqno.saturating_sub(u64::from(planted!(SeqnoUsedAgain)));
    Ok(Disk { versions, segments, segment, last_seqno, trash: trash_receiver })
}

/// Takes the replayed segments of the value log out of the log: as they are, if all in them is
/// known to be durable, else what tables refer to is copied from them into a new file.
///
/// A sync would not do: after one that failed, the page cache shows what is not on the device and
/// calls it clean. Nor would writing it again in its place, next to what others call durable.
async fn seal(replayer: &Replayer<'_>, recovered: &Recovered, is_proven: bool) -> Result<Sealed> {
    let (env, dir, versions) = (replayer.env, replayer.dir, replayer.versions);
    let version = versions.current();
    let tables = || version.tables().chain(&replayer.opened);
    let referred: HashSet<FileNumber> =
        tables().flat_map(|table| &table.meta().references).map(|r| r.segment).collect();
    let is_needed =
        |named: &&SegmentName| named.stream == Stream::Values && referred.contains(&named.number);
    let mut sealed = Sealed::default();
    let mut files: HashMap<FileNumber, Arc<ValueFile>> = HashMap::new();
    for named in recovered.segments.iter().filter(is_needed) {
        let file = version.value_file(named.number).expect("all segments were opened");
        if planted!(ForgetSeal) {
            continue;
        }
        if is_proven || planted!(SealUnproven) {
            let kind = Kind::Segment { salt: named.salt };
            let bytes = file.file_bytes().await?;
            sealed.metas.push(ValuesMeta { number: named.number, bytes, kind });
        } else {
            files.insert(named.number, file.clone());
        }
    }
    if !files.is_empty() {
        let number = versions.new_file_number();
        let reading = replayer.settings.reading();
        let survivors = survivors(&files, tables()).await?;
        let chunk_bytes = replayer.settings.chunk_bytes();
        let job = Rewrite { fs: env.fs(), dir, number, direct: false, chunk_bytes };
        let meta = rewrite::rewrite(job, &survivors, |_| ready(()).boxed()).await?;
        sealed.opened.push(ValueFile::open(env.fs(), dir, &meta, reading).await?);
        sealed.metas.push(meta);
    }
    Ok(sealed)
}

/// What becomes of replayed segments of the value log.
#[derive(Default)]
struct Sealed {
    metas: Vec<ValuesMeta>,
    opened: Vec<Arc<ValueFile>>,
}

/// What the handles and the tasks will share, and the files that go.
fn build(
    env: Env,
    dir: PathBuf,
    settings: Settings,
    lock: LockFile,
    disk: Disk,
) -> (Arc<Core>, UnboundedReceiver<FileName>) {
    let Disk { versions, segments, segment, last_seqno, trash } = disk;
    let active = Arc::new(Memtable::new(Floor { wal: segment.id.number, values: 0 }));
    let cache = Arc::new(BlockCache::new(settings.cache_bytes));
    // One memtable beyond this is being freed while its flush gives the credits back.
    let throttle = Throttle::new(settings.memtable_bytes.saturating_mul(2));
    let read_states = Arc::new(ReadStates::new(active.clone(), versions.current()));
    let pipeline = Pipeline::new(Start {
        segment,
        last_seqno,
        active,
        grouped: settings.durability == Durability::Synced,
        memtable_bytes: settings.memtable_bytes,
        fresh: Arc::default(),
        throttle: throttle.clone(),
        cache: cache.clone(),
        buffered_delay: settings.buffered_delay,
        clock: env.clock().clone(),
        read_states: read_states.clone(),
    });
    let monitor = Monitor::new(&settings, env.clock(), last_seqno);
    let core = Arc::new(Core {
        cache,
        ahead: Allowance::new(settings.stream_bytes()),
        throttle,
        env,
        dir,
        ages: Ages::new(settings.tombstone_age),
        pacer: Arc::new(Pacer::new(settings.compaction_limits)),
        settings,
        read_states,
        pipeline: Arc::new(pipeline),
        versions,
        snapshots: Arc::new(Registry::default()),
        metrics: Arc::new(Metrics::default()),
        monitor,
        segments,
        overwritten: Overwritten::default(),
        is_overfull: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        flushed_event: Event::new(),
        version_event: Event::new(),
        flush_error: Mutex::new(None),
        merge_error: Mutex::new(None),
        control: Arc::default(),
        compact_requests: Mutex::new(Vec::new()),
        tasks: Mutex::new(Vec::new()),
        trash: Mutex::new(None),
        lock: Mutex::new(Some(Arc::new(lock))),
    });
    core.guess_unit();
    core.resize_cache();
    (core, trash)
}

/// Hands the commits of the log that are in no table to `replayer`.
async fn replay_log(
    env: &Env,
    dir: &Path,
    versions: &VersionSet,
    recovered: &Recovered,
    replayer: &mut Replayer<'_>,
) -> Result<Replayed> {
    let refs: Vec<SegmentRef> = recovered
        .segments
        .iter()
        .map(|named| SegmentRef {
            id: FileId { number: named.number, salt: named.salt },
            stream: named.stream,
        })
        .collect();
    // What earlier failed opens left behind must not pile up; segments may yet be proof.
    let known = Known { flushed: recovered.flushed_seqno, durable: recovered.durable_seqno };
    let found = segments_in(env, dir).await?;
    let is_log = |number: &FileNumber| !recovered.values.contains(number);
    let found: Vec<_> = found.into_iter().filter(|(_, number)| is_log(number)).collect();
    let kept: Vec<FileNumber> = found.iter().map(|(_, number)| *number).collect();
    versions.remove_orphans(&kept).await?;
    let replayed = replay::replay(env, dir, &refs, known, replayer).await?;
    // Segments that an older manifest does not know are younger than all that it names. An older
    // one is retired, or was dropped behind a gap: then its seqnos were given out again.
    let newest = refs.iter().map(|named| named.id.number).max();
    for (stream, number) in found {
        if newest.is_none_or(|newest| number > newest) {
            replay::prove_behind(env, dir, stream, number, replayed.last_seqno).await?;
        }
    }
    Ok(replayed)
}

/// All log segments in the directory, named in the manifest or not.
async fn segments_in(env: &Env, dir: &Path) -> Result<Vec<(Stream, FileNumber)>> {
    let entries = env.fs().list_dir(dir).await?;
    let files = entries.iter().filter(|entry| entry.is_file);
    Ok(files
        .filter_map(|entry| FileName::parse(&entry.name))
        .filter_map(|name| match name {
            FileName::Wal(number) => Some((Stream::Wal, number)),
            FileName::Values(number) => Some((Stream::Values, number)),
            _ => None,
        })
        .collect())
}

/// Collects replayed commits in a memtable and writes it out whenever it is full.
struct Replayer<'a> {
    env: &'a Env,
    dir: &'a Path,
    settings: &'a Settings,
    versions: &'a VersionSet,
    filter_bits: f64,
    memtable: Arc<Memtable>,
    last_seqno: SeqNo,
    /// The runs written so far, oldest first.
    added: Vec<(u8, RunId, Arc<TableMeta>)>,
    opened: Vec<Arc<Table>>,
}

impl<'a> Replayer<'a> {
    fn new(env: &'a Env, dir: &'a Path, settings: &'a Settings, versions: &'a VersionSet) -> Self {
        let last_level = versions.current().last_level();
        let shape = Shape::new(settings, settings.first_runs_per_level());
        Replayer {
            env,
            dir,
            settings,
            versions,
            filter_bits: shape.filter_bits_for(0, last_level),
            memtable: Arc::new(Memtable::new(Floor::default())),
            last_seqno: 0,
            added: Vec::new(),
            opened: Vec::new(),
        }
    }

    async fn flush(&mut self) -> Result<()> {
        let next = Arc::new(self.memtable.follower(Floor::default()));
        let full = std::mem::replace(&mut self.memtable, next);
        if full.entries() == 0 {
            return Ok(());
        }
        let mut source = MemSource::new(&full, Direction::Forward, usize::MAX);
        let fs = self.env.fs();
        let (dir, versions, settings) = (self.dir, self.versions, self.settings);
        let snapshots = vec![self.last_seqno];
        let context = Context::new(fs, dir, versions, settings, snapshots, &Unpaced);
        let outcome = job::write_level_0(&context, &mut source, self.filter_bits).await?;
        self.added.extend(outcome.edit.tables_added);
        self.opened.extend(outcome.opened);
        Ok(())
    }
}

impl replay::Sink for Replayer<'_> {
    fn commit(&mut self, header: &Header, payload: &[u8], origin: &Origin<'_>) -> Result<()> {
        let bad = |what: &str| Error::corruption(origin.path, origin.offset, what);
        let ops = batch::decode(payload)
            .filter(|ops| ops.len() as u64 == u64::from(header.count))
            .ok_or_else(|| bad("a commit cannot be decoded"))?;
        let count = if planted!(ReplayHalfABatch) { ops.len().div_ceil(2) } else { ops.len() };
        for (seqno, op) in (header.first_seqno..).zip(ops.into_iter().take(count)) {
            let key = KeyBuf::from_slice(op.key);
            if op.kind != ValueKind::Pointer {
                let value = Bytes::copy_from_slice(op.value);
                self.memtable.insert(key, Trailer::new(seqno, op.kind), value);
                continue;
            }
            if origin.segment.stream != Stream::Values {
                return Err(bad("the WAL holds a value to refer to"));
            }
            let segment = origin.segment.id.number;
            let key_at = op.key_at + usize::from(planted!(PointerOff));
            let position = u32::try_from(origin.offset + key_at as u64)
                .map_err(|_| bad("a value stands beyond any segment's end"))?;
            let pointer = Pointer::new(segment, position, op.key, op.value, op.raw, seqno);
            self.memtable.insert_pointer(key, seqno, &pointer);
        }
        self.last_seqno = header.last_seqno();
        Ok(())
    }

    async fn breathe(&mut self) -> Result<()> {
        if self.memtable.bytes() >= self.settings.memtable_bytes {
            self.flush().await?;
        }
        Ok(())
    }
}

impl Core {
    /// What a flush or a merge works with, from now on: its inputs must be fixed already.
    pub(super) fn job_context<'a>(&'a self, pace: &'a dyn Pace) -> Context<'a> {
        let strata = self.snapshots.strata(|| self.pipeline.visible());
        let fs = self.env.fs();
        Context::new(fs, &self.dir, &self.versions, &self.settings, strata, pace)
    }

    /// Sleeps, but not beyond the closing of the database.
    pub(super) async fn pause(&self, duration: Duration) {
        let slept = async {
            self.env.clock().sleep(duration).await;
            Ok(())
        };
        // The caller looks for itself whether the database is closed.
        self.unless_closed(slept).await.ok();
    }

    /// Runs a job until it ends or the database is closed; what it leaves is removed by the next
    /// open.
    pub(super) async fn unless_closed<T>(&self, job: impl Future<Output = Result<T>>) -> Result<T> {
        let closed = async {
            loop {
                let listener = self.version_event.listen();
                if self.is_closed() {
                    return;
                }
                listener.await;
            }
        };
        match select(pin!(job), pin!(closed)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(Error::closed()),
        }
    }
}
