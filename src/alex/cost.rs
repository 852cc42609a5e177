//! What a lookup costs with each kind of search, estimated on the real keys: ALEX's cost model
//! with the terms measured by `benches/index.rs`.
//!
//! All costs are tenths of nanoseconds, summed over one lookup of each key.

use super::grouped::{GROUP, groups};
use super::stree::STree;
use super::{KINDS, Keys, Kind, code};

/// An inner node of a model.
pub(super) const HOP: u64 = 40;
/// The memory of a child, at the price of what else it would keep in a processor's cache.
pub(super) const CHILD: u64 = 100;
/// The last step in a leaf with small errors, with larger ones, and by exponential search.
pub(super) const NEAR: u64 = 80;
pub(super) const FAR: u64 = 120;
pub(super) const GALLOP: u64 = 250;
pub(super) const GALLOP_STEP: u64 = 150;
/// A node of an S+tree.
const NODE: u64 = 75;
/// A step of a binary search over codes.
const STEP: u64 = 35;
/// A comparison of two keys.
const COMPARISON: u64 = 150;
/// The codes of a group.
const IN_GROUP: u64 = 150;

/// The kind that costs least, with what a model would cost.
pub(super) fn cheapest(keys: &impl Keys, prefix: usize, codes: &[u64], model: u64) -> Kind {
    let count = codes.len() as u64;
    let ties = ties_of(codes);
    let of = |kind: &Kind| match kind {
        Kind::Binary => count * STEP * u64::from(codes.len().max(1).ilog2() + 1) + ties,
        Kind::Tree => count * NODE * STree::depth(codes.len()) as u64 + ties,
        Kind::Model => model + ties,
        Kind::Grouped => grouped(keys, prefix),
    };
    KINDS.into_iter().min_by_key(of).unwrap_or(Kind::Binary)
}

/// What comparisons of keys with equal codes cost.
fn ties_of(codes: &[u64]) -> u64 {
    let run = |run: &[u64]| run.len() as u64 * u64::from(run.len().ilog2()) * COMPARISON;
    codes.chunk_by(|a, b| a == b).map(run).sum()
}

fn grouped(keys: &impl Keys, prefix: usize) -> u64 {
    let rest = |index: usize, prefix: usize| keys.key(index).get(prefix..).unwrap_or_default();
    let mut heads = Vec::new();
    let mut codes = Vec::with_capacity(GROUP);
    let mut cost = 0;
    for (group, shared) in groups(keys) {
        heads.push(code::of(rest(group.start, prefix)));
        codes.clear();
        codes.extend(group.map(|index| code::of(rest(index, shared))));
        cost += ties_of(&codes);
    }
    let tree = NODE * STree::depth(heads.len()) as u64;
    cost + ties_of(&heads) * GROUP as u64 + keys.len() as u64 * (tree + IN_GROUP)
}
