//! Gets while merging is busy, and while it is idle: what background work adds to their tail.
//!
//! All records are loaded in random order and settled; they fit into the page cache, not into the
//! engine's. Readers get uniformly chosen ones, without writers first, each as fast as it can; or,
//! with `--gets`, so many in a second by the clock, and the time of a get begins when it was due:
//! then the tail is the engine's more than that of a scheduler with too few processors. Then
//! writers overwrite as many in a second as `--rate` says, by the clock, for one time that is not
//! measured and one that is. "written of those due" tells whether the engine held the rate: below
//! 1.00 the figures compare engines that did different work.
//!
//! A reader is a task of a runtime with two workers for seerdb, a thread for the others; so is a
//! writer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Result;
use crate::callers;
use crate::config::Config;
use crate::data::{self, Rng, Shape};
use crate::engine::{Engine, Setup, Sync, Tree, with_engine};
use crate::pace::Pace;
use crate::report::{Latency, Row, Table, Unit, histogram};
use crate::sustained::{self, Watch, Writer};

const READERS: u64 = 8;
const WRITERS: u64 = 2;
/// The part of the data that the engine's own cache holds.
const CACHE_SHARE: usize = 4;
const CACHE_MIN: usize = 1 << 20;
const RATE: f64 = 20_000.0;
const LABELS: [&str; 2] = ["gets, no writers", "gets, merging busy"];

/// Arrivals of puts and of gets; none if there are no writers, and readers do what they can.
#[derive(Clone, Default)]
struct Paces {
    puts: Option<Arc<Pace>>,
    gets: Option<Arc<Pace>>,
}

pub fn run(config: &Config) -> Result<Table> {
    let mut rates = LABELS.map(|label| Row::new(label, Unit::PerSecond));
    let mut latencies = [Latency::default(), Latency::default()];
    let mut tail = Row::new("p99.9, busy / quiet", Unit::Times);
    let mut done = Row::new("written of those due", Unit::Times);
    config.each_round(|peer, round, dir| {
        let seed = config.seed.wrapping_add(round);
        let cells = with_engine!(peer, E => measure::<E>(config, seed, dir))?;
        for (index, cell) in cells.iter().enumerate() {
            rates[index].add(peer, cell.rate);
            latencies[index].add(peer, &cell.times)?;
        }
        let [quiet, busy] = cells;
        let p999 = |cell: &Cell| cell.times.value_at_quantile(0.999) as f64;
        tail.add(peer, p999(&busy) / p999(&quiet));
        done.add(peer, busy.done);
        Ok(())
    })?;
    let mut rows = Vec::new();
    for (rate, latency) in rates.into_iter().zip(latencies) {
        rows.push(rate);
        rows.extend(latency.tail_rows());
    }
    rows.extend([tail, done]);
    let title = format!(
        "busy: {READERS} readers of {} x {} B, overwritten {}/s",
        config.records,
        config.value_bytes,
        config.rate.unwrap_or(RATE)
    );
    Ok(Table { title, rows })
}

struct Cell {
    rate: f64,
    times: Histogram<u64>,
    /// Of the puts that were due.
    done: f64,
}

fn measure<E: Engine>(config: &Config, seed: u64, dir: &Path) -> Result<[Cell; 2]> {
    let runtime = config.runtime()?;
    let data_bytes = config.records as usize * (data::KEY_BYTES + config.value_bytes);
    let setup = Setup {
        sync: Sync::Written,
        memtable_bytes: config.memtable_bytes,
        cache_bytes: (data_bytes / CACHE_SHARE).max(CACHE_MIN),
        is_direct: false,
        tree: Tree::Default,
        separation: None,
    };
    let shape = Shape { bytes: config.value_bytes, is_compressible: config.is_compressible };
    let engine = runtime.block_on(async {
        let engine = E::open(dir, setup).await?;
        sustained::load(&engine, config, shape, seed).await?;
        engine.settle().await?;
        for id in 0..config.records {
            engine.read(id).await?;
        }
        Result::Ok(engine)
    })?;
    let paces = |has_writers: bool| Paces {
        puts: has_writers.then(|| Pace::start(config.rate.unwrap_or(RATE))),
        gets: config.gets.map(Pace::start),
    };
    let quiet = cell(config, &runtime, &engine, shape, seed, &paces(false))?;
    cell(config, &runtime, &engine, shape, seed ^ (1 << 48), &paces(true))?;
    let busy = cell(config, &runtime, &engine, shape, seed ^ (2 << 48), &paces(true))?;
    runtime.block_on(engine.close())?;
    Ok([quiet, busy])
}

fn cell<E: Engine>(
    config: &Config,
    runtime: &tokio::runtime::Runtime,
    engine: &E,
    shape: Shape,
    seed: u64,
    paces: &Paces,
) -> Result<Cell> {
    let watch = Watch::new(Duration::MAX);
    let work = |number: u64, stop: Arc<AtomicBool>| {
        let engine = engine.clone();
        let seed = Rng::new(seed ^ (number << 32)).next();
        let writer = Writer::new(config, shape, seed);
        let (paces, watch, records) = (paces.clone(), Arc::clone(&watch), config.records);
        async move {
            if number < READERS {
                let times = get_until(engine, records, seed, paces.gets, stop).await?;
                return Ok((times, histogram()?));
            }
            Ok((histogram()?, writer.overwrite(engine, paces.puts, watch, stop).await?))
        }
    };
    let callers = READERS + if paces.puts.is_some() { WRITERS } else { 0 };
    let (elapsed, results) =
        callers::run_each::<E, _, _>(runtime, callers, config.cell_time, work)?;
    let due = paces.puts.as_ref().map_or(1.0, |pace| pace.due());
    let (mut times, mut puts) = (histogram()?, 0);
    for (own, written) in results {
        times.add(own)?;
        puts += written.len();
    }
    let rate = times.len() as f64 / elapsed.as_secs_f64();
    Ok(Cell { rate, times, done: puts as f64 / due })
}

async fn get_until<E: Engine>(
    engine: E,
    records: u64,
    seed: u64,
    pace: Option<Arc<Pace>>,
    is_stopped: Arc<AtomicBool>,
) -> Result<Histogram<u64>> {
    let mut rng = Rng::new(seed);
    let mut times = histogram()?;
    while !is_stopped.load(Ordering::Relaxed) {
        let id = rng.below(records);
        let start = match &pace {
            Some(pace) => pace.next().await,
            None => Instant::now(),
        };
        engine.read(id).await?;
        times.saturating_record(start.elapsed().as_nanos() as u64);
        // A get that is ready at once must still let the worker's other tasks run.
        tokio::task::consume_budget().await;
    }
    Ok(times)
}
