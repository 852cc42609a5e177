//! Groups of 64 keys, each with codes behind what its keys have in common: for keys whose first
//! differences are far apart, like URLs, where codes of one place would mostly be equal.
//!
//! Invariants:
//! 1. Group `g` has the keys `64 g..64 g + 64`; all of them begin with the same `prefixes[g]`
//!    bytes.
//! 2. Equal keys may stand in several groups.

use std::cmp::Ordering;
use std::ops::Range;

use super::code::{self, count_below};
use super::stree::STree;
use super::{Keys, shared};

/// Keys in a group.
pub(super) const GROUP: usize = 64;
/// Codes in an eighth of it.
const EIGHTH: usize = GROUP / 8;

pub(super) struct Grouped {
    /// The codes of the first keys, behind the prefix of all keys.
    heads: Box<[u64]>,
    tree: STree,
    prefixes: Box<[u32]>,
    codes: Box<[u64]>,
}

/// The keys of a group and the bytes that they begin with.
pub(super) fn groups(keys: &impl Keys) -> impl Iterator<Item = (Range<usize>, usize)> {
    (0..keys.len()).step_by(GROUP).map(|first| {
        let end = (first + GROUP).min(keys.len());
        (first..end, shared(keys.key(first), keys.key(end - 1)))
    })
}

impl Grouped {
    pub(super) fn new(keys: &impl Keys, prefix: usize) -> Self {
        let rest = |index: usize, prefix: usize| keys.key(index).get(prefix..).unwrap_or_default();
        let mut heads = Vec::new();
        let mut prefixes = Vec::new();
        let mut codes = Vec::with_capacity(keys.len());
        for (group, shared) in groups(keys) {
            heads.push(code::of(rest(group.start, prefix)));
            prefixes.push(u32::try_from(shared).expect("a key is shorter than 4 GiB"));
            codes.extend(group.map(|index| code::of(rest(index, shared))));
        }
        let tree = STree::new(&heads);
        Grouped { heads: heads.into(), tree, prefixes: prefixes.into(), codes: codes.into() }
    }

    /// As [`super::Locator::narrow`]; `code` is that of `key`.
    pub(super) fn narrow(&self, keys: &impl Keys, key: &[u8], code: u64) -> Range<usize> {
        let first = self.tree.lower_bound(&self.heads, code);
        let last = first + code::ties(self.heads.get(first..).unwrap_or_default(), code);
        // Among equal codes the heads themselves decide: those before `low` are below the key,
        // those from `high` on above it.
        let low = partition(first..last, |group| keys.key(group * GROUP) < key);
        let high = partition(low..last, |group| keys.key(group * GROUP) <= key);
        match low.checked_sub(1) {
            None => 0..high.checked_sub(1).map_or(0, |group| self.bounds(keys, key, group).end),
            Some(before) if low == high => self.bounds(keys, key, before),
            Some(before) => {
                let start = self.bounds(keys, key, before).start;
                start..self.bounds(keys, key, high - 1).end
            }
        }
    }

    /// The keys of `group` that may equal `key`.
    fn bounds(&self, keys: &impl Keys, key: &[u8], group: usize) -> Range<usize> {
        let first = group * GROUP;
        let codes = self.codes.get(first..).unwrap_or_default();
        let codes = codes.get(..GROUP).unwrap_or(codes);
        let prefix = self.prefixes.get(group).map_or(0, |prefix| *prefix as usize);
        let shared = keys.key(first).get(..prefix).unwrap_or_default();
        let (head, rest) = key.split_at_checked(prefix).unwrap_or((key, &[]));
        match head.cmp(shared) {
            Ordering::Less => return first..first,
            Ordering::Greater => return first + codes.len()..first + codes.len(),
            Ordering::Equal => {}
        }
        let code = code::of(rest);
        let low = count_in_group(codes, code);
        let equal = code::ties(codes.get(low..).unwrap_or_default(), code);
        first + low..first + low + equal
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.heads)
            + self.tree.bytes()
            + size_of_val(&*self.prefixes)
            + size_of_val(&*self.codes)
    }
}

/// The first of `range` that is not before what is looked for.
fn partition(range: Range<usize>, is_before: impl Fn(usize) -> bool) -> usize {
    let Range { start: mut low, end: mut high } = range;
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// How many codes of a group are below `code`: by the last of every eighth, then within one.
fn count_in_group(codes: &[u64], code: u64) -> usize {
    let (eighths, rest) = codes.as_chunks::<EIGHTH>();
    let below: usize = eighths.iter().map(|[.., last]| usize::from(*last < code)).sum();
    let within = match eighths.get(below) {
        Some(eighth) => count_below(eighth, code),
        None => count_below(rest, code),
    };
    below * EIGHTH + within
}
