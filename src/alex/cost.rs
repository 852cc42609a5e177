//! What a lookup costs with each kind of search, estimated on the real keys: ALEX's cost model
//! with the terms measured by `benches/index.rs`.
//!
//! All costs are tenths of nanoseconds, summed over one lookup of each key. The terms stand between
//! what is measured in a processor's cache and out of it: they shall tell which kind is faster, not
//! how fast it is.

use super::grouped::{Division, GROUP};
use super::stree::STree;
use super::{KINDS, Keys, Kind};

/// An inner node of a model: the root, and one below it, which stands below some codes and not
/// below others, so that a processor mistakes the way.
pub(super) const HOP: u64 = 50;
pub(super) const HOP_BELOW: u64 = 110;
/// The memory of a child, at the price of what else it would keep in a processor's cache.
pub(super) const CHILD: u64 = 100;
/// The last step in a leaf with small errors, with larger ones, and by exponential search: that
/// goes out and back for each doubling of the error, and is mistaken at either turn.
pub(super) const NEAR: u64 = 130;
pub(super) const MIDDLE: u64 = 150;
pub(super) const FAR: u64 = 180;
pub(super) const GALLOP: u64 = 250;
pub(super) const GALLOP_STEP: u64 = 250;
/// What all but the plain search do at first: the common prefix, and the code.
const ENTRY: u64 = 110;
/// A node of an S+tree.
const NODE: u64 = 75;
/// A step of a binary search over codes.
const STEP: u64 = 35;
/// A comparison of two keys, and of some bytes of what they have in common.
const COMPARISON: u64 = 90;
const SHARED: usize = 4;
/// One more for keys with equal codes: nothing leads a processor there ahead of time.
const TIE: u64 = 150;
/// The codes of a group.
const IN_GROUP: u64 = 180;

/// The kind that costs least, with what a model would cost.
pub(super) fn cheapest(keys: &impl Keys, prefix: usize, codes: &[u64], model: u64) -> Kind {
    let of = |kind: &Kind| of(*kind, keys, prefix, codes, model);
    KINDS.into_iter().min_by_key(of).unwrap_or(Kind::Plain)
}

/// What `kind` costs.
fn of(kind: Kind, keys: &impl Keys, prefix: usize, codes: &[u64], model: u64) -> u64 {
    let count = codes.len() as u64;
    let steps = u64::from(codes.len().max(1).ilog2() + 1);
    let shared = (prefix / SHARED) as u64;
    // The common prefix is compared at first, and again with a key at the end.
    let ends = count * (ENTRY + COMPARISON + 2 * shared);
    match kind {
        Kind::Plain => count * steps * (COMPARISON + shared),
        Kind::Binary => ends + count * STEP * steps + ties_of(codes, shared),
        Kind::Tree => {
            ends + count * NODE * STree::depth(codes.len()) as u64 + ties_of(codes, shared)
        }
        Kind::Model => ends + model + ties_of(codes, shared),
        Kind::Grouped => ends + grouped(keys, prefix, codes),
    }
}

/// What comparisons of keys with equal codes cost, where so much is shared by all.
fn ties_of(codes: &[u64], shared: u64) -> u64 {
    let run = |run: &[u64]| run.len() as u64 * u64::from(run.len().ilog2()) * (TIE + shared);
    codes.chunk_by(|a, b| a == b).map(run).sum()
}

fn grouped(keys: &impl Keys, prefix: usize, codes: &[u64]) -> u64 {
    let mut division = Division::new(keys, prefix);
    let mut parts = Vec::new();
    let mut cost = 0;
    while let Some(group) = division.next() {
        let shared = (group.prefix / SHARED) as u64;
        let count = group.codes.len() as u64;
        parts.push(group.part);
        cost += ties_of(group.codes, shared);
        if group.prefix > prefix {
            cost += (COMPARISON / 2 + shared) * count;
        }
        // Keys with the code of a boundary are compared with what stands there.
        let own = codes.get(group.start..).unwrap_or_default().iter().take(group.codes.len());
        cost += own.filter(|code| **code == group.part).count() as u64 * (TIE + shared);
    }
    let tree = NODE * STree::depth(parts.len()) as u64;
    let among = (prefix / SHARED) as u64;
    cost + ties_of(&parts, among) * GROUP as u64 + keys.len() as u64 * (tree + IN_GROUP)
}
