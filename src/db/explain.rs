//! What the tree looks like, what its shape is expected to cost, what it did cost, and which merge
//! comes next: for people.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use super::DB;
use crate::compaction::cost::{TreeCosts, last_run_bytes};
use crate::compaction::policy::Shape;
use crate::compaction::workload::RunsChoice;
use crate::compaction::{MergeReason, Tree};
use crate::version::Version;

/// The state of compaction; made by [`DB::explain_compaction`]. Its text is a table.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct CompactionReport {
    /// T: how many times larger each level is than the one above.
    pub size_ratio: u64,
    /// K: the most runs in a level above the last.
    pub runs_per_level: usize,
    /// Why K is what it is, when it follows the workload; none when it is fixed.
    pub runs_choice: Option<RunsChoice>,
    /// Z: the most runs in the last level.
    pub runs_last_level: usize,
    /// The levels that hold data, and those above them.
    pub levels: Vec<LevelReport>,
    /// What the model expects of such a tree when keys are overwritten evenly.
    pub expected: TreeCosts,
    /// What the tree costs now; its merges since the open.
    pub measured: TreeCosts,
    /// The merge that is due.
    pub next: Option<NextMerge>,
}

/// A level in a [`CompactionReport`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LevelReport {
    /// Its runs, newest first.
    pub runs: Vec<RunReport>,
    /// How many it may have.
    pub runs_max: usize,
    /// How large it may be, with the separated values that it refers to, in bytes.
    pub bytes_max: u64,
}

/// A sorted run in a [`LevelReport`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunReport {
    /// Its tables.
    pub tables: usize,
    /// Their size, in bytes.
    pub bytes: u64,
    /// The bytes in the value log that they refer to.
    pub referred_bytes: u64,
    /// Their entries, versions and tombstones included.
    pub entries: u64,
    /// The tombstones among them.
    pub tombstones: u64,
}

/// A merge that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NextMerge {
    /// Why.
    pub reason: MergeReason,
    /// The levels that its inputs are in, newest first.
    pub levels: Vec<usize>,
    /// The level that the result enters if nothing in it is dropped.
    pub output_level: usize,
    /// What it reads and writes, in bytes.
    pub rewrite_bytes: u64,
    /// The tables that enter the result as they are.
    pub moved_tables: usize,
}

impl DB {
    /// What the tree looks like, what its shape is expected to cost and what it did cost, and the
    /// merge that comes next and why. A look at memory: nothing is read.
    ///
    /// ```
    /// # futures::executor::block_on(async {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let db = seerdb::DB::open(dir.path()).await?;
    /// db.put("key", "value").await?;
    /// db.flush().await?;
    /// let report = db.explain_compaction();
    /// println!("{report}");
    /// assert_eq!((report.levels[0].runs.len(), report.next), (1, None));
    /// # db.close().await
    /// # }).unwrap();
    /// ```
    pub fn explain_compaction(&self) -> CompactionReport {
        let core = self.core();
        let version = core.versions.current();
        let (tree, shape) = (Tree::of(&version), core.shape());
        let (flushed, merged) =
            (core.metrics.flushed_bytes.load(Relaxed), core.metrics.compacted_bytes.load(Relaxed));
        let next = core.next_merge(&version, core.control.busy(), false).map(|choice| NextMerge {
            reason: choice.reason,
            levels: choice.inputs.iter().map(|(level, _)| *level).collect(),
            output_level: choice.output_level(
                tree.runs()
                    .filter(|(_, run)| choice.inputs.iter().any(|(_, id)| *id == run.id))
                    .map(|(_, run)| run.bytes())
                    .sum(),
            ),
            rewrite_bytes: choice.rewrite_bytes,
            moved_tables: choice.moved.len(),
        });
        CompactionReport {
            size_ratio: shape.size_ratio,
            runs_per_level: shape.runs_upper,
            runs_choice: core.runs_choice(),
            runs_last_level: shape.runs_last,
            levels: levels(&version, &tree, &shape),
            expected: shape.expected_costs(tree.last_level(), last_run_bytes(&tree)),
            measured: measured(&version, &tree, flushed, merged),
            next,
        }
    }
}

fn levels(version: &Version, tree: &Tree<'_>, shape: &Shape) -> Vec<LevelReport> {
    let last = tree.last_level();
    let level = |(at, level): (usize, &crate::version::Level)| LevelReport {
        runs: level
            .runs
            .iter()
            .map(|run| {
                let metas = || run.tables.iter().map(|table| table.meta());
                RunReport {
                    tables: run.tables.len(),
                    bytes: run.bytes(),
                    referred_bytes: metas().map(|meta| meta.referenced_bytes()).sum(),
                    entries: run.entries(),
                    tombstones: metas().map(|meta| meta.tombstones).sum(),
                }
            })
            .collect(),
        runs_max: if at == last { shape.runs_last } else { shape.runs_upper },
        bytes_max: shape.capacity(at),
    };
    version.levels().iter().enumerate().take(last + 1).map(level).collect()
}

fn measured(version: &Version, tree: &Tree<'_>, flushed: u64, merged: u64) -> TreeCosts {
    let mut runs = 0;
    let (mut false_positives, mut entries, mut last_entries) = (0.0, 0, 0);
    for run in version.runs() {
        runs += 1;
        let passing = run.tables.iter().map(|t| t.false_positives() * t.meta().entries as f64);
        false_positives += passing.sum::<f64>() / run.entries().max(1) as f64;
        last_entries = run.entries();
        entries += last_entries;
    }
    TreeCosts {
        levels: if runs == 0 { 0 } else { tree.last_level() + 1 },
        merge_amplification: merged as f64 / flushed.max(1) as f64,
        runs: f64::from(runs),
        false_positives,
        // Every entry above the last run may hide one there: no more than that is known.
        hidden_entries: (entries - last_entries) as f64 / last_entries.max(1) as f64,
    }
}

impl fmt::Display for CompactionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size_ratio, runs_per_level, runs_last_level, .. } = self;
        write!(f, "T = {size_ratio}, K = {runs_per_level}, Z = {runs_last_level}; K ")?;
        match &self.runs_choice {
            None => writeln!(f, "is fixed")?,
            Some(choice) => writeln!(f, "follows the workload\n{choice}")?,
        }
        writeln!(f, "level   runs  tables      entries  tombstones       bytes    capacity")?;
        for (at, level) in self.levels.iter().enumerate() {
            let sum = |of: fn(&RunReport) -> u64| level.runs.iter().map(of).sum::<u64>();
            writeln!(
                f,
                "{at:>5} {:>3}/{:<3} {:>6} {:>12} {:>11} {:>11} {:>11}",
                level.runs.len(),
                level.runs_max,
                sum(|run| run.tables as u64),
                sum(|run| run.entries),
                sum(|run| run.tombstones),
                Bytes(sum(|run| run.bytes + run.referred_bytes)),
                Bytes(level.bytes_max),
            )?;
        }
        writeln!(f, "                                  expected    measured")?;
        let mut row = |what: &str, of: fn(&TreeCosts) -> f64| {
            writeln!(f, "{what:<30} {:>11.3} {:>11.3}", of(&self.expected), of(&self.measured))
        };
        row("merged for each byte flushed", |costs| costs.merge_amplification)?;
        row("runs", |costs| costs.runs)?;
        row("false positives of a get", |costs| costs.false_positives)?;
        row("hidden for each entry (most)", |costs| costs.hidden_entries)?;
        match &self.next {
            None => write!(f, "no merge is due"),
            Some(next) => write!(f, "{next}"),
        }
    }
}

impl fmt::Display for NextMerge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, levels, output_level, rewrite_bytes, moved_tables } = self;
        let (first, last) = (levels.first().unwrap_or(&0), levels.last().unwrap_or(&0));
        let rewritten = Bytes(*rewrite_bytes);
        write!(f, "due: {} runs of levels {first} to {last} into level ", levels.len())?;
        write!(f, "{output_level}, {rewritten} to rewrite, ")?;
        write!(f, "{moved_tables} tables to move, for {reason}")
    }
}

/// A size with a unit of its own.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let unit = (self.0.max(1).ilog2() / 10) as usize;
        let size = self.0 as f64 / f64::powi(1024.0, i32::try_from(unit).unwrap_or(0));
        let text = match unit {
            0 => format!("{} B", self.0),
            _ => format!("{size:.1} {}", units.get(unit).unwrap_or(&"")),
        };
        f.pad(&text)
    }
}
