//! The hot pieces, through the public interface, one task.
//!
//! ```text
//! cargo bench --bench micro              # all, about half a minute
//! cargo bench --bench micro -- get       # those whose name contains "get"
//! ```
//!
//! Values are 100 bytes, keys 16. What depends on the device (`put_synced`) says so by its name;
//! the others stay in memory, apart from the log's writes to the page cache.

use std::hint::black_box;
use std::time::Duration;

use criterion::Criterion;
use futures::executor::block_on;
use seerdb::{DB, DBOptions, Durability};
use tempfile::TempDir;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const KEYS: u64 = 100_000;
const VALUE: [u8; 100] = [7; 100];
/// Has no factor in common with [`KEYS`]: its multiples visit every key before they repeat one.
const STRIDE: u64 = 61_803;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    reads(&mut criterion, Place::Memtable);
    reads(&mut criterion, Place::Cache);
    writes(&mut criterion);
    criterion.final_summary();
}

/// Where the keys are when they are read.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Memtable,
    Cache,
}

impl Place {
    fn name(self, what: &str) -> String {
        match self {
            Place::Memtable => format!("{what}/memtable"),
            Place::Cache => format!("{what}/cache"),
        }
    }
}

/// A database, and the directory that goes with it.
struct Bench {
    db: DB,
    next: u64,
    _dir: TempDir,
}

impl Bench {
    fn new(durability: Durability) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let options = DBOptions::default().durability(durability);
        let db = block_on(options.open(dir.path().join("db"))).expect("the database opens");
        Bench { db, next: 0, _dir: dir }
    }

    fn filled(place: Place) -> Self {
        let mut bench = Bench::new(Durability::Written);
        for _ in 0..KEYS / 1_000 {
            bench.commit_batch(1_000);
        }
        if place == Place::Cache {
            block_on(bench.db.flush()).expect("the memtable is written");
            let mut rows = bench.db.iter();
            let mut count = 0;
            while block_on(rows.try_next()).expect("a row is read").is_some() {
                count += 1;
            }
            assert_eq!(count, KEYS);
        }
        bench
    }

    /// Every number is drawn once before one is drawn again.
    fn next_number(&mut self) -> u64 {
        self.next = (self.next + STRIDE) % KEYS;
        self.next
    }

    fn next_key(&mut self) -> [u8; 16] {
        key(2 * self.next_number())
    }

    fn commit_batch(&mut self, count: usize) {
        let mut batch = self.db.batch();
        for _ in 0..count {
            batch.put(self.next_key(), VALUE);
        }
        block_on(batch.commit().into_future()).expect("the batch is committed");
    }
}

/// The key of an even number is there, that of an odd one is not.
fn key(number: u64) -> [u8; 16] {
    let mut key = *b"bench:k:........";
    let (_, tail) = key.split_at_mut(8);
    tail.copy_from_slice(&number.to_be_bytes());
    key
}

fn reads(criterion: &mut Criterion, place: Place) {
    let mut bench = Bench::filled(place);
    criterion.bench_function(&place.name("get"), |b| {
        b.iter(|| {
            let key = bench.next_key();
            let found = block_on(bench.db.get(key).into_future()).expect("a get succeeds");
            assert!(black_box(found).is_some());
        });
    });
    criterion.bench_function(&place.name("get_absent"), |b| {
        b.iter(|| {
            let absent = key(2 * bench.next_number() + 1);
            let found = block_on(bench.db.get(absent).into_future()).expect("a get succeeds");
            assert!(black_box(found).is_none());
        });
    });
    criterion.bench_function(&place.name("get_many_64"), |b| {
        b.iter(|| {
            let keys: Vec<_> = (0..64).map(|_| bench.next_key()).collect();
            let found = block_on(bench.db.get_many(keys)).expect("a get_many succeeds");
            assert!(black_box(found).iter().all(Option::is_some));
        });
    });
    criterion.bench_function(&place.name("scan_100"), |b| {
        b.iter(|| {
            let from = bench.next_key().min(key(2 * (KEYS - 100)));
            let mut rows = bench.db.range(from..).limit(100);
            let mut count = 0;
            while let Some(row) = block_on(rows.try_next()).expect("a row is read") {
                black_box(row);
                count += 1;
            }
            assert_eq!(count, 100);
        });
    });
}

fn writes(criterion: &mut Criterion) {
    for (name, durability) in [
        ("put_buffered", Durability::Buffered),
        ("put_written", Durability::Written),
        ("put_synced", Durability::Synced),
    ] {
        let mut bench = Bench::new(durability);
        criterion.bench_function(name, |b| {
            b.iter(|| {
                let key = bench.next_key();
                block_on(bench.db.put(key, VALUE).into_future()).expect("a put succeeds");
            });
        });
    }
    let mut bench = Bench::new(Durability::Written);
    criterion.bench_function("batch_100", |b| {
        b.iter(|| bench.commit_batch(100));
    });
}
