//! What a shape of the tree costs, after the model of Dostoevsky (Dayan and Idreos, 2018): pure
//! arithmetic, for steady overwriting of keys chosen evenly. Where it departs from that model, and
//! how well it agrees with what is measured, is in ADR 11.
//!
//! Terms as in [`super::policy`]; in units of P the last run has N, and a run of x puts holds
//! `D(x) = N (1 - e^(-x / N))` keys. The model is that of carry-through merges: what would fill a
//! level goes into the next one at once.
//!
//! - T arrivals at an upper level make the one that goes on. K runs share the T - 1 that stay, so
//!   each of them is written once, and K of them and the last not again; the others enter a run of
//!   half the final size on average. So an arrival costs `(T - 1)(T - 1 + K) / 2TK`, or K / T less
//!   in level 0, where flushes write it.
//! - Each `T^last` puts everything is written to the last level: N for as many puts, or for as many
//!   times these as runs fit there beside it.

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
    /// The entries that newer ones hide, for each entry of the last run, before the last level is
    /// merged: the most.
    pub hidden_entries: f64,
}

impl Shape {
    /// What the model expects of a tree whose last run has `last_bytes`, at level `last`.
    pub(crate) fn expected_costs(&self, last: usize, last_bytes: u64) -> TreeCosts {
        let (k, z) = (self.runs_upper as f64, self.runs_last as f64);
        let upper = last as f64;
        let false_positives = |level| expected_false_positives(self.filter_bits_for(level, last));
        let upper_false: f64 = (0..last).map(false_positives).sum();
        let (merge_amplification, hidden_entries) = self.merge_costs(last, last_bytes);
        TreeCosts {
            levels: last + 1,
            merge_amplification,
            runs: f64::midpoint(k, 1.0) * upper + f64::midpoint(z, 1.0),
            false_positives: f64::midpoint(k, 1.0) * upper_false
                + f64::midpoint(z, 1.0) * false_positives(last),
            hidden_entries,
        }
    }

    /// What merges write for each byte of a flush, and what is hidden at most.
    fn merge_costs(&self, last: usize, last_bytes: u64) -> (f64, f64) {
        let (t, k) = (self.size_ratio as f64, self.runs_upper as f64);
        let units = (last_bytes as f64 / self.unit_bytes as f64).max(1.0);
        let arrival = |level: usize| self.arrival(level) as f64 / self.unit_bytes as f64;
        // Of so many puts, the keys that differ.
        let keys = |puts: f64| units * (1.0 - (-puts / units).exp());
        let kept = |puts: f64| keys(puts) / puts;
        let each = (t - 1.0) * (t - 1.0 + k) / (2.0 * t * k);
        // A run that grows has half its final size on average.
        let grown = ((t / k).floor() / 2.0).max(1.0);
        let upper: f64 = (1..last).map(|level| each * kept(arrival(level) * grown)).sum();
        let incoming = keys(arrival(last));
        let room = ((arrival(last) * t - units) / incoming).floor() + 1.0;
        let runs = room.clamp(1.0, self.runs_last as f64);
        let beside = (runs - 1.0) * incoming;
        let written = (each - k / t).max(0.0) + upper + (units + beside) / arrival(last) / runs;
        let above: f64 = (0..last).map(|level| (t - 1.0) * keys(arrival(level))).sum();
        (written, (above + beside) / units)
    }
}

/// The bytes of the last run: what a tree holds when all is merged, or a little less.
pub(crate) fn last_run_bytes(tree: &Tree<'_>) -> u64 {
    tree.runs().next_back().map_or(0, |(_, run)| run.bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(size_ratio: u64, runs_upper: usize, runs_last: usize) -> Shape {
        Shape {
            size_ratio,
            runs_upper,
            runs_last,
            unit_bytes: 1000,
            table_bytes: 100,
            filter_bits: 10.0,
        }
    }

    /// What it costs with a last run of so many arrivals at a level.
    fn costs(shape: Shape, last: usize, fill: f64) -> TreeCosts {
        #[expect(clippy::cast_possible_truncation, reason = "small")]
        #[expect(clippy::cast_sign_loss, reason = "and above 0")]
        let last_bytes = (shape.arrival(last) as f64 * fill) as u64;
        shape.expected_costs(last, last_bytes)
    }

    /// By hand, and by a simulation of the picker whose runs are sets of keys chosen evenly.
    #[test]
    fn costs_are_those_of_a_simulation() {
        let cases: &[(u64, usize, usize, usize, f64, f64, f64)] = &[
            // T, K, Z, the last level, how full it is; merged, simulated.
            (2, 1, 1, 5, 1.1, 2.91, 2.95),
            (4, 1, 1, 4, 1.1, 6.45, 6.48),
            (4, 1, 3, 4, 2.5, 7.23, 7.20),
            (4, 2, 1, 4, 1.5, 4.65, 4.85),
            (4, 3, 1, 4, 1.5, 3.67, 3.68),
            (4, 3, 1, 5, 3.9 / 4.0, 3.86, 3.86),
            (4, 3, 3, 4, 2.5, 3.86, 3.87),
            (8, 1, 1, 3, 2.5, 12.50, 12.53),
            (8, 3, 1, 3, 3.9, 7.87, 7.97),
            (8, 3, 3, 3, 1.5, 4.92, 4.98),
            (8, 7, 1, 3, 3.9, 5.63, 5.64),
            (8, 7, 3, 3, 1.1, 2.50, 2.50),
        ];
        for &(size_ratio, runs_upper, runs_last, last, fill, expected, simulated) in cases {
            let shape = shape(size_ratio, runs_upper, runs_last);
            let found = costs(shape, last, fill).merge_amplification;
            assert!((found - expected).abs() < 0.01, "{found} for {expected}, {shape:?}");
            assert!((found / simulated - 1.0).abs() < 0.05, "{found} for {simulated}, {shape:?}");
        }
    }

    #[test]
    fn hidden_entries_and_runs() {
        for (runs_last, fill, hidden, runs) in
            [(1, 1.1, 0.83, 9.0), (1, 3.0, 0.32, 9.0), (3, 1.1, 2.02, 10.0), (3, 3.0, 0.60, 10.0)]
        {
            let costs = costs(shape(4, 3, runs_last), 4, fill);
            assert!((costs.hidden_entries - hidden).abs() < 0.01, "{costs:?} for {hidden}");
            assert!((costs.runs - runs).abs() < 0.01, "{costs:?} for {runs}");
            assert_eq!(costs.levels, 5);
        }
    }

    #[test]
    fn next_to_nothing_costs_next_to_nothing() {
        let costs = shape(4, 3, 1).expected_costs(1, 0);
        assert!(costs.merge_amplification > 0.0 && costs.merge_amplification < 1.0, "{costs:?}");
        assert!(costs.hidden_entries.is_finite(), "{costs:?}");
    }

    #[test]
    fn more_runs_are_cheaper_to_write_and_dearer_to_read() {
        let costs = |runs_upper| shape(8, runs_upper, 1).expected_costs(3, 1_000_000);
        for pair in [1, 2, 3, 7].map(costs).windows(2) {
            assert!(pair[0].merge_amplification > pair[1].merge_amplification, "{pair:?}");
            assert!(pair[0].runs < pair[1].runs, "{pair:?}");
        }
        let without = Shape { filter_bits: 0.0, ..shape(4, 3, 1) };
        let costs = without.expected_costs(4, 1_000_000);
        assert!((costs.false_positives - costs.runs).abs() < 1e-9, "every run is looked into");
    }
}
