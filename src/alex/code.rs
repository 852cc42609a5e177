//! Codes: eight bytes of a key as a number.

use super::Keys;

/// The codes of sorted keys.
#[derive(Default)]
pub(super) struct Codes(Box<[u64]>);

impl Codes {
    /// Those of `keys`, which all begin with the same `prefix` bytes.
    pub(super) fn new(keys: &impl Keys, prefix: usize) -> Self {
        let rest = |index| keys.key(index).get(prefix..).unwrap_or_default();
        let codes: Box<[u64]> = (0..keys.len()).map(|index| of(rest(index))).collect();
        assert!(codes.is_sorted(), "the keys are not sorted");
        Codes(codes)
    }

    pub(super) fn as_slice(&self) -> &[u64] {
        &self.0
    }
}

/// The first eight bytes as a number that sorts like them; zeros stand for what is missing.
pub(super) fn of(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        None => {
            let mut chunk = [0; 8];
            chunk.iter_mut().zip(bytes).for_each(|(slot, byte)| *slot = *byte);
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
