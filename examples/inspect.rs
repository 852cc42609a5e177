//! Shows what compaction does and why.
//!
//! ```text
//! cargo run --release --example inspect -- PATH
//! cargo run --release --example inspect -- --draw FILE [--records N] [--value BYTES] [--rounds N]
//!     [--seed N] [--dir DIR]
//! ```
//!
//! With PATH it opens that database, which nobody else may have open, and prints its tree, what the
//! model expects it to cost, what it did cost, and the merge that is due. It changes no more than
//! an open does.
//!
//! With `--draw` it makes a database in `--dir` (the current directory): `--records` (500,000) of
//! `--value` (100) bytes in random order, then `--rounds` (3) times as many overwritten, evenly
//! chosen, with memtables so small that the tree grows deep. Meanwhile it draws into FILE, an SVG:
//! the bytes written for each byte put, what a get reads, and the space, over the time. At last it
//! merges everything, with a bar.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use plotters::prelude::{
    BLUE, ChartBuilder, DrawingAreaErrorKind, IntoDrawingArea, LineSeries, SVGBackend, TRANSPARENT,
    WHITE,
};
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt, SeedableRng};
use seerdb::{DB, DBOptions, Durability};
use tokio::time::Instant;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;

const USAGE: &str = "usage: inspect PATH, or inspect --draw FILE [--records N] [--value BYTES] \
    [--rounds N] [--seed N] [--dir DIR]";
/// Puts between two looks at the tree.
const STEP: u64 = 20_000;
const GETS: u64 = 500;
const MEMTABLE_BYTES: usize = 1 << 20;
const BUDGET_BYTES: usize = 64 << 20;
const KEY_BYTES: u64 = 16;
const PICTURE: (u32, u32) = (900, 960);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    match Args::parse()? {
        Args::Look { path } => {
            let db = DBOptions::default().create_if_missing(false).open(path).await?;
            writeln!(std::io::stdout(), "{}", db.explain_compaction())?;
            db.close().await?;
        }
        Args::Draw(plan) => {
            let dir = plan.dir.join(format!("seerdb-inspect-{}", std::process::id()));
            let drawn = draw(&plan, &dir).await;
            tokio::fs::remove_dir_all(&dir).await?;
            drawn?;
        }
    }
    Ok(())
}

async fn draw(plan: &Plan, dir: &std::path::Path) -> Result<()> {
    let options = DBOptions::default()
        .memory_budget(BUDGET_BYTES)
        .memtable_bytes(MEMTABLE_BYTES)
        .durability(Durability::Written);
    let db = options.open(dir).await?;
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(plan.seed);
    let mut order: Vec<u64> = (0..plan.records).collect();
    order.shuffle(&mut rng);
    let overwrites = plan.records * plan.rounds;
    let bar = bar(plan.records + overwrites, "puts");
    let mut history = History::new(plan);
    for put in 0..plan.records + overwrites {
        let fresh = usize::try_from(put).ok().and_then(|put| order.get(put)).copied();
        let number = fresh.unwrap_or_else(|| rng.random_range(0..plan.records));
        db.put(key(number), value(&mut rng, plan.value_bytes)).await?;
        if (put + 1) % STEP == 0 || put + 1 == plan.records + overwrites {
            let live = order.iter().take(usize::try_from(put + 1)?);
            history.look(&db, &mut rng, &live.copied().collect::<Vec<_>>()).await?;
            bar.set_position(put + 1);
        }
    }
    bar.finish();
    db.flush().await?;
    db.wait_for_compaction().await?;
    writeln!(std::io::stdout(), "{}", db.explain_compaction())?;
    merge_all(&db).await?;
    writeln!(std::io::stdout(), "{}", db.explain_compaction())?;
    db.close().await?;
    history.draw(&plan.picture).map_err(|e| format!("{}: {e}", plan.picture))?;
    writeln!(std::io::stdout(), "drawn into {}", plan.picture)?;
    Ok(())
}

/// Merges everything, and shows how far that is.
async fn merge_all(db: &DB) -> Result<()> {
    let entries = db.stats().levels.iter().map(|level| level.entries).sum();
    let bar = bar(entries, "entries merged");
    let mut merging = std::pin::pin!(db.compact_range(..));
    loop {
        tokio::select! {
            merged = &mut merging => break merged?,
            () = tokio::time::sleep(Duration::from_millis(50)) => {
                if let Some(progress) = db.compaction_progress() {
                    bar.set_position(progress.entries);
                }
            }
        }
    }
    bar.finish();
    Ok(())
}

fn bar(length: u64, what: &'static str) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} {msg}, {eta} left");
    let style = style.expect("the template is right");
    ProgressBar::new(length).with_style(style).with_message(what)
}

fn key(number: u64) -> String {
    format!("{number:016}")
}

/// Half of it can be compressed away.
fn value(rng: &mut Xoshiro256PlusPlus, bytes: usize) -> Vec<u8> {
    let mut value = vec![b'-'; bytes];
    rng.fill_bytes(value.split_at_mut(bytes / 2).0);
    value
}

/// What was seen over the time.
struct History {
    start: Instant,
    entry_bytes: u64,
    /// Points of the three curves: seconds, and what the title says.
    curves: [(&'static str, Vec<(f64, f64)>); 3],
}

impl History {
    fn new(plan: &Plan) -> Self {
        let curve = |title| (title, Vec::new());
        History {
            start: Instant::now(),
            entry_bytes: KEY_BYTES + plan.value_bytes as u64,
            curves: [
                curve("bytes written for each byte put, all files"),
                curve("blocks that a get of a random key looks into"),
                curve("bytes of tables for each byte of live keys and values"),
            ],
        }
    }

    /// One more point of each curve, with the keys of the numbers `live` in the database.
    async fn look(&mut self, db: &DB, rng: &mut Xoshiro256PlusPlus, live: &[u64]) -> Result<()> {
        let stats = db.stats();
        let tables: u64 = stats.levels.iter().map(|level| level.bytes).sum();
        let mut blocks = 0;
        for _ in 0..GETS {
            let number = live.choose(rng).ok_or("nothing was put")?;
            let (found, read) = db.get(key(*number)).stats().await?;
            found.ok_or("a key is gone")?;
            blocks += u64::from(read.blocks.memory + read.blocks.page_cache + read.blocks.disk);
        }
        let values = [
            stats.write_amplification(),
            blocks as f64 / GETS as f64,
            tables as f64 / (live.len() as u64 * self.entry_bytes) as f64,
        ];
        let now = self.start.elapsed().as_secs_f64();
        for ((_, points), value) in self.curves.iter_mut().zip(values) {
            points.push((now, value));
        }
        Ok(())
    }

    fn draw(&self, path: &str) -> std::result::Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let picture = SVGBackend::new(path, PICTURE).into_drawing_area();
        picture.fill(&WHITE)?;
        for (area, (title, points)) in picture.split_evenly((3, 1)).iter().zip(&self.curves) {
            let largest = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).fold(0.0, f64::max);
            let (end, top) = (largest(|point| point.0), largest(|point| point.1));
            let mut chart = ChartBuilder::on(area)
                .caption(title, ("sans-serif", 18))
                .margin(12)
                .x_label_area_size(32)
                .y_label_area_size(48)
                .build_cartesian_2d(0.0..end.max(0.001), 0.0..(top * 1.1).max(0.001))?;
            chart.configure_mesh().light_line_style(TRANSPARENT).x_desc("seconds").draw()?;
            chart.draw_series(LineSeries::new(points.iter().copied(), &BLUE))?;
        }
        picture.present()
    }
}

enum Args {
    Look { path: PathBuf },
    Draw(Plan),
}

struct Plan {
    picture: String,
    records: u64,
    value_bytes: usize,
    rounds: u64,
    seed: u64,
    dir: PathBuf,
}

impl Args {
    fn parse() -> Result<Args> {
        let mut args = std::env::args().skip(1);
        let mut path = None;
        let mut picture = None;
        let mut plan = Plan {
            picture: String::new(),
            records: 500_000,
            value_bytes: 100,
            rounds: 3,
            seed: 1,
            dir: PathBuf::from("."),
        };
        while let Some(arg) = args.next() {
            if !arg.starts_with("--") {
                path = Some(PathBuf::from(arg));
                continue;
            }
            let value = args.next().ok_or(USAGE)?;
            match arg.as_str() {
                "--draw" => picture = Some(value),
                "--records" => plan.records = value.parse()?,
                "--value" => plan.value_bytes = value.parse()?,
                "--rounds" => plan.rounds = value.parse()?,
                "--seed" => plan.seed = value.parse()?,
                "--dir" => plan.dir = PathBuf::from(value),
                _ => return Err(USAGE.into()),
            }
        }
        match (path, picture) {
            (Some(path), None) => Ok(Args::Look { path }),
            (None, Some(picture)) if plan.records > 0 => Ok(Args::Draw(Plan { picture, ..plan })),
            _ => Err(USAGE.into()),
        }
    }
}
