//! A load that changes its kind: loading, reads, short scans, reads among puts, loading again.
//!
//! All records are loaded in random order, untimed; then the phases follow each other without a
//! break on the same data, each for `--phase`. What counts are operations in a second over the
//! second half of a phase: the engine has had the first half to settle for it. "Loading" puts
//! uniformly chosen records, "reads" gets them, a short scan reads 16 neighbours, and of the mixed
//! operations every other one is a put. Four callers: tasks of a runtime with two workers for
//! seerdb, threads for RocksDB.
//!
//! The cache holds a quarter of the data; the page cache may hold all of it. seerdb runs with its
//! default, and with K fixed; RocksDB leveled, its default, and universal. The ratios are those of
//! seerdb's default over the best of its fixed K in that phase, and over each RocksDB.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::runtime::Runtime;

use crate::Result;
use crate::callers;
use crate::config::Config;
use crate::data::{self, Rng, Shape, Values};
use crate::engine::{Engine, Peer, Setup, Sync, Tree, with_engine};
use crate::report::{short, spread};
use crate::sustained;

const CALLERS: u64 = 4;
const SCAN_RECORDS: u64 = 16;
/// The part of the data that the engine's own cache holds.
const CACHE_SHARE: usize = 4;
const CACHE_MIN: usize = 1 << 20;

#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    peer: Peer,
    tree: Tree,
}

const DEFAULT: &str = "seerdb";
/// How the names of the variants begin that the default is compared with as one.
const FIXED: &str = "seerdb K=";
const LEVELED: &str = "rocksdb leveled";
const UNIVERSAL: &str = "rocksdb universal";

const VARIANTS: &[Variant] = &[
    #[cfg(feature = "seerdb-engine")]
    Variant { name: DEFAULT, peer: Peer::Seerdb, tree: Tree::Default },
    #[cfg(feature = "seerdb-engine")]
    Variant { name: "seerdb K=1", peer: Peer::Seerdb, tree: Tree::Runs(1) },
    #[cfg(feature = "seerdb-engine")]
    Variant { name: "seerdb K=2", peer: Peer::Seerdb, tree: Tree::Runs(2) },
    #[cfg(feature = "seerdb-engine")]
    Variant { name: "seerdb K=3", peer: Peer::Seerdb, tree: Tree::Runs(3) },
    Variant { name: LEVELED, peer: Peer::Rocksdb, tree: Tree::Default },
    Variant { name: UNIVERSAL, peer: Peer::Rocksdb, tree: Tree::Universal },
];

#[derive(Clone, Copy)]
enum Phase {
    Load,
    Reads,
    Scans,
    Mixed,
}

const PHASES: [(&str, Phase); 5] = [
    ("loading", Phase::Load),
    ("reads", Phase::Reads),
    ("short scans", Phase::Scans),
    ("50:50 mixed", Phase::Mixed),
    ("loading again", Phase::Load),
];

/// Operations in a second of each round, for each variant and phase.
pub struct Rates {
    title: String,
    rows: Vec<(&'static str, [Vec<f64>; PHASES.len()])>,
}

pub fn run(config: &Config) -> Result<Rates> {
    let chosen = VARIANTS.iter().filter(|variant| config.engines.contains(&variant.peer));
    let variants: Vec<Variant> = chosen.copied().collect();
    let title = format!(
        "shift: {} x {} B, {CALLERS} callers, {:?} a phase, the second half of it counts",
        config.records, config.value_bytes, config.phase_time
    );
    let rows = variants.iter().map(|variant| (variant.name, Default::default())).collect();
    let mut rates = Rates { title, rows };
    let indexes: Vec<usize> = (0..variants.len()).collect();
    if indexes.is_empty() {
        return Ok(rates);
    }
    config.each_round_of(
        &indexes,
        |index| variants[index].name,
        |index, round, dir| {
            let variant = variants[index];
            let seed = config.seed.wrapping_add(round);
            let measured = with_engine!(variant.peer, E => {
                measure::<E>(config, variant.tree, seed, dir)
            })?;
            for (samples, rate) in rates.rows[index].1.iter_mut().zip(measured) {
                samples.push(rate);
            }
            Ok(())
        },
    )?;
    Ok(rates)
}

fn measure<E: Engine>(config: &Config, tree: Tree, seed: u64, dir: &Path) -> Result<Vec<f64>> {
    let runtime = config.runtime()?;
    let data_bytes = config.records as usize * (data::KEY_BYTES + config.value_bytes);
    let setup = Setup {
        sync: Sync::Written,
        memtable_bytes: config.memtable_bytes,
        cache_bytes: (data_bytes / CACHE_SHARE).max(CACHE_MIN),
        is_direct: false,
        tree,
        separation: None,
    };
    let shape = Shape { bytes: config.value_bytes, is_compressible: config.is_compressible };
    let engine = runtime.block_on(async {
        let engine = E::open(dir, setup).await?;
        sustained::load(&engine, config, shape, seed).await?;
        Result::Ok(engine)
    })?;
    let mut rates = Vec::new();
    for (number, (_, phase)) in (0..).zip(PHASES) {
        let seed = Rng::new(seed ^ (number << 48)).next();
        half(config, &runtime, &engine, phase, seed)?;
        rates.push(half(config, &runtime, &engine, phase, seed ^ (1 << 40))?);
    }
    runtime.block_on(engine.close())?;
    Ok(rates)
}

/// Half a phase: its operations in a second.
fn half<E: Engine>(
    config: &Config,
    runtime: &Runtime,
    engine: &E,
    phase: Phase,
    seed: u64,
) -> Result<f64> {
    let shape = Shape { bytes: config.value_bytes, is_compressible: config.is_compressible };
    let work = |number: u64, stop| {
        let caller = Caller {
            pool: Arc::clone(&config.pool),
            records: config.records,
            shape,
            seed: Rng::new(seed ^ (number << 32)).next(),
        };
        caller.operate(engine.clone(), phase, stop)
    };
    let time = config.phase_time / 2;
    let (elapsed, counts) = callers::run_each::<E, _, _>(runtime, CALLERS, time, work)?;
    Ok(counts.iter().sum::<u64>() as f64 / elapsed.as_secs_f64())
}

struct Caller {
    pool: Arc<[u8]>,
    records: u64,
    shape: Shape,
    seed: u64,
}

impl Caller {
    /// Does what the phase is about until it is stopped; how often.
    async fn operate<E: Engine>(
        self,
        engine: E,
        phase: Phase,
        is_stopped: Arc<AtomicBool>,
    ) -> Result<u64> {
        let mut rng = Rng::new(self.seed);
        let mut values = Values::shaped(&self.pool, self.seed, self.shape);
        let mut count = 0;
        while !is_stopped.load(Ordering::Relaxed) {
            let id = rng.below(self.records);
            let is_put = match phase {
                Phase::Load => true,
                Phase::Mixed => count % 2 == 0,
                Phase::Reads | Phase::Scans => false,
            };
            if is_put {
                engine.put(&data::key(id), values.next(id)).await?;
            } else if matches!(phase, Phase::Scans) {
                let first = rng.below(self.records.saturating_sub(SCAN_RECORDS) + 1);
                engine.scan(first, SCAN_RECORDS.min(self.records)).await?;
            } else {
                engine.read(id).await?;
            }
            count += 1;
            // What is ready at once must still let the worker's other tasks run.
            tokio::task::consume_budget().await;
        }
        Ok(count)
    }
}

impl Rates {
    /// The median of a phase, of the variants whose names `is_meant`: the highest.
    fn best(&self, phase: usize, is_meant: impl Fn(&str) -> bool) -> Option<f64> {
        let meant = self.rows.iter().filter(|(name, _)| is_meant(name));
        let medians = meant.filter_map(|(_, rates)| Some(spread(&rates[phase])?[1]));
        medians.max_by(f64::total_cmp)
    }

    /// The default over the best of the variants whose names `is_meant`.
    fn ratio(&self, phase: usize, is_meant: impl Fn(&str) -> bool) -> String {
        match (self.best(phase, |name| name == DEFAULT), self.best(phase, is_meant)) {
            (Some(ours), Some(theirs)) => format!("{:.2}x", ours / theirs),
            _ => "-".into(),
        }
    }
}

impl fmt::Display for Rates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.title)?;
        write!(f, "{:<26}", "")?;
        for (label, _) in PHASES {
            write!(f, "{label:>24}")?;
        }
        writeln!(f)?;
        for (name, rates) in &self.rows {
            write!(f, "{name:<26}")?;
            for samples in rates {
                let cell = match spread(samples) {
                    Some([min, median, max]) if min == max => format!("{}/s", short(median)),
                    Some([min, median, max]) => {
                        format!("{}/s ({}-{})", short(median), short(min), short(max))
                    }
                    None => "-".into(),
                };
                write!(f, "{cell:>24}")?;
            }
            writeln!(f)?;
        }
        let mut ratios = |label: &str, is_meant: &dyn Fn(&str) -> bool| {
            write!(f, "{label:<26}")?;
            for phase in 0..PHASES.len() {
                write!(f, "{:>24}", self.ratio(phase, is_meant))?;
            }
            writeln!(f)
        };
        ratios("default / best fixed K", &|name| name.starts_with(FIXED))?;
        ratios("default / rocksdb leveled", &|name| name == LEVELED)?;
        ratios("default / universal", &|name| name == UNIVERSAL)
    }
}
