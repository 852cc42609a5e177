//! Compaction: what the tree looks like to the policy, and what the policy may decide.
//!
//! Glossary: a *run* is a sorted sequence of tables with disjoint key ranges; a *level* holds runs
//! of one size class; the *policy* says how large things may grow, the *picker* turns a tree into
//! a [`Choice`], *retain* says which versions survive, the *job* merges. All but the job are pure.
//!
//! The one idea that makes every merge correct: run ids are ages. All runs of a tree form one list
//! by descending id, newest first, and levels along that list never decrease. For every key, what
//! a newer run holds is newer than what an older run holds. A merge replaces *neighbours* in that
//! list by one run with the id of the oldest of them, so the list stays in order of age, whatever
//! flushes and other merges put in front of it meanwhile and whatever level it is labelled with.
//!
//! A large merge is done in pieces, one range of keys after the other, as Spooky (Dayan et al.,
//! 2022) does: what a piece has merged enters the oldest input, the newer inputs are trimmed of it,
//! and its files go. So a merge needs space for a piece, not for another copy of all.
//!
//! Invariants:
//! 1. The inputs of a choice are neighbours in the list of runs.
//! 2. The output has the id of its oldest input and a level between those of its neighbours.
//! 3. A choice is bottommost when no run is older than its inputs: only then may tombstones go.
//! 4. A moved table shares no key range with any other input table; it enters the output run as it
//!    is, and no output table is written across it.
//! 5. A piece ends where a table of the oldest input ends: only newer inputs are cut within one.

pub(crate) mod control;
pub(crate) mod cost;
pub(crate) mod job;
pub(crate) mod pace;
pub(crate) mod picker;
mod piece;
pub(crate) mod policy;
pub(crate) mod retain;
pub(crate) mod tombstones;
pub(crate) mod workload;

use crate::filename::FileNumber;
use crate::key::{KeyBuf, SeqNo};
use crate::version::{LEVELS, Level, RunId, Version};

use policy::Shape;

/// A piece has the bytes of so many tables at least: each may end with one that is not full.
pub(crate) const PIECE_TABLES: u64 = 4;

/// A table as the picker sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableView<'a> {
    pub(crate) number: FileNumber,
    pub(crate) bytes: u64,
    /// The bytes in the value log that it refers to: levels fill up with them too, so that what
    /// newer entries hide is met in time.
    pub(crate) referred: u64,
    pub(crate) entries: u64,
    pub(crate) tombstones: u64,
    pub(crate) seqno_max: SeqNo,
    /// Whether its run is trimmed within it; `smallest` is where the run begins then.
    pub(crate) is_trimmed: bool,
    pub(crate) smallest: &'a [u8],
    pub(crate) largest: &'a [u8],
}

/// A run as the picker sees it, tables in key order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunView<'a> {
    pub(crate) id: RunId,
    pub(crate) tables: Vec<TableView<'a>>,
}

impl RunView<'_> {
    /// What the run counts for in its level.
    pub(crate) fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes + table.referred).sum()
    }
}

/// A tree as the picker sees it: runs of each level, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tree<'a> {
    pub(crate) levels: [Vec<RunView<'a>>; LEVELS],
    /// What the tree is the upper part of, while older runs are being merged.
    pub(crate) older: Option<Older>,
}

/// The runs below the upper part of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Older {
    /// The level of the newest of them: no newer run may lie deeper.
    pub(crate) level: usize,
    /// The last level of the whole tree.
    pub(crate) last: usize,
}

impl<'a> Tree<'a> {
    /// The description of a version.
    pub(crate) fn of(version: &'a Version) -> Tree<'a> {
        let mut tree = Tree::default();
        for (runs, level) in tree.levels.iter_mut().zip(version.levels()) {
            *runs = Tree::runs_of(level);
        }
        tree.check();
        tree
    }

    /// The part of the tree that is newer than the run `busy`, which is being merged with runs
    /// older than it.
    pub(crate) fn newer_than(mut self, busy: RunId) -> Tree<'a> {
        let newest = self.runs().find(|(_, run)| run.id <= busy).map(|(level, _)| level);
        let last = self.last_level();
        if planted!(PassOlderMerge) {
            return self;
        }
        for runs in &mut self.levels {
            runs.retain(|run| run.id > busy);
        }
        self.older = newest.map(|level| Older { level, last });
        self
    }

    fn runs_of(level: &'a Level) -> Vec<RunView<'a>> {
        let run = |run: &'a std::sync::Arc<crate::sstable::Run>| RunView {
            id: run.id,
            tables: run
                .tables
                .iter()
                .enumerate()
                .map(|(at, table)| {
                    let meta = table.meta();
                    let trim = run.trim.as_ref().filter(|_| at == 0);
                    TableView {
                        number: meta.number,
                        bytes: meta.file_bytes,
                        referred: meta.referenced_bytes(),
                        entries: meta.entries,
                        tombstones: meta.tombstones,
                        seqno_max: meta.seqno_max,
                        is_trimmed: trim.is_some(),
                        smallest: trim.map_or(&meta.smallest, |trim| trim.from.as_slice()),
                        largest: &meta.largest,
                    }
                })
                .collect(),
        };
        level.runs.iter().map(run).collect()
    }

    /// The runs of `level`, newest first.
    pub(crate) fn level(&self, level: usize) -> &[RunView<'a>] {
        self.levels.get(level).expect("levels are numbered below LEVELS")
    }

    /// The bytes of `level`.
    pub(crate) fn level_bytes(&self, level: usize) -> u64 {
        self.level(level).iter().map(RunView::bytes).sum()
    }

    /// All runs by age, newest first, with their levels.
    pub(crate) fn runs(&self) -> impl DoubleEndedIterator<Item = (usize, &RunView<'a>)> {
        self.levels
            .iter()
            .enumerate()
            .flat_map(|(level, runs)| runs.iter().map(move |r| (level, r)))
    }

    /// The last level; level 0 is never it, even while nothing lies deeper.
    pub(crate) fn last_level(&self) -> usize {
        if let Some(older) = self.older {
            return older.last;
        }
        self.runs().next_back().map_or(1, |(level, _)| level.max(1))
    }

    /// Asserts that ids are ages.
    pub(crate) fn check(&self) {
        let ids: Vec<RunId> = self.runs().map(|(_, run)| run.id).collect();
        assert!(ids.is_sorted_by(|a, b| a > b), "run ids are not ages: {ids:?}");
        assert!(self.runs().all(|(_, run)| !run.tables.is_empty()), "an empty run");
    }
}

/// Where the output of a merge goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputLevel {
    /// To this level.
    Fixed(usize),
    /// It becomes the last run: to the shallowest level from `floor` on that has room for it.
    Sized {
        /// No run that stays and is newer lies deeper.
        floor: usize,
    },
}

/// Why a merge is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MergeReason {
    /// A level has more sorted runs than it may have.
    Runs {
        /// The level.
        level: usize,
        /// Its runs.
        runs: usize,
        /// How many it may have.
        runs_max: usize,
    },
    /// The newest run of a level has not grown to its share of the level yet.
    Share {
        /// The level.
        level: usize,
    },
    /// A level is larger than it may be.
    Bytes {
        /// The level.
        level: usize,
        /// Its size with the separated values that it refers to, in bytes.
        bytes: u64,
        /// How large it may be.
        bytes_max: u64,
    },
    /// A level has tables of which half or more are tombstones.
    DenseTombstones {
        /// The level.
        level: usize,
        /// The tombstones in such tables, there and below.
        tombstones: u64,
    },
    /// A level has tombstones that are older than they may be.
    OldTombstones {
        /// The level.
        level: usize,
    },
    /// Newer entries hide so much of the value log that its bound would not hold.
    HiddenValues,
    /// Somebody asked for everything to be merged.
    Asked,
}

impl std::fmt::Display for MergeReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MergeReason::Runs { level, runs, runs_max } => {
                write!(f, "level {level} has {runs} runs, {runs_max} at most")
            }
            MergeReason::Share { level } => {
                write!(f, "the newest run of level {level} has less than its share")
            }
            MergeReason::Bytes { level, bytes, bytes_max } => {
                write!(f, "level {level} has {bytes} bytes, {bytes_max} at most")
            }
            MergeReason::DenseTombstones { level, tombstones } => {
                write!(f, "level {level} has tables full of tombstones, {tombstones} of them")
            }
            MergeReason::OldTombstones { level } => {
                write!(f, "level {level} has tombstones that are too old")
            }
            MergeReason::HiddenValues => write!(f, "the value log holds too much that is hidden"),
            MergeReason::Asked => write!(f, "a compaction was asked for"),
        }
    }
}

/// A decision of the picker.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) reason: MergeReason,
    /// The runs to merge with their levels, newest first.
    pub(crate) inputs: Vec<(usize, RunId)>,
    /// The id of the output: that of the oldest input.
    pub(crate) output_run: RunId,
    /// The level of the output.
    pub(crate) output: OutputLevel,
    /// Where the inputs are while a long merge is at work on them: the level of an output of about
    /// the size to expect. Newer runs may meanwhile be merged above it.
    pub(crate) stage: usize,
    /// Whether no run is older than the inputs.
    pub(crate) bottommost: bool,
    /// Filter bits for the tables to write.
    pub(crate) filter_bits_per_key: f64,
    /// Input tables that enter the output run as they are, ascending.
    pub(crate) moved: Vec<FileNumber>,
    /// The last user keys of all pieces but the last one, which goes on to the end.
    pub(crate) ends: Vec<KeyBuf>,
    /// The bytes of the input tables that are read and written.
    pub(crate) rewrite_bytes: u64,
    /// The shape that the choice followed from.
    pub(crate) shape: Shape,
}

impl Choice {
    /// The newest input.
    pub(crate) fn newest(&self) -> RunId {
        self.inputs.first().map_or(0, |(_, id)| *id)
    }

    /// Whether it takes so long that newer runs shall be merged meanwhile.
    pub(crate) fn is_long(&self) -> bool {
        !self.ends.is_empty() || self.rewrite_bytes >= PIECE_TABLES * self.shape.table_bytes
    }

    /// The range of piece `at`: its keys are above the first and up to the second, if they are
    /// bounded.
    pub(crate) fn piece(&self, at: usize) -> (Option<&KeyBuf>, Option<&KeyBuf>) {
        let before = at.checked_sub(1).and_then(|at| self.ends.get(at));
        (before, self.ends.get(at))
    }

    /// The level of an output run of `bytes`, moved tables included. That of a long merge was fixed
    /// when it began: newer runs may be there by now.
    pub(crate) fn output_level(&self, bytes: u64) -> usize {
        match self.output {
            _ if self.is_long() => self.stage,
            OutputLevel::Fixed(level) => level,
            OutputLevel::Sized { floor } => self.shape.level_for(floor, bytes),
        }
    }
}
