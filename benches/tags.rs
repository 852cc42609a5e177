//! Ways to find the entries of a block whose hash tag is the wanted one (ADR 9).
//!
//! ```text
//! cargo bench --bench tags
//! ```
//!
//! A block of 4 KiB has 4 entries with values of 1 KiB, 35 with 100 bytes, 120 with 16 bytes. Each
//! look-up is for the tag of one of them, as in a get that finds its key, and asks for all
//! that match, as in one whose key is not there. "hot" repeats over one block, "cold" takes one
//! of so many that none is in a processor's cache: what a get meets.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "the bench made the bytes that it looks at"
)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};

#[path = "../src/sstable/tags.rs"]
mod tags;

const COUNTS: [usize; 5] = [4, 16, 35, 120, 500];
const COLD_BYTES: usize = 256 << 20;
const STRIDE: usize = 4096;
const ASKED: usize = 10_000;

/// Calls `found` with the index of every tag that is `tag`; the tags are the end of the bytes.
type Scan = fn(&[u8], usize, u8, &mut dyn FnMut(usize));

const SCANS: &[(&str, Scan)] =
    &[("memchr", by_memchr), ("one", one_by_one), ("words", by_words), ("lanes", by_lanes)];

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .configure_from_args();
    for count in COUNTS {
        let mut group = criterion.benchmark_group(format!("tags/{count}"));
        for (heat, blocks) in [("hot", 1), ("cold", COLD_BYTES / STRIDE)] {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(count as u64);
            let mut bytes = vec![0; blocks * STRIDE];
            rng.fill_bytes(&mut bytes);
            let asked: Vec<(usize, u8)> = (0..ASKED)
                .map(|_| {
                    let from = rng.random_range(0..blocks) * STRIDE;
                    (from, bytes[from + 2 * count + rng.random_range(0..count)])
                })
                .collect();
            for (name, scan) in SCANS {
                let mut next = asked.iter().cycle();
                group.bench_function(BenchmarkId::new(*name, heat), |b| {
                    b.iter(|| {
                        let (from, tag) = *next.next().unwrap();
                        let mut sum = 0;
                        // Offsets stand before the tags.
                        let block = &bytes[from..from + 3 * count];
                        scan(block, 2 * count, tag, &mut |index| sum += index);
                        black_box(sum)
                    });
                });
            }
        }
        group.finish();
    }
    same_answers();
    criterion.final_summary();
}

fn by_memchr(bytes: &[u8], start: usize, tag: u8, found: &mut dyn FnMut(usize)) {
    memchr::memchr_iter(tag, &bytes[start..]).for_each(found);
}

fn one_by_one(bytes: &[u8], start: usize, tag: u8, found: &mut dyn FnMut(usize)) {
    bytes[start..]
        .iter()
        .enumerate()
        .filter(|(_, found)| **found == tag)
        .for_each(|(index, _)| found(index));
}

/// Eight at a time, in a number.
fn by_words(bytes: &[u8], start: usize, tag: u8, found: &mut dyn FnMut(usize)) {
    let wanted = u64::from_le_bytes([tag; 8]);
    let low = u64::from_le_bytes([0x7F; 8]);
    let (words, rest) = bytes[start..].as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let differs = u64::from_le_bytes(*word) ^ wanted;
        // The high bit of each byte that is zero.
        let mut mask = !(((differs & low) + low) | differs | low);
        while mask != 0 {
            found(index * 8 + mask.trailing_zeros() as usize / 8);
            mask &= mask - 1;
        }
    }
    one_by_one(rest, 0, tag, &mut |index| found(words.len() * 8 + index));
}

fn by_lanes(bytes: &[u8], start: usize, tag: u8, found: &mut dyn FnMut(usize)) {
    tags::find(bytes, start, tag).for_each(found);
}

/// Every way finds the same.
fn same_answers() {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
    for _ in 0..10_000 {
        let mut bytes = vec![0; rng.random_range(0..100)];
        rng.fill_bytes(&mut bytes);
        bytes.iter_mut().for_each(|tag| *tag %= 16);
        let start = rng.random_range(0..=bytes.len());
        let tag = rng.random_range(0..16);
        let answers = SCANS.iter().map(|(_, scan)| {
            let mut all = Vec::new();
            scan(&bytes, start, tag, &mut |index| all.push(index));
            all
        });
        let answers: Vec<_> = answers.collect();
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "{answers:?}");
    }
}
