//! Overwrites a set of separated values for a long time, and watches what must stay bounded.
//!
//! ```text
//! cargo run --release --features jemalloc --example value_soak -- [--live MIB] [--write GIB]
//!     [--seconds N] [--value BYTES] [--zipfian] [--space F] [--patience MS] [--seed N]
//!     [--dir DIR]
//! ```
//!
//! Loads `--live` MiB of values, then overwrites random ones until `--write` GiB are written,
//! evenly over `--seconds`, from 8 tasks, acknowledged when the kernel has them. Every ten seconds
//! a row: what was put, the blocks of all files but the WAL's over the live keys and values,
//! latencies of puts, and the resident memory. Fails if in any row the space is beyond `--space`
//! (1.5), the 99.9th percentile of puts beyond `--patience` (10 ms), or the memory beyond the
//! budget of 512 MiB and 64 MiB for the program; and if at the end any key has another value than
//! its last.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use seerdb::{DB, DBOptions, Durability};
use tokio::time::Instant;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const USAGE: &str = "usage: value_soak [--live MIB] [--write GIB] [--seconds N] [--value BYTES] \
    [--zipfian] [--space F] [--patience MS] [--seed N] [--dir DIR]";
const TASKS: u64 = 8;
const ROW: Duration = Duration::from_secs(10);
const KEY_BYTES: usize = 16;
const STAMP_BYTES: usize = 8;
const BUDGET_BYTES: usize = 512 << 20;
const PROGRAM_BYTES: u64 = 64 << 20;
/// The unit of `st_blocks`, whatever the file system.
const BLOCK_BYTES: u64 = 512;
const ZIPF_EXPONENT: f64 = 0.99;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Arc::new(Args::parse()?);
    let dir = args.dir.join(format!("seerdb-soak-{}", std::process::id()));
    tokio::fs::create_dir(&dir).await?;
    let soaked = soak(&args, &dir.join("db")).await;
    tokio::fs::remove_dir_all(&dir).await?;
    soaked
}

async fn soak(args: &Arc<Args>, dir: &Path) -> Result<()> {
    let options = DBOptions::default()
        .durability(Durability::Written)
        .memory_budget(BUDGET_BYTES)
        .value_threshold(STAMP_BYTES)
        .max_space_amplification(args.space_max);
    let db = options.open(dir).await?;
    let keys = args.keys();
    say(&format!("{keys} keys, values of {} bytes, seed {}", args.value_bytes, args.seed))?;
    let work = Arc::new(Work {
        stamps: (0..keys).map(|_| AtomicU64::new(0)).collect(),
        put: AtomicU64::new(0),
        latencies: Mutex::default(),
    });
    for id in 0..keys {
        work.put(&db, args, id, 1).await?;
    }
    db.flush().await?;
    work.latencies.lock().map_err(|_| "a task panicked")?.clear();

    let start = Instant::now();
    let total = (args.write_bytes / args.pair_bytes()).max(TASKS);
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..TASKS {
        let (db, work, args) = (db.clone(), work.clone(), args.clone());
        tasks.spawn(async move { overwrite(&db, &work, &args, task, total / TASKS, start).await });
    }
    let mut worst = Worst::default();
    let mut row = tokio::time::interval_at(start + ROW, ROW);
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                Some(done) => done??,
                None => break,
            },
            _ = row.tick() => worst.add(&look(&db, &work, args, dir, start).await?),
        }
    }
    worst.add(&look(&db, &work, args, dir, start).await?);
    work.verify(&db, args).await?;
    db.close().await?;
    worst.judge(args)
}

/// What the tasks share.
struct Work {
    /// The newest stamp of each key; a key belongs to one task.
    stamps: Vec<AtomicU64>,
    /// Bytes of keys and values.
    put: AtomicU64,
    /// Of the puts since the last row.
    latencies: Mutex<Vec<Duration>>,
}

impl Work {
    async fn put(&self, db: &DB, args: &Args, id: u64, stamp: u64) -> Result<()> {
        let slot = self.stamps.get(usize::try_from(id)?).ok_or("an id beyond the keys")?;
        let mut value = vec![0; args.value_bytes];
        fill(&mut value, id, stamp);
        let began = Instant::now();
        db.put(key(id), value).await?;
        self.latencies.lock().map_err(|_| "a task panicked")?.push(began.elapsed());
        slot.store(stamp, Ordering::Relaxed);
        self.put.fetch_add(args.pair_bytes(), Ordering::Relaxed);
        Ok(())
    }

    async fn verify(&self, db: &DB, args: &Args) -> Result<()> {
        let mut expected = vec![0; args.value_bytes];
        let mut rows = db.iter();
        for (id, stamp) in (0..).zip(&self.stamps) {
            fill(&mut expected, id, stamp.load(Ordering::Relaxed));
            let (found, value) = rows.try_next().await?.ok_or("the last keys are missing")?;
            if found != key(id) || value != expected {
                return Err(format!("key {id} is missing or has another value").into());
            }
        }
        say("every key has its last value")
    }
}

/// Overwrites keys of one task, `count` of them, evenly over the time.
async fn overwrite(
    db: &DB,
    work: &Work,
    args: &Args,
    task: u64,
    count: u64,
    start: Instant,
) -> Result<()> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(args.seed + task);
    let mine = args.keys() / TASKS;
    let ranks = Zipf::new(mine as f64, ZIPF_EXPONENT)?;
    for index in 0..count {
        let due = args.time.mul_f64(index as f64 / count as f64);
        tokio::time::sleep_until(start + due).await;
        let rank = match args.is_zipfian {
            #[expect(clippy::cast_possible_truncation, reason = "a rank is a whole number")]
            #[expect(clippy::cast_sign_loss, reason = "and above 0")]
            true => ranks.sample(&mut rng) as u64 - 1,
            false => rng.random_range(0..mine),
        };
        // Neighbours in rank are no neighbours by key.
        let id = (rank.wrapping_mul(0x9E37_79B9) % mine) * TASKS + task;
        work.put(db, args, id, index + 2).await?;
    }
    Ok(())
}

/// What a row shows.
struct Row {
    space: f64,
    p999: Duration,
    resident: u64,
}

async fn look(db: &DB, work: &Work, args: &Args, dir: &Path, start: Instant) -> Result<Row> {
    let mut latencies = std::mem::take(&mut *work.latencies.lock().map_err(|_| "a panic")?);
    latencies.sort_unstable();
    let part = |of: usize| latencies.get(latencies.len().saturating_sub(1 + latencies.len() / of));
    let (p50, p999) =
        (part(2).copied().unwrap_or_default(), part(1000).copied().unwrap_or_default());
    let longest = latencies.last().copied().unwrap_or_default();
    let live = args.keys() * args.pair_bytes();
    let space = occupied(dir).await? as f64 / live as f64;
    let resident = resident().await.unwrap_or(0);
    let log = db.stats().value_log;
    say(&format!(
        "{:5.0} s, put {:5.1} GiB, space {space:.2} (garbage {:.2}, hidden {:.2}, open {:.2}), \
         puts p50 {:.0} us, p99.9 {:.2} ms, longest {:.1} ms, resident {} MiB, amplification {:.2}",
        start.elapsed().as_secs_f64(),
        work.put.load(Ordering::Relaxed) as f64 / (1u64 << 30) as f64,
        log.garbage_bytes() as f64 / live as f64,
        log.hidden_bytes as f64 / live as f64,
        log.open_bytes as f64 / live as f64,
        p50.as_secs_f64() * 1e6,
        p999.as_secs_f64() * 1e3,
        longest.as_secs_f64() * 1e3,
        resident >> 20,
        db.stats().write_amplification(),
    ))?;
    Ok(Row { space, p999, resident })
}

/// The worst of all rows.
#[derive(Default)]
struct Worst {
    space: f64,
    p999: Duration,
    resident: u64,
}

impl Worst {
    fn add(&mut self, row: &Row) {
        self.space = self.space.max(row.space);
        self.p999 = self.p999.max(row.p999);
        self.resident = self.resident.max(row.resident);
    }

    fn judge(&self, args: &Args) -> Result<()> {
        let Worst { space, p999, resident } = *self;
        let line = format!("worst: space {space:.3}, p99.9 {p999:?}, {} MiB", resident >> 20);
        say(&line)?;
        let holds = space <= args.space_max
            && p999 <= args.p999_max
            && resident <= BUDGET_BYTES as u64 + PROGRAM_BYTES + args.keys() * STAMP_BYTES as u64;
        if holds { Ok(()) } else { Err(format!("a bound was broken: {line}").into()) }
    }
}

fn key(id: u64) -> String {
    format!("{id:0KEY_BYTES$}")
}

/// Random bytes that follow from key and stamp.
fn fill(value: &mut [u8], id: u64, stamp: u64) {
    Xoshiro256PlusPlus::seed_from_u64(id ^ stamp.rotate_left(40)).fill_bytes(value);
}

/// The bytes of the blocks of all files in `dir` but the WAL's.
async fn occupied(dir: &Path) -> Result<u64> {
    let mut all = 0;
    let mut entries = tokio::fs::read_dir(dir).await?;
    while let Some(entry) = entries.next_entry().await? {
        let metadata = match entry.metadata().await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        if entry.path().extension().is_none_or(|extension| extension != "wal") {
            all += metadata.blocks() * BLOCK_BYTES;
        }
    }
    Ok(all)
}

/// The resident memory of this process, in bytes, where the system tells.
async fn resident() -> Option<u64> {
    let status = tokio::fs::read_to_string("/proc/self/status").await.ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

struct Args {
    live_bytes: u64,
    write_bytes: u64,
    time: Duration,
    value_bytes: usize,
    is_zipfian: bool,
    space_max: f64,
    p999_max: Duration,
    seed: u64,
    dir: PathBuf,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut parsed = Self {
            live_bytes: 4 << 30,
            write_bytes: 64 << 30,
            time: Duration::from_secs(1800),
            value_bytes: 4096,
            is_zipfian: false,
            space_max: 1.5,
            p999_max: Duration::from_millis(10),
            seed: 1,
            dir: std::env::temp_dir(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(option) = args.next() {
            if option == "--zipfian" {
                parsed.is_zipfian = true;
                continue;
            }
            let value = args.next().ok_or(USAGE)?;
            match option.as_str() {
                "--live" => parsed.live_bytes = value.parse::<u64>()? << 20,
                "--write" => parsed.write_bytes = value.parse::<u64>()? << 30,
                "--seconds" => parsed.time = Duration::from_secs_f64(value.parse()?),
                "--value" => parsed.value_bytes = value.parse()?,
                "--space" => parsed.space_max = value.parse()?,
                "--patience" => parsed.p999_max = Duration::from_millis(value.parse()?),
                "--seed" => parsed.seed = value.parse()?,
                "--dir" => parsed.dir = value.into(),
                _ => return Err(USAGE.into()),
            }
        }
        if parsed.value_bytes < STAMP_BYTES || parsed.keys() < TASKS {
            return Err("values of at least 8 bytes, and at least 8 of them".into());
        }
        Ok(parsed)
    }

    fn pair_bytes(&self) -> u64 {
        (KEY_BYTES + self.value_bytes) as u64
    }

    /// A multiple of the number of tasks.
    fn keys(&self) -> u64 {
        self.live_bytes / self.pair_bytes() / TASKS * TASKS
    }
}
