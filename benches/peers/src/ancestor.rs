//! The ancestor's table: sequential writes, random reads, 50:50 mixed, scans of 100; one task.
//!
//! Writes are acknowledged when the kernel has them. After the writes every engine brings them into
//! tables and finishes its background work (the row "settled" counts that time too), then one
//! untimed pass of random reads fills the caches, then reads, mixed and scans are timed.

use std::future::Future;
use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::config::{CACHE_BYTES, Config, MEMTABLE_BYTES};
use crate::data::{self, Rng, Values};
use crate::engine::{Engine, Setup, Sync, Tree, with_engine};
use crate::report::{Row, Table, Unit};

const SCANS: u64 = 1_000;
const SCAN_RECORDS: u64 = 100;
const LABELS: [&str; 5] =
    ["sequential writes", "writes, settled", "random reads", "50:50 mixed", "scans of 100"];

pub fn run(config: &Config) -> Result<Table> {
    let mut rows = LABELS.map(|label| Row::new(label, Unit::PerSecond));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    config.each_round(|peer, round, dir| {
        let rates = with_engine!(peer, E => {
            runtime.block_on(measure::<E>(config, config.seed.wrapping_add(round), dir))
        })?;
        for (row, rate) in rows.iter_mut().zip(rates) {
            row.add(peer, rate);
        }
        Ok(())
    })?;
    let title =
        format!("ancestor: {} x 1 KiB, one task, acknowledged when written", config.records);
    Ok(Table { title, rows: rows.into() })
}

async fn measure<E: Engine>(config: &Config, seed: u64, dir: &Path) -> Result<[f64; 5]> {
    let setup = Setup {
        sync: Sync::Written,
        memtable_bytes: MEMTABLE_BYTES,
        cache_bytes: CACHE_BYTES,
        is_direct: false,
        tree: Tree::Default,
        separation: None,
    };
    let engine = E::open(dir, setup).await?;
    let records = config.records;
    let mut values = Values::new(&config.pool, seed);
    let start = Instant::now();
    let writes = rate(records, load(&engine, records, &mut values)).await?;
    let settled = records as f64 / (engine.settle().await? - start).as_secs_f64();

    let mut rng = Rng::new(seed ^ 0x72_6561_6473);
    read(&engine, records, &mut rng).await?;
    let reads = rate(records, read(&engine, records, &mut rng)).await?;
    let mixed = rate(records, mix(&engine, records, &mut rng, &mut values)).await?;
    let scans = rate(SCANS, scan(&engine, records, &mut rng)).await?;
    engine.close().await?;
    Ok([writes, settled, reads, mixed, scans])
}

/// Operations per second of `work`, which does `count` of them.
async fn rate(count: u64, work: impl Future<Output = Result<()>>) -> Result<f64> {
    let start = Instant::now();
    work.await?;
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

/// Writes records 0 to `records` in key order.
pub async fn load<E: Engine>(engine: &E, records: u64, values: &mut Values<'_>) -> Result<()> {
    for id in 0..records {
        engine.put(&data::key(id), values.next(id)).await?;
    }
    Ok(())
}

async fn read<E: Engine>(engine: &E, records: u64, rng: &mut Rng) -> Result<()> {
    for _ in 0..records {
        engine.read(rng.below(records)).await?;
    }
    Ok(())
}

async fn mix<E: Engine>(
    engine: &E,
    records: u64,
    rng: &mut Rng,
    values: &mut Values<'_>,
) -> Result<()> {
    for _ in 0..records {
        let id = rng.below(records);
        if rng.below(2) == 0 {
            engine.read(id).await?;
        } else {
            engine.put(&data::key(id), values.next(id)).await?;
        }
    }
    Ok(())
}

async fn scan<E: Engine>(engine: &E, records: u64, rng: &mut Rng) -> Result<()> {
    for _ in 0..SCANS {
        engine.scan(rng.below(records - SCAN_RECORDS + 1), SCAN_RECORDS).await?;
    }
    Ok(())
}
