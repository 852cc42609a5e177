//! Groups of at most 64 keys, each with codes behind what its keys have in common: for keys whose
//! first differences are far apart, like URLs, where codes of one place would mostly be equal.
//!
//! A group ends where keys change early, say from one host to the next, if that makes fewer codes
//! of its own equal. What leads to a group is the code of the shortest key that parts it from the
//! group before: few keys that are looked up have just that code, so that the keys at the
//! boundaries themselves are seldom compared.
//!
//! Invariants:
//! 1. Groups adjoin, and have [`GROUP_MIN`] to [`GROUP`] keys but for the last; all keys of a group
//!    begin with the same `prefix` bytes.
//! 2. `parts[g]` is not above the code of any key of group `g` or behind it, and not below that of
//!    any key before.
//! 3. Equal keys may stand in several groups.

use std::cmp::Ordering;
use std::ops::Range;

use super::code::{self, count_below};
use super::stree::STree;
use super::{Keys, shared};

/// Keys in a group, at most and at least: fewer would cost more memory than they are worth.
pub(super) const GROUP: usize = 64;
const GROUP_MIN: usize = 16;
/// Codes in an eighth of it.
const EIGHTH: usize = GROUP / 8;

pub(super) struct Grouped {
    /// The codes that part a group from the one before, behind the prefix of all keys.
    parts: Box<[u64]>,
    tree: STree,
    groups: Box<[Group]>,
    codes: Box<[u64]>,
}

/// Where a group begins and how many bytes its keys have in common.
struct Group {
    start: u32,
    prefix: u32,
}

/// Divides keys into groups.
pub(super) struct Division<'a, K> {
    keys: &'a K,
    /// What all keys begin with.
    prefix: usize,
    start: usize,
    codes: Vec<u64>,
}

/// A group while it is built.
pub(super) struct Draft<'a> {
    pub(super) start: usize,
    pub(super) prefix: usize,
    /// The code that parts it from the group before.
    pub(super) part: u64,
    pub(super) codes: &'a [u64],
}

impl<'a, K: Keys> Division<'a, K> {
    pub(super) fn new(keys: &'a K, prefix: usize) -> Self {
        Division { keys, prefix, start: 0, codes: Vec::with_capacity(GROUP) }
    }

    /// The next group.
    pub(super) fn next(&mut self) -> Option<Draft<'_>> {
        let start = self.start;
        if start == self.keys.len() {
            return None;
        }
        let (end, prefix) = self.extent(start);
        self.start = end;
        self.encode(start..end, prefix);
        let part = start.checked_sub(1).map_or(0, |before| self.part(before));
        Some(Draft { start, prefix, part, codes: &self.codes })
    }

    /// Where the group from `start` on ends, and what its keys share.
    fn extent(&mut self, start: usize) -> (usize, usize) {
        let keys = self.keys;
        let end = (start + GROUP).min(keys.len());
        let all = shared(keys.key(start), keys.key(end - 1));
        let whole = (end, all);
        if end - start <= 2 * GROUP_MIN {
            return whole;
        }
        self.encode(start..end, all);
        let ties = code::tied(&self.codes);
        if ties == 0 {
            return whole;
        }
        // The last of the places where keys change first.
        let at = |place: &usize| shared(keys.key(place - 1), keys.key(*place));
        let Some(cut) = (start + GROUP_MIN..end).rev().min_by_key(at) else { return whole };
        let prefix = shared(keys.key(start), keys.key(cut - 1));
        self.encode(start..cut, prefix);
        match code::tied(&self.codes) * (end - start) < ties * (cut - start) {
            true => (cut, prefix),
            false => whole,
        }
    }

    fn encode(&mut self, group: Range<usize>, prefix: usize) {
        self.codes.clear();
        self.codes.extend(group.map(|index| code::of(self.keys.key(index), prefix)));
    }

    /// The code of the shortest key above that at `before` and not above the next one.
    fn part(&self, before: usize) -> u64 {
        let (before, next) = (self.keys.key(before), self.keys.key(before + 1));
        let shortest = next.get(..=shared(before, next)).unwrap_or(next);
        code::of(shortest, self.prefix)
    }
}

impl Grouped {
    pub(super) fn new(keys: &impl Keys, prefix: usize) -> Self {
        let (mut parts, mut groups) = (Vec::new(), Vec::new());
        let mut codes = Vec::with_capacity(keys.len());
        let mut division = Division::new(keys, prefix);
        while let Some(draft) = division.next() {
            parts.push(draft.part);
            let [start, prefix] = [draft.start, draft.prefix].map(|number| {
                u32::try_from(number).expect("keys of a table, and bytes of a key, are below 2^32")
            });
            groups.push(Group { start, prefix });
            codes.extend(draft.codes);
        }
        let tree = STree::new(&parts);
        Grouped { parts: parts.into(), tree, groups: groups.into(), codes: codes.into() }
    }

    /// As [`super::Locator::narrow`]; `code` is that of `key`, `prefix` what all keys share.
    pub(super) fn narrow(
        &self,
        keys: &impl Keys,
        key: &[u8],
        prefix: usize,
        code: u64,
    ) -> Range<usize> {
        let first = self.tree.lower_bound(&self.parts, code);
        let last = first + code::ties(self.parts.get(first..).unwrap_or_default(), code);
        // Where codes are equal the first keys decide: those of the groups before `low` are below
        // the key, or the only group whose first key may not be is the last of them; those of the
        // groups from `high` on are above it.
        let head = |group| keys.key(self.keys_of(group).start);
        let low = partition(first..last, |group| head(group) < key);
        let high = partition(low..last, |group| head(group) <= key);
        match low.checked_sub(1) {
            None => 0..high.checked_sub(1).map_or(0, |last| self.keys_of(last).end),
            Some(before) if low == high => self.narrow_in(keys, key, prefix, before),
            Some(before) => {
                let start = self.narrow_in(keys, key, prefix, before).start;
                start..self.narrow_in(keys, key, prefix, high - 1).end
            }
        }
    }

    /// The keys of `group`.
    fn keys_of(&self, group: usize) -> Range<usize> {
        let start_of = |group: usize| self.groups.get(group).map(|group| group.start as usize);
        let end = start_of(group + 1).unwrap_or(self.codes.len());
        start_of(group).unwrap_or(end)..end
    }

    /// The keys of `group` that may equal `key`.
    fn narrow_in(&self, keys: &impl Keys, key: &[u8], all: usize, group: usize) -> Range<usize> {
        let Range { start, end } = self.keys_of(group);
        let codes = self.codes.get(start..end).unwrap_or_default();
        let prefix = self.groups.get(group).map_or(0, |group| group.prefix as usize);
        let head = key.get(..prefix).unwrap_or(key);
        let code = code::of(key, prefix);
        let below = count_in_group(codes, code);
        let low = start + below;
        if prefix > all {
            // Any key of the group tells what it begins with: this one is wanted next.
            let near = keys.key(low.min(end - 1));
            match head.cmp(near.get(..prefix).unwrap_or_default()) {
                Ordering::Less => return start..start,
                Ordering::Greater => return end..end,
                Ordering::Equal => {}
            }
        }
        low..low + code::ties(codes.get(below..).unwrap_or_default(), code)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.parts)
            + self.tree.bytes()
            + size_of_val(&*self.groups)
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
