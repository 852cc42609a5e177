//! What a shape of the tree costs, after the model of Dostoevsky (Dayan and Idreos, 2018): pure
//! arithmetic, for steady overwriting of keys chosen evenly.
//!
//! Terms as in [`super::policy`]; L is the number of levels. The model is that of carry-through
//! merges: what would fill a level goes into the next one at once.

use crate::filter::expected_false_positives;

use super::Tree;
use super::policy::Shape;

/// What a tree costs, or is expected to cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct TreeCosts {
    /// The levels down to the last that holds data; level 0 counts.
    pub levels: usize,
    /// The bytes that merges write for each byte that flushes write.
    pub merge_amplification: f64,
    /// The runs that a short scan, or a get without filters, looks into.
    pub runs: f64,
    /// The runs that a get of an absent key looks into in vain: false positives of filters.
    pub false_positives: f64,
    /// The entries that newer ones hide, for each entry of the last run.
    pub hidden_entries: f64,
}

impl Shape {
    /// What the model expects of a tree whose last run has `last_bytes`.
    pub(crate) fn expected_costs(&self, last_bytes: u64) -> TreeCosts {
        let last = self.level_for(1, last_bytes);
        let (t, k, z) = (self.size_ratio as f64, self.runs_upper as f64, self.runs_last as f64);
        let upper = last as f64;
        let false_positives = |level| expected_false_positives(self.filter_bits_for(level, last));
        let upper_false: f64 = (0..last).map(false_positives).sum();
        TreeCosts {
            levels: last + 1,
            merge_amplification: (t - 1.0) / (k + 1.0) * upper + (t - 1.0) / (z + 1.0),
            runs: f64::midpoint(k, 1.0) * upper + f64::midpoint(z, 1.0),
            false_positives: f64::midpoint(k, 1.0) * upper_false
                + f64::midpoint(z, 1.0) * false_positives(last),
            hidden_entries: z - 1.0 + 1.0 / (t - 1.0),
        }
    }
}

/// The bytes of the last run: what a tree holds when all is merged, or a little less.
pub(crate) fn last_run_bytes(tree: &Tree<'_>) -> u64 {
    tree.runs().next_back().map_or(0, |(_, run)| run.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LEARNED 6: the column of the formula, six levels; leveling with a T of 10 has four.
    #[test]
    fn costs_are_those_of_the_formula() {
        let shape = |size_ratio, runs_upper, runs_last| Shape {
            size_ratio,
            runs_upper,
            runs_last,
            unit_bytes: 512,
            table_bytes: 64,
            filter_bits: 10.0,
        };
        let cases = [
            (shape(4, 1, 1), 9.0, 6.0, 0.333),
            (shape(4, 3, 1), 5.25, 11.0, 0.333),
            (shape(4, 3, 3), 4.5, 12.0, 2.333),
        ];
        for (shape, amplification, runs, hidden) in cases {
            let costs = shape.expected_costs((1 << 19) * 3 / 4);
            assert_eq!(costs.levels, 5, "512 units of keys: one level less than with duplicates");
            let deeper = shape.expected_costs((1 << 21) * 3 / 4);
            assert_eq!(deeper.levels, 6);
            assert!((deeper.merge_amplification - amplification).abs() < 0.01, "{deeper:?}");
            assert!((deeper.runs - runs).abs() < 0.01, "{deeper:?}");
            assert!((deeper.hidden_entries - hidden).abs() < 0.01, "{deeper:?}");
        }
    }

    #[test]
    fn more_runs_are_cheaper_to_write_and_dearer_to_read() {
        let costs = |runs_upper| {
            let shape = Shape {
                size_ratio: 8,
                runs_upper,
                runs_last: 1,
                unit_bytes: 1000,
                table_bytes: 100,
                filter_bits: 10.0,
            };
            shape.expected_costs(1_000_000)
        };
        for pair in [1, 2, 3, 7].map(costs).windows(2) {
            assert!(pair[0].merge_amplification > pair[1].merge_amplification, "{pair:?}");
            assert!(pair[0].runs < pair[1].runs, "{pair:?}");
        }
        let without = Shape {
            filter_bits: 0.0,
            ..Shape {
                size_ratio: 4,
                runs_upper: 3,
                runs_last: 1,
                unit_bytes: 100,
                table_bytes: 10,
                filter_bits: 1.0,
            }
        };
        let costs = without.expected_costs(100_000);
        assert!((costs.false_positives - costs.runs).abs() < 1e-9, "every run is looked into");
    }
}
