//! What reads cost with values in the tables and with values in the value log, by their size: where
//! `value_threshold` should stand.
//!
//! ```text
//! cargo bench --bench threshold                 # all, about three minutes
//! cargo bench --bench threshold -- scan/1024    # one size of one kind
//! ```
//!
//! 64 MiB of incompressible values were put in random order and merged into one run; they are in
//! the kernel's page cache, an eighth of them fits into the engine's. `get` reads a random key,
//! `scan` 100 neighbours from a random key on, each by one task. What the sizes cost in written
//! bytes: `write_amplification --values 256,512,...`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use futures::executor::block_on;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use seerdb::{DB, DBOptions, Durability, Error};
use tempfile::TempDir;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const SIZES: [usize; 7] = [256, 512, 1024, 2048, 4096, 8192, 16384];
const TOTAL_BYTES: usize = 64 << 20;
const CACHE_BYTES: usize = 8 << 20;
const MEMTABLE_BYTES: usize = 4 << 20;
const SCAN_KEYS: usize = 100;
const SEED: u64 = 1;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    for bytes in SIZES {
        for is_separated in [false, true] {
            let bench = Bench::filled(bytes, is_separated);
            let place = if is_separated { "separated" } else { "in tables" };
            bench.gets(&mut criterion, place);
            bench.scans(&mut criterion, place);
        }
    }
    criterion.final_summary();
}

/// A database, and the directory that goes with it.
struct Bench {
    db: DB,
    bytes: usize,
    keys: usize,
    _dir: TempDir,
}

impl Bench {
    fn filled(bytes: usize, is_separated: bool) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let options = DBOptions::default()
            .durability(Durability::Written)
            .memtable_bytes(MEMTABLE_BYTES)
            .cache_bytes(CACHE_BYTES)
            .value_threshold(is_separated.then_some(bytes));
        let keys = TOTAL_BYTES / bytes;
        let db = block_on(async {
            let db = options.open(dir.path().join("db")).await?;
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
            let mut ids: Vec<usize> = (0..keys).collect();
            ids.shuffle(&mut rng);
            let mut value = vec![0; bytes];
            for id in ids {
                rng.fill_bytes(&mut value);
                db.put(key(id), value.as_slice()).await?;
            }
            db.compact_range(..).await?;
            Ok::<_, Error>(db)
        });
        Bench { db: db.expect("the database is filled"), bytes, keys, _dir: dir }
    }

    fn gets(&self, criterion: &mut Criterion, place: &str) {
        let mut group = criterion.benchmark_group(format!("get/{}", self.bytes));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
        group.bench_function(BenchmarkId::from_parameter(place), |bencher| {
            bencher.iter(|| {
                let key = key(draw(&mut rng, self.keys));
                let value = block_on(async { self.db.get(key).await });
                let value = value.expect("the read succeeds").expect("every key was put");
                black_box(value.len())
            });
        });
        group.finish();
    }

    fn scans(&self, criterion: &mut Criterion, place: &str) {
        let mut group = criterion.benchmark_group(format!("scan/{}", self.bytes));
        group.throughput(Throughput::Elements(SCAN_KEYS as u64));
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
        group.bench_function(BenchmarkId::from_parameter(place), |bencher| {
            bencher.iter(|| {
                let from = key(draw(&mut rng, self.keys - SCAN_KEYS));
                let mut rows = self.db.range(from..).limit(SCAN_KEYS);
                let mut count = 0;
                while let Some((_, value)) = block_on(rows.try_next()).expect("the read succeeds") {
                    count += black_box(value.len()).min(1);
                }
                assert_eq!(count, SCAN_KEYS);
            });
        });
        group.finish();
    }
}

fn key(id: usize) -> String {
    format!("{id:016}")
}

fn draw(rng: &mut Xoshiro256PlusPlus, below: usize) -> usize {
    rand::RngExt::random_range(rng, 0..below)
}
