//! Scans of 100 separated values of 1 KiB from cold caches, and as many single gets.
//!
//! The records are loaded in random order, so that neighbours in the key space are far apart where
//! values lie in the order of their writing. An engine that takes values apart when it flushes has
//! those of one memtable in the order of their keys: the fewer memtables, the more neighbours
//! adjoin (`--memtable`). Nothing is overwritten, and no garbage collected: BlobDB's collection
//! would sort all the values on the way.
//!
//! The database is opened anew, one scan that is not measured warms up what an open database has
//! in memory; then the kernel forgets its caches before each scan, and no record is read twice.
//! "gets one by one" reads the same number of neighbours, each get after the one before has
//! returned: what a scan without reading ahead costs.
//!
//! Only root can make the kernel forget; without it the workload is skipped. A virtual machine's
//! disk may be in its host's memory: then the figures are of many small requests, not of seeks.

use std::path::Path;
use std::time::Instant;

use hdrhistogram::Histogram;

use crate::Result;
use crate::config::{CACHE_BYTES, Config};
use crate::data::{self, Rng, Shape, VALUE_BYTES, Values};
use crate::disk;
use crate::engine::{Engine, Separation, Setup, Sync, Tree, with_engine};
use crate::report::{Latency, Row, Table, Unit, histogram};

const SCAN_RECORDS: u64 = 100;

pub fn run(config: &Config) -> Result<Table> {
    if let Err(error) = disk::drop_caches() {
        return Ok(Table { title: format!("blobscan: skipped: {error}"), rows: Vec::new() });
    }
    let scans = config.scans.min((config.records / SCAN_RECORDS).saturating_sub(1) / 2);
    if scans == 0 {
        let least = 3 * SCAN_RECORDS;
        return Err(format!("blobscan needs {least} records at least").into());
    }
    let mut rates = ["scans", "gets one by one"].map(|label| Row::new(label, Unit::PerSecond));
    let mut reads = ["  read by each", "  read by each"].map(|l| Row::new(l, Unit::Kibibytes));
    let mut latencies = [Latency::default(), Latency::default()];
    let mut gain = Row::new("scans over gets", Unit::Times);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    config.each_round(|peer, round, dir| {
        let seed = config.seed.wrapping_add(round);
        let cells = with_engine!(peer, E => {
            runtime.block_on(measure::<E>(config, scans, seed, dir))
        })?;
        gain.add(peer, cells[0].rate / cells[1].rate);
        for (index, cell) in cells.iter().enumerate() {
            rates[index].add(peer, cell.rate);
            reads[index].add(peer, cell.read_kib);
            latencies[index].add(peer, &cell.times)?;
        }
        Ok(())
    })?;
    let mut rows = Vec::new();
    for ((rate, read), latency) in rates.into_iter().zip(reads).zip(latencies) {
        rows.push(rate);
        rows.extend(latency.rows());
        rows.push(read);
    }
    rows.push(gain);
    let kind = if config.is_compressible { "half compressible" } else { "random" };
    let title = format!(
        "blobscan: {scans} cold scans of {SCAN_RECORDS} of {} separated values of 1 KiB, {kind}",
        config.records
    );
    Ok(Table { title, rows })
}

struct Cell {
    rate: f64,
    read_kib: f64,
    times: Histogram<u64>,
}

async fn measure<E: Engine>(
    config: &Config,
    scans: u64,
    seed: u64,
    dir: &Path,
) -> Result<[Cell; 2]> {
    let shape = Shape { bytes: VALUE_BYTES, is_compressible: config.is_compressible };
    let separation =
        Separation { threshold_bytes: VALUE_BYTES, space_max: None, is_collected: false };
    let setup = Setup {
        sync: Sync::Written,
        memtable_bytes: config.memtable_bytes,
        cache_bytes: CACHE_BYTES,
        is_direct: false,
        tree: Tree::Default,
        separation: Some(separation),
    };
    let mut rng = Rng::new(seed);
    let engine = E::open(dir, setup).await?;
    let mut values = Values::shaped(&config.pool, seed, shape);
    for id in data::shuffled(config.records, &mut rng) {
        engine.put(&data::key(id), values.next(id)).await?;
    }
    engine.settle().await?;
    disk::rest(dir)?;
    engine.close().await?;
    disk::sync()?;

    let engine = E::open(dir, setup).await?;
    let mut firsts = data::shuffled(config.records / SCAN_RECORDS, &mut rng).into_iter();
    let mut next = || firsts.next().map(|index| index * SCAN_RECORDS).ok_or("too few records");
    engine.scan(next()?, SCAN_RECORDS).await?;
    let (mut by_scan, mut by_gets) = (Sample::new()?, Sample::new()?);
    for _ in 0..scans {
        let first = next()?;
        by_scan.start()?;
        engine.scan(first, SCAN_RECORDS).await?;
        by_scan.stop()?;

        let first = next()?;
        by_gets.start()?;
        for id in first..first + SCAN_RECORDS {
            engine.read(id).await?;
        }
        by_gets.stop()?;
    }
    engine.close().await?;
    Ok([by_scan.cell(), by_gets.cell()])
}

/// Measures one operation at a time, each from cold caches.
struct Sample {
    start: Instant,
    read_before: u64,
    read_bytes: u64,
    times: Histogram<u64>,
}

impl Sample {
    fn new() -> Result<Self> {
        let times = histogram()?;
        Ok(Self { start: Instant::now(), read_before: 0, read_bytes: 0, times })
    }

    fn start(&mut self) -> Result<()> {
        disk::drop_caches()?;
        self.read_before = disk::read()?;
        self.start = Instant::now();
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        self.times.saturating_record(self.start.elapsed().as_nanos() as u64);
        self.read_bytes += disk::read()? - self.read_before;
        Ok(())
    }

    fn cell(self) -> Cell {
        let count = self.times.len() as f64;
        let read_kib = self.read_bytes as f64 / 1024.0 / count;
        Cell { rate: 1e9 / self.times.mean(), read_kib, times: self.times }
    }
}
