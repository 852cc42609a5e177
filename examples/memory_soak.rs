//! Works on more data than fits the memory budget, and watches the resident memory.
//!
//! ```text
//! cargo run --release --features jemalloc --example memory_soak -- [--budget MIB] [--data MIB]
//!     [--seconds N] [--tasks N] [--direct] [--synced] [--seed N] [--dir DIR]
//! ```
//!
//! Loads `--data` MiB (eight times the budget of `--budget`, 128), then works on them from
//! `--tasks` tasks (8) for `--seconds` (1800): puts of small and of separated values, deletes,
//! gets, gets of many keys, scans both ways, with a limit and without. What is read is checked
//! against its key. Every ten seconds a row: what was done, the highest resident memory (`VmHWM`)
//! and how the database says it is used. What the program had before the open is not counted.
//! Fails if the memory is ever more than a tenth beyond the budget.
//!
//! Puts are `Written`; with `--synced` one in eight is `Synced` and the others are `Buffered`, in a
//! log around the page cache. With `--direct` tables are read around it too. Budgets below 64 MiB
//! need `_RJEM_MALLOC_CONF=narenas:1,dirty_decay_ms:100` in the environment.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use seerdb::{DB, DBOptions, Durability, RangeStream};
use tokio::time::Instant;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const USAGE: &str = "usage: memory_soak [--budget MIB] [--data MIB] [--seconds N] [--tasks N] \
    [--direct] [--synced] [--seed N] [--dir DIR]";
const ROW: Duration = Duration::from_secs(10);
/// The sizes of values, one drawn for each put. The large ones go to the value log.
const SMALL_BYTES: std::ops::Range<usize> = 16..600;
const LARGE_BYTES: std::ops::Range<usize> = 4 << 10..24 << 10;
/// Of so many puts one has a large value.
const LARGE_ONE_IN: u64 = 32;
const MEAN_BYTES: u64 = 308 + (14 << 10) / LARGE_ONE_IN;
const KEY_BYTES: usize = 16;
/// What makes the kernel measure the peak anew.
const FORGET_PEAK: &str = "5";
const MANY: u64 = 32;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Arc::new(Args::parse()?);
    let dir = args.dir.join(format!("seerdb-memory-{}", std::process::id()));
    tokio::fs::create_dir(&dir).await?;
    let soaked = soak(&args, &dir.join("db")).await;
    tokio::fs::remove_dir_all(&dir).await?;
    soaked
}

async fn soak(args: &Arc<Args>, dir: &Path) -> Result<()> {
    let before = peak().await?;
    let options = DBOptions::default()
        .durability(if args.is_synced { Durability::Synced } else { Durability::Written })
        .direct_io(args.is_direct)
        .memory_budget(args.budget_bytes);
    let db = options.open(dir).await?;
    say(&format!("{} keys, seed {}, {} MiB before", args.keys(), args.seed, before >> 20))?;
    let work = Arc::new(Work::default());
    let mut tasks = tokio::task::JoinSet::new();
    let start = Instant::now();
    for task in 0..args.tasks {
        let (db, work, args) = (db.clone(), work.clone(), args.clone());
        tasks.spawn(async move { Worker::new(db, work, args, task).run(start).await });
    }
    let mut worst = 0;
    let mut row = tokio::time::interval_at(start + ROW, ROW);
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                Some(done) => done??,
                None => break,
            },
            _ = row.tick() => worst = worst.max(tell(&db, &work, start, before).await?),
        }
    }
    worst = worst.max(tell(&db, &work, start, before).await?);
    db.close().await?;
    let budget = args.budget_bytes as u64;
    let share = worst as f64 / budget as f64;
    let line = format!("worst: {} MiB, {share:.3} of the budget", worst >> 20);
    say(&line)?;
    if worst <= budget + budget / 10 {
        Ok(())
    } else {
        Err(format!("the budget was broken: {line}").into())
    }
}

/// What the tasks did.
#[derive(Default)]
struct Work {
    writes: AtomicU64,
    /// Keys that gets asked for, and items of scans.
    reads: AtomicU64,
    is_loaded: AtomicBool,
}

/// Prints a row; the highest resident memory since the last one.
async fn tell(db: &DB, work: &Work, start: Instant, before: u64) -> Result<u64> {
    let peak = peak().await?.saturating_sub(before);
    let stats = db.stats();
    let disk: u64 = stats.levels.iter().map(|level| level.bytes).sum();
    say(&format!(
        "{:5.0} s, {} {:4} k written, {:5} k read, {:5} MiB on disk, resident {:4} MiB: \
         memtables {:3}, cache {:3}, tables {:3}",
        start.elapsed().as_secs_f64(),
        if work.is_loaded.load(Ordering::Relaxed) { "mixed," } else { "load, " },
        work.writes.swap(0, Ordering::Relaxed) / 1000,
        work.reads.swap(0, Ordering::Relaxed) / 1000,
        (disk + stats.value_log.bytes()) >> 20,
        peak >> 20,
        stats.memtable_bytes >> 20,
        stats.cache_bytes >> 20,
        stats.table_memory_bytes >> 20,
    ))?;
    Ok(peak)
}

/// One of the tasks.
struct Worker {
    db: DB,
    work: Arc<Work>,
    args: Arc<Args>,
    task: u64,
    rng: Xoshiro256PlusPlus,
}

impl Worker {
    fn new(db: DB, work: Arc<Work>, args: Arc<Args>, task: u64) -> Self {
        let rng = Xoshiro256PlusPlus::seed_from_u64(args.seed + task);
        Worker { db, work, args, task, rng }
    }

    async fn run(mut self, start: Instant) -> Result<()> {
        let keys = self.args.keys();
        for id in (self.task..keys).step_by(usize::try_from(self.args.tasks)?) {
            // In no order: neighbours by number are none by key.
            self.put(id.wrapping_mul(0x9E37_79B1) % keys).await?;
        }
        self.work.is_loaded.store(true, Ordering::Relaxed);
        while start.elapsed() < self.args.time {
            let id = self.rng.random_range(0..keys);
            match self.rng.random_range(0..100) {
                0..35 => self.put(id).await?,
                35..40 => drop(self.db.delete(key(id)).await?),
                40..85 => self.get(id).await?,
                85..90 => self.get_many(id).await?,
                90..94 => self.scan(self.db.range(key(id)..).limit(100), 100).await?,
                94..98 => self.scan(self.db.range(..key(id)).rev().limit(100), 100).await?,
                98 => self.scan(self.db.range(key(id)..), 1000).await?,
                _ => self.scan(self.db.range(..key(id)).rev(), 1000).await?,
            }
        }
        Ok(())
    }

    async fn put(&mut self, id: u64) -> Result<()> {
        let sizes =
            if self.rng.random_range(0..LARGE_ONE_IN) == 0 { LARGE_BYTES } else { SMALL_BYTES };
        let mut value = vec![0; self.rng.random_range(sizes)];
        // Half of each value can be compressed.
        let half = value.len() / 2;
        self.rng.fill_bytes(value.get_mut(..half).unwrap_or_default());
        value.splice(..8, id.to_be_bytes());
        let durability = match self.args.is_synced {
            false => Durability::Written,
            true if self.rng.random_range(0..8) == 0 => Durability::Synced,
            true => Durability::Buffered,
        };
        self.db.put(key(id), value).durability(durability).await?;
        self.work.writes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn get(&self, id: u64) -> Result<()> {
        if let Some(value) = self.db.get(key(id)).await? {
            check(key(id).as_bytes(), &value)?;
        }
        self.work.reads.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    async fn get_many(&mut self, id: u64) -> Result<()> {
        let ids: Vec<u64> = (0..MANY).map(|at| (id + at * at * 7919) % self.args.keys()).collect();
        let values = self.db.get_many(ids.iter().map(|id| key(*id))).await?;
        for (id, value) in ids.iter().zip(values) {
            value.map_or(Ok(()), |value| check(key(*id).as_bytes(), &value))?;
        }
        self.work.reads.fetch_add(MANY, Ordering::Relaxed);
        Ok(())
    }

    async fn scan(&self, mut stream: RangeStream, most: u64) -> Result<()> {
        let mut count = 0;
        while count < most
            && let Some((key, value)) = stream.try_next().await?
        {
            check(&key, &value)?;
            count += 1;
        }
        self.work.reads.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }
}

fn key(id: u64) -> String {
    format!("{id:0KEY_BYTES$}")
}

/// Whether `value` is one that was put under `found`.
fn check(found: &[u8], value: &[u8]) -> Result<()> {
    let id = value.first_chunk().map(|id| u64::from_be_bytes(*id));
    if id.is_some_and(|id| key(id).as_bytes() == found) {
        return Ok(());
    }
    Err(format!("{} has the value of another key", found.escape_ascii()).into())
}

/// The highest resident memory of this process since the last call, in bytes.
async fn peak() -> Result<u64> {
    let status = tokio::fs::read_to_string("/proc/self/status").await?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let line = line.ok_or("this system does not tell the resident memory")?;
    let kib = line.trim().trim_end_matches("kB").trim().parse::<u64>()?;
    tokio::fs::write("/proc/self/clear_refs", FORGET_PEAK).await?;
    Ok(kib << 10)
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

struct Args {
    budget_bytes: usize,
    data_bytes: Option<u64>,
    time: Duration,
    tasks: u64,
    is_direct: bool,
    is_synced: bool,
    seed: u64,
    dir: PathBuf,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut parsed = Self {
            budget_bytes: 128 << 20,
            data_bytes: None,
            time: Duration::from_secs(1800),
            tasks: 8,
            is_direct: false,
            is_synced: false,
            seed: 1,
            dir: std::env::temp_dir(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(option) = args.next() {
            match option.as_str() {
                "--direct" => parsed.is_direct = true,
                "--synced" => parsed.is_synced = true,
                _ => {
                    let value = args.next().ok_or(USAGE)?;
                    parsed.set(&option, &value)?;
                }
            }
        }
        Ok(parsed)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<()> {
        match option {
            "--budget" => self.budget_bytes = value.parse::<usize>()? << 20,
            "--data" => self.data_bytes = Some(value.parse::<u64>()? << 20),
            "--seconds" => self.time = Duration::from_secs_f64(value.parse()?),
            "--tasks" => self.tasks = value.parse::<u64>()?.max(1),
            "--seed" => self.seed = value.parse()?,
            "--dir" => self.dir = value.into(),
            _ => return Err(USAGE.into()),
        }
        Ok(())
    }

    fn keys(&self) -> u64 {
        let data = self.data_bytes.unwrap_or(8 * self.budget_bytes as u64);
        (data / (KEY_BYTES as u64 + MEAN_BYTES)).max(1)
    }
}
