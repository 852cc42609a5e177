//! What merges cost, measured against the model that `explain_compaction` expects it by.
//!
//! ```text
//! cargo run --release --example merge_model -- [--rows T/K/Z,...] [--fill F] [--turns N]
//!     [--overwrites N] [--value BYTES] [--memtable KIB] [--dir DIR]
//! cargo run --release --example merge_model -- --default-only [--keys N] [--passes N] [--dir DIR]
//! ```
//!
//! Of each shape, size ratio T, K runs in the upper levels, Z in the last, one database: all keys
//! in random order, then uniform overwrites. After each memtable merging comes to rest, so that the
//! figures depend on the shape alone and not on the speed of the disk; a directory in memory will
//! do. A turn is what lies between two moments at which everything is one run: the tree is in the
//! same state at both. One turn is left to the start, `--turns` are measured, or as many as
//! `--overwrites` times the keys allow: where no turn ends, the measured span has none, and the
//! column says 0.
//!
//! The data is `--fill` times T^d flushes (1.5; more than 1, at most T), the d being that of a tree
//! of four to six levels: the cost of the last level depends on how full it is. From T - 1 on the
//! tree has a level more.
//!
//! - "merged": the bytes that merges wrote for each byte that flushes wrote; "model" is what is
//!   expected, "ratio" the one over the other.
//! - "levels": those that the tree has, and those that the model takes it to have.
//! - "units": the bytes of the last run in flushes; "flushes": in the span that was measured.
//! - "flushed": the bytes of a flush over those of a memtable, whose entries have more overhead.
//!
//! `--default-only` opens a database as anybody does, writes values of `--value` bytes without
//! waiting for merges, and shows what loading and each pass of overwrites cost: bytes of tables
//! written for each byte of tables flushed, and of keys and values put.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio::time::Instant;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use seerdb::{DB, DBOptions, Durability, Stats};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const USAGE: &str = "usage: merge_model [--rows T/K/Z,...] [--fill F] [--turns N] \
    [--overwrites N] [--value BYTES] [--memtable KIB] [--dir DIR] \
    [--default-only] [--keys N] [--passes N]";
const SEED: u64 = 1;
const KEY_BYTES: usize = 16;
const TABLE_BYTES: usize = 1 << 20;
/// The last level is so far down that the level above it may have this many units.
const UNITS_ABOVE: u64 = 200;
const DEPTH_MIN: u32 = 3;
const DEPTH_MAX: u32 = 5;
/// How much of a memtable is filled before it is flushed.
const FULL: f64 = 0.9;
const BATCH: usize = 100;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse()?;
    let scratch = Scratch::new(&args.dir)?;
    if args.is_default_only {
        return run_default(&args, &scratch.0).await;
    }
    say(&format!(
        "values of {} bytes, memtables of {} KiB, the last level {} times the level above",
        args.value_bytes,
        args.memtable_bytes >> 10,
        args.fill,
    ))?;
    say("  T  K  Z  levels    units flushed  flushes  turns   merged    model    ratio  seconds")?;
    for &row in &args.rows {
        say(&measure(&args, row, &scratch.0).await?)?;
    }
    Ok(())
}

/// A shape of the tree.
#[derive(Clone, Copy)]
struct Row {
    size_ratio: u64,
    runs_upper: usize,
    runs_last: usize,
}

impl Row {
    /// T, K and Z, with slashes between them.
    fn parse(text: &str) -> Result<Self> {
        let mut fields = text.split('/');
        let mut next = || fields.next().ok_or(USAGE);
        let size_ratio = next()?.parse()?;
        Ok(Self { size_ratio, runs_upper: next()?.parse()?, runs_last: next()?.parse()? })
    }

    /// Every K and Z of a few sizes that the ratio allows.
    fn all() -> Vec<Self> {
        let mut rows = Vec::new();
        for size_ratio in [2, 4, 8] {
            for runs_upper in [1, 3, 7] {
                for runs_last in [1, 3] {
                    if runs_upper.max(runs_last) < usize::try_from(size_ratio).unwrap_or(0) {
                        rows.push(Self { size_ratio, runs_upper, runs_last });
                    }
                }
            }
        }
        rows
    }

    /// The last level, in a tree that is deep for little data.
    fn depth(self) -> u32 {
        let is_deep = |depth: &u32| self.size_ratio.pow(*depth) >= UNITS_ABOVE;
        (DEPTH_MIN..DEPTH_MAX).find(is_deep).unwrap_or(DEPTH_MAX)
    }
}

struct Args {
    rows: Vec<Row>,
    fill: f64,
    turns: u64,
    overwrites: u64,
    value_bytes: usize,
    memtable_bytes: usize,
    is_default_only: bool,
    keys: u64,
    passes: u64,
    dir: PathBuf,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut parsed = Self {
            rows: Row::all(),
            fill: 1.5,
            turns: 2,
            overwrites: 20,
            value_bytes: 100,
            memtable_bytes: 64 << 10,
            is_default_only: false,
            keys: 1_000_000,
            passes: 2,
            dir: std::env::temp_dir(),
        };
        let mut args = std::env::args().skip(1);
        while let Some(option) = args.next() {
            if option == "--default-only" {
                parsed.is_default_only = true;
                continue;
            }
            let value = args.next().ok_or(USAGE)?;
            match option.as_str() {
                "--rows" => {
                    parsed.rows = value.split(',').map(Row::parse).collect::<Result<_>>()?
                }
                "--fill" => parsed.fill = value.parse()?,
                "--turns" => parsed.turns = value.parse()?,
                "--overwrites" => parsed.overwrites = value.parse()?,
                "--value" => parsed.value_bytes = value.parse()?,
                "--memtable" => parsed.memtable_bytes = value.parse::<usize>()?.max(1) << 10,
                "--keys" => parsed.keys = value.parse()?,
                "--passes" => parsed.passes = value.parse()?,
                "--dir" => parsed.dir = value.into(),
                _ => return Err(USAGE.into()),
            }
        }
        if parsed.fill <= 1.0 || parsed.keys == 0 || parsed.value_bytes == 0 {
            return Err("--fill is above 1, and there are keys and values".into());
        }
        Ok(parsed)
    }
}

/// The row of the table for one shape.
async fn measure(args: &Args, row: Row, base: &Path) -> Result<String> {
    let began = Instant::now();
    let dir = base.join("db");
    let options = DBOptions::default()
        .durability(Durability::Buffered)
        .memtable_bytes(args.memtable_bytes)
        .table_bytes(TABLE_BYTES)
        .value_threshold(None)
        .size_ratio(usize::try_from(row.size_ratio)?)
        .runs_per_level(row.runs_upper)
        .runs_last_level(row.runs_last);
    let db = options.open(&dir).await?;
    let mut load = Load::new(args);
    let per_flush = load.fill_memtable(&db).await?;
    let units = (args.fill * row.size_ratio.pow(row.depth()) as f64).ceil();
    #[expect(clippy::cast_possible_truncation, reason = "a small whole number")]
    #[expect(clippy::cast_sign_loss, reason = "and above 0")]
    let keys = units as u64 * per_flush;
    load.all(&db, keys, per_flush).await?;
    let (mut first, mut last, mut turns) = (None, db.stats(), 0);
    let mut flushes_left = args.overwrites * keys / per_flush;
    while flushes_left > 0 && turns < args.turns {
        flushes_left -= 1;
        load.overwrite(&db, keys, per_flush).await?;
        db.flush().await?;
        db.wait_for_compaction().await?;
        let stats = db.stats();
        let is_one_run = stats.levels.iter().map(|level| level.runs).sum::<usize>() == 1;
        match &first {
            None if is_one_run => (first, last) = (Some(stats.clone()), stats),
            Some(_) if is_one_run => (turns, last) = (turns + 1, stats),
            _ => {}
        }
    }
    let report = db.explain_compaction();
    // Without a turn it is all that was written behind the load.
    let (first, last) =
        if turns == 0 { (last, db.stats()) } else { (first.ok_or("a turn")?, last) };
    let merged = (last.compacted_bytes - first.compacted_bytes) as f64
        / (last.flushed_bytes - first.flushed_bytes).max(1) as f64;
    let model = report.expected.merge_amplification;
    let flush_bytes = last.flushed_bytes / last.flushes.max(1);
    let last_bytes = report.levels.last().and_then(|level| level.runs.last());
    let units = last_bytes.map_or(0, |run| run.bytes) as f64 / flush_bytes.max(1) as f64;
    let flushed = flush_bytes as f64 / args.memtable_bytes as f64;
    let levels = format!("{}/{}", report.measured.levels, report.expected.levels);
    db.close().await?;
    tokio::fs::remove_dir_all(&dir).await?;
    let Row { size_ratio, runs_upper, runs_last } = row;
    let (flushes, ratio) = (last.flushes - first.flushes, merged / model);
    let seconds = began.elapsed().as_secs_f64();
    Ok(format!(
        "{size_ratio:>3}{runs_upper:>3}{runs_last:>3}{levels:>8}{units:>9.1}{flushed:>8.2}\
         {flushes:>9}{turns:>7}{merged:>9.2}{model:>9.2}{ratio:>9.2}{seconds:>9.1}"
    ))
}

/// Writes records with random values.
struct Load {
    rng: Xoshiro256PlusPlus,
    value: Vec<u8>,
    memtable_bytes: usize,
}

impl Load {
    fn new(args: &Args) -> Self {
        Self {
            rng: Xoshiro256PlusPlus::seed_from_u64(SEED),
            value: vec![0; args.value_bytes],
            memtable_bytes: args.memtable_bytes,
        }
    }

    async fn put(&mut self, db: &DB, id: u64) -> Result<()> {
        self.rng.fill_bytes(&mut self.value);
        db.put(key(id), self.value.as_slice()).await?;
        Ok(())
    }

    /// Fills the empty memtable, and tells with how many records.
    async fn fill_memtable(&mut self, db: &DB) -> Result<u64> {
        let mut count = 0;
        while (db.stats().memtable_bytes as f64) < FULL * self.memtable_bytes as f64 {
            self.put(db, count).await?;
            count += 1;
        }
        Ok(count)
    }

    /// All keys in random order, a memtable at a time.
    async fn all(&mut self, db: &DB, keys: u64, per_flush: u64) -> Result<()> {
        let mut ids: Vec<u64> = (0..keys).collect();
        ids.shuffle(&mut self.rng);
        for part in ids.chunks(usize::try_from(per_flush)?) {
            for &id in part {
                self.put(db, id).await?;
            }
            db.flush().await?;
            db.wait_for_compaction().await?;
        }
        Ok(())
    }

    async fn overwrite(&mut self, db: &DB, keys: u64, count: u64) -> Result<()> {
        for _ in 0..count {
            let id = self.rng.random_range(0..keys);
            self.put(db, id).await?;
        }
        Ok(())
    }

    /// The records `ids`, a batch at a time.
    async fn put_batches(&mut self, db: &DB, ids: impl Iterator<Item = u64>) -> Result<()> {
        let mut ids = ids.peekable();
        while ids.peek().is_some() {
            let mut batch = db.batch();
            for id in ids.by_ref().take(BATCH) {
                self.rng.fill_bytes(&mut self.value);
                batch.put(key(id), self.value.as_slice());
            }
            batch.commit().await?;
        }
        Ok(())
    }
}

/// What the default costs.
async fn run_default(args: &Args, base: &Path) -> Result<()> {
    let db = DBOptions::default().durability(Durability::Written).open(base.join("db")).await?;
    let mut load = Load::new(args);
    let mut ids: Vec<u64> = (0..args.keys).collect();
    ids.shuffle(&mut load.rng);
    say(&format!("{} keys, values of {} bytes, default options", args.keys, args.value_bytes))?;
    say("                 tables / flushed     tables / put  flushes   merges  seconds")?;
    let mut before = db.stats();
    for pass in 0..=args.passes {
        let began = Instant::now();
        if pass == 0 {
            load.put_batches(&db, std::mem::take(&mut ids).into_iter()).await?;
        } else {
            let mut rng = Xoshiro256PlusPlus::seed_from_u64(SEED + pass);
            let keys = args.keys;
            let ids = (0..keys).map(|_| rng.random_range(0..keys));
            load.put_batches(&db, ids).await?;
        }
        db.flush().await?;
        db.wait_for_compaction().await?;
        let after = db.stats();
        let what = if pass == 0 { "load".into() } else { format!("overwrites {pass}") };
        say(&cost(&what, &before, &after, began))?;
        before = after;
    }
    say(&format!("{}", db.explain_compaction()))?;
    Ok(db.close().await?)
}

fn cost(what: &str, before: &Stats, after: &Stats, began: Instant) -> String {
    let flushed = (after.flushed_bytes - before.flushed_bytes) as f64;
    let tables = flushed + (after.compacted_bytes - before.compacted_bytes) as f64;
    format!(
        "{what:<16}{:>17.2}{:>17.2}{:>9}{:>9}{:>9.1}",
        tables / flushed.max(1.0),
        tables / ((after.user_bytes - before.user_bytes) as f64).max(1.0),
        after.flushes - before.flushes,
        after.compactions - before.compactions,
        began.elapsed().as_secs_f64(),
    )
}

fn key(id: u64) -> String {
    format!("{id:0KEY_BYTES$}")
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

/// A directory of this run, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    #[expect(clippy::disallowed_methods, reason = "a program makes its own directories")]
    fn new(base: &Path) -> std::io::Result<Self> {
        let path = base.join(format!("seerdb-merge-model-{}", std::process::id()));
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
