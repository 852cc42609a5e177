//! Codes: eight bytes of a key as a number.

use super::Keys;

/// The codes of sorted keys.
#[derive(Default)]
pub(super) struct Codes(Box<[u64]>);

impl Codes {
    /// Those of `keys`, which all begin with the same `prefix` bytes.
    pub(super) fn new(keys: &impl Keys, prefix: usize) -> Self {
        let codes: Box<[u64]> = (0..keys.len()).map(|index| of(keys.key(index), prefix)).collect();
        assert!(codes.is_sorted(), "the keys are not sorted");
        Codes(codes)
    }

    pub(super) fn as_slice(&self) -> &[u64] {
        &self.0
    }
}

/// The eight bytes of `key` behind its first `prefix` as a number that sorts like them; zeros stand
/// for what is missing.
pub(super) fn of(key: &[u8], prefix: usize) -> u64 {
    let rest = key.get(prefix..).unwrap_or_default();
    match (rest.first_chunk::<8>(), key.last_chunk::<8>()) {
        (Some(bytes), _) => u64::from_be_bytes(*bytes),
        // What is missing is pushed out by what stands before: one load, where the bytes one by
        // one would have to reach memory first.
        (None, Some(bytes)) => {
            let last = u64::from_be_bytes(*bytes);
            match rest {
                [] => 0,
                rest => last << (8 * (8 - rest.len())),
            }
        }
        (None, None) => {
            let mut chunk = [0; 8];
            chunk.iter_mut().zip(rest).for_each(|(slot, byte)| *slot = *byte);
            u64::from_be_bytes(chunk)
        }
    }
}

/// How many codes at the beginning equal `code`; none of them is below it.
pub(super) fn ties(codes: &[u64], code: u64) -> usize {
    let equals = |place: usize| codes.get(place) == Some(&code);
    // Most runs are short, and what lies behind them is far away in memory.
    let (mut low, mut high) = (0, 1);
    while equals(high - 1) {
        low = high;
        high *= 2;
    }
    let between = codes.get(low..high.min(codes.len())).unwrap_or_default();
    low + between.partition_point(|c| *c == code)
}

/// How many codes of an ascending slice are below `code`; without a branch on any of them.
pub(super) fn count_below(codes: &[u64], code: u64) -> usize {
    codes.iter().map(|c| usize::from(*c < code)).sum()
}

/// How many of the first `COUNT` codes, or of all if there are fewer, are below `code`: by the last
/// of every four, then within four. That is less to compare than all of them, and little enough
/// that no compiler spoils it with vectors of single bits.
pub(super) fn count_in<const COUNT: usize>(codes: &[u64], code: u64) -> usize {
    let Some(codes) = codes.first_chunk::<COUNT>() else { return count_below(codes, code) };
    let (fours, _) = codes.as_chunks::<4>();
    let whole = fours.split_last().map_or(fours, |(_, before)| before);
    let below: usize = whole.iter().map(|[.., last]| usize::from(*last < code)).sum();
    4 * below + fours.get(below).map_or(0, |four| count_below(four, code))
}

/// How many codes equal one of their neighbours.
pub(super) fn tied(codes: &[u64]) -> usize {
    codes.chunk_by(|a, b| a == b).map(<[u64]>::len).filter(|len| *len > 1).sum()
}
