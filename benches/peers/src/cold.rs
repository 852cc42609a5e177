//! Gets of random records of which memory holds an eighth: with 64 at once, and one at a time.
//!
//! The records are loaded in random order and settled. Then the kernel forgets its caches, this
//! process gets so much memory as its control group allows, page cache included, and the database
//! is opened anew with a cache of a quarter of that (with `--direct`, half). A reader is a task of
//! a runtime with two workers for seerdb, a thread for the blocking engines. "64 in one call" is
//! `get_many`, or RocksDB's `multi_get`; fjall has no such call.
//!
//! "bare" is what the device gives without any engine: aligned reads of 4 KiB at random places of
//! the largest file, around the page cache, from as many threads. A virtual machine's disk may be
//! in its host's memory.
//!
//! Only root can make the kernel forget, and limit memory; without it the workload is skipped.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Result;
use crate::callers;
use crate::config::Config;
use crate::data::{self, KEY_BYTES, Rng, Shape, VALUE_BYTES, Values};
use crate::disk;
use crate::engine::{Engine, Separation, Setup, Sync, Tree, with_engine};
use crate::memory::Limit;
use crate::report::{Latency, Row, Table, Unit, histogram};

const AT_ONCE: u64 = 64;
/// The data is so many times the memory.
const TIMES: u64 = 8;
/// With less no engine gets by, whatever the data.
const MEMORY_MIN: u64 = 96 << 20;
const PAGE: usize = 4096;
const BARE_TIME: Duration = Duration::from_secs(1);

/// What each engine is asked, in this order.
const CELLS: [(u64, Asked); 4] =
    [(AT_ONCE, Asked::Get), (1, Asked::Get), (1, Asked::Many), (1, Asked::EachOfMany)];
const LABELS: [&str; CELLS.len()] =
    ["gets, 64 at once", "gets, one at a time", "64 in one call", "64 one by one"];

#[derive(Clone, Copy)]
enum Asked {
    Get,
    /// All in one call.
    Many,
    /// As many, one after the other.
    EachOfMany,
}

pub fn run(config: &Config) -> Result<[Table; 2]> {
    let tables = [("in tables", None), ("apart", Some(VALUE_BYTES))];
    let tables = tables.map(|(place, threshold)| measure_all(config, place, threshold));
    let [inside, apart] = tables;
    Ok([inside?, apart?])
}

fn measure_all(config: &Config, place: &str, threshold: Option<usize>) -> Result<Table> {
    if let Err(error) = disk::drop_caches() {
        return Ok(Table { title: format!("cold: skipped: {error}"), rows: Vec::new() });
    }
    let data_bytes = config.records * (KEY_BYTES + VALUE_BYTES) as u64;
    let memory_bytes = (data_bytes / TIMES).max(MEMORY_MIN);
    let mut rates = LABELS.map(|label| Row::new(label, Unit::PerSecond));
    let mut latencies = LABELS.map(|_| Latency::default());
    let mut bare = [AT_ONCE, 1].map(|threads| {
        let label = format!("bare, {threads} threads");
        (Row::new(&label, Unit::PerSecond), Latency::default())
    });
    config.each_round(|peer, round, dir| {
        let seed = config.seed.wrapping_add(round);
        let measured = with_engine!(peer, E => {
            measure::<E>(config, threshold, memory_bytes, seed, dir)
        })?;
        for (index, (rate, times)) in measured.iter().enumerate() {
            rates[index].add(peer, *rate);
            latencies[index].add(peer, times)?;
        }
        for ((row, latency), threads) in bare.iter_mut().zip([AT_ONCE, 1]) {
            let (rate, times) = read_bare(dir, threads, seed)?;
            row.add(peer, rate);
            latency.add(peer, &times)?;
        }
        Ok(())
    })?;
    let mut rows = Vec::new();
    for (row, latency) in rates.into_iter().zip(latencies).chain(bare) {
        rows.push(row);
        rows.extend(latency.rows());
    }
    let title = format!(
        "cold: {} random values of 1 KiB {place}, memory for one in {:.1}",
        config.records,
        data_bytes as f64 / memory_bytes as f64
    );
    Ok(Table { title, rows })
}

type Cell = (f64, Histogram<u64>);

fn measure<E: Engine>(
    config: &Config,
    threshold: Option<usize>,
    memory_bytes: u64,
    seed: u64,
    dir: &Path,
) -> Result<Vec<Cell>> {
    let separation = threshold.map(|threshold_bytes| Separation {
        threshold_bytes,
        space_max: None,
        is_collected: false,
    });
    let setup = Setup {
        sync: Sync::Written,
        memtable_bytes: config.memtable_bytes,
        cache_bytes: (memory_bytes / if config.is_direct { 2 } else { 4 }) as usize,
        is_direct: config.is_direct,
        tree: Tree::Default,
        separation,
    };
    let runtime = config.runtime()?;
    runtime.block_on(async {
        let engine = E::open(dir, setup).await?;
        let mut values = Values::shaped(
            &config.pool,
            seed,
            Shape { bytes: VALUE_BYTES, is_compressible: false },
        );
        for id in data::shuffled(config.records, &mut Rng::new(seed)) {
            engine.put(&data::key(id), values.next(id)).await?;
        }
        engine.settle().await?;
        disk::rest(dir)?;
        engine.close().await
    })?;
    disk::sync()?;
    disk::drop_caches()?;
    let limit = Limit::join(memory_bytes)?;
    let engine = runtime.block_on(E::open(dir, setup))?;
    let mut cells = Vec::new();
    // The first one fills what memory there is.
    for (index, (tasks, asked)) in [CELLS[0]].into_iter().chain(CELLS).enumerate() {
        let seed = Rng::new(seed ^ ((index as u64) << 48)).next();
        let work = |task: u64, stop| {
            let rng = Rng::new(seed ^ (task << 32));
            ask_until(engine.clone(), config.records, rng, asked, stop)
        };
        let (elapsed, times) = callers::run::<E, _>(&runtime, tasks, config.cell_time, work)?;
        cells.push((times.len() as f64 / elapsed.as_secs_f64(), times));
    }
    runtime.block_on(engine.close())?;
    drop(runtime);
    drop(limit);
    Ok(cells.split_off(1))
}

async fn ask_until<E: Engine>(
    engine: E,
    records: u64,
    mut rng: Rng,
    asked: Asked,
    is_stopped: Arc<AtomicBool>,
) -> Result<Histogram<u64>> {
    let mut times = histogram()?;
    while !is_stopped.load(Ordering::Relaxed) {
        let ids: Vec<u64> = match asked {
            Asked::Get => vec![rng.below(records)],
            Asked::Many | Asked::EachOfMany => (0..AT_ONCE).map(|_| rng.below(records)).collect(),
        };
        let start = Instant::now();
        match asked {
            Asked::Many => engine.read_many(&ids).await?,
            Asked::Get | Asked::EachOfMany => {
                for id in ids {
                    engine.read(id).await?;
                }
            }
        }
        times.saturating_record(start.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

/// Reads pages of the largest file in `dir` around the page cache.
fn read_bare(dir: &Path, threads: u64, seed: u64) -> Result<Cell> {
    let path = largest(dir)?;
    let flags = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let pages = file.metadata()?.len() / PAGE as u64;
    let start = Instant::now();
    let results: Vec<Result<Histogram<u64>>> = std::thread::scope(|scope| {
        let reader = |thread: u64| {
            let (file, mut rng) = (&file, Rng::new(seed ^ (thread << 32)));
            scope.spawn(move || {
                let mut times = histogram()?;
                let mut memory = vec![0; 2 * PAGE];
                let skip = memory.as_ptr().align_offset(PAGE);
                while start.elapsed() < BARE_TIME {
                    let begin = Instant::now();
                    let page = &mut memory[skip..skip + PAGE];
                    file.read_exact_at(page, rng.below(pages) * PAGE as u64)?;
                    times.saturating_record(begin.elapsed().as_nanos() as u64);
                }
                Ok(times)
            })
        };
        let running: Vec<_> = (0..threads).map(reader).collect();
        running.into_iter().map(|one| one.join().map_err(|_| "a reader panicked")?).collect()
    });
    let mut times = histogram()?;
    for result in results {
        times.add(result?)?;
    }
    Ok((times.len() as f64 / start.elapsed().as_secs_f64(), times))
}

fn largest(dir: &Path) -> Result<PathBuf> {
    let largest = files(dir)?.into_iter().max();
    Ok(largest.ok_or("there is no file to read")?.1)
}

/// The files in and below `dir`, and how long they are.
fn files(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        match metadata.is_dir() {
            true => found.extend(files(&entry.path())?),
            false => found.push((metadata.len(), entry.path())),
        }
    }
    Ok(found)
}
