//! Where the partitions of a memtable meet, learned from the keys of the memtable before.
//!
//! A partition by key range lets a scan seek one skiplist instead of all. What the ranges should
//! be is not known before the keys come; those of the last memtable are a good guess, and a wrong
//! one only makes the skiplists uneven.
//!
//! Invariants:
//! 1. The bounds are sorted and distinct; there are fewer of them than partitions.
//! 2. A key belongs to the partition whose number is that of the bounds not above it: all versions
//!    of a key stand together, and partitions follow each other in key order.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::PARTITIONS;
use crate::key::KeyBuf;

/// The keys that a sample keeps at most.
const SAMPLE_MAX: usize = 512;

/// The keys at which partitions meet.
#[derive(Default)]
pub(super) struct Bounds {
    keys: Vec<KeyBuf>,
}

impl Bounds {
    /// The number of the partition that `key` belongs to.
    pub(super) fn locate(&self, key: &[u8]) -> usize {
        self.keys.partition_point(|bound| bound.as_slice() <= key)
    }

    /// The number of the last partition that a key can belong to.
    pub(super) fn last(&self) -> usize {
        self.keys.len()
    }
}

/// Keys taken evenly from all that were inserted, in the order of their coming.
pub(super) struct Sample {
    /// Every so many keys one is taken; a power of two.
    stride: AtomicUsize,
    keys: Mutex<Vec<KeyBuf>>,
}

impl Sample {
    pub(super) fn new() -> Self {
        Sample { stride: AtomicUsize::new(1), keys: Mutex::new(Vec::new()) }
    }

    /// Offers the key that came as number `count`, from 0.
    pub(super) fn offer(&self, count: usize, key: &[u8]) {
        // Order: Relaxed. A stale stride takes one key too many.
        let stride = self.stride.load(Ordering::Relaxed);
        if count & (stride - 1) != 0 {
            return;
        }
        let mut keys = self.keys.lock();
        if keys.len() == SAMPLE_MAX {
            let mut keep = false;
            keys.retain(|_| {
                keep = !keep;
                keep
            });
            self.stride.store(stride * 2, Ordering::Relaxed);
        }
        keys.push(KeyBuf::from_slice(key));
    }

    /// Bounds that would have spread the keys evenly.
    pub(super) fn bounds(&self) -> Bounds {
        let mut sample = self.keys.lock().clone();
        sample.sort_unstable();
        let quantile = |i: usize| sample.get(i * sample.len() / PARTITIONS).cloned();
        let mut keys: Vec<KeyBuf> = (1..PARTITIONS).filter_map(quantile).collect();
        keys.dedup();
        debug_assert!(keys.is_sorted(), "quantiles of a sorted sample");
        Bounds { keys }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_spread_keys_evenly_whatever_their_order() {
        for step in [1u64, 7919, 99_991] {
            let sample = Sample::new();
            let keys: Vec<[u8; 8]> =
                (0..100_000u64).map(|i| (i * step % 100_000).to_be_bytes()).collect();
            for (count, key) in keys.iter().enumerate() {
                sample.offer(count, key);
            }
            let bounds = sample.bounds();
            let mut counts = [0usize; PARTITIONS];
            for key in &keys {
                counts[bounds.locate(key)] += 1;
            }
            let most = counts.iter().max().copied().unwrap();
            assert!(most < 2 * 100_000 / PARTITIONS, "step {step}: {counts:?}");
            assert!(sample.keys.lock().len() <= SAMPLE_MAX);
        }
    }

    #[test]
    fn few_or_equal_keys_make_few_bounds() {
        assert_eq!(Sample::new().bounds().last(), 0);
        let sample = Sample::new();
        for count in 0..1000 {
            sample.offer(count, b"same");
        }
        let bounds = sample.bounds();
        assert_eq!(bounds.last(), 1);
        assert_eq!([bounds.locate(b"sam"), bounds.locate(b"same"), bounds.locate(b"t")], [0, 1, 1]);
    }
}
