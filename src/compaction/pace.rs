//! How far merges are behind, and how much writers are slowed for it. Pure.
//!
//! Invariants:
//! 1. The speed falls from 1 steadily, from the first signs on, and never to 0: nobody who writes
//!    meets a wall before [`runs_max`], where flushes wait for merges.
//! 2. It follows from the tree alone, so that a burst that the memtables take slows nobody.

use super::Tree;
use super::policy::Shape;

/// With this many runs in level 0, flushes wait for merges: reads would look at too many runs.
const RUNS_MAX: usize = 24;
/// They wait only with this many runs more than level 0 may keep: then a merge is due for sure.
const RUNS_ABOVE: usize = 8;
/// The tree may have so many times the runs of its shape before writers slow down for it.
const RUNS_TIMES: usize = 2;
/// The least speed.
const SPEED_MIN: f64 = 1.0 / 64.0;

/// With how many runs in level 0 flushes wait for merges.
pub(crate) fn runs_max(shape: &Shape) -> usize {
    RUNS_MAX.max(shape.runs_upper + RUNS_ABOVE)
}

/// How far the merges of a tree are behind: 0 while they keep up, 1 where flushes wait for them.
pub(crate) fn debt(tree: &Tree<'_>, shape: &Shape) -> f64 {
    let share = |runs: usize, from: usize, to: usize| -> f64 {
        runs.saturating_sub(from) as f64 / to.saturating_sub(from).max(1) as f64
    };
    let to = runs_max(shape);
    let first = share(tree.level(0).len(), (2 * (shape.runs_upper + 1)).min(to - 1), to);
    let room = shape.runs_upper * tree.last_level() + shape.runs_last;
    let from = RUNS_TIMES * room + RUNS_ABOVE;
    let all = share(tree.runs().count(), from, 2 * from);
    first.max(all).min(1.0)
}

/// The speed of flushes, and so of writers that wait for them, over what it could be.
pub(crate) fn speed(debt: f64) -> f64 {
    assert!((0.0..=1.0).contains(&debt), "a debt of {debt}");
    (1.0 - debt).powi(2).max(SPEED_MIN)
}

#[cfg(test)]
mod tests {
    use super::super::picker::tests::{shape, tree};
    use super::*;

    fn debt_of(first: usize, second: usize) -> f64 {
        let runs = |level: usize, count: usize, from: usize| {
            let runs: Vec<String> =
                (0..count).map(|i| format!("{} {}:a-z=1", from - i, from - i)).collect();
            if count == 0 { String::new() } else { format!("{level}: {}\n", runs.join(" | ")) }
        };
        let text = runs(0, first, 2000) + &runs(1, second, 1000);
        debt(&tree(&text), &shape())
    }

    #[test]
    fn debt_begins_early_and_grows_steadily() {
        assert_eq!(debt_of(4, 3), 0.0, "a merge is due, no more");
        assert_eq!(debt_of(8, 1), 0.0);
        let debts: Vec<f64> = (8..=24).map(|runs| debt_of(runs, 0)).collect();
        assert!(debts.windows(2).all(|pair| pair[0] < pair[1]), "{debts:?}");
        assert_eq!(debts.last(), Some(&1.0));
        let deep: Vec<f64> = (13..=32).map(|runs| debt_of(0, runs)).collect();
        assert!(deep[0] == 0.0 && deep.windows(2).all(|pair| pair[0] <= pair[1]), "{deep:?}");
        assert_eq!(deep.last(), Some(&1.0));
    }

    #[test]
    fn the_speed_falls_with_debt_but_not_to_nothing() {
        assert_eq!((speed(0.0), speed(0.5), speed(1.0)), (1.0, 0.25, SPEED_MIN));
    }
}
