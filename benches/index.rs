//! Searches over the keys of an index, and over the tables of a run: which kind `alex` chooses, and
//! what each would have cost.
//!
//! ```text
//! cargo bench --bench index                    # all, several minutes
//! cargo bench --bench index -- url/10000       # one distribution and size
//! cargo bench --bench index -- run/            # the tables of a run
//! cargo bench --bench index -- turns/url       # all searches of these in turns, as a table
//! ```
//!
//! A table has one key for each of its blocks: 64 MiB of blocks of 4 KiB are 16,000. `binary-keys`
//! is binary search over the keys themselves, what an index without codes does. Look-ups are
//! for random keys that are there. "hot" repeats over one table, "cold" takes the
//! next of so many tables that none of them is in a processor's cache.
//!
//! On a machine that does other work too, only "turns" tells searches apart: each takes some
//! thousand look-ups and then the next one its own, many times; of the times, the lower third
//! counts.
//!
//! A run of tables finds the table of a key by the largest key of each, which stands behind two
//! pointers; "build" is what it takes to derive its search, once for each run that an edit changes.

#![expect(clippy::disallowed_types, reason = "what is measured is the time of this processor")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};

#[cfg_attr(test, expect(dead_code, reason = "its tests stand there too"))]
#[path = "../src/alex/mod.rs"]
mod alex;

use alex::{KINDS, Keys, Locator};

const SIZES: [usize; 4] = [1_000, 10_000, 100_000, 1_000_000];
const RUN_SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const COLD_BYTES: usize = 256 << 20;
/// Keys in all tables together, at most.
const COLD_KEYS_MAX: usize = 16 << 20;
/// More than a branch predictor learns by heart.
const ASKED: usize = 100_000;
const SEED: u64 = 1;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let (in_turns, filter) = match filter.strip_prefix("turns/") {
        Some(filter) => (true, filter.to_string()),
        None => (false, filter),
    };
    for (name, make) in DISTRIBUTIONS {
        for size in SIZES {
            let group = format!("{name}/{size}");
            if !is_run(&filter) && is_asked(&group, &filter) {
                let keys = drawn(*make, size);
                match in_turns {
                    true => compare(&group, &keys, Packed::new),
                    false => measure(&mut criterion, &group, &keys, Packed::new),
                }
            }
        }
        for size in RUN_SIZES {
            let group = format!("run/{name}/{size}");
            if is_asked(&group, &filter) {
                let keys = drawn(*make, size);
                if in_turns {
                    compare(&group, &keys, Tables::new);
                    continue;
                }
                measure(&mut criterion, &group, &keys, Tables::new);
                measure_build(&mut criterion, &group, &keys);
            }
        }
    }
    criterion.final_summary();
}

fn is_asked(group: &str, filter: &str) -> bool {
    group.contains(filter) || filter.contains(group)
}

fn is_run(filter: &str) -> bool {
    filter.starts_with("run/")
}

/// A set of keys from a seed.
type Make = fn(&mut Xoshiro256PlusPlus, usize) -> Vec<Vec<u8>>;

const DISTRIBUTIONS: &[(&str, Make)] = &[
    ("sequential", |_, size| numbers((0..size as u64).map(|i| i * 16))),
    ("random", |rng, size| numbers((0..size).map(|_| rng.next_u64()))),
    ("timestamps", timestamps),
    ("clustered", clustered),
    ("user", |rng, size| {
        let mut ids: Vec<u64> = (0..size).map(|_| rng.random_range(0..size as u64 * 16)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|id| format!("user:{id:016}").into_bytes()).collect()
    }),
    ("uuid", |rng, size| (0..size).map(|_| uuid(rng)).collect()),
    ("url", |rng, size| (0..size).map(|_| url(rng, size)).collect()),
    ("e-mail", |rng, size| (0..size).map(|_| email(rng)).collect()),
];

fn numbers(codes: impl Iterator<Item = u64>) -> Vec<Vec<u8>> {
    codes.map(|code| code.to_be_bytes().to_vec()).collect()
}

/// Milliseconds of events that come at random intervals.
fn timestamps(rng: &mut Xoshiro256PlusPlus, size: usize) -> Vec<Vec<u8>> {
    let mut now = 1_700_000_000_000;
    numbers((0..size).map(|_| {
        now += rng.random_range(1..2_000);
        now
    }))
}

/// Ids of many tenants, each counting from 0.
fn clustered(rng: &mut Xoshiro256PlusPlus, size: usize) -> Vec<Vec<u8>> {
    let tenants: Vec<u64> = (0..size.div_ceil(500)).map(|_| rng.next_u64() << 24).collect();
    numbers((0..size).map(|i| tenants.get(i / 500).copied().unwrap_or(0) + (i % 500) as u64 * 16))
}

fn uuid(rng: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    let hex = format!("{:032x}", rng.random::<u128>());
    let part = |range| hex.get(range).unwrap_or_default();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-").into_bytes()
}

fn url(rng: &mut Xoshiro256PlusPlus, size: usize) -> Vec<u8> {
    let host = rng.random_range(0..(size / 50).max(2));
    let (section, page) = (rng.random_range(0..8), rng.random_range(0..1_000_000));
    format!("https://www.site{host:05}.example/section{section}/page-{page:06}.html").into_bytes()
}

fn email(rng: &mut Xoshiro256PlusPlus) -> Vec<u8> {
    const NAMES: [&str; 16] = [
        "anna", "ben", "carla", "david", "eva", "felix", "greta", "hans", "ines", "jan", "klara",
        "lukas", "maria", "nora", "oskar", "paula",
    ];
    let mut name = || NAMES.get(rng.random_range(0..NAMES.len())).copied().unwrap_or_default();
    let (first, last) = (name(), name());
    format!("{first}.{last}{}@mail.example", rng.random_range(0..100_000)).into_bytes()
}

/// Keys as an index has them: one after the other.
struct Packed {
    ends: Vec<u32>,
    bytes: Vec<u8>,
}

impl Packed {
    fn new(keys: &[Vec<u8>]) -> Self {
        let mut packed = Packed { ends: Vec::new(), bytes: Vec::new() };
        for key in keys {
            packed.bytes.extend(key);
            packed.ends.push(u32::try_from(packed.bytes.len()).expect("4 GiB of keys at most"));
        }
        packed
    }
}

impl Keys for Packed {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        let from = match index.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(0),
            None => 0,
        };
        let end = self.ends.get(index).copied().unwrap_or(from);
        self.bytes.get(from as usize..end as usize).unwrap_or_default()
    }
}

/// Tables as a run has them, by their largest keys.
struct Tables(Vec<Arc<OpenTable>>);

struct OpenTable {
    meta: Arc<Bounds>,
    /// What else an open table has beside what says where it ends.
    _rest: [u64; 40],
}

struct Bounds {
    largest: Vec<u8>,
}

impl Tables {
    fn new(keys: &[Vec<u8>]) -> Self {
        let table = |key: &Vec<u8>| {
            let meta = Arc::new(Bounds { largest: key.clone() });
            Arc::new(OpenTable { meta, _rest: [0; 40] })
        };
        Tables(keys.iter().map(table).collect())
    }
}

impl Keys for Tables {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        self.0.get(index).map_or(&[], |table| &table.meta.largest)
    }
}

/// The number of keys that are below `key`: by a locator, or without.
fn rank(keys: &impl Keys, locator: Option<&Locator>, key: &[u8]) -> usize {
    if let Some(locator) = locator {
        return locator.count_below(keys, key);
    }
    let (mut low, mut high) = (0, keys.len());
    while low < high {
        let middle = low + (high - low) / 2;
        if keys.key(middle) < key { low = middle + 1 } else { high = middle }
    }
    low
}

/// Keys that ascend.
fn drawn(make: Make, size: usize) -> Vec<Vec<u8>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut keys = make(&mut rng, size);
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn measure<K: Keys>(
    criterion: &mut Criterion,
    name: &str,
    keys: &[Vec<u8>],
    table: fn(&[Vec<u8>]) -> K,
) {
    let report = Locator::new(&table(keys), None).report();
    eprintln!(
        "{name}: {:?}, error {:.1} mean, {} at most, {:.1} bytes a key",
        report.kind,
        report.mean_error,
        report.max_error,
        report.bytes as f64 / keys.len() as f64
    );
    let asked = asked(keys);
    for (heat, copies) in [("hot", 1), ("cold", copies_of(keys))] {
        let mut group = criterion.benchmark_group(format!("{name}/{heat}"));
        for kind in [None, Some(None)].into_iter().chain(KINDS.map(|kind| Some(Some(kind)))) {
            let label = match kind {
                None => "binary-keys".into(),
                Some(None) => "chosen".into(),
                Some(Some(kind)) => format!("{kind:?}"),
            };
            let build = |_| {
                let keys = table(keys);
                let locator = kind.map(|kind| Locator::new(&keys, kind));
                (keys, locator)
            };
            let tables: Vec<_> = (0..copies).map(build).collect();
            let mut next = 0;
            group.bench_function(BenchmarkId::from_parameter(label), |bencher| {
                bencher.iter(|| {
                    next += 1;
                    let key = asked.get(next % asked.len()).map(Vec::as_slice).unwrap_or_default();
                    let (keys, locator) = tables.get(next % tables.len()).expect("one at least");
                    black_box(rank(keys, locator.as_ref(), key))
                });
            });
        }
        group.finish();
    }
}

/// Keys to look up, at random.
fn asked(keys: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED + 1);
    let draw = |_| keys.get(rng.random_range(0..keys.len())).cloned().unwrap_or_default();
    (0..ASKED).map(draw).collect()
}

/// How many tables of these keys are not in a processor's cache.
fn copies_of(keys: &[Vec<u8>]) -> usize {
    let bytes = keys.iter().map(|key| key.len() + 12).sum();
    COLD_BYTES.div_ceil(bytes).min(COLD_KEYS_MAX.div_ceil(keys.len()))
}

/// Prints what each search takes, in nanoseconds, all measured in turns.
fn compare<K: Keys>(name: &str, keys: &[Vec<u8>], table: fn(&[Vec<u8>]) -> K) {
    const ROUNDS: usize = 21;
    const BATCH: usize = 2_000;
    let asked = asked(keys);
    let kinds = || [None].into_iter().chain(KINDS.map(Some));
    for (heat, copies) in [("hot", 1), ("cold", copies_of(keys))] {
        let tables: Vec<K> = (0..copies).map(|_| table(keys)).collect();
        let locators = kinds().map(|kind| tables.iter().map(move |t| Locator::new(t, kind)));
        let locators: Vec<Vec<Locator>> = locators.map(Iterator::collect).collect();
        let searches = || [None].into_iter().chain(locators.iter().map(Some));
        let mut times = vec![Vec::new(); locators.len() + 1];
        let mut next = 0;
        for _ in 0..ROUNDS {
            for (times, locators) in times.iter_mut().zip(searches()) {
                let start = Instant::now();
                for _ in 0..BATCH {
                    // Each search goes on where the one before it ended.
                    next += 1;
                    let key = asked.get(next % asked.len()).map(Vec::as_slice).unwrap_or_default();
                    let at = next % tables.len();
                    let keys = tables.get(at).expect("one at least");
                    black_box(rank(keys, locators.and_then(|all| all.get(at)), key));
                }
                times.push(start.elapsed().as_secs_f64() * 1e9 / BATCH as f64);
            }
        }
        let third = |times: &mut Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 3).copied().unwrap_or_default()
        };
        let labels = ["keys", "chosen"].into_iter().map(String::from);
        let labels = labels.chain(KINDS.map(|kind| format!("{kind:?}")));
        let cells: Vec<String> =
            labels.zip(&mut times).map(|(label, t)| format!("{label} {:.0}", third(t))).collect();
        let chosen = locators.iter().flatten().next().map(|locator| locator.report().kind);
        eprintln!("{name}/{heat}: {chosen:?}: {}", cells.join(", "));
    }
}

fn measure_build(criterion: &mut Criterion, name: &str, keys: &[Vec<u8>]) {
    let tables = Tables::new(keys);
    criterion.bench_function(&format!("{name}/build"), |bencher| {
        bencher.iter(|| black_box(Locator::new(&tables, None)));
    });
}
