//! The data set that every engine gets: keys, values, their order, and the check of what is read.
//!
//! - A key is 20 bytes: `user` and the record's id as 16 decimal digits, so ids in order are keys
//!   in order.
//! - A value is the record's id, a nonce that no other value of the run has, its own length, and
//!   random bytes: up to its end, or up to its middle and then one random word over and over, so
//!   that LZ4 halves it. It has 1 KiB and is of the second kind where a workload says nothing else.
//! - Every read checks the value's length and the id in it.

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, Zipf};

use crate::Result;

pub const KEY_BYTES: usize = 20;
pub const VALUE_BYTES: usize = 1024;
/// Id, nonce and length.
const STAMP_BYTES: usize = 24;
/// The smallest value of either kind: the stamp is in its random part.
pub const VALUE_BYTES_MIN: usize = 2 * STAMP_BYTES;
const WORD_BYTES: usize = 8;
const POOL_BYTES: usize = 16 << 20;
/// The exponent of YCSB.
const ZIPF_EXPONENT: f64 = 0.99;

pub type Key = [u8; KEY_BYTES];

/// SplitMix64: the order of the operations depends on the seed alone.
#[derive(Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The ids of all records in random order.
pub fn shuffled(records: u64, rng: &mut Rng) -> Vec<u64> {
    let mut ids: Vec<u64> = (0..records).collect();
    for index in (1..ids.len()).rev() {
        ids.swap(index, rng.below(index as u64 + 1) as usize);
    }
    ids
}

/// Draws few records often and most seldom; the popular ones lie all over the key space.
pub struct Zipfian {
    ids_by_rank: Vec<u64>,
    ranks: Zipf<f64>,
    source: Xoshiro256PlusPlus,
}

impl Zipfian {
    pub fn new(records: u64, rng: &mut Rng) -> Result<Self> {
        Ok(Self {
            ids_by_rank: shuffled(records, rng),
            ranks: Zipf::new(records as f64, ZIPF_EXPONENT)?,
            source: Xoshiro256PlusPlus::seed_from_u64(rng.next()),
        })
    }

    pub fn next(&mut self) -> u64 {
        // Ranks begin with 1.
        self.ids_by_rank[self.ranks.sample(&mut self.source) as usize - 1]
    }
}

/// Formats the key of record `id`.
pub fn key(id: u64) -> Key {
    let mut key = *b"user0000000000000000";
    let mut rest = id;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

/// What the values of a workload look like.
#[derive(Clone, Copy)]
pub struct Shape {
    pub bytes: usize,
    /// Whether LZ4 halves them; if not, it does nothing for them.
    pub is_compressible: bool,
}

/// Makes values cheaply enough not to blur the fastest engine: a copy out of a random pool.
pub struct Values<'a> {
    pool: &'a [u8],
    rng: Rng,
    random_bytes: usize,
    buffer: Vec<u8>,
}

/// The random bytes that all values are cut from.
pub fn pool(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ 0x706f_6f6c);
    (0..POOL_BYTES / WORD_BYTES).flat_map(|_| rng.next().to_le_bytes()).collect()
}

impl<'a> Values<'a> {
    pub fn new(pool: &'a [u8], seed: u64) -> Self {
        Self::shaped(pool, seed, Shape { bytes: VALUE_BYTES, is_compressible: true })
    }

    pub fn shaped(pool: &'a [u8], seed: u64, shape: Shape) -> Self {
        let random_bytes = if shape.is_compressible { shape.bytes / 2 } else { shape.bytes };
        Self { pool, rng: Rng::new(seed), random_bytes, buffer: vec![0; shape.bytes] }
    }

    /// A value for record `id` unlike every value before it.
    pub fn next(&mut self, id: u64) -> &[u8] {
        let nonce = self.rng.next();
        let offset = nonce as usize % (self.pool.len() - self.random_bytes);
        let length = self.buffer.len() as u64;
        let (random, pattern) = self.buffer.split_at_mut(self.random_bytes);
        random.copy_from_slice(&self.pool[offset..][..random.len()]);
        for (word, stamp) in random.chunks_exact_mut(WORD_BYTES).zip([id, nonce, length]) {
            word.copy_from_slice(&stamp.to_le_bytes());
        }
        for word in pattern.chunks_exact_mut(WORD_BYTES) {
            word.copy_from_slice(&nonce.to_le_bytes());
        }
        &self.buffer
    }
}

/// Fails unless `value` is a whole value of record `id`.
pub fn check(id: u64, value: Option<&[u8]>) -> Result<()> {
    let Some(value) = value else {
        return Err(format!("record {id} is missing").into());
    };
    let length = value.get(STAMP_BYTES - WORD_BYTES..STAMP_BYTES);
    if length != Some(&(value.len() as u64).to_le_bytes())
        || value[..WORD_BYTES] != id.to_le_bytes()
    {
        return Err(format!("record {id} has a wrong value of {} bytes", value.len()).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_their_ids() {
        assert_eq!(&key(0), b"user0000000000000000");
        assert_eq!(&key(120_045), b"user0000000000120045");
        assert!(key(99) < key(100));
    }

    #[test]
    fn values_differ_and_check_out() {
        let pool = pool(7);
        let mut values = Values::new(&pool, 7);
        let first = values.next(5).to_vec();
        assert_ne!(first, values.next(5));
        assert!(check(5, Some(&first)).is_ok());
        assert!(check(6, Some(&first)).is_err());
        assert!(check(5, Some(&first[1..])).is_err());
        assert!(check(5, None).is_err());
    }

    #[test]
    fn every_shape_checks_out() {
        let pool = pool(7);
        for bytes in [VALUE_BYTES_MIN, 1_000, 8192] {
            for is_compressible in [false, true] {
                let mut values = Values::shaped(&pool, 7, Shape { bytes, is_compressible });
                let value = values.next(5);
                assert_eq!(value.len(), bytes);
                assert!(check(5, Some(value)).is_ok());
                assert!(check(5, Some(&value[..bytes - 1])).is_err());
            }
        }
    }

    #[test]
    fn a_permutation_has_every_record_and_zipfian_has_favourites() {
        let mut rng = Rng::new(7);
        let mut ids = shuffled(1_000, &mut rng);
        assert!(!ids.is_sorted());
        ids.sort_unstable();
        assert!(ids.into_iter().eq(0..1_000));

        let mut zipfian = Zipfian::new(1_000, &mut rng).unwrap();
        let mut counts = vec![0_u32; 1_000];
        for _ in 0..100_000 {
            counts[zipfian.next() as usize] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // The sum of 1 / rank^0.99 over 1,000 ranks is 7.73: the first has 12.9 % of the draws.
        assert!((12_400..13_500).contains(&counts[0]), "{}", counts[0]);
        assert!(counts[999] > 0);
    }
}
