//! Random gets from 64 tasks on a runtime with two workers, all data in the engine's own cache.
//!
//! "from a service" is how an async service has to call the engine: `get().await` for seerdb,
//! `spawn_blocking` for the others. "inline" calls the blocking engines on the worker itself: no
//! service may do that when a read can reach the disk; it bounds what a better pool could give.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use tokio::runtime::Runtime;

use crate::Result;
use crate::ancestor;
use crate::config::{Config, HOT_CACHE_BYTES, MEMTABLE_BYTES};
use crate::data::{Rng, Values};
use crate::engine::{Engine, Setup, Sync, Tree, with_engine};
use crate::report::{Latency, Row, Table, Unit, histogram};

const TASKS: u64 = 64;
/// One get in this many is timed: two clock reads cost a tenth of the fastest get.
const TIMED_EVERY: u64 = 16;

pub fn run(config: &Config) -> Result<Table> {
    let mut service = Row::new("gets from a service", Unit::PerSecond);
    let mut inline = Row::new("gets inline (bound)", Unit::PerSecond);
    let mut latency = Latency::default();
    config.each_round(|peer, round, dir| {
        let seed = config.seed.wrapping_add(round);
        let cells = with_engine!(peer, E => measure::<E>(config, seed, dir))?;
        let [(service_rate, times), (inline_rate, _)] = cells;
        service.add(peer, service_rate);
        inline.add(peer, inline_rate);
        latency.add(peer, &times)
    })?;
    let mut rows = vec![service];
    rows.extend(latency.rows());
    rows.push(inline);
    let title = format!("hotget: {TASKS} tasks, {} x 1 KiB, all in cache", config.records);
    Ok(Table { title, rows })
}

type Cell = (f64, Histogram<u64>);

fn measure<E: Engine>(config: &Config, seed: u64, dir: &Path) -> Result<[Cell; 2]> {
    let runtime = config.runtime()?;
    let setup = Setup {
        sync: Sync::Written,
        memtable_bytes: MEMTABLE_BYTES,
        cache_bytes: HOT_CACHE_BYTES,
        is_direct: false,
        tree: Tree::Default,
        separation: None,
    };
    let engine = runtime.block_on(async {
        let engine = E::open(dir, setup).await?;
        let mut values = Values::new(&config.pool, seed);
        ancestor::load(&engine, config.records, &mut values).await?;
        engine.settle().await?;
        // The first pass fills the cache; the second one is free of misses already.
        for id in (0..config.records).chain(0..config.records) {
            engine.read(id).await?;
        }
        Result::Ok(engine)
    })?;
    let service = cell(config, &runtime, seed, &engine, Caller::Service)?;
    let inline = cell(config, &runtime, seed, &engine, Caller::Inline)?;
    runtime.block_on(engine.close())?;
    Ok([service, inline])
}

#[derive(Clone, Copy)]
enum Caller {
    Service,
    Inline,
}

fn cell<E: Engine>(
    config: &Config,
    runtime: &Runtime,
    seed: u64,
    engine: &E,
    caller: Caller,
) -> Result<Cell> {
    let is_stopped = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let mut tasks = Vec::new();
    for task in 0..TASKS {
        let rng = Rng::new(Rng::new(seed ^ (task << 32)).next());
        let stop = Arc::clone(&is_stopped);
        tasks.push(runtime.spawn(get_until(engine.clone(), config.records, rng, stop, caller)));
    }
    // This thread is not one of the workers, so the end does not wait for a free one.
    std::thread::sleep(config.cell_time);
    is_stopped.store(true, Ordering::Relaxed);
    let mut times = histogram()?;
    let mut gets = 0;
    for task in tasks {
        let (task_gets, task_times) = runtime.block_on(task)??;
        gets += task_gets;
        times.add(task_times)?;
    }
    Ok((gets as f64 / start.elapsed().as_secs_f64(), times))
}

async fn get_until<E: Engine>(
    engine: E,
    records: u64,
    mut rng: Rng,
    is_stopped: Arc<AtomicBool>,
    caller: Caller,
) -> Result<(u64, Histogram<u64>)> {
    let mut times = histogram()?;
    let mut gets = 0;
    while !is_stopped.load(Ordering::Relaxed) {
        let start = (gets % TIMED_EVERY == 0).then(Instant::now);
        let id = rng.below(records);
        match caller {
            Caller::Service => engine.read_from_task(id).await?,
            Caller::Inline => engine.read(id).await?,
        }
        if let Some(start) = start {
            times.saturating_record(start.elapsed().as_nanos() as u64);
        }
        gets += 1;
        // A get that is ready at once must still let the worker's other tasks run.
        tokio::task::consume_budget().await;
    }
    Ok((gets, times))
}
