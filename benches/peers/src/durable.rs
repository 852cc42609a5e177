//! Durable 1 KiB puts of random keys from 1 and 64 writers, each acknowledged by the device.
//!
//! A writer is a task of a runtime with two workers for seerdb, a thread for the blocking engines.
//! Each cell runs on a fresh database for a fixed time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::Result;
use crate::callers;
use crate::config::{CACHE_BYTES, Config, MEMTABLE_BYTES};
use crate::data::{self, Rng, Values};
use crate::engine::{Engine, Setup, Sync, Tree, with_engine};
use crate::report::{Latency, Row, Table, Unit, histogram};

const WRITERS: [u64; 2] = [1, 64];
const KEYS: u64 = 1_000_000_000_000;

pub fn run(config: &Config) -> Result<Table> {
    let mut rows = Vec::new();
    for writers in WRITERS {
        let mut rates = Row::new(&format!("puts, {writers} writers"), Unit::PerSecond);
        let mut latency = Latency::default();
        config.each_round(|peer, round, dir| {
            let seed = config.seed.wrapping_add(round);
            let (rate, times) = with_engine!(peer, E => measure::<E>(config, seed, dir, writers))?;
            rates.add(peer, rate);
            latency.add(peer, &times)
        })?;
        rows.push(rates);
        rows.extend(latency.rows());
    }
    let title = format!("durable: 1 KiB puts, each on the device, {:?} a cell", config.cell_time);
    Ok(Table { title, rows })
}

fn measure<E: Engine>(
    config: &Config,
    seed: u64,
    dir: &Path,
    writers: u64,
) -> Result<(f64, Histogram<u64>)> {
    let runtime = config.runtime()?;
    let setup = Setup {
        sync: Sync::Synced,
        memtable_bytes: MEMTABLE_BYTES,
        cache_bytes: CACHE_BYTES,
        is_direct: false,
        tree: Tree::Default,
        separation: None,
    };
    let engine = runtime.block_on(E::open(dir, setup))?;
    let work = |writer: u64, stop| {
        let seed = Rng::new(seed ^ (writer << 32)).next();
        write_until(engine.clone(), seed, Arc::clone(&config.pool), stop)
    };
    let (elapsed, times) = callers::run::<E, _>(&runtime, writers, config.cell_time, work)?;
    runtime.block_on(engine.close())?;
    Ok((times.len() as f64 / elapsed.as_secs_f64(), times))
}

async fn write_until<E: Engine>(
    engine: E,
    seed: u64,
    pool: Arc<[u8]>,
    is_stopped: Arc<AtomicBool>,
) -> Result<Histogram<u64>> {
    let mut rng = Rng::new(seed);
    let mut values = Values::new(&pool, seed);
    let mut times = histogram()?;
    let mut id = 0;
    while !is_stopped.load(Ordering::Relaxed) {
        id = rng.below(KEYS);
        let value = values.next(id);
        let key = data::key(id);
        let start = Instant::now();
        engine.put(&key, value).await?;
        times.saturating_record(start.elapsed().as_nanos() as u64);
    }
    engine.read(id).await?;
    Ok(times)
}
