//! One merge of everything: the memory and the space that it takes while it runs. seerdb alone.
//!
//! Incompressible records of 1 KiB, `--gib` of them, are loaded in four passes over the key space,
//! so that runs overlap and loading still moves most tables as they are; then some of them are
//! overwritten all over it, in two flushes, so that there is something to merge. The database is
//! opened anew in another process, so that no memory is left from loading, with default options,
//! and `compact_range(..)` merges all. Meanwhile the resident memory of the process and the blocks
//! of all files are looked at every few milliseconds. "Own memory" is the peak less what was
//! resident before the merge; "transient space" the peak less what was occupied before it, over the
//! bytes of the tables. At the end every record is read.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use seerdb::{DB, DBOptions, Durability};

use crate::Result;
use crate::config::Config;
use crate::data::{self, KEY_BYTES, Shape, VALUE_BYTES, Values};
use crate::disk;

const PASSES: u64 = 4;
/// What is overwritten in each of the last flushes: less than a memtable.
const TOPS: u64 = 2;
const TOP_RECORDS: u64 = 40_000;
const BATCH: usize = 64;
const POLL: Duration = Duration::from_millis(5);
const STATUS: &str = "/proc/self/status";
const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// The report, in lines.
pub fn run(config: &Config) -> Result<String> {
    let runtime = config.runtime()?;
    let dir = config.base.path().join("large");
    std::fs::create_dir(&dir)?;
    let records = records(config);
    load_apart(config, &dir)?;
    disk::sync()?;
    let db = runtime.block_on(open(&dir))?;
    let (resident_before, occupied_before) = (resident()?, disk::occupied(&dir)?.bytes);
    let levels = db.stats().levels;
    let table_bytes: u64 = levels.iter().map(|level| level.bytes).sum();
    let runs: usize = levels.iter().map(|level| level.runs).sum();
    let tables_before = db.stats().table_memory_bytes;
    let written_before = db.stats().compacted_bytes;

    let is_over = AtomicBool::new(false);
    let start = Instant::now();
    let (merged, peaks) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&db, &dir, &is_over));
        let merged = runtime.block_on(db.compact_range(..));
        is_over.store(true, Ordering::Relaxed);
        (merged, watching.join().map_err(|_| "the watch panicked"))
    });
    merged?;
    let elapsed = start.elapsed().as_secs_f64();
    let Peaks { resident: resident_peak, tables: tables_peak, occupied: occupied_peak } = peaks??;
    let written = db.stats().compacted_bytes - written_before;
    runtime.block_on(verify(&db, records))?;
    runtime.block_on(db.close())?;
    std::fs::remove_dir_all(&dir)?;

    let own = resident_peak.saturating_sub(resident_before) as f64 / MIB;
    let transient = occupied_peak.saturating_sub(occupied_before) as f64;
    let size = table_bytes as f64;
    Ok(format!(
        "\nlarge_merge: {records} x 1 KiB, {:.2} GiB in {runs} runs, merged into one\n\
         merged in             {elapsed:.1} s, {:.0} MiB/s\n\
         own memory, peak      {own:.0} MiB beyond {:.0} MiB\n\
         filters and indexes   {:.0} MiB, {:.0} MiB at most\n\
         transient space, peak {:.2} GiB, {:.1} % of the tables\n",
        size / GIB,
        written as f64 / MIB / elapsed,
        resident_before as f64 / MIB,
        tables_before as f64 / MIB,
        tables_peak as f64 / MIB,
        transient / GIB,
        100.0 * transient / size,
    ))
}

fn records(config: &Config) -> u64 {
    (config.gib * GIB) as u64 / (KEY_BYTES + VALUE_BYTES) as u64
}

/// Has another process of this program call [`load`].
fn load_apart(config: &Config, dir: &Path) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--dir").arg(config.base.path()).arg("--load").arg(dir);
    let [gib, seed] = [config.gib.to_string(), config.seed.to_string()];
    let status = command.args(["--gib", &gib, "--seed", &seed]).status()?;
    if status.success() { Ok(()) } else { Err(format!("loading apart: {status}").into()) }
}

/// Puts the records into a new database in `dir`.
pub fn load(config: &Config, dir: &Path) -> Result<()> {
    config.runtime()?.block_on(load_all(config, dir, records(config)))
}

async fn open(dir: &Path) -> Result<DB> {
    Ok(DBOptions::default().durability(Durability::Written).open(dir).await?)
}

async fn load_all(config: &Config, dir: &Path, records: u64) -> Result<()> {
    let db = open(dir).await?;
    let shape = Shape { bytes: VALUE_BYTES, is_compressible: false };
    let mut values = Values::shaped(&config.pool, config.seed, shape);
    for pass in 0..PASSES {
        put_all(&db, &mut values, (pass..records).step_by(PASSES as usize)).await?;
    }
    db.flush().await?;
    db.wait_for_compaction().await?;
    let step = (records / TOP_RECORDS).max(PASSES);
    for top in 0..TOPS {
        put_all(&db, &mut values, (top..records).step_by(step as usize)).await?;
        db.flush().await?;
    }
    db.wait_for_compaction().await?;
    Ok(db.close().await?)
}

async fn put_all(db: &DB, values: &mut Values<'_>, ids: impl Iterator<Item = u64>) -> Result<()> {
    let mut ids = ids.peekable();
    while ids.peek().is_some() {
        let mut batch = db.batch();
        for id in ids.by_ref().take(BATCH) {
            batch.put(data::key(id), values.next(id));
        }
        batch.commit().await?;
    }
    Ok(())
}

/// Looks until it is over.
fn watch(db: &DB, dir: &Path, is_over: &AtomicBool) -> Result<Peaks> {
    let mut peaks = Peaks::default();
    while !is_over.load(Ordering::Relaxed) {
        peaks.resident = peaks.resident.max(resident()?);
        peaks.tables = peaks.tables.max(db.stats().table_memory_bytes as u64);
        peaks.occupied = peaks.occupied.max(disk::occupied(dir)?.bytes);
        std::thread::sleep(POLL);
    }
    Ok(peaks)
}

/// What was seen at most, in bytes.
#[derive(Default)]
struct Peaks {
    resident: u64,
    /// Filters and indexes of open tables.
    tables: u64,
    occupied: u64,
}

async fn verify(db: &DB, records: u64) -> Result<()> {
    let mut rows = db.iter();
    for id in 0..records {
        let row = rows.try_next().await?;
        data::check(id, row.as_ref().map(|(_, value)| value.as_ref()))?;
    }
    if rows.try_next().await?.is_some() {
        return Err("there are more records than were written".into());
    }
    Ok(())
}

/// The resident memory of this process, in bytes.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string(STATUS).map_err(|e| format!("{STATUS}: {e}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")).ok_or("no VmRSS in status")?;
    Ok(kib.trim().parse::<u64>()? << 10)
}
