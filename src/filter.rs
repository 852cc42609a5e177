//! A Bloom filter whose probes for one key stay within one cache line.
//!
//! The encoding is `64 * lines` bytes of little-endian words and one byte, the number of probes;
//! the empty encoding is the filter that excludes nothing.
//!
//! Invariants:
//! 1. A key that was added is never excluded, whatever the bits per key.
//! 2. The line comes from the high half of the key's hash, the probes from its low half, the tag
//!    that blocks keep from bits that matter to neither unless a filter has over 2^24 lines.
//! 3. [`key_hash`] and the choice of bits are part of the table format: frozen.

use bytes::Bytes;

use crate::codec::Sink;

/// The bits of one line: a cache line of the CPUs in use.
const LINE_BITS: u64 = 512;
const LINE_BYTES: usize = 64;
/// A bound far above every sensible filter, so that its length fits a block handle.
const LINES_MAX: u64 = 1 << 24;
/// The largest encoded filter.
pub(crate) const FILTER_BYTES_MAX: usize = (1 << 24) * LINE_BYTES + 1;
/// More probes than this cost time without excluding more: the line itself is the limit.
const PROBES_MAX: u8 = 16;
/// An odd number near 2^32 divided by the golden ratio: successive products spread the probes.
const SPREAD: u32 = 0x9E37_79B9;

/// The hash of a user key: filters, block tags and partitions all draw on it.
pub(crate) fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The eight bits of a key's hash that stand beside its entry in a block.
pub(crate) fn hash_tag(hash: u64) -> u8 {
    let [_, _, _, _, tag, ..] = hash.to_le_bytes();
    tag
}

/// The line of `lines` that `hash` falls into.
fn line_of(hash: u64, lines: u64) -> usize {
    usize::try_from(((hash >> 32) * lines) >> 32).expect("there are at most LINES_MAX lines")
}

/// The probed positions of `hash` as word and bit mask.
fn probes(hash: u64, count: u8) -> impl Iterator<Item = (usize, u64)> {
    let low = u32::try_from(hash & u64::from(u32::MAX)).expect("masked to 32 bits");
    let mut state = low;
    (0..count).map(move |_| {
        state = state.wrapping_mul(SPREAD);
        ((state >> 29) as usize, 1u64 << ((state >> 23) & 63))
    })
}

/// Collects the hashes of a table's keys; the size is known only when the last one is in.
#[derive(Default)]
pub(crate) struct FilterBuilder {
    hashes: Vec<u64>,
}

impl FilterBuilder {
    pub(crate) fn new() -> Self {
        FilterBuilder::default()
    }

    /// Adds a key; the versions of one key, added one after the other, count once.
    pub(crate) fn add(&mut self, hash: u64) {
        if self.hashes.last() != Some(&hash) {
            self.hashes.push(hash);
        }
    }

    /// The number of keys.
    #[cfg(test)]
    pub(crate) fn keys(&self) -> usize {
        self.hashes.len()
    }

    /// The size of the encoded filter if it were finished now.
    pub(crate) fn estimated_bytes(&self, bits_per_key: f64) -> usize {
        let lines = lines_for(self.hashes.len(), bits_per_key);
        usize::try_from(lines).map_or(0, |lines| lines * LINE_BYTES + 1)
    }

    /// The encoded filter; empty when `bits_per_key` is 0 or there are no keys.
    pub(crate) fn finish(self, bits_per_key: f64) -> Vec<u8> {
        let lines = lines_for(self.hashes.len(), bits_per_key);
        if lines == 0 {
            return Vec::new();
        }
        let count = probes_for(bits_per_key);
        let mut words = vec![[0u64; 8]; usize::try_from(lines).expect("at most LINES_MAX")];
        let count_kept = self.hashes.len() - usize::from(planted!(FilterForgetsLast));
        for hash in self.hashes.into_iter().take(count_kept) {
            let line = words.get_mut(line_of(hash, lines)).expect("line_of is below lines");
            for (word, mask) in probes(hash, count) {
                if let Some(word) = line.get_mut(word) {
                    *word |= mask;
                }
            }
        }
        let mut out = Vec::with_capacity(words.len() * LINE_BYTES + 1);
        for word in words.iter().flatten() {
            out.put_u64(*word);
        }
        out.put_u8(count);
        out
    }
}

#[expect(clippy::cast_possible_truncation, reason = "saturates, and is clamped to LINES_MAX")]
fn lines_for(keys: usize, bits_per_key: f64) -> u64 {
    if keys == 0 || bits_per_key <= 0.0 {
        return 0;
    }
    let bits = (keys as f64 * bits_per_key).ceil() as u64;
    bits.div_ceil(LINE_BITS).clamp(1, LINES_MAX)
}

#[expect(clippy::cast_possible_truncation, reason = "clamped to 1..=PROBES_MAX")]
fn probes_for(bits_per_key: f64) -> u8 {
    // ln 2 would be best for unbounded filters; uneven filling of the lines asks for fewer probes.
    (bits_per_key * 0.6).round().clamp(1.0, f64::from(PROBES_MAX)) as u8
}

/// The share of keys that were not added and pass a filter of so many bits per key: the number of
/// keys in a line is Poisson distributed, and each line is a Bloom filter for its own (Putze,
/// Sanders, Singler: Cache-, hash- and space-efficient Bloom filters, 2007).
pub(crate) fn expected_false_positives(bits_per_key: f64) -> f64 {
    if bits_per_key <= 0.0 {
        return 1.0;
    }
    let probes = f64::from(probes_for(bits_per_key));
    if probes == 1.0 {
        // The sum below has this closed form, and too many terms when a line has very many keys.
        return 1.0 - (-1.0 / bits_per_key).exp();
    }
    let mean = LINE_BITS as f64 / bits_per_key;
    let unset_by_a_probe = 1.0 - 1.0 / LINE_BITS as f64;
    let most = 2.0 * mean + 64.0;
    let (mut rate, mut ln_share, mut keys) = (0.0, -mean, 0.0);
    while keys < most {
        let set = 1.0 - unset_by_a_probe.powf(probes * keys);
        rate += ln_share.exp() * set.powf(probes);
        keys += 1.0;
        ln_share += (mean / keys).ln();
    }
    rate
}

/// One cache line of filter words.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

/// A filter to ask.
pub(crate) struct Filter {
    lines: Box<[Line]>,
    probes: u8,
    false_positives: f64,
}

impl Filter {
    /// The filter that excludes nothing.
    pub(crate) fn empty() -> Self {
        Filter { lines: Box::default(), probes: 0, false_positives: 1.0 }
    }

    /// The filter that was encoded as `bytes`, if they are one. The words are copied, so that
    /// every line is aligned to a cache line and the bytes can go.
    pub(crate) fn decode(bytes: Bytes) -> Option<Filter> {
        if bytes.is_empty() {
            return Some(Filter::empty());
        }
        let (words, probes) = bytes.split_at_checked(bytes.len() - 1)?;
        let (chunks, rest) = words.as_chunks::<LINE_BYTES>();
        let probes = *probes.first()?;
        let valid = (1..=PROBES_MAX).contains(&probes)
            && rest.is_empty()
            && (1..=LINES_MAX).contains(&(chunks.len() as u64));
        if !valid {
            return None;
        }
        let mut passing = 0.0;
        let lines = chunks.iter().map(|chunk| {
            let mut line = [0u64; 8];
            for (slot, word) in line.iter_mut().zip(chunk.as_chunks::<8>().0) {
                *slot = u64::from_le_bytes(*word);
            }
            let ones: u32 = line.iter().map(|word| word.count_ones()).sum();
            passing += (f64::from(ones) / LINE_BITS as f64).powi(i32::from(probes));
            Line(line)
        });
        let lines: Box<[Line]> = lines.collect();
        let false_positives = passing / lines.len() as f64;
        Some(Filter { lines, probes, false_positives })
    }

    /// Whether a key with this hash may have been added; `false` is certain.
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        let Some(line) = self.lines.get(line_of(hash, self.lines.len() as u64)) else {
            return true;
        };
        probes(hash, self.probes)
            .all(|(word, mask)| line.0.get(word).is_some_and(|w| w & mask != 0))
    }

    /// The share of keys that were not added and pass: counted from the bits that are set, a key
    /// being as likely to probe one as another.
    pub(crate) fn false_positives(&self) -> f64 {
        self.false_positives
    }

    /// The memory it takes, in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        size_of_val(&*self.lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(keys: u64, bits_per_key: f64) -> Filter {
        let mut builder = FilterBuilder::new();
        for key in 0..keys {
            builder.add(key_hash(&key.to_be_bytes()));
        }
        Filter::decode(Bytes::from(builder.finish(bits_per_key))).unwrap()
    }

    #[test]
    fn false_positives_stay_near_the_measured_rates() {
        const KEYS: u64 = 50_000;
        for (bits, low, high) in
            [(5.0, 0.07, 0.11), (8.0, 0.018, 0.028), (10.0, 0.008, 0.0115), (14.0, 0.001, 0.0024)]
        {
            let filter = build(KEYS, bits);
            assert!((0..KEYS).all(|key| filter.may_contain(key_hash(&key.to_be_bytes()))));
            let wrong = (KEYS..KEYS * 5)
                .filter(|key| filter.may_contain(key_hash(&key.to_be_bytes())))
                .count();
            let rate = wrong as f64 / (KEYS * 4) as f64;
            assert!((low..high).contains(&rate), "{bits} bits per key: {rate}");
        }
    }

    #[test]
    fn what_is_counted_and_what_is_expected_is_what_happens() {
        const KEYS: u64 = 100_000;
        for bits in [0.2, 1.0, 2.4, 3.0, 5.0, 8.5, 10.0, 13.6, 16.0] {
            let filter = build(KEYS, bits);
            let passes = |key: &u64| filter.may_contain(key_hash(&key.to_be_bytes()));
            let wrong = (KEYS..KEYS * 21).filter(passes).count();
            let rate = wrong as f64 / (KEYS * 20) as f64;
            for told in [filter.false_positives(), expected_false_positives(bits)] {
                let off = (told / rate - 1.0).abs();
                assert!(off < 0.12, "{bits} bits per key: {rate} of keys pass, not {told}");
            }
        }
        assert_eq!(expected_false_positives(0.0), 1.0);
        for bits in [f64::from_bits(1), 1e-9, 1e-3] {
            assert_eq!(expected_false_positives(bits), 1.0, "{bits} bits per key");
        }
        assert_eq!(build(0, 10.0).false_positives(), 1.0);
    }

    #[test]
    fn odd_sizes_never_exclude_a_key() {
        for keys in [1, 2, 3, 100] {
            for bits in [0.0, 0.1, 1.0, 25.2, 64.0] {
                let filter = build(keys, bits);
                assert!((0..keys).all(|key| filter.may_contain(key_hash(&key.to_be_bytes()))));
            }
        }
        assert!(build(0, 10.0).may_contain(7), "no keys: the empty filter");
        assert!(Filter::empty().may_contain(7));
    }

    #[test]
    fn versions_of_a_key_count_once() {
        let mut builder = FilterBuilder::new();
        builder.add(1);
        builder.add(1);
        builder.add(2);
        assert_eq!(builder.keys(), 2);
    }

    #[test]
    fn bytes_that_are_no_filter_are_refused() {
        for bytes in [&[6u8][..], &[0; 64], &[0; 65], &[17; 65], &[1; 66]] {
            assert!(Filter::decode(Bytes::copy_from_slice(bytes)).is_none(), "{}", bytes.len());
        }
        assert!(Filter::decode(Bytes::from_static(&[1; 65])).is_some());
    }
}
