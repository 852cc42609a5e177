//! The data set that every engine gets: keys, values, their order, and the check of what is read.
//!
//! - A key is 20 bytes: `user` and the record's id as 16 decimal digits, so ids in order are keys
//!   in order.
//! - A value is 1 KiB: the record's id, a nonce that no other value of the run has, random bytes
//!   up to the middle; the second half repeats one random word, so LZ4 halves it.
//! - Every read checks the value's length and the id in it.

use crate::Result;

pub const KEY_BYTES: usize = 20;
pub const VALUE_BYTES: usize = 1024;
const PATTERN_OFFSET: usize = VALUE_BYTES / 2;
const STAMP_BYTES: usize = 8;
const POOL_BYTES: usize = 16 << 20;

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

/// Makes values cheaply enough not to blur the fastest engine: a copy out of a random pool.
pub struct Values<'a> {
    pool: &'a [u8],
    rng: Rng,
    buffer: [u8; VALUE_BYTES],
}

/// The random bytes that all values are cut from.
pub fn pool(seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ 0x706f_6f6c);
    (0..POOL_BYTES / 8).flat_map(|_| rng.next().to_le_bytes()).collect()
}

impl<'a> Values<'a> {
    pub fn new(pool: &'a [u8], seed: u64) -> Self {
        Self { pool, rng: Rng::new(seed), buffer: [0; VALUE_BYTES] }
    }

    /// A value for record `id` unlike every value before it.
    pub fn next(&mut self, id: u64) -> &[u8] {
        let nonce = self.rng.next();
        let offset = nonce as usize % (self.pool.len() - PATTERN_OFFSET);
        self.buffer[..PATTERN_OFFSET].copy_from_slice(&self.pool[offset..][..PATTERN_OFFSET]);
        self.buffer[..STAMP_BYTES].copy_from_slice(&id.to_le_bytes());
        self.buffer[STAMP_BYTES..2 * STAMP_BYTES].copy_from_slice(&nonce.to_le_bytes());
        for word in self.buffer[PATTERN_OFFSET..].chunks_exact_mut(STAMP_BYTES) {
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
    if value.len() != VALUE_BYTES || value[..STAMP_BYTES] != id.to_le_bytes() {
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
}
