//! The entries of a block whose hash tag is the wanted one, found sixteen at a time (ADR 9).
//!
//! Invariants:
//! 1. Every index of a tag that is equal comes once, ascending.
//! 2. The instructions are ones that every machine of its kind has, SSE2 or NEON: the same code
//!    and the same answers everywhere, nothing to detect.

use wide::i8x16;

const LANES: usize = 16;

/// The indices of `tag` among the tags that are the end of `bytes`, from `start` on. What stands
/// before them does not matter, but saves a copy.
pub(crate) fn find(bytes: &[u8], start: usize, tag: u8) -> Found<'_> {
    let wanted = i8x16::splat(tag.cast_signed());
    Found { bytes, start, wanted, at: start, base: start, equal: 0 }
}

/// See [`find`].
pub(crate) struct Found<'a> {
    bytes: &'a [u8],
    start: usize,
    wanted: i8x16,
    /// Where in the bytes stands what is to be compared next, and what was compared last.
    at: usize,
    base: usize,
    /// A bit for each tag that was compared last and is equal.
    equal: u32,
}

impl Iterator for Found<'_> {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.equal == 0 {
            let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
            self.base = self.at;
            self.equal = match rest.first_chunk::<LANES>() {
                Some(lanes) => compare(*lanes, self.wanted),
                None => self.compare_rest(rest),
            };
            self.at += LANES;
        }
        let index = self.base - self.start + self.equal.trailing_zeros() as usize;
        self.equal &= self.equal - 1;
        Some(index)
    }
}

impl Found<'_> {
    /// Compares fewer than there are lanes: the last ones of all bytes, where there are as many.
    #[inline]
    fn compare_rest(&self, rest: &[u8]) -> u32 {
        if let Some(lanes) = self.bytes.last_chunk::<LANES>() {
            return compare(*lanes, self.wanted) >> (LANES - rest.len());
        }
        let mut lanes = [0; LANES];
        lanes.iter_mut().zip(rest).for_each(|(lane, tag)| *lane = *tag);
        // A lane behind the last tag may be equal to it.
        compare(lanes, self.wanted) & !(u32::MAX << rest.len())
    }
}

#[inline]
fn compare(lanes: [u8; LANES], wanted: i8x16) -> u32 {
    i8x16::new(lanes.map(u8::cast_signed)).simd_eq(wanted).to_bitmask()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    proptest! {
        /// Few different tags, zeros among them, so that many are equal.
        #[test]
        fn it_finds_what_a_look_at_each_finds(
            before in prop::collection::vec(prop::sample::select(vec![0, 1, 255]), 0..20),
            tags in prop::collection::vec(prop::sample::select(vec![0, 1, 127, 128, 255]), 0..70),
            tag in prop::sample::select(vec![0, 1, 2, 127, 128, 255]),
        ) {
            let one_by_one: Vec<_> = (0..tags.len()).filter(|&at| tags[at] == tag).collect();
            let bytes = [before.as_slice(), &tags].concat();
            let found: Vec<_> = super::find(&bytes, before.len(), tag).collect();
            prop_assert_eq!(found, one_by_one);
        }
    }
}
