//! Writes runs: merges the inputs of a choice, and flushes memtables, with one loop.
//!
//! Invariants:
//! 1. Inputs are only read. Nothing of the database changes before the caller applies the edit.
//! 2. Outputs are complete, synced, named durably and open when a function here returns them;
//!    after an error all of them are removed, as far as the disk allows.
//! 3. All versions of a user key go to one table: tables are cut between user keys only, where
//!    they are full, wherever a moved table lies between two keys, and where a merge that was left
//!    between two pieces had come to (see [`piece::cuts`]).
//! 4. Memory is two windows per input run and a few chunks of output, whatever the sizes are, and
//!    what the filter and index of the table in the making take.
//! 5. A merge that did not see exactly the entries that its inputs' descriptions promise fails as
//!    corruption instead of dropping any.
//!
//! Everything runs on a lane of the engine's own; the loop gives way after [`YIELD_BYTES`], or a
//! table's worth of work if that is less.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;

use async_trait::async_trait;
use seerdb_io::{Fs, OpenOptions};

use crate::appender::Manner;
use crate::error::{Error, Result};
use crate::filename::{FileName, FileNumber};
use crate::iter::{Position, Source};
use crate::key::{KeyBuf, SeqNo};
use crate::options::{Compression, Settings};
use crate::sstable::{Run, Table, TableMeta, TableWriter, TableWriterOptions, Trim};
use crate::version::edit::VersionEdit;
use crate::version::set::VersionSet;
use crate::version::{RunId, Version};

use super::Choice;
use super::piece::{self, Piece};
use super::retain::Retain;

/// After this much work other tasks of the lane get their turn.
const YIELD_BYTES: u64 = 1 << 20;
/// How much is read at once from each input run: while one window is used the next one is read.
const WINDOW_BYTES: Range<usize> = 32 << 10..512 << 10;
/// What an entry costs beyond its key and value.
const ENTRY_BYTES: u64 = 16;

/// What a job works with.
pub(crate) struct Context<'a> {
    pub(crate) fs: &'a Fs,
    pub(crate) dir: &'a Path,
    /// Where file numbers come from.
    pub(crate) set: &'a VersionSet,
    pub(crate) block_bytes: usize,
    pub(crate) compression: Compression,
    /// Where the next table begins.
    pub(crate) table_bytes: u64,
    /// What the windows of all inputs may take.
    pub(crate) window_bytes: usize,
    /// How much is written at once.
    pub(crate) chunk_bytes: usize,
    /// A merge that rewrites more than this writes around the page cache: it could not stay
    /// there. What is smaller is written through it, so that fresh tables are not cold, unless
    /// they are read around it.
    pub(crate) cached_bytes_max: u64,
    /// How new tables are opened for reading.
    pub(crate) reading: OpenOptions,
    /// The seqnos of all live snapshots, and the newest visible seqno; see [`Retain`].
    pub(crate) snapshots: Vec<SeqNo>,
    /// What holds it up.
    pub(crate) pace: &'a dyn Pace,
}

/// Holds a job up, and hears how far it is.
#[async_trait]
pub(crate) trait Pace: Send + Sync {
    /// Called about every [`YIELD_BYTES`] of work, or after a table's worth if that is less, and
    /// once more when all is met: so many bytes since the last call, so many entries since the job
    /// began. The job goes on when this resolves, or fails with it.
    async fn pass(&self, bytes: u64, entries: u64) -> Result<()>;
}

/// Nothing holds the job up.
pub(crate) struct Unpaced;

#[async_trait]
impl Pace for Unpaced {
    async fn pass(&self, _: u64, _: u64) -> Result<()> {
        Ok(())
    }
}

impl<'a> Context<'a> {
    /// The context of one job.
    pub(crate) fn new(
        fs: &'a Fs,
        dir: &'a Path,
        set: &'a VersionSet,
        settings: &Settings,
        snapshots: Vec<SeqNo>,
        pace: &'a dyn Pace,
    ) -> Self {
        assert!(!snapshots.is_empty(), "the newest visible seqno is missing");
        Context {
            fs,
            dir,
            set,
            block_bytes: settings.block_bytes,
            compression: settings.compression,
            table_bytes: settings.table_bytes as u64,
            window_bytes: settings.merge_bytes(),
            chunk_bytes: settings.chunk_bytes(),
            cached_bytes_max: settings.memory_budget as u64,
            reading: settings.reading(),
            snapshots,
            pace,
        }
    }
}

/// What a job did: the edit to apply, and the tables that it adds.
pub(crate) struct Outcome {
    pub(crate) edit: VersionEdit,
    pub(crate) opened: Vec<Arc<Table>>,
    /// The entries that it met.
    pub(crate) entries: u64,
}

/// Merges piece `at` of `choice`, which was picked for `version` or for an earlier one that had the
/// same input runs, less the pieces before: flushes, and merges that the picker allows beside this
/// one, leave them alone.
///
/// # Errors
///
/// Those of reading the inputs and writing the outputs; the inputs are left alone.
///
/// # Cancel safety
///
/// Dropped midway it leaves files that nothing refers to; the next open removes them.
pub(crate) async fn run(
    ctx: &Context<'_>,
    version: &Version,
    choice: &Choice,
    at: usize,
) -> Result<Outcome> {
    let inputs = Inputs::of(version, choice, at);
    let starts = inputs.moved.iter().map(|table| KeyBuf::from_slice(&table.meta().smallest));
    let mut cuts: Vec<KeyBuf> = starts.collect();
    cuts.extend(piece::cuts(version, choice));
    cuts.sort_unstable();
    let (mut opened, mut trims, mut entries) = (Vec::new(), Vec::new(), 0);
    if !inputs.runs.is_empty() {
        let windows = 2 * inputs.runs.len();
        let bytes = (ctx.window_bytes / windows).clamp(WINDOW_BYTES.start, WINDOW_BYTES.end);
        let mut piece = Piece::new(inputs.runs.clone(), bytes, choice.piece(at).1);
        let retain = Retain::new(ctx.snapshots.clone(), choice.bottommost);
        let direct = choice.rewrite_bytes > ctx.cached_bytes_max;
        let mut output = Output::new(ctx, choice.filter_bits_per_key, &cuts, direct);
        output.blamed = inputs.rewritten().next().map_or(0, |table| table.meta().number);
        let mut merged = output.fill(&mut piece, Some(retain)).await;
        if merged.is_ok() {
            merged = check_entries(ctx.dir, &piece);
        }
        entries = output.entries_seen;
        let bounds = Bounds::of(&inputs);
        opened = output.complete(merged, |table| bounds.admit(table, &inputs.moved)).await?;
        trims = piece.trims();
    }
    let edit = inputs.edit(choice, &opened, trims);
    Ok(Outcome { edit, opened, entries })
}

/// The edit that moves the inputs of a long merge to where its output will be, so that newer runs
/// have the levels above; `None` if they are there.
pub(crate) fn stage(version: &Version, choice: &Choice) -> Option<VersionEdit> {
    let to = choice.stage;
    let mut edit = VersionEdit::default();
    let is_input = |run: &&Arc<Run>| choice.inputs.iter().any(|(_, id)| *id == run.id);
    for (_, level) in version.levels().iter().enumerate().filter(|(level, _)| *level != to) {
        for run in level.runs.iter().filter(is_input) {
            edit.tables_moved.extend(placed(&run.tables, to, run.id));
        }
    }
    (edit != VersionEdit::default()).then_some(edit)
}

/// `tables` at their place in the tree.
fn placed<'a>(
    tables: impl IntoIterator<Item = &'a Arc<Table>>,
    level: usize,
    run: RunId,
) -> impl Iterator<Item = (FileNumber, u8, RunId)> {
    let level = u8::try_from(level).expect("levels are few");
    tables.into_iter().map(move |table| (table.meta().number, level, run))
}

/// What a piece of a merge works on.
struct Inputs<'a> {
    from: Option<&'a KeyBuf>,
    upto: Option<&'a KeyBuf>,
    /// The tables that it reads, in runs, newest first.
    runs: Vec<Arc<Run>>,
    /// The tables that enter the output run as they are.
    moved: Vec<Arc<Table>>,
}

impl<'a> Inputs<'a> {
    fn of(version: &Version, choice: &'a Choice, at: usize) -> Inputs<'a> {
        let (from, upto) = choice.piece(at);
        let mut inputs = Inputs { from, upto, runs: Vec::new(), moved: Vec::new() };
        let is_input = |run: &&Arc<Run>| choice.inputs.iter().any(|(_, id)| *id == run.id);
        let mut met = 0;
        for run in version.runs().filter(is_input) {
            inputs.take(choice, run);
            met += 1;
        }
        assert!(met > 0 && (at > 0 || met == choice.inputs.len()), "an input run is gone");
        inputs
    }

    fn take(&mut self, choice: &Choice, run: &Arc<Run>) {
        let is_before = |table: &Arc<Table>| {
            run.id == choice.output_run
                && self.from.is_some_and(|from| table.meta().largest.as_slice() <= from.as_slice())
        };
        let is_behind = |table: &Arc<Table>| {
            self.upto.is_some_and(|upto| table.meta().smallest.as_slice() > upto.as_slice())
        };
        let (mut tables, mut trim) = (Vec::new(), None);
        for (at, table) in run.tables.iter().enumerate() {
            if is_before(table) {
                continue;
            } else if is_behind(table) {
                break;
            } else if choice.moved.binary_search(&table.meta().number).is_ok() {
                self.moved.push(table.clone());
            } else {
                tables.push(table.clone());
                trim = run.trim.clone().filter(|_| at == 0).or(trim);
            }
        }
        if !tables.is_empty() {
            self.runs.push(Arc::new(Run::new(run.id, tables, trim)));
        }
    }

    /// The tables that are read.
    fn rewritten(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.runs.iter().flat_map(|run| &run.tables)
    }

    /// What the piece changes: `opened` is what it wrote.
    fn edit(
        &self,
        choice: &Choice,
        opened: &[Arc<Table>],
        trims: Vec<(RunId, Trim)>,
    ) -> VersionEdit {
        let weight = |table: &Arc<Table>| table.meta().file_bytes + table.meta().referenced_bytes();
        let level = choice.output_level(self.moved.iter().chain(opened).map(weight).sum());
        let mut edit = added(u8::try_from(level).expect("levels are few"), choice, opened);
        let is_used_up = |table: &&Arc<Table>| match self.upto {
            Some(upto) if !planted!(DropStraddler) => *table.meta().largest <= **upto,
            _ => true,
        };
        let used_up = self.rewritten().filter(is_used_up);
        edit.tables_removed = used_up.map(|table| table.meta().number).collect();
        edit.tables_moved.extend(placed(&self.moved, level, choice.output_run));
        if !planted!(ForgetTrim) {
            edit.runs_trimmed = trims;
        }
        edit
    }
}

/// Writes all entries of `source` that survive as a new run of level 0. The edit has the new
/// tables only: the caller adds what the flush means for the log.
///
/// # Errors
///
/// Those of loading the source and writing the tables.
///
/// # Cancel safety
///
/// As [`run`].
pub(crate) async fn write_level_0(
    ctx: &Context<'_>,
    source: &mut dyn Source,
    filter_bits_per_key: f64,
) -> Result<Outcome> {
    let run = ctx.set.new_run_id();
    let retain = Retain::new(ctx.snapshots.clone(), false);
    let opened = write_run(ctx, source, Some(retain), filter_bits_per_key).await?;
    let entries = opened.iter().map(|table| table.meta().entries).sum();
    Ok(Outcome { edit: run_added(0, run, &opened), opened, entries })
}

/// Writes the entries of `source`, or those that `retain` keeps, to the tables of one run, in key
/// order.
///
/// # Errors
///
/// Those of loading the source and writing the tables.
///
/// # Cancel safety
///
/// As [`run`].
pub(crate) async fn write_run(
    ctx: &Context<'_>,
    source: &mut dyn Source,
    retain: Option<Retain>,
    filter_bits_per_key: f64,
) -> Result<Vec<Arc<Table>>> {
    let mut output = Output::new(ctx, filter_bits_per_key, &[], false);
    let filled = output.fill(source, retain).await;
    output.complete(filled, |_| true).await
}

/// The edit that adds `tables` to the output run.
fn added(level: u8, choice: &Choice, tables: &[Arc<Table>]) -> VersionEdit {
    let run = if planted!(OutputTooNew) { choice.newest() } else { choice.output_run };
    run_added(level, run, tables)
}

/// The edit that adds `tables` to a run.
fn run_added(level: u8, run: RunId, tables: &[Arc<Table>]) -> VersionEdit {
    let place = |table: &Arc<Table>| (level, run, Arc::clone(table.meta()));
    VersionEdit { tables_added: tables.iter().map(place).collect(), ..VersionEdit::default() }
}

/// Invariant 5.
fn check_entries(dir: &Path, piece: &Piece<'_>) -> Result<()> {
    match piece.miscounted() {
        Some((meta, met, promised)) if !planted!(DropDamagedBlock) => Err(Error::corruption(
            FileName::Table(meta.number).in_dir(dir),
            0,
            format!("a merge met {met} entries of {promised}, or more"),
        )),
        _ => Ok(()),
    }
}

/// What a merge may put out: its inputs checked out, but their entries may still be others than
/// the manifest says. A version of such tables would contradict itself.
struct Bounds<'a> {
    from: Option<&'a KeyBuf>,
    upto: Option<&'a KeyBuf>,
    seqno_min: SeqNo,
    seqno_max: SeqNo,
}

impl<'a> Bounds<'a> {
    fn of(inputs: &Inputs<'a>) -> Bounds<'a> {
        let metas = || inputs.rewritten().map(|table| table.meta());
        Bounds {
            from: inputs.from,
            upto: inputs.upto,
            seqno_min: metas().map(|meta| meta.seqno_min).min().unwrap_or(0),
            seqno_max: metas().map(|meta| meta.seqno_max).max().unwrap_or(0),
        }
    }

    /// Whether `table` may stand beside the `moved` tables of its run.
    fn admit(&self, table: &TableMeta, moved: &[Arc<Table>]) -> bool {
        let apart =
            |other: &TableMeta| table.largest < other.smallest || other.largest < table.smallest;
        let is_in_piece = self.from.is_none_or(|from| *table.smallest > **from)
            && self.upto.is_none_or(|upto| *table.largest <= **upto);
        is_in_piece
            && table.seqno_min >= self.seqno_min
            && table.seqno_max <= self.seqno_max
            && moved.iter().all(|other| apart(other.meta()))
    }
}

/// The tables of a run being written.
struct Output<'a> {
    ctx: &'a Context<'a>,
    options: TableWriterOptions,
    /// The keys ahead that no table goes across: it ends before them, or begins there.
    cuts: &'a [KeyBuf],
    writer: Option<TableWriter>,
    /// The user key added last.
    last: KeyBuf,
    finished: Vec<TableMeta>,
    entries_seen: u64,
    /// The table to name when the entries make no sense; 0 for a flush, which has none.
    blamed: FileNumber,
    /// Bytes since the job was last held up.
    work: u64,
}

impl<'a> Output<'a> {
    fn new(
        ctx: &'a Context<'a>,
        filter_bits_per_key: f64,
        cuts: &'a [KeyBuf],
        direct: bool,
    ) -> Self {
        assert!(filter_bits_per_key >= 0.0, "negative filter bits");
        assert!(ctx.table_bytes > 0, "tables of 0 bytes");
        let options = TableWriterOptions {
            block_bytes: ctx.block_bytes,
            compression: ctx.compression,
            filter_bits_per_key,
            manner: Manner { direct: direct || ctx.reading.direct, chunk_bytes: ctx.chunk_bytes },
        };
        Output {
            ctx,
            options,
            cuts,
            writer: None,
            last: KeyBuf::new(),
            finished: Vec::new(),
            entries_seen: 0,
            blamed: 0,
            work: 0,
        }
    }

    /// Writes all of `source`; the last table is left unfinished.
    async fn fill(&mut self, source: &mut dyn Source, mut retain: Option<Retain>) -> Result<()> {
        source.seek(None);
        loop {
            match source.position() {
                Position::Blocked if planted!(DropDamagedBlock) => {
                    if source.load().await.is_err() {
                        return Ok(());
                    }
                }
                Position::Blocked => source.load().await?,
                Position::End => return self.keep_pace().await,
                Position::At => {
                    let entry = source.entry();
                    self.entries_seen += 1;
                    self.work += ENTRY_BYTES + (entry.key.len() + entry.value.len()) as u64;
                    let is_kept = match &mut retain {
                        Some(rule) => rule.keep(entry.key, entry.trailer),
                        None => Some(true),
                    };
                    if is_kept.ok_or_else(|| self.disorder())? {
                        if self.begins_table(entry.key) {
                            self.finish_table().await?;
                        }
                        if self.writer.is_none() {
                            self.open_writer().await?;
                        }
                        let writer = self.writer.as_mut().expect("just opened");
                        writer.add(entry.key, entry.trailer, entry.value);
                    }
                    source.advance();
                    if self.needs_breath() {
                        self.breathe().await?;
                    }
                }
            }
        }
    }

    /// Entries came in no order.
    fn disorder(&self) -> Error {
        let path = FileName::Table(self.blamed).in_dir(self.ctx.dir);
        let what = "the entries of this and other tables are out of order";
        Error::corruption(path, 0, what)
    }

    /// Whether `key` must not go to the table being written.
    fn begins_table(&mut self, key: &[u8]) -> bool {
        let is_open = self.writer.is_some();
        if is_open && self.last.as_slice() == key {
            return false;
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        let crossed = self.cuts.iter().take_while(|cut| cut.as_slice() <= key).count();
        self.cuts = self.cuts.get(crossed..).unwrap_or_default();
        let size = self.writer.as_ref().map_or(0, TableWriter::estimated_bytes);
        is_open && (crossed > 0 || size >= self.ctx.table_bytes)
    }

    async fn open_writer(&mut self) -> Result<()> {
        assert!(self.writer.is_none(), "a table is being written");
        let number = self.ctx.set.new_file_number();
        let writer = TableWriter::create(self.ctx.fs, self.ctx.dir, number, self.options).await?;
        self.writer = Some(writer);
        Ok(())
    }

    async fn finish_table(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            let meta = writer.finish().await?;
            assert!(meta.entries > 0 && meta.file_bytes > 0, "an empty table");
            self.finished.push(meta);
        }
        Ok(())
    }

    /// Whether it is time for [`Output::breathe`].
    fn needs_breath(&self) -> bool {
        self.is_tired() || self.writer.as_ref().is_some_and(TableWriter::needs_write)
    }

    fn is_tired(&self) -> bool {
        self.work >= YIELD_BYTES.min(self.ctx.table_bytes)
    }

    /// Writes what is collected; is held up and gives way now and then.
    async fn breathe(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.as_mut().filter(|writer| writer.needs_write()) {
            writer.write_full_chunks().await?;
        }
        if self.is_tired() {
            self.keep_pace().await?;
            give_way().await;
        }
        Ok(())
    }

    async fn keep_pace(&mut self) -> Result<()> {
        let work = std::mem::take(&mut self.work);
        self.ctx.pace.pass(work, self.entries_seen).await
    }

    /// Makes the tables durable and opens them, or removes them when anything failed.
    /// Those that `admit` refuses are disorder.
    async fn complete(
        mut self,
        filled: Result<()>,
        admit: impl Fn(&TableMeta) -> bool,
    ) -> Result<Vec<Arc<Table>>> {
        let completed = match filled {
            Ok(()) => self.publish(admit).await,
            Err(error) => Err(error),
        };
        if completed.is_err() {
            self.remove_all().await;
        }
        completed
    }

    async fn publish(&mut self, admit: impl Fn(&TableMeta) -> bool) -> Result<Vec<Arc<Table>>> {
        self.finish_table().await?;
        if !self.finished.iter().all(admit) {
            return Err(self.disorder());
        }
        if self.finished.is_empty() {
            return Ok(Vec::new());
        }
        if !planted!(SkipDirSyncOfTable) {
            self.ctx.fs.sync_dir(self.ctx.dir).await?;
        }
        let mut tables = Vec::with_capacity(self.finished.len());
        for meta in &self.finished {
            let meta = Arc::new(meta.clone());
            tables.push(Table::open(self.ctx.fs, self.ctx.dir, meta, self.ctx.reading).await?);
        }
        Ok(tables)
    }

    async fn remove_all(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.abandon().await;
        }
        for meta in self.finished.drain(..) {
            let path = FileName::Table(meta.number).in_dir(self.ctx.dir);
            if let Err(error) = self.ctx.fs.remove_file(path).await {
                tracing::warn!(%error, "a table of a failed job stays until the next open");
            }
        }
    }
}

/// Lets the other tasks of the executor run once.
async fn give_way() {
    let mut has_waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests;
