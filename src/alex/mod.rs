//! Where a key stands among sorted keys: models of their distribution where it is smooth, trees
//! where it is not.
//!
//! Keys are compared by their *codes*: eight bytes behind what all keys have in common, as a number
//! that sorts like them. The search over codes is one of four, chosen by what it would cost on
//! the keys at hand ([`cost`]): a model tree after ALEX (Ding et al., 2020), an S+tree, groups with
//! codes of their own, or binary search. All are derived from keys that were checked, and none is
//! ever stored.
//!
//! The models only predict: every answer is checked against the codes, so a bad model is slow and
//! never wrong.
//!
//! Invariants:
//! 1. [`Locator::narrow`] answers a range: all keys before it are below the key that is asked for,
//!    all behind it above. What is in it only a comparison of the keys can tell.
//! 2. Codes ascend, not strictly: equal codes say nothing.
//! 3. Predictions are integer arithmetic: the same on every machine, exact for all 64 bits.
//!
//! Nothing of the engine is imported here; `benches/index.rs` compiles these files as they are.

mod code;
mod cost;
mod grouped;
mod model;
mod stree;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::ops::Range;

use code::Codes;
use grouped::Grouped;
use model::Model;
use stree::STree;

/// Sorted keys; equal ones may stand side by side.
pub(crate) trait Keys {
    /// The number of keys.
    fn len(&self) -> usize;

    /// The key at `index`, below `len`.
    fn key(&self, index: usize) -> &[u8];
}

/// How codes are searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Binary search: for few keys nothing is faster.
    Binary,
    /// Nodes of 16 codes.
    Tree,
    /// Groups of 64 keys, each with codes behind what they have in common.
    Grouped,
    /// A tree of linear models.
    Model,
}

/// All kinds, in the order in which ties of the cost are broken.
pub(crate) const KINDS: [Kind; 4] = [Kind::Binary, Kind::Tree, Kind::Grouped, Kind::Model];

enum Search {
    Binary,
    Tree(STree),
    Grouped(Grouped),
    Model(Model),
}

/// What a locator is, for statistics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Report {
    pub(crate) kind: Kind,
    /// How far predictions are from the truth: the mean and the most, in keys. 0 without a model.
    pub(crate) mean_error: f64,
    pub(crate) max_error: u64,
    /// The memory beyond the keys, in bytes.
    pub(crate) bytes: usize,
}

/// Finds keys among those that it was built for.
pub(crate) struct Locator {
    /// The bytes that all keys begin with.
    prefix: usize,
    /// One for each key; those of a grouped search stand in it.
    codes: Codes,
    search: Search,
}

impl Locator {
    /// The locator of this kind, or of the one that costs least on `keys`.
    pub(crate) fn new(keys: &impl Keys, kind: Option<Kind>) -> Self {
        let prefix = common_prefix(keys);
        let codes = Codes::new(keys, prefix);
        match kind {
            Some(kind) => Locator::build(keys, prefix, codes, kind, None),
            None => {
                let model = Model::new(codes.as_slice());
                let kind = cost::cheapest(keys, prefix, codes.as_slice(), model.cost());
                Locator::build(keys, prefix, codes, kind, Some(model))
            }
        }
    }

    fn build(
        keys: &impl Keys,
        prefix: usize,
        codes: Codes,
        kind: Kind,
        model: Option<Model>,
    ) -> Self {
        let search = match kind {
            Kind::Binary => Search::Binary,
            Kind::Tree => Search::Tree(STree::new(codes.as_slice())),
            Kind::Model => Search::Model(model.unwrap_or_else(|| Model::new(codes.as_slice()))),
            Kind::Grouped => {
                let search = Search::Grouped(Grouped::new(keys, prefix));
                return Locator { prefix, codes: Codes::default(), search };
            }
        };
        Locator { prefix, codes, search }
    }

    /// The keys that may equal `key`: see the invariants. `keys` are those it was built for.
    pub(crate) fn narrow(&self, keys: &impl Keys, key: &[u8]) -> Range<usize> {
        let len = keys.len();
        let prefix = match len {
            0 => return 0..0,
            _ => keys.key(0).get(..self.prefix).unwrap_or_default(),
        };
        let (head, rest) = key.split_at_checked(self.prefix).unwrap_or((key, &[]));
        match head.cmp(prefix) {
            Ordering::Less => return 0..0,
            Ordering::Greater => return len..len,
            Ordering::Equal => {}
        }
        let code = code::of(rest);
        let codes = self.codes.as_slice();
        let low = match &self.search {
            Search::Binary => codes.partition_point(|c| *c < code),
            Search::Tree(tree) => tree.lower_bound(codes, code),
            Search::Model(model) => model.lower_bound(codes, code),
            Search::Grouped(grouped) => return grouped.narrow(keys, key, code),
        };
        low..low + code::ties(codes.get(low..).unwrap_or_default(), code)
    }

    /// What it is.
    pub(crate) fn report(&self) -> Report {
        let (kind, mean_error, max_error, bytes) = match &self.search {
            Search::Binary => (Kind::Binary, 0.0, 0, 0),
            Search::Tree(tree) => (Kind::Tree, 0.0, 0, tree.bytes()),
            Search::Grouped(grouped) => (Kind::Grouped, 0.0, 0, grouped.bytes()),
            Search::Model(model) => {
                (Kind::Model, model.mean_error(), model.max_error(), model.bytes())
            }
        };
        Report { kind, mean_error, max_error, bytes: bytes + size_of_val(self.codes.as_slice()) }
    }
}

/// How many bytes all keys begin with: those that the first and the last share, as they are sorted.
fn common_prefix(keys: &impl Keys) -> usize {
    match keys.len().checked_sub(1) {
        Some(last) => shared(keys.key(0), keys.key(last)),
        None => 0,
    }
}

/// How many bytes two keys begin with in common.
fn shared(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
