//! A queue's life: as many keys as `--queue` put in order and deleted in order, soon after.
//!
//! The live records lie on both sides of the queue in the key space, and are there from the start.
//! A record of the queue is deleted when a thousand newer ones are in it. Then the engine settles,
//! as each does it, and idles for `--idle`. "after a queue" scans from the place of the queue's
//! first key to the first live records behind it: over everything that was deleted. "without one"
//! is the same scan on a database that never had the queue. The cost of a scan that finds nothing
//! for long is that of tombstones, and of what they hide, that merging has left.
//!
//! The first scan of each is apart: it may find things cold that the next one finds warm.

use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::config::{CACHE_BYTES, Config};
use crate::data::{self, Rng, Shape, Values};
use crate::engine::{Engine, Setup, Sync, Tree, with_engine};
use crate::report::{Row, Table, Unit, spread};

/// The records that a scan is to find.
const FOUND: u64 = 100;
/// The records that are in the queue at a time.
const DEPTH: u64 = 1_000;
const LABELS: [&str; 4] =
    ["first, without one", "first, after a queue", "scans, without one", "scans, after a queue"];

pub fn run(config: &Config) -> Result<Table> {
    if config.records / 2 < FOUND {
        return Err(format!("queue needs {} records at least", 2 * FOUND).into());
    }
    let mut rows = LABELS.map(|label| Row::new(label, Unit::Microseconds));
    let mut ratio = Row::new("after / without", Unit::Times);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    config.each_round(|peer, round, dir| {
        let seed = config.seed.wrapping_add(round);
        let mut medians = Vec::new();
        for (index, queue) in [0, config.queue].into_iter().enumerate() {
            let dir = dir.join(index.to_string());
            std::fs::create_dir(&dir)?;
            let [first, median] = with_engine!(peer, E => {
                runtime.block_on(measure::<E>(config, queue, seed, &dir))
            })?;
            rows[index].add(peer, first);
            rows[LABELS.len() / 2 + index].add(peer, median);
            medians.push(median);
        }
        ratio.add(peer, medians[1] / medians[0]);
        Ok(())
    })?;
    let title = format!(
        "queue: {} put and deleted among {} x {} B, scanned across to {FOUND} records",
        config.queue, config.records, config.value_bytes
    );
    Ok(Table { title, rows: rows.into_iter().chain([ratio]).collect() })
}

/// What the first scan and the median one took, in microseconds.
async fn measure<E: Engine>(
    config: &Config,
    queue: u64,
    seed: u64,
    dir: &Path,
) -> Result<[f64; 2]> {
    let setup = Setup {
        sync: Sync::Written,
        memtable_bytes: config.memtable_bytes,
        cache_bytes: CACHE_BYTES,
        is_direct: false,
        tree: Tree::Default,
        separation: None,
    };
    let shape = Shape { bytes: config.value_bytes, is_compressible: config.is_compressible };
    let engine = E::open(dir, setup).await?;
    let mut values = Values::shaped(&config.pool, seed, shape);
    // The place in the key space is the same whether there was a queue or not.
    let head = config.records / 2;
    let behind = head + config.queue;
    for id in data::shuffled(config.records, &mut Rng::new(seed)) {
        let id = if id < head { id } else { id - head + behind };
        engine.put(&data::key(id), values.next(id)).await?;
    }
    engine.settle().await?;
    for number in 0..queue + DEPTH.min(queue) {
        if number < queue {
            let id = head + number;
            engine.put(&data::key(id), values.next(id)).await?;
        }
        if let Some(number) = number.checked_sub(DEPTH.min(queue)) {
            engine.delete(&data::key(head + number)).await?;
        }
    }
    engine.settle().await?;
    std::thread::sleep(config.idle_time);
    let mut times = Vec::new();
    for _ in 0..config.scans.max(2) {
        let start = Instant::now();
        engine.scan_from(head, behind, FOUND).await?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    engine.close().await?;
    let first = times.remove(0);
    let [_, median, _] = spread(&times).ok_or("there are scans")?;
    Ok([first, median])
}
