//! The shape of the tree after Fluid LSM (Dostoevsky): how large levels and runs may grow, and how
//! the filter bits are shared among the levels (Monkey). Pure arithmetic.
//!
//! Terms: T is the size ratio between neighbouring levels, K the most runs in a level above the
//! last, Z the most runs in the last level, P the unit: what one flush writes. An arrival at level
//! i is what T arrivals at the level above make, `P * T^i`: T - 1 of them stay, in K runs that
//! share them, and the last one carries all of them on.
//!
//! Invariants:
//! 1. Level i has room for `P * T^(i + 1)` bytes; capacities grow strictly until they saturate.
//! 2. The last run belongs to the shallowest level of which it is no more than T - 1 arrivals.
//! 3. Level 0 is never the last level: flushes pile up there to K runs whatever the depth.
//! 4. Filter bits never grow from a level to the next deeper one, and stay in `0..=cap`, with the
//!    cap of [`BITS_CAP`] or the average asked for, whichever is larger (ADR 0001).

use crate::options::Settings;
use crate::version::{LEVEL_MAX, LEVELS};

/// Beyond this many bits per key a blocked Bloom filter gains next to nothing.
pub(crate) const BITS_CAP: f64 = 16.0;
/// Flushes differ: runs may grow by this share of an arrival more.
const SPARE_SHARE: u64 = 4;
/// `ln(2)^2`: bits per key of a Bloom filter are `-ln(p) / ln(2)^2`.
const LN2_SQUARED: f64 = std::f64::consts::LN_2 * std::f64::consts::LN_2;

/// The numbers that the shape of the tree follows from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    /// T.
    pub(crate) size_ratio: u64,
    /// K.
    pub(crate) runs_upper: usize,
    /// Z.
    pub(crate) runs_last: usize,
    /// P, in bytes.
    pub(crate) unit_bytes: u64,
    /// Where a merge begins its next table, in bytes.
    pub(crate) table_bytes: u64,
    /// Filter bits per key, on average over all keys of the tree.
    pub(crate) filter_bits: f64,
}

impl Shape {
    /// The shape that the options ask for, with this K.
    pub(crate) fn new(settings: &Settings, runs_upper: usize) -> Self {
        let shape = Shape {
            size_ratio: settings.size_ratio as u64,
            runs_upper,
            runs_last: settings.runs_last_level,
            unit_bytes: settings.memtable_bytes as u64,
            table_bytes: settings.table_bytes as u64,
            filter_bits: settings.filter_bits_per_key,
        };
        shape.check();
        shape
    }

    /// What validated options guarantee, and all arithmetic here relies on.
    pub(crate) fn check(&self) {
        assert!(self.size_ratio >= 2, "T = {} is less than 2", self.size_ratio);
        assert!(self.runs_upper >= 1 && self.runs_last >= 1, "K or Z is 0");
        assert!(self.unit_bytes > 0 && self.table_bytes > 0, "a unit of 0 bytes");
        assert!(self.filter_bits >= 0.0, "{} filter bits", self.filter_bits);
    }

    /// The same shape for flushes that turned out to write `flushed_bytes`: memtables count their
    /// overhead and tables are compressed, so that P seen on disk is smaller than the memtable.
    /// Small flushes must not turn the whole tree, hence the lower bound.
    pub(crate) fn with_flushes_of(self, flushed_bytes: u64) -> Self {
        let unit_bytes = flushed_bytes.clamp((self.unit_bytes / 8).max(1), self.unit_bytes);
        assert!(unit_bytes <= self.unit_bytes);
        Shape { unit_bytes, ..self }
    }

    /// How many bytes `level` has room for.
    pub(crate) fn capacity(&self, level: usize) -> u64 {
        assert!(level < LEVELS, "level {level} of {LEVELS}");
        (0..=level).fold(self.unit_bytes, |bytes, _| bytes.saturating_mul(self.size_ratio))
    }

    /// The bytes of an arrival at `level`.
    pub(crate) fn arrival(&self, level: usize) -> u64 {
        self.capacity(level) / self.size_ratio
    }

    /// Whether an arrival at an upper level that has `runs` may enter the newest of them, instead
    /// of standing beside it, if that makes it `run_bytes` of `level_bytes`. With K of T - 1 none
    /// may: each arrival has a run. Otherwise n runs take n / K of the arrivals that stay.
    pub(crate) fn may_grow(
        &self,
        level: usize,
        runs: usize,
        level_bytes: u64,
        run_bytes: u64,
    ) -> bool {
        assert!(run_bytes <= level_bytes, "a run of {run_bytes} bytes in {level_bytes}");
        let (k, stay) = (self.runs_upper as u64, self.size_ratio - 1);
        if k >= stay || runs == 0 {
            return false;
        }
        let arrival = self.arrival(level);
        let spare = arrival / SPARE_SHARE;
        let room = arrival.saturating_mul(stay).saturating_mul(k.min(runs as u64)) / k;
        let share = arrival.saturating_mul(stay.div_ceil(k));
        level_bytes <= room.saturating_add(spare) && run_bytes <= share.saturating_add(spare)
    }

    /// The level of a last run of `bytes`, from `floor` on.
    pub(crate) fn level_for(&self, floor: usize, bytes: u64) -> usize {
        assert!(floor < LEVELS, "level {floor} of {LEVELS}");
        let room = |level| self.arrival(level).saturating_mul(self.size_ratio - 1);
        (floor..LEVEL_MAX).find(|&level| bytes <= room(level)).unwrap_or(LEVEL_MAX)
    }

    /// Filter bits per key for a table written to `level` of a tree whose last level is `last`.
    ///
    /// Monkey: with false positive rates in proportion to a level's share of the keys, the sum of
    /// the rates over all runs is smallest. For a level of share w_i that sum's minimum has
    /// `p_i = R c_i` with `c_last = (T-1)/T / Z` and `c_i = (T-1)/T^(last-i+1) / K`; R follows from
    /// the budget, here exactly for the finite number of levels. Where `p_i` would exceed 1 the
    /// level has no filter and leaves its bits to those above.
    pub(crate) fn filter_bits_for(&self, level: usize, last: usize) -> f64 {
        assert!(level < LEVELS && last < LEVELS, "level {level} or {last} of {LEVELS}");
        let cap = BITS_CAP.max(self.filter_bits);
        let level = level.min(last);
        for deepest in (0..=last).rev() {
            let ln_r = self.ln_r(deepest, last);
            if ln_r + self.ln_c(deepest, last) >= 0.0 && deepest > 0 {
                continue;
            }
            if level > deepest {
                return 0.0;
            }
            let bits = -(ln_r + self.ln_c(level, last)) / LN2_SQUARED;
            return bits.clamp(0.0, cap);
        }
        0.0
    }

    /// `ln c_i` of level `i`.
    fn ln_c(&self, i: usize, last: usize) -> f64 {
        let (t, up) = (self.size_ratio as f64, (last - i) as f64);
        let runs = if i == last { self.runs_last } else { self.runs_upper };
        ((t - 1.0) / t / runs as f64).ln() - up * t.ln()
    }

    /// `ln R` when levels 0 to `deepest` share the bits of all levels 0 to `last`.
    fn ln_r(&self, deepest: usize, last: usize) -> f64 {
        let t = self.size_ratio as f64;
        let weight = |i: usize| t.powf(-((last - i) as f64));
        let all: f64 = (0..=last).map(weight).sum();
        let sharing: f64 = (0..=deepest).map(weight).sum();
        let mean_ln_c: f64 =
            (0..=deepest).map(|i| weight(i) * self.ln_c(i, last)).sum::<f64>() / sharing;
        -self.filter_bits * LN2_SQUARED * all / sharing - mean_ln_c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lazy() -> Shape {
        Shape {
            size_ratio: 4,
            runs_upper: 3,
            runs_last: 1,
            unit_bytes: 100,
            table_bytes: 64,
            filter_bits: 10.0,
        }
    }

    #[test]
    fn capacities_are_geometric_and_saturate() {
        let shape = lazy();
        let capacities: Vec<u64> = (0..LEVELS).map(|i| shape.capacity(i)).collect();
        assert_eq!(capacities, [400, 1600, 6400, 25600, 102_400, 409_600, 1_638_400]);
        let huge = Shape { unit_bytes: 1 << 40, size_ratio: 64, ..shape };
        assert_eq!(huge.capacity(LEVEL_MAX), u64::MAX);
        assert_eq!((0..3).map(|i| shape.arrival(i)).collect::<Vec<_>>(), [100, 400, 1600]);
        assert_eq!(shape.level_for(1, 1200), 1, "three arrivals of 400");
        assert_eq!(shape.level_for(1, 1201), 2);
        assert_eq!(shape.level_for(3, 0), 3);
        assert_eq!(shape.level_for(1, u64::MAX), LEVEL_MAX);
    }

    /// How many arrivals each run of level 1 takes before there is a next one, oldest first.
    fn shares(size_ratio: u64, runs_upper: usize, percent: u64) -> Vec<u64> {
        let shape = Shape { size_ratio, runs_upper, ..lazy() };
        let arrival = shape.arrival(1) * percent / 100;
        let mut shares: Vec<u64> = Vec::new();
        for arrivals in 1.. {
            let newest = shares.last().copied().unwrap_or(0);
            let (all, grown) = (arrivals * arrival, (newest + 1) * arrival);
            if shape.may_grow(1, shares.len(), all, grown) {
                *shares.last_mut().unwrap() += 1;
            } else if shares.len() < runs_upper {
                shares.push(1);
            } else {
                return shares;
            }
        }
        shares
    }

    #[test]
    fn runs_share_the_arrivals_that_stay() {
        let cases: &[(u64, usize, &[u64])] = &[
            (2, 1, &[1]),
            (4, 1, &[3]),
            (4, 2, &[1, 2]),
            (4, 3, &[1, 1, 1]),
            (8, 1, &[7]),
            (8, 2, &[3, 4]),
            (8, 3, &[2, 2, 3]),
            (8, 5, &[1, 2, 1, 1, 2]),
            (8, 7, &[1; 7]),
            (10, 2, &[4, 5]),
        ];
        for &(size_ratio, runs_upper, expected) in cases {
            for percent in [99, 100, 101] {
                let shares = shares(size_ratio, runs_upper, percent);
                assert_eq!(shares, expected, "T {size_ratio}, K {runs_upper}, {percent} %");
            }
        }
        // What is smaller because newer entries hid older ones leaves room for more.
        assert_eq!(shares(8, 1, 90), [8]);
        assert_eq!(shares(8, 7, 90), [1; 7]);
    }

    /// LEARNED: 10 bits on average, T = 4, K = 3, Z = 1, six levels.
    #[test]
    fn monkey_bits_are_those_of_the_formula() {
        let shape = lazy();
        for (level, expected) in [(5, 8.5), (4, 13.6), (3, 16.0), (2, 16.0), (0, 16.0)] {
            let bits = shape.filter_bits_for(level, 5);
            assert!((bits - expected).abs() < 0.06, "level {level}: {bits}");
        }
        let raw: Vec<f64> =
            (0..6).map(|i| -(shape.ln_r(5, 5) + shape.ln_c(i, 5)) / LN2_SQUARED).collect();
        for (bits, expected) in raw.iter().zip([25.2, 22.3, 19.4, 16.5, 13.6, 8.5]) {
            assert!((bits - expected).abs() < 0.06, "{raw:?}");
        }
    }

    #[test]
    fn the_budget_is_spent_exactly_without_the_cap() {
        for last in 0..LEVELS {
            for (k, z, average) in [(3, 1, 10.0), (1, 1, 4.0), (3, 3, 2.0), (3, 1, 0.5)] {
                let shape = Shape { runs_upper: k, runs_last: z, filter_bits: average, ..lazy() };
                let keys = |i: usize| 4f64.powi(i32::try_from(i).unwrap());
                let bits: f64 =
                    (0..=last).map(|i| keys(i) * shape.filter_bits_for(i, last)).sum::<f64>();
                let mean = bits / (0..=last).map(keys).sum::<f64>();
                assert!(mean <= average + 1e-9, "{mean} for {average}, last {last}");
                // What the cap leaves unspent stands in the few keys of the upper levels.
                assert!(mean > average * 0.9, "{mean} for {average}, last {last}");
            }
        }
    }

    #[test]
    fn bits_never_grow_downwards_and_obey_the_cap() {
        for average in [0.0, 0.1, 1.0, 3.0, 10.0, 20.0, 64.0] {
            for last in 0..LEVELS {
                let shape = Shape { filter_bits: average, ..lazy() };
                let bits: Vec<f64> =
                    (0..LEVELS).map(|level| shape.filter_bits_for(level, last)).collect();
                assert!(bits.windows(2).all(|w| w[0] >= w[1]), "{bits:?}");
                assert!(bits.iter().all(|&b| b >= 0.0 && b <= BITS_CAP.max(average)), "{bits:?}");
            }
        }
    }

    #[test]
    fn one_level_gets_the_average() {
        assert!((lazy().filter_bits_for(0, 0) - 10.0).abs() < 1e-9);
        assert_eq!(Shape { filter_bits: 0.0, ..lazy() }.filter_bits_for(0, 0), 0.0);
    }

    #[test]
    fn the_unit_follows_what_flushes_write_within_bounds() {
        assert_eq!(lazy().with_flushes_of(50).unit_bytes, 50);
        assert_eq!(lazy().with_flushes_of(1).unit_bytes, 12);
        assert_eq!(lazy().with_flushes_of(1000).unit_bytes, 100);
    }
}
