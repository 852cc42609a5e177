//! What the manifest says: the tables by level and run, the live log segments and the counters.
//! Pure: no handles, no files.
//!
//! Invariants, checked by every [`State::apply`] (they hold for edits of ours; those from disk may
//! break them, which is damage):
//! 1. The levels obey the invariants of [`super::Version`].
//! 2. Every file number in use is below `next_file`, every run id below `next_run`.
//! 3. A segment of the value log is in one file, or in the log; no table refers to any other.
//! 4. `flushed_seqno`, `next_file` and `next_run` never fall. `durable_seqno` is the highest that
//!    any edit said: edits are made side by side, and a later one may have looked earlier.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::filename::FileNumber;
use crate::key::{SEQNO_MAX, SeqNo};
use crate::log::format::Stream;
use crate::sstable::{Reference, TableMeta, Trim};
use crate::vlog::ValuesMeta;

use super::edit::{SegmentName, VersionEdit};
use super::{LEVELS, RunId};

/// A run and the descriptions of its tables, in key order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunMeta {
    pub(crate) id: RunId,
    pub(crate) tables: Vec<Arc<TableMeta>>,
    /// What of the first table is no longer the run's.
    pub(crate) trim: Option<Trim>,
}

impl RunMeta {
    /// The tables with the first keys that are the run's.
    fn spans(&self) -> impl Iterator<Item = (&[u8], &TableMeta)> {
        let trims = self.trim.iter().map(Some).chain(std::iter::repeat(None));
        self.tables.iter().zip(trims).map(|(table, trim)| {
            (trim.map_or(table.smallest.as_slice(), |trim| &trim.from), &**table)
        })
    }

    /// Checks the tables, and that the trim lies within the first of them.
    fn check(&self) -> Result<(), String> {
        for table in &self.tables {
            if table.smallest > table.largest || table.seqno_min > table.seqno_max {
                return Err(format!("the bounds of table {} are crossed", table.number));
            }
        }
        for (a, b) in self.tables.iter().zip(self.tables.iter().skip(1)) {
            if a.largest >= b.smallest {
                return Err(format!("tables {} and {} overlap", a.number, b.number));
            }
        }
        let is_within = |trim: &Trim, first: &TableMeta| {
            *first.smallest < *trim.from
                && *trim.from <= *first.largest
                && (1..first.entries).contains(&trim.entries)
        };
        match (&self.trim, self.tables.first()) {
            (Some(trim), Some(first)) if !is_within(trim, first) => {
                Err(format!("run {} is trimmed outside of table {}", self.id, first.number))
            }
            _ => Ok(()),
        }
    }

    fn seqnos(&self) -> (SeqNo, SeqNo) {
        let min = self.tables.iter().map(|table| table.seqno_min).min();
        let max = self.tables.iter().map(|table| table.seqno_max).max();
        (min.unwrap_or(SEQNO_MAX), max.unwrap_or(0))
    }

    /// Checks that where keys may be in both runs, those of this run are newer.
    fn check_newer(&self, older: &RunMeta) -> Result<(), String> {
        let (mut ours, mut theirs) = (self.spans().peekable(), older.spans().peekable());
        while let (Some((from, a)), Some((other_from, b))) = (ours.peek(), theirs.peek()) {
            let overlap = *from <= b.largest.as_slice() && *other_from <= a.largest.as_slice();
            if overlap && b.seqno_max >= a.seqno_min {
                return Err(format!("table {} is newer than its run", b.number));
            }
            if a.largest < b.largest {
                ours.next().map(drop)
            } else {
                theirs.next().map(drop)
            };
        }
        Ok(())
    }
}

/// The sum of all edits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    levels: [Vec<RunMeta>; LEVELS],
    segments: BTreeMap<FileNumber, SegmentName>,
    values: BTreeMap<FileNumber, Arc<ValuesMeta>>,
    flushed_seqno: SeqNo,
    durable_seqno: SeqNo,
    next_file: FileNumber,
    next_run: RunId,
}

/// Where a table stands.
type Placed = HashMap<FileNumber, (usize, RunId, Arc<TableMeta>)>;

impl State {
    /// The state before the first edit.
    pub(crate) fn empty() -> State {
        State {
            levels: Default::default(),
            segments: BTreeMap::new(),
            values: BTreeMap::new(),
            flushed_seqno: 0,
            durable_seqno: 0,
            next_file: 1,
            next_run: 1,
        }
    }

    pub(crate) fn levels(&self) -> &[Vec<RunMeta>; LEVELS] {
        &self.levels
    }

    /// The live log segments by number.
    pub(crate) fn segments(&self) -> impl Iterator<Item = &SegmentName> {
        self.segments.values()
    }

    /// The files of the value log that need no replay, by number.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Arc<ValuesMeta>> {
        self.values.values()
    }

    /// Every seqno up to this one is in tables.
    pub(crate) fn flushed_seqno(&self) -> SeqNo {
        self.flushed_seqno
    }

    /// Every seqno up to this one was durable: a log that ends before it is damaged.
    pub(crate) fn durable_seqno(&self) -> SeqNo {
        self.durable_seqno
    }

    /// No file has this number or a larger one.
    pub(crate) fn next_file(&self) -> FileNumber {
        self.next_file
    }

    /// No run has this id or a larger one.
    pub(crate) fn next_run(&self) -> RunId {
        self.next_run
    }

    /// All tables.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<TableMeta>> {
        self.levels.iter().flatten().flat_map(|run| run.tables.iter())
    }

    /// The edit that makes this state out of the empty one.
    pub(crate) fn snapshot(&self) -> VersionEdit {
        let mut edit = VersionEdit {
            segments_added: self.segments.values().copied().collect(),
            values_added: self.values.values().map(|meta| (**meta).clone()).collect(),
            flushed_seqno: Some(self.flushed_seqno),
            durable_seqno: Some(self.durable_seqno),
            next_file: Some(self.next_file),
            next_run: Some(self.next_run),
            ..VersionEdit::default()
        };
        for (level, runs) in (0u8..).zip(&self.levels) {
            for run in runs {
                let added = run.tables.iter().map(|meta| (level, run.id, Arc::clone(meta)));
                edit.tables_added.extend(added);
                edit.runs_trimmed.extend(run.trim.clone().map(|trim| (run.id, trim)));
            }
        }
        edit
    }

    /// The state after `edit`.
    ///
    /// # Errors
    ///
    /// A sentence that says what the edit contradicts.
    pub(crate) fn apply(&self, edit: &VersionEdit) -> Result<State, String> {
        let next_file = rise("next file number", self.next_file, edit.next_file)?;
        let next_run = rise("next run id", self.next_run, edit.next_run)?;
        let flushed_seqno = rise("flushed seqno", self.flushed_seqno, edit.flushed_seqno)?;
        let durable_seqno = edit.durable_seqno.unwrap_or(0).max(self.durable_seqno);
        let mut segments = self.segments.clone();
        for number in &edit.segments_removed {
            segments
                .remove(number)
                .ok_or_else(|| format!("segment {number} is not there to remove"))?;
        }
        for named in &edit.segments_added {
            if named.number >= next_file || segments.insert(named.number, *named).is_some() {
                return Err(format!("segment {} cannot be added", named.number));
            }
        }
        let mut values = self.values.clone();
        for number in &edit.values_removed {
            let removed = values.remove(number);
            removed.ok_or_else(|| format!("value file {number} is not there to remove"))?;
        }
        for meta in &edit.values_added {
            let number = meta.number;
            let is_known = segments.contains_key(&number)
                || values.insert(number, Arc::new(meta.clone())).is_some();
            if number >= next_file || is_known {
                return Err(format!("value file {number} cannot be added"));
            }
        }
        // What was written anew is whole, whatever was missing of it before.
        let is_kept = |run: &&RunMeta| {
            run.tables.first().is_some_and(|first| !edit.tables_removed.contains(&first.number))
        };
        let mut trims: HashMap<RunId, Trim> = self
            .levels
            .iter()
            .flatten()
            .filter(is_kept)
            .filter_map(|run| Some((run.id, run.trim.clone()?)))
            .collect();
        for (run, trim) in &edit.runs_trimmed {
            let old = trims.insert(*run, trim.clone());
            if old.is_some_and(|old| *trim.from < *old.from) {
                return Err(format!("run {run} grows at its beginning"));
            }
        }
        let levels = regroup(self.place(edit, next_file, next_run)?, &mut trims);
        if let Some((run, _)) = edit.runs_trimmed.iter().find(|(run, _)| trims.contains_key(run)) {
            return Err(format!("run {run} is not there to trim"));
        }
        let state =
            State { levels, segments, values, flushed_seqno, durable_seqno, next_file, next_run };
        state.check()?;
        Ok(state)
    }

    /// All tables after `edit`, with their places.
    fn place(
        &self,
        edit: &VersionEdit,
        next_file: FileNumber,
        next_run: RunId,
    ) -> Result<Placed, String> {
        let mut placed = Placed::new();
        for (level, runs) in self.levels.iter().enumerate() {
            for run in runs {
                let tables = run.tables.iter();
                placed.extend(tables.map(|t| (t.number, (level, run.id, Arc::clone(t)))));
            }
        }
        for number in &edit.tables_removed {
            let table = placed.remove(number);
            table.ok_or_else(|| format!("table {number} is not there to remove"))?;
        }
        for (number, level, run) in &edit.tables_moved {
            let place = placed.get_mut(number);
            let place = place.ok_or_else(|| format!("table {number} is not there to move"))?;
            place.0 = usize::from(*level);
            place.1 = *run;
        }
        for (level, run, meta) in &edit.tables_added {
            let number = meta.number;
            let place = (usize::from(*level), *run, Arc::clone(meta));
            if number >= next_file || placed.insert(number, place).is_some() {
                return Err(format!("table {number} cannot be added"));
            }
        }
        for (number, (level, run, _)) in &placed {
            if *level >= LEVELS || *run >= next_run {
                return Err(format!("table {number} is in level {level}, run {run}"));
            }
        }
        Ok(placed)
    }

    /// The invariants of the levels; see [`super::Version`].
    fn check(&self) -> Result<(), String> {
        let runs = || self.levels.iter().flatten().map(|run| (run, run.seqnos()));
        for (at, (run, (_, seqno_max))) in runs().enumerate() {
            run.check()?;
            for (newer, (seqno_min, _)) in runs().take(at) {
                if run.id >= newer.id {
                    let (run, newer) = (run.id, newer.id);
                    return Err(format!("run {run} is not older than run {newer} before it"));
                }
                if seqno_max >= seqno_min {
                    newer.check_newer(run)?;
                }
            }
        }
        self.check_references()
    }

    /// Invariant 3.
    fn check_references(&self) -> Result<(), String> {
        let in_log = self.segments.values().filter(|named| named.stream == Stream::Values);
        let mut known: HashSet<FileNumber> = in_log.map(|named| named.number).collect();
        for segment in self.values.values().flat_map(|meta| meta.segments()) {
            if !known.insert(*segment) {
                return Err(format!("segment {segment} is in two files"));
            }
        }
        for table in self.tables() {
            let unknown = table.references.iter().find(|r| !known.contains(&r.segment));
            if let Some(Reference { segment, .. }) = unknown {
                return Err(format!("table {} refers to segment {segment}", table.number));
            }
        }
        Ok(())
    }
}

/// The new value of a counter that never falls.
fn rise(what: &str, old: u64, new: Option<u64>) -> Result<u64, String> {
    match new {
        Some(new) if new < old => Err(format!("the {what} falls from {old} to {new}")),
        new => Ok(new.unwrap_or(old)),
    }
}

/// Levels of runs, newest first, of tables in key order. Takes the trims of these runs; one that
/// is before the first table of its run has had its time.
fn regroup(placed: Placed, trims: &mut HashMap<RunId, Trim>) -> [Vec<RunMeta>; LEVELS] {
    let count = placed.len();
    let mut runs: BTreeMap<(usize, Reverse<RunId>), Vec<Arc<TableMeta>>> = BTreeMap::new();
    for (level, run, meta) in placed.into_values() {
        assert!(level < LEVELS, "level {level} passed the check");
        runs.entry((level, Reverse(run))).or_default().push(meta);
    }
    let mut levels: [Vec<RunMeta>; LEVELS] = Default::default();
    for ((level, Reverse(id)), mut tables) in runs {
        tables.sort_by(|a, b| a.smallest.cmp(&b.smallest));
        if let Some(level) = levels.get_mut(level) {
            let first = tables.first().map_or(&[][..], |table| &table.smallest);
            let trim = trims.remove(&id).filter(|trim| first < trim.from.as_slice());
            level.push(RunMeta { id, tables, trim });
        }
    }
    let grouped: usize = levels.iter().flatten().map(|run| run.tables.len()).sum();
    assert_eq!(grouped, count, "a table was lost");
    levels
}
