//! Collection: keeps the value log within its bounds, one rewrite at a time.
//!
//! Invariants:
//! 1. Only sealed files are touched: no memtable refers to them, and no flush will. What the
//!    tables of the version that a rewrite began with refer to is all that any later one can.
//! 2. A rewrite that fails changed nothing. A file with damage is left alone until the database is
//!    reopened; other failures are repeated with a pause.
//! 3. Rewriting gives way to the device's other users, the less the nearer the bound is. At the
//!    bound commits get no new segment of the value log until files are rewritten; never for a
//!    rewrite that cannot be: after an error, or without a victim, nobody waits.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;

use super::background::remove;
use super::{Core, stats};
use crate::error::Result;
use crate::filename::{FileName, FileNumber};
use crate::sstable::{Run, Table};
use crate::version::edit::VersionEdit;
use crate::version::{Opened, Values, Version};
use crate::vlog::Kind;
use crate::vlog::file::ValueFile;
use crate::vlog::policy::{self, Accounts, FileView};
use crate::vlog::rewrite::{self, Rewrite, Survivors};

const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// What an entry with a pointer takes in a table, about: a key of usual length, its trailer, the
/// pointer, its shares of references, filter and index.
const ENTRY_BYTES: u64 = 40;
/// A segment of the value log has this share of what is alive, within bounds.
const SEGMENT_SHARE: u64 = 64;
const SEGMENT_BYTES_MIN: u64 = 2 << 20;
/// What memtables overwrite unseen stays below this share of what is alive.
const MEMTABLE_SHARE: u64 = 32;
/// A memtable may always refer to so much: between these, the less the more is overwritten.
const MEMTABLE_BYTES_MIN: u64 = 4 << 20;
const MEMTABLE_BYTES_FRESH: u64 = 56 << 20;
/// It never refers to more than this many times its own limit: all of that is read after a crash.
const MEMTABLE_TIMES: usize = 16;
/// The rate of a rewrite in no hurry, in bytes a second.
const IDLE_RATE: f64 = 67_108_864.0;

/// How much of what merges take in from above the last run they find there already, in thousandths.
pub(super) struct Overwritten(AtomicU32);

impl Default for Overwritten {
    fn default() -> Self {
        // Nobody knows yet: most databases are loaded before they are overwritten.
        Overwritten(AtomicU32::new(100))
    }
}

impl Overwritten {
    /// A merge into the last run took in `came` bytes of references and dropped `dropped`.
    pub(super) fn learn(&self, came: u64, dropped: u64) {
        if came == 0 {
            return;
        }
        let share = u32::try_from((dropped.min(came) * 1000) / came).unwrap_or(1000);
        // Order: one task writes; an estimate orders nothing.
        let old = self.0.load(Ordering::Relaxed);
        self.0.store(old.midpoint(share), Ordering::Relaxed);
    }

    /// A flush dropped `dropped` of `came` bytes of references because the same memtable had newer
    /// ones: no more than that is new.
    pub(super) fn learn_from_flush(&self, came: u64, dropped: u64) {
        let share = (dropped.min(came) * 1000).checked_div(came).unwrap_or(0);
        self.0.fetch_max(u32::try_from(share).unwrap_or(1000), Ordering::Relaxed);
    }

    fn share_of(&self, bytes: u64) -> u64 {
        bytes / 1000 * u64::from(self.0.load(Ordering::Relaxed))
    }

    /// How much memtables may refer to, with `live` bytes in the value log: what they overwrite
    /// shall stay small, and flushes few.
    fn referred_max(&self, live: u64) -> u64 {
        let share = u64::from(self.0.load(Ordering::Relaxed));
        let fresh = MEMTABLE_BYTES_FRESH / 1000 * (1000 - share);
        // What was never overwritten may be from now on.
        let wary = share.max(500);
        (live / MEMTABLE_SHARE / wary * 1000).max(fresh).max(MEMTABLE_BYTES_MIN)
    }
}

/// Collects until the database is closed.
pub(super) async fn run(core: Arc<Core>) {
    let mut pause = RETRY_MIN;
    let mut damaged = HashSet::new();
    loop {
        let listener = core.version_event.listen();
        if core.is_closed() || core.pipeline.failure().is_some() {
            return;
        }
        let step = collect(&core, &mut damaged).await;
        if !matches!(step, Ok(true)) {
            core.let_writers_go();
        }
        match step {
            Ok(true) => pause = RETRY_MIN,
            Ok(false) => listener.await,
            Err(_) if core.is_closed() => return,
            Err(error) => {
                tracing::warn!(%error, "a rewrite of values failed and will be repeated");
                core.pause(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Takes one step; whether there was one to take.
async fn collect(core: &Arc<Core>, damaged: &mut HashSet<FileNumber>) -> Result<bool> {
    let version = core.versions.current();
    let live = live_by_segment(&version);
    let accounts = core.accounts(&version);
    core.fit_segments(accounts.live());
    let files: Vec<FileView> = version.values().iter().map(|v| view(v, &live)).collect();
    let bounds = accounts.bounds(core.settings.max_space_amplification);
    let sound: Vec<FileView> =
        files.iter().filter(|file| !damaged.contains(&file.number)).copied().collect();
    let pick = policy::pick(&sound, bounds.begin, core.segments.values_bytes());
    if !pick.dead.is_empty() {
        let edit = VersionEdit { values_removed: pick.dead, ..VersionEdit::default() };
        core.change_values(edit, Opened::default()).await?;
        return Ok(true);
    }
    if pick.victims.is_empty() {
        return Ok(false);
    }
    let garbage: u64 = files.iter().map(FileView::garbage).sum();
    if garbage > bounds.full {
        core.is_overfull.store(true, Ordering::Relaxed);
    } else {
        core.let_writers_go();
    }
    match rewrite_files(core, &version, &pick.victims, bounds.leisure(garbage)).await {
        Err(error) if error.is_corruption() => {
            tracing::error!(%error, "a file of the value log is damaged and stays as it is");
            damaged.extend(pick.victims);
            Ok(true)
        }
        outcome => outcome.map(|()| true),
    }
}

async fn rewrite_files(
    core: &Arc<Core>,
    version: &Arc<Version>,
    victims: &[FileNumber],
    leisure: f64,
) -> Result<()> {
    let is_victim = |values: &&Values| victims.contains(&values.meta.number);
    let files = version.values().iter().filter(is_victim).flat_map(|values| {
        values.meta.segments().iter().map(|segment| (*segment, values.file.clone()))
    });
    let straddles = |table: &&Arc<Table>| {
        let is_first = |run: &Arc<Run>| run.tables.first().is_some_and(|t| Arc::ptr_eq(t, table));
        planted!(ForgetStraddler) && version.runs().any(|run| run.trim.is_some() && is_first(run))
    };
    let tables = version.tables().filter(|table| !straddles(table));
    let survivors = survivors(&files.collect(), tables).await?;
    let number = core.versions.new_file_number();
    let fs = core.env.fs();
    let pace = |bytes: u64| {
        // Merges go first, as long as there is time.
        let leisure = if core.control.busy().is_some() { leisure * 2.0 } else { leisure };
        let pause = Duration::from_secs_f64(bytes as f64 / IDLE_RATE * leisure);
        async move {
            core.pause(pause).await;
            if leisure > 0.0 {
                core.keep_pace(bytes).await;
            }
        }
        .boxed()
    };
    let rewriting = async {
        let chunk_bytes = core.settings.chunk_bytes();
        let job = Rewrite { fs, dir: &core.dir, number, direct: true, chunk_bytes };
        let meta = rewrite::rewrite(job, &survivors, pace).await?;
        match ValueFile::open(fs, &core.dir, &meta, core.settings.reading()).await {
            Ok(file) => Ok((meta, file)),
            Err(error) => {
                // Each attempt would leave its file behind.
                remove(fs, &core.dir, FileName::Values(number)).await;
                Err(error)
            }
        }
    };
    let (meta, file) = core.unless_closed(rewriting).await?;
    let bytes = meta.bytes;
    if planted!(DeleteVictimsEarly) {
        for victim in victims {
            remove(fs, &core.dir, FileName::Values(*victim)).await;
        }
    }
    let edit = VersionEdit {
        values_added: vec![meta],
        values_removed: victims.to_vec(),
        ..VersionEdit::default()
    };
    core.change_values(edit, Opened { values: vec![file], ..Opened::default() }).await?;
    stats::add(&core.metrics.rewrites, 1);
    stats::add(&core.metrics.rewritten_bytes, bytes);
    tracing::debug!(victims = victims.len(), bytes, "values were rewritten");
    Ok(())
}

/// What `tables` refer to in the segments that `files` hold, by segment.
pub(super) async fn survivors(
    files: &HashMap<FileNumber, Arc<ValueFile>>,
    tables: impl Iterator<Item = &Arc<Table>>,
) -> Result<BTreeMap<FileNumber, Survivors>> {
    let mut survivors: BTreeMap<FileNumber, Survivors> = BTreeMap::new();
    for table in tables {
        for reference in &table.meta().references {
            let Some(file) = files.get(&reference.segment) else { continue };
            let bodies = table.bodies(reference).await?;
            let none = || Survivors { file: Arc::clone(file), bodies: Vec::new() };
            survivors.entry(reference.segment).or_insert_with(none).bodies.extend(bodies);
        }
    }
    for segment in survivors.values_mut() {
        segment.bodies.sort_unstable();
        // Between two pieces of a merge, an input and what was merged of it refer to the same.
        segment.bodies.dedup();
        if planted!(DropSurvivor) && segment.bodies.len() > 1 {
            segment.bodies.pop();
        }
    }
    Ok(survivors)
}

/// The bytes that tables refer to in each segment.
pub(super) fn live_by_segment(version: &Version) -> HashMap<FileNumber, u64> {
    let mut live = HashMap::new();
    for reference in version.tables().flat_map(|table| &table.meta().references) {
        *live.entry(reference.segment).or_default() += reference.bytes;
    }
    live
}

/// What a rewritten file takes beyond its bodies.
fn lists_of(values: &Values) -> u64 {
    values.file.bodies_end().map_or(0, |end| values.meta.bytes.saturating_sub(end))
}

/// A file as the policy sees it.
pub(super) fn view(values: &Values, live: &HashMap<FileNumber, u64>) -> FileView {
    let segments = values.meta.segments();
    let live_of = |segment| live.get(segment).copied().unwrap_or(0);
    FileView {
        number: values.meta.number,
        bytes: values.meta.bytes,
        live: segments.iter().map(live_of).sum(),
        lists: lists_of(values),
        is_rewritten: matches!(values.meta.kind, Kind::Rewritten { .. }),
    }
}

impl Core {
    async fn change_values(&self, edit: VersionEdit, opened: Opened) -> Result<()> {
        self.apply(edit, opened, |version| {
            self.read_states.install(version.clone(), None);
        })
        .await
    }

    /// What the value log takes.
    pub(super) fn accounts(&self, version: &Version) -> Accounts {
        let referred = |tables: &mut dyn Iterator<Item = &Arc<Table>>| -> u64 {
            tables.map(|table| table.meta().referenced_bytes()).sum()
        };
        let in_tables = referred(&mut version.tables());
        let in_last = version.runs().next_back();
        let in_last = in_last.map_or(0, |run| referred(&mut run.tables.iter()));
        let state = self.read_states.load();
        let in_memtables: u64 =
            state.memtables.iter().map(|memtable| memtable.referred_bytes() as u64).sum();
        let pointers = version.tables().map(|table| {
            let bodies: u64 = table.meta().references.iter().map(|r| r.bodies).sum();
            (bodies * ENTRY_BYTES).min(table.meta().file_bytes)
        });
        let lists = version.values().iter().map(lists_of).sum::<u64>();
        Accounts {
            in_tables,
            in_memtables,
            hidden: self.overwritten.share_of(in_tables - in_last),
            pointers: pointers.sum::<u64>() + lists,
            unfilled: self.segments.open_values_bytes().saturating_sub(in_memtables)
                + self.segments.values_bytes(),
        }
    }

    /// Whether a merge of everything is due for the sake of the value log alone.
    pub(super) fn hides_too_much(&self, version: &Version) -> bool {
        if version.values().is_empty() {
            return false;
        }
        let tree_bytes: u64 = version.tables().map(|table| table.meta().file_bytes).sum();
        let max_amplification = self.settings.max_space_amplification;
        self.accounts(version).hides_too_much(max_amplification, tree_bytes)
    }

    /// The value log is within its bound, or nothing can be done about it.
    fn let_writers_go(&self) {
        if self.is_overfull.swap(false, Ordering::Relaxed) {
            self.pipeline.prepare_event.notify(1);
        }
    }

    /// Small databases have small segments: the bound holds for them too.
    fn fit_segments(&self, live: u64) {
        self.segments.resize_values((live / SEGMENT_SHARE).max(SEGMENT_BYTES_MIN));
        let most = self.settings.memtable_bytes.saturating_mul(MEMTABLE_TIMES);
        let wanted = self.overwritten.referred_max(live);
        self.pipeline.limit_referred_bytes(usize::try_from(wanted).unwrap_or(most).min(most));
    }
}
