//! Versions: which tables make up the database at one moment, immutable and shared by readers.
//!
//! Invariants, asserted at each install:
//! 1. A version has [`LEVELS`] levels; level 0 is the newest.
//! 2. Run ids are ages: over all levels, and within each, they fall from newest to oldest, and a
//!    run stands in one level.
//! 3. The tables of a run are sorted and share no user key; no run is empty.
//! 4. A table number occurs once.
//! 5. Where the tables of two runs overlap in keys, every seqno in that of the newer run is above
//!    every seqno in that of the older one, so that of two versions of a key the first that a walk
//!    by age meets is the newer one. A trimmed run begins at its trim. ([`state::State::apply`])
//!
//! A version is built by [`set::VersionSet`] from a [`state::State`], whose `apply` is the pure
//! meaning of an edit.

pub(crate) mod edit;
pub(crate) mod format;
pub(crate) mod manifest;
mod recover;
pub(crate) mod set;
pub(crate) mod state;

use std::collections::HashMap;
use std::sync::Arc;

use crate::filename::FileNumber;
use crate::log::format::Stream;
use crate::sstable::{Run, Table};
use crate::vlog::ValuesMeta;
use crate::vlog::file::ValueFile;

use state::{RunMeta, State};

/// The number of levels of every tree.
pub(crate) const LEVELS: usize = 7;
/// The deepest level.
pub(crate) const LEVEL_MAX: usize = LEVELS - 1;

/// The age of a run: flushes draw rising ids, a merge's output has the id of its newest input.
pub(crate) type RunId = u64;

/// The runs of one size class, newest first.
#[derive(Default)]
pub(crate) struct Level {
    pub(crate) runs: Vec<Arc<Run>>,
}

/// The tables and value files of the database at one moment.
#[derive(Default)]
pub(crate) struct Version {
    levels: [Level; LEVELS],
    values: Vec<Values>,
    /// Which of `values` holds a segment; those in the log, open for reading, too. By segment.
    by_segment: Vec<(FileNumber, Arc<ValueFile>)>,
}

/// A file of the value log that needs no replay.
#[derive(Clone)]
pub(crate) struct Values {
    pub(crate) meta: Arc<ValuesMeta>,
    pub(crate) file: Arc<ValueFile>,
}

/// What an edit adds, open.
#[derive(Default)]
pub(crate) struct Opened {
    pub(crate) tables: Vec<Arc<Table>>,
    pub(crate) values: Vec<Arc<ValueFile>>,
}

impl From<Vec<Arc<Table>>> for Opened {
    fn from(tables: Vec<Arc<Table>>) -> Self {
        Opened { tables, values: Vec::new() }
    }
}

impl Version {
    /// The version of `state`; its tables come from `previous` and `opened`.
    pub(super) fn build(state: &State, previous: &Version, opened: &Opened) -> Version {
        let mut tables: HashMap<FileNumber, &Arc<Table>> =
            previous.tables().map(|table| (table.meta().number, table)).collect();
        for table in &opened.tables {
            let twin = tables.insert(table.meta().number, table);
            assert!(twin.is_none(), "table {} was open already", table.meta().number);
        }
        let handle = |number: FileNumber| -> Arc<Table> {
            let table = tables.get(&number).expect("every added table comes opened");
            Arc::clone(table)
        };
        let mut version = Version::default();
        for (level, runs) in version.levels.iter_mut().zip(state.levels()) {
            level.runs = runs
                .iter()
                .map(|run| {
                    previous.same_run(run).cloned().unwrap_or_else(|| {
                        let tables = run.tables.iter().map(|meta| handle(meta.number)).collect();
                        Arc::new(Run::new(run.id, tables, run.trim.clone()))
                    })
                })
                .collect();
        }
        version.take_values(state, previous, opened);
        version.check();
        version
    }

    /// The run that `meta` describes, if this version has it: what finds its tables is there.
    fn same_run(&self, meta: &RunMeta) -> Option<&Arc<Run>> {
        let named = || meta.tables.iter().map(|table| table.number);
        let is_same = |run: &&Arc<Run>| {
            run.id == meta.id
                && (run.trim == meta.trim || planted!(KeepOldTrim))
                && run.tables.iter().map(|table| table.meta().number).eq(named())
        };
        self.runs().find(is_same)
    }

    fn take_values(&mut self, state: &State, previous: &Version, opened: &Opened) {
        let files: HashMap<FileNumber, &Arc<ValueFile>> = previous
            .value_files()
            .chain(&opened.values)
            .map(|file| (file.number(), file))
            .collect();
        let handle = |number: FileNumber| -> Arc<ValueFile> {
            let file = files.get(&number).expect("every added value file comes opened");
            Arc::clone(file)
        };
        for meta in state.values() {
            let file = handle(meta.number);
            let served = if planted!(MapFirstSegment) { 1 } else { usize::MAX };
            let segments = meta.segments().iter().take(served);
            self.by_segment.extend(segments.map(|segment| (*segment, file.clone())));
            self.values.push(Values { meta: Arc::clone(meta), file });
        }
        for named in state.segments().filter(|named| named.stream == Stream::Values) {
            self.by_segment.push((named.number, handle(named.number)));
        }
        self.by_segment.sort_unstable_by_key(|(segment, _)| *segment);
    }

    /// The files of the value log that need no replay, by number.
    pub(crate) fn values(&self) -> &[Values] {
        &self.values
    }

    /// The file that holds `segment` of the value log.
    pub(crate) fn value_file(&self, segment: FileNumber) -> Option<&Arc<ValueFile>> {
        let index = self.by_segment.binary_search_by_key(&segment, |(segment, _)| *segment).ok()?;
        self.by_segment.get(index).map(|(_, file)| file)
    }

    /// The files that hold segments, each at least once.
    pub(super) fn value_files(&self) -> impl Iterator<Item = &Arc<ValueFile>> {
        self.by_segment.iter().map(|(_, file)| file)
    }

    /// All levels.
    pub(crate) fn levels(&self) -> &[Level; LEVELS] {
        &self.levels
    }

    /// All runs, newest data first: what a get walks.
    pub(crate) fn runs(&self) -> impl DoubleEndedIterator<Item = &Arc<Run>> {
        self.levels.iter().flat_map(|level| level.runs.iter())
    }

    /// All tables.
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<Table>> {
        self.runs().flat_map(|run| run.tables.iter())
    }

    /// The number of tables.
    #[cfg(test)]
    pub(crate) fn table_count(&self) -> usize {
        self.runs().map(|run| run.tables.len()).sum()
    }

    /// The number of runs.
    #[cfg(test)]
    pub(crate) fn run_count(&self) -> usize {
        self.runs().count()
    }

    /// The memory that the open files hold (filters, indexes, offsets), in bytes, with what finds
    /// the tables of a run.
    pub(crate) fn resident_bytes(&self) -> usize {
        let runs: usize = self.runs().map(|run| run.report().bytes).sum();
        let tables: usize = self.tables().map(|table| table.resident_bytes()).sum();
        runs + tables + self.values.iter().map(|values| values.file.resident_bytes()).sum::<usize>()
    }

    /// The deepest level that holds a run; 0 for an empty version.
    pub(crate) fn last_level(&self) -> usize {
        self.levels.iter().rposition(|level| !level.runs.is_empty()).unwrap_or(0)
    }

    /// Asserts the invariants.
    pub(crate) fn check(&self) {
        let mut newer: Option<&Arc<Run>> = None;
        let mut numbers: Vec<FileNumber> = self.tables().map(|t| t.meta().number).collect();
        for run in self.runs() {
            assert!(!run.tables.is_empty(), "run {} is empty", run.id);
            assert!(
                newer.is_none_or(|newer| newer.id > run.id),
                "run {} stands before run {}",
                newer.map_or(0, |newer| newer.id),
                run.id
            );
            let metas = || run.tables.iter().map(|table| table.meta());
            assert!(
                metas().zip(metas().skip(1)).all(|(a, b)| a.largest < b.smallest),
                "tables of run {} overlap",
                run.id
            );
            newer = Some(run);
        }
        let count = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count, "a table number occurs twice");
    }
}

#[cfg(test)]
mod tests;
