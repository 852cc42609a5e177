//! What one written byte costs, with values in the tables and with values in the value log.
//!
//! ```text
//! cargo run --release --example write_amplification -- [--keys N] [--values BYTES,...]
//!     [--rounds N] [--order uniform,zipfian] [--compressible] [--memtable MIB] [--synced]
//!     [--settle SECONDS] [--dir DIR]
//! ```
//!
//! Loads all keys in random order, then overwrites them `--rounds` times their number, uniformly,
//! then zipfian (0.99: few keys much more often than others). Every size of values gets a fresh
//! database without separation and one with it; `--compressible` adds values that LZ4 halves.
//! Memtables, tables and log segments are small (`--memtable`), so that little data makes a deep
//! tree. At the end of each database every key is read back and must have its last value.
//!
//! - "written": all bytes that the process wrote in the phase over the bytes of the keys and values
//!   that were put. They are the kernel's count, `write_bytes` of `/proc/self/io`: each page when
//!   it becomes dirty, and what goes around the page cache; logs, tables, value log and manifest,
//!   what was written ahead, and what a merge wrote after the last put. `cancelled_write_bytes`,
//!   pages of files that were removed before the kernel had stored them, are not taken off: with
//!   more data, less memory or `--synced` they would have been stored.
//! - "on disk": the blocks of all files at the end of the phase, preallocated ones too, over the
//!   bytes of the live keys and values. "no WAL" leaves out the segments of the WAL, whose number
//!   does not grow with the data.
//!
//! A phase ends when the database is flushed and for `--settle` seconds nothing was written and no
//! file has changed. If the kernel does not count what is written in the directory (no `/proc`, a
//! file system in memory or in a network) the first figures are missing, and the run says so. It
//! fails if the kernel counted less than what went into the log and the tables at least.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use seerdb::{DB, DBOptions, Durability};
use tokio::time::Instant;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const USAGE: &str = "usage: write_amplification [--keys N] [--values BYTES,...] [--rounds N] \
    [--order uniform,zipfian] [--compressible] [--memtable MIB] [--synced] [--settle SECONDS] \
    [--dir DIR]";
const COUNTS: &str = "/proc/self/io";
const PROBE_BYTES: usize = 1 << 20;
/// The unit of `st_blocks`, whatever the file system.
const BLOCK_BYTES: u64 = 512;
const ZIPF_EXPONENT: f64 = 0.99;
const SEED: u64 = 1;
const KEY_BYTES: usize = 16;
/// A value begins with its version.
const VERSION_BYTES: usize = 8;
const POLL: Duration = Duration::from_millis(20);
const SETTLE_MAX: Duration = Duration::from_secs(600);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse()?;
    let scratch = Scratch::new(&args.dir)?;
    let is_counted = is_counted(&scratch.0).await?;
    say(&format!(
        "{} keys of {KEY_BYTES} bytes, {} overwrites in each order, memtables of {} MiB, {:?}, {}",
        args.keys,
        args.keys * args.rounds,
        args.memtable_bytes >> 20,
        args.durability,
        scratch.0.display(),
    ))?;
    if !is_counted {
        say("written bytes cannot be measured here: the kernel does not count them")?;
    }
    for &value_bytes in &args.value_bytes {
        for is_compressible in [false, true] {
            if is_compressible && !args.is_compressible {
                continue;
            }
            let mut costs = Vec::new();
            for is_separated in [false, true] {
                let cell = Cell { value_bytes, is_compressible, is_separated, is_counted };
                costs.push(measure(&args, cell, &scratch.0).await?);
            }
            report(&args, value_bytes, is_compressible, &costs)?;
        }
    }
    Ok(())
}

struct Args {
    keys: u64,
    value_bytes: Vec<usize>,
    rounds: u64,
    phases: Vec<Phase>,
    is_compressible: bool,
    memtable_bytes: usize,
    durability: Durability,
    settle: Duration,
    dir: PathBuf,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut parsed = Self {
            keys: 100_000,
            value_bytes: vec![8192, 1024],
            rounds: 3,
            phases: vec![Phase::Load, Phase::Uniform, Phase::Zipfian],
            is_compressible: false,
            memtable_bytes: 4 << 20,
            durability: Durability::Written,
            settle: Duration::from_secs(1),
            dir: std::env::temp_dir(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(option) = args.next() {
            match option.as_str() {
                "--compressible" => parsed.is_compressible = true,
                "--synced" => parsed.durability = Durability::Synced,
                _ => parsed.set(&option, &args.next().ok_or(USAGE)?)?,
            }
        }
        if parsed.keys == 0 || parsed.value_bytes.iter().any(|&bytes| bytes < 2 * VERSION_BYTES) {
            return Err("at least one key, and values of at least 16 bytes".into());
        }
        Ok(parsed)
    }

    fn set(&mut self, option: &str, value: &str) -> Result<()> {
        match option {
            "--keys" => self.keys = value.parse()?,
            "--values" => {
                let sizes = value.split(',').map(str::parse);
                self.value_bytes = sizes.collect::<std::result::Result<_, _>>()?;
            }
            "--rounds" => self.rounds = value.parse()?,
            "--order" => {
                let orders = value.split(',').map(Phase::parse);
                self.phases = [Ok(Phase::Load)].into_iter().chain(orders).collect::<Result<_>>()?;
            }
            "--memtable" => self.memtable_bytes = value.parse::<usize>()?.max(1) << 20,
            "--settle" => self.settle = Duration::from_secs_f64(value.parse()?),
            "--dir" => self.dir = value.into(),
            _ => return Err(USAGE.into()),
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Phase {
    Load,
    Uniform,
    Zipfian,
}

impl Phase {
    fn parse(order: &str) -> Result<Self> {
        match order {
            "uniform" => Ok(Self::Uniform),
            "zipfian" => Ok(Self::Zipfian),
            _ => Err(USAGE.into()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Uniform => "overwrite, uniform",
            Self::Zipfian => "overwrite, zipfian",
        }
    }

    /// The ids of the keys that the phase writes, one after the other.
    fn ids(self, args: &Args, rng: &mut Xoshiro256PlusPlus) -> Result<Vec<u64>> {
        let mut all: Vec<u64> = (0..args.keys).collect();
        all.shuffle(rng);
        let count = args.keys * args.rounds;
        match self {
            Self::Load => Ok(all),
            Self::Uniform => Ok((0..count).map(|_| rng.random_range(0..args.keys)).collect()),
            Self::Zipfian => {
                let ranks = Zipf::new(args.keys as f64, ZIPF_EXPONENT)?;
                let draw = |_| {
                    #[expect(clippy::cast_possible_truncation, reason = "a rank is a whole number")]
                    let index = ranks.sample(rng) as usize - 1;
                    all.get(index).copied().ok_or_else(|| "a rank without a key".into())
                };
                (0..count).map(draw).collect()
            }
        }
    }
}

/// What one database is measured with.
#[derive(Clone, Copy)]
struct Cell {
    value_bytes: usize,
    is_compressible: bool,
    is_separated: bool,
    is_counted: bool,
}

/// What one phase cost, in bytes.
struct Cost {
    put: u64,
    live: u64,
    written: Option<u64>,
    on_disk: u64,
    in_wal: u64,
}

fn options(args: &Args, cell: Cell) -> DBOptions {
    DBOptions::default()
        .durability(args.durability)
        .memtable_bytes(args.memtable_bytes)
        .table_bytes(args.memtable_bytes)
        .wal_segment_bytes(args.memtable_bytes)
        .value_segment_bytes(args.memtable_bytes)
        .value_threshold(cell.is_separated.then_some(cell.value_bytes))
        .max_space_amplification(1.5)
}

/// Runs all phases on a fresh database below `base`.
async fn measure(args: &Args, cell: Cell, base: &Path) -> Result<Vec<Cost>> {
    let dir = base.join("db");
    let mut before = written().await;
    let db = options(args, cell).open(&dir).await?;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED);
    let mut versions = vec![0; usize::try_from(args.keys)?];
    let mut version = 0;
    let mut value = vec![0; cell.value_bytes];
    let pair_bytes = (KEY_BYTES + cell.value_bytes) as u64;
    let mut costs = Vec::new();
    let mut table_bytes = 0;
    for phase in &args.phases {
        let ids = phase.ids(args, &mut rng)?;
        for &id in &ids {
            version += 1;
            *versions.get_mut(usize::try_from(id)?).ok_or("an id is below --keys")? = version;
            fill(&mut value, version, cell.is_compressible);
            db.put(key(id), value.as_slice()).await?;
        }
        settle(&db, &dir, args.settle).await?;
        let after = written().await;
        let (on_disk, in_wal) = occupied(&dir).await?;
        let stats = db.stats();
        let put = ids.len() as u64 * pair_bytes;
        let total = before.zip(after).map(|(before, after)| after - before);
        let cost = Cost {
            put,
            live: args.keys * pair_bytes,
            written: total.filter(|_| cell.is_counted),
            on_disk,
            in_wal,
        };
        let least = put + stats.flushed_bytes + stats.compacted_bytes - table_bytes;
        if cost.written.is_some_and(|written| written < least) {
            return Err(format!("the kernel counted {total:?} of {least} bytes at least").into());
        }
        costs.push(cost);
        (before, table_bytes) = (after, stats.flushed_bytes + stats.compacted_bytes);
    }
    verify(&db, &versions, cell).await?;
    db.close().await?;
    tokio::fs::remove_dir_all(&dir).await?;
    Ok(costs)
}

fn key(id: u64) -> String {
    format!("{id:0KEY_BYTES$}")
}

/// Makes `value` the one of `version`: random bytes, the second half of them zeros if LZ4 is to
/// halve it.
fn fill(value: &mut [u8], version: u64, is_compressible: bool) {
    Xoshiro256PlusPlus::seed_from_u64(version).fill_bytes(value);
    let middle = if is_compressible { value.len() / 2 } else { value.len() };
    value.iter_mut().skip(middle).for_each(|byte| *byte = 0);
    for (byte, stamp) in value.iter_mut().zip(version.to_le_bytes()) {
        *byte = stamp;
    }
}

/// Flushes, and waits until for the time `quiet` nothing has been written, merged or removed.
async fn settle(db: &DB, dir: &Path, quiet: Duration) -> Result<()> {
    db.flush().await?;
    let start = Instant::now();
    let mut since = start;
    let mut last = None;
    while since.elapsed() < quiet {
        if start.elapsed() > SETTLE_MAX {
            return Err("the background work does not end".into());
        }
        tokio::time::sleep(POLL).await;
        let (written, occupied, stats) = (written().await, occupied(dir).await?, db.stats());
        let now = Some((written, occupied, stats.flushes, stats.compactions));
        if last != now {
            (last, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Fails unless every key is there, in order, with its last value.
async fn verify(db: &DB, versions: &[u64], cell: Cell) -> Result<()> {
    let mut expected = vec![0; cell.value_bytes];
    let mut rows = db.iter();
    for (id, &version) in (0..).zip(versions) {
        fill(&mut expected, version, cell.is_compressible);
        let (key_found, value) = rows.try_next().await?.ok_or("the last keys are missing")?;
        if key_found != key(id) || value != expected {
            return Err(format!("key {id} is missing or has another value than its last").into());
        }
    }
    if rows.try_next().await?.is_some() {
        return Err("there are more keys than were written".into());
    }
    Ok(())
}

/// The bytes that this process has written, as the kernel counts them.
async fn written() -> Option<u64> {
    let counts = tokio::fs::read_to_string(COUNTS).await.ok()?;
    counts.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
}

/// Whether [`written`] grows by what is written in `dir`.
async fn is_counted(dir: &Path) -> Result<bool> {
    let path = dir.join("probe");
    let before = written().await;
    tokio::fs::write(&path, vec![1; PROBE_BYTES]).await?;
    let after = written().await;
    tokio::fs::remove_file(path).await?;
    let grown = before.zip(after).map(|(before, after)| after - before);
    Ok(grown.is_some_and(|grown| grown >= PROBE_BYTES as u64))
}

/// The bytes of the blocks of all files in `dir`, and of the WAL's among them.
async fn occupied(dir: &Path) -> Result<(u64, u64)> {
    let (mut all, mut in_wal) = (0, 0);
    let mut entries = tokio::fs::read_dir(dir).await?;
    while let Some(entry) = entries.next_entry().await? {
        let metadata = match entry.metadata().await {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            other => other?,
        };
        let bytes = metadata.blocks() * BLOCK_BYTES;
        all += bytes;
        if entry.path().extension().is_some_and(|extension| extension == "wal") {
            in_wal += bytes;
        }
    }
    Ok((all, in_wal))
}

/// A table of the costs without separation and with it.
fn report(
    args: &Args,
    value_bytes: usize,
    is_compressible: bool,
    costs: &[Vec<Cost>],
) -> Result<()> {
    let [inline, separated] = costs else {
        return Err("two databases were measured".into());
    };
    let kind = if is_compressible { "half compressible" } else { "random" };
    say(&format!("\nvalues of {value_bytes} bytes, {kind}"))?;
    let group = |name: &str| format!("{name:>34}");
    let groups = ["written / put byte", "on disk / live byte", "on disk, no WAL"].map(group);
    say(&format!("{:<20}{}", "", groups.concat()))?;
    let heads = ["in tables", "separated", "ratio"].map(|head| format!("{head:>12}")).concat();
    let heads = heads.replacen("  ", "", 1);
    say(&format!("{:<20}{heads}{heads}{heads}", ""))?;
    for ((phase, inline), separated) in args.phases.iter().zip(inline).zip(separated) {
        say(&row(phase.name(), inline, separated))?;
    }
    let (inline, separated) = (Cost::sum(inline), Cost::sum(separated));
    say(&row("all, and at the end", &inline, &separated))
}

fn row(name: &str, inline: &Cost, separated: &Cost) -> String {
    let pairs = [inline, separated].map(|cost| {
        let written = cost.written.map(|written| written as f64 / cost.put as f64);
        let on_disk = cost.on_disk as f64 / cost.live as f64;
        let without_wal = (cost.on_disk - cost.in_wal) as f64 / cost.live as f64;
        [written, Some(on_disk), Some(without_wal)]
    });
    let [inline, separated] = pairs;
    let mut row = format!("{name:<20}");
    for (inline, separated) in inline.into_iter().zip(separated) {
        let ratio = inline.zip(separated).map(|(inline, separated)| separated / inline);
        for (figure, width) in [(inline, 10), (separated, 12), (ratio, 12)] {
            let text = figure.map_or("-".into(), |figure| format!("{figure:.2}"));
            row.push_str(&format!("{text:>width$}"));
        }
    }
    row
}

impl Cost {
    /// All phases together: what was written in them, what is on disk after the last.
    fn sum(costs: &[Self]) -> Self {
        let last = costs.last();
        Self {
            put: costs.iter().map(|cost| cost.put).sum(),
            live: last.map_or(0, |cost| cost.live),
            written: costs.iter().map(|cost| cost.written).sum(),
            on_disk: last.map_or(0, |cost| cost.on_disk),
            in_wal: last.map_or(0, |cost| cost.in_wal),
        }
    }
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// A directory of this run, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    #[expect(clippy::disallowed_methods, reason = "a program makes its own directories")]
    fn new(base: &Path) -> std::io::Result<Self> {
        let path = base.join(format!("seerdb-amplification-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    #[expect(clippy::disallowed_methods, reason = "a program removes what it made")]
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            say(&format!("{} stays: {error}", self.0.display())).ok();
        }
    }
}
