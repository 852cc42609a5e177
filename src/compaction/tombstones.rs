//! Merges for the sake of tombstones: what is deleted leaves the tree although no level is full.
//! Pure.
//!
//! Levels alone let a queue leave a million tombstones behind that every scan walks over, and keep
//! deleted data for as long as nothing else is written. Age as a bound is Lethe's (Sarkar et al.,
//! 2020), density is for scans.
//!
//! Invariants:
//! 1. What is picked reaches down to the last run, so that its tombstones go.
//! 2. A table counts only if no snapshot needs what its tombstones hide: what is picked is not
//!    picked again.
//! 3. For density a merge rewrites no more than a few times the bytes that it is expected to free.

use crate::key::SeqNo;

use super::policy::Shape;
use super::{Choice, MergeReason, OutputLevel, RunView, TableView, Tree, picker};

/// A table is dense if one of so many of its entries is a tombstone.
const DENSE: u64 = 2;
/// How much may be rewritten for each byte that is freed.
const WORTH: u64 = 4;
/// What frees less than this share of a unit can wait.
const SMALL_SHARE: u64 = 16;

/// Up to which seqnos tombstones may go, and must.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ripe {
    /// No snapshot is older.
    pub(crate) droppable: SeqNo,
    /// These are too old.
    pub(crate) aged: SeqNo,
}

impl Ripe {
    fn may_go(self, table: &TableView<'_>) -> bool {
        table.tombstones > 0 && table.seqno_max <= self.droppable
    }

    fn is_aged(self, table: &TableView<'_>) -> bool {
        self.may_go(table) && table.seqno_max <= self.aged
    }

    fn is_dense(self, table: &TableView<'_>) -> bool {
        self.may_go(table) && table.tombstones.saturating_mul(DENSE) >= table.entries
    }
}

/// The merge that tombstones call for, if any does.
pub(crate) fn pick(tree: &Tree<'_>, shape: &Shape, ripe: Ripe) -> Option<Choice> {
    assert!(tree.older.is_none(), "tombstones go at the bottom of a whole tree");
    let runs: Vec<(usize, &RunView<'_>)> = tree.runs().collect();
    let has = |of: fn(Ripe, &TableView<'_>) -> bool, run: &RunView<'_>| {
        run.tables.iter().any(|table| of(ripe, table))
    };
    let merge = |at: usize, level: usize, reason| {
        let output = OutputLevel::Sized { floor: level.max(1) };
        picker::choose(tree, shape, reason, at..runs.len(), output)
    };
    if let Some(at) = runs.iter().position(|(_, run)| has(Ripe::is_aged, run)) {
        let level = runs.get(at).map_or(0, |(level, _)| *level);
        return Some(merge(at, level, MergeReason::OldTombstones { level }));
    }
    let dense = runs.iter().enumerate().filter(|(_, (_, run))| has(Ripe::is_dense, run));
    for (at, (level, _)) in dense {
        let inputs = || runs.iter().skip(at).flat_map(|(_, run)| &run.tables);
        let tombstones = inputs().filter(|t| ripe.is_dense(t)).map(|t| t.tombstones).sum();
        let choice = merge(at, *level, MergeReason::DenseTombstones { level: *level, tombstones });
        let read = || inputs().filter(|t| choice.moved.binary_search(&t.number).is_err());
        let entries: u64 = read().map(|table| table.entries).sum();
        // Each hides about one other entry, both of the usual size.
        let freed = choice.rewrite_bytes / entries.max(1) * tombstones * 2;
        let is_worth_it = choice.rewrite_bytes <= freed.saturating_mul(WORTH);
        if is_worth_it && freed >= shape.unit_bytes / SMALL_SHARE {
            return Some(choice);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::picker::tests::{shape, show, tree};
    use super::*;

    #[test]
    fn picks() {
        let any = Ripe { droppable: 100, aged: 0 };
        let cases: &[(&str, &str, Ripe, &str)] = &[
            ("no tombstones", "0: 2 2:a-z=99\n 1: 1 1:a-z=300", any, "nothing"),
            ("a few", "0: 2 2:a-z=99/40\n 1: 1 1:a-z=300", any, "nothing"),
            (
                "half of a run",
                "0: 2 2:a-z=99/50\n 1: 1 1:a-z=300",
                any,
                "0/2 1/1 -> 1 from 1, 1 bottommost",
            ),
            ("too much to rewrite for them", "0: 2 2:a-z=99/50\n 2: 1 1:a-z=900", any, "nothing"),
            (
                "what they do not meet moves",
                "0: 2 2:a-b=99/50\n 2: 1 1:a-b=100 3:c-z=900",
                any,
                "0/2 2/1 -> 1 from 1, 1 bottommost moves [3]",
            ),
            (
                "runs above stay",
                "0: 3 3:a-z=99\n 1: 2 2:a-b=99/99\n 2: 1 1:a-b=100",
                any,
                "1/2 2/1 -> 1 from 1, 1 bottommost",
            ),
            ("the last run alone", "1: 1 1:a-z=99/50", any, "1/1 -> 1 from 1, 1 bottommost"),
            (
                "a snapshot needs what they hide",
                "1: 1 1:a-z=99/99",
                Ripe { droppable: 0, aged: 0 },
                "nothing",
            ),
            ("too little to bother", "1: 1 1:a-z=2/2", any, "nothing"),
            (
                "old ones go at any price",
                "0: 2 2:a-z=99/1\n 2: 1 1:a-z=900",
                Ripe { droppable: 100, aged: 1 },
                "0/2 2/1 -> 1 from 1, 1 bottommost",
            ),
        ];
        for (name, text, ripe, expected) in cases {
            assert_eq!(show(pick(&tree(text), &shape(), *ripe)), *expected, "{name}");
        }
    }
}
