//! Where a key stands among sorted keys: models of their distribution where it is smooth, trees
//! where it is not.
//!
//! Keys are compared by their *codes*: eight bytes behind what all keys have in common, as a number
//! that sorts like them. The search is one of five, chosen by what it would cost on the keys at
//! hand ([`cost`]): a model tree after ALEX (Ding et al., 2020), an S+tree, groups with codes of
//! their own, or binary search over codes or over the keys themselves. All are derived from keys
//! that were checked, and none is ever stored.
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
    /// Binary search over the keys: for a few of them, or where codes part none, nothing is faster.
    Plain,
    /// Binary search over codes.
    Binary,
    /// Nodes of 16 codes.
    Tree,
    /// Groups of 64 keys, each with codes behind what they have in common.
    Grouped,
    /// A tree of linear models.
    Model,
}

/// All kinds, in the order in which ties of the cost are broken.
pub(crate) const KINDS: [Kind; 5] =
    [Kind::Plain, Kind::Binary, Kind::Tree, Kind::Grouped, Kind::Model];

/// The common prefix that is kept beside the search.
const PREFIX_BYTES: usize = 32;

enum Search {
    Plain,
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
    prefix: Prefix,
    /// One for each key; those of a grouped search stand in it, a plain one has none.
    codes: Codes,
    search: Search,
}

/// The bytes that all keys begin with; here if they are few, else at the first key, which is far
/// away in memory.
struct Prefix {
    len: usize,
    bytes: [u8; PREFIX_BYTES],
}

impl Prefix {
    fn new(keys: &impl Keys) -> Self {
        let len = common_prefix(keys);
        let mut bytes = [0; PREFIX_BYTES];
        if len > 0 {
            bytes.iter_mut().zip(keys.key(0)).for_each(|(slot, byte)| *slot = *byte);
        }
        Prefix { len, bytes }
    }

    fn get<'a>(&'a self, keys: &'a impl Keys) -> &'a [u8] {
        let first = || keys.key(0).get(..self.len).unwrap_or_default();
        self.bytes.get(..self.len).unwrap_or_else(first)
    }
}

impl Locator {
    /// The locator of this kind, or of the one that costs least on `keys`.
    pub(crate) fn new(keys: &impl Keys, kind: Option<Kind>) -> Self {
        let prefix = Prefix::new(keys);
        let codes = Codes::new(keys, prefix.len);
        match kind {
            Some(kind) => Locator::build(keys, prefix, codes, kind, None),
            None => {
                let model = Model::new(codes.as_slice());
                let kind = cost::cheapest(keys, prefix.len, codes.as_slice(), model.cost());
                Locator::build(keys, prefix, codes, kind, Some(model))
            }
        }
    }

    fn build(
        keys: &impl Keys,
        prefix: Prefix,
        codes: Codes,
        kind: Kind,
        model: Option<Model>,
    ) -> Self {
        let search = match kind {
            Kind::Plain => {
                return Locator { prefix, codes: Codes::default(), search: Search::Plain };
            }
            Kind::Binary => Search::Binary,
            Kind::Tree => Search::Tree(STree::new(codes.as_slice())),
            Kind::Model => Search::Model(model.unwrap_or_else(|| Model::new(codes.as_slice()))),
            Kind::Grouped => {
                let search = Search::Grouped(Grouped::new(keys, prefix.len));
                return Locator { prefix, codes: Codes::default(), search };
            }
        };
        Locator { prefix, codes, search }
    }

    /// The keys that may equal `key`: see the invariants. `keys` are those it was built for.
    pub(crate) fn narrow(&self, keys: &impl Keys, key: &[u8]) -> Range<usize> {
        let len = keys.len();
        if matches!(self.search, Search::Plain) {
            return 0..len;
        }
        let head = key.get(..self.prefix.len).unwrap_or(key);
        match head.cmp(self.prefix.get(keys)) {
            Ordering::Less => return 0..0,
            Ordering::Greater => return len..len,
            Ordering::Equal => {}
        }
        let code = code::of(key, self.prefix.len);
        let codes = self.codes.as_slice();
        let low = match &self.search {
            Search::Plain => return 0..len,
            Search::Binary => codes.partition_point(|c| *c < code),
            Search::Tree(tree) => tree.lower_bound(codes, code),
            Search::Model(model) => model.lower_bound(codes, code),
            Search::Grouped(grouped) => return grouped.narrow(keys, key, self.prefix.len, code),
        };
        low..low + code::ties(codes.get(low..).unwrap_or_default(), code)
    }

    /// The number of keys that are below `key`. `keys` are those it was built for.
    pub(crate) fn count_below(&self, keys: &impl Keys, key: &[u8]) -> usize {
        let Range { start: mut low, end: mut high } = self.narrow(keys, key);
        while low < high {
            let middle = low + (high - low) / 2;
            if keys.key(middle) < key { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// What it is.
    pub(crate) fn report(&self) -> Report {
        let (kind, mean_error, max_error, bytes) = match &self.search {
            Search::Plain => (Kind::Plain, 0.0, 0, 0),
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
