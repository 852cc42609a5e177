//! Random overwrites at four fifths of what the engine can hold: the tail of puts, and pauses.
//!
//! All records are loaded in random order. Then writers overwrite uniformly as fast as they can,
//! for the time `--warm` to bring the tree to its steady state, and once more: the "rate held".
//! Without a break the same number of writers goes on at 80 % of it, for `--seconds`, by the clock
//! (`pace`): a put that comes while the engine pauses waits, and its wait counts. Each engine has
//! its own rate; with `--rate` all have that one instead of the 80 %.
//!
//! Writes are acknowledged when the kernel has them. The longest pause is the longest time in which
//! no put at all came back. Throughput is counted in windows of ten seconds, or of a quarter of the
//! time if that is less; the worst window is what a user of a full machine gets.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Result;
use crate::callers;
use crate::config::{CACHE_BYTES, Config};
use crate::data::{self, Rng, Shape, Values};
use crate::engine::{Engine, Setup, Sync, Tree, with_engine};
use crate::pace::Pace;
use crate::report::{Latency, Row, Table, Unit, histogram, spread};

const LOAD: f64 = 0.8;
const WINDOW: Duration = Duration::from_secs(10);
const WINDOWS_MIN: u32 = 4;

pub fn run(config: &Config) -> Result<Table> {
    let mut held = Row::new("rate held", Unit::PerSecond);
    let mut latency = Latency::default();
    let mut pause = Row::new("longest pause", Unit::Microseconds);
    let mut windows =
        ["a window, median", "a window, worst"].map(|label| Row::new(label, Unit::PerSecond));
    let mut done = Row::new("done of those due", Unit::Times);
    config.each_round(|peer, round, dir| {
        let seed = config.seed.wrapping_add(round);
        let cell = with_engine!(peer, E => measure::<E>(config, seed, dir))?;
        held.add(peer, cell.held);
        latency.add(peer, &cell.times)?;
        pause.add(peer, cell.pause.as_secs_f64() * 1e6);
        windows[0].add(peer, cell.window_median);
        windows[1].add(peer, cell.window_worst);
        done.add(peer, cell.done);
        Ok(())
    })?;
    let mut rows = vec![held];
    rows.extend(latency.tail_rows());
    rows.push(pause);
    rows.extend(windows);
    rows.push(done);
    let title = format!(
        "sustained: {} x {} B overwritten by {} writers, {:?} by the clock at {}",
        config.records,
        config.value_bytes,
        config.writers,
        config.cell_time,
        match config.rate {
            Some(rate) => format!("{rate}/s"),
            None => format!("{:.0} % of the rate held", LOAD * 100.0),
        },
    );
    Ok(Table { title, rows })
}

struct Cell {
    held: f64,
    times: Histogram<u64>,
    pause: Duration,
    window_median: f64,
    window_worst: f64,
    done: f64,
}

fn measure<E: Engine>(config: &Config, seed: u64, dir: &Path) -> Result<Cell> {
    let runtime = config.runtime()?;
    let setup = Setup {
        sync: Sync::Written,
        memtable_bytes: config.memtable_bytes,
        cache_bytes: CACHE_BYTES,
        is_direct: false,
        tree: Tree::Default,
        separation: None,
    };
    let shape = Shape { bytes: config.value_bytes, is_compressible: config.is_compressible };
    let engine = runtime.block_on(async {
        let engine = E::open(dir, setup).await?;
        load(&engine, config, shape, seed).await?;
        engine.settle().await?;
        Result::Ok(engine)
    })?;
    let mut held = 0.0;
    for part in 1..=2 {
        let work = |writer: u64, stop| {
            let writer = Writer::new(config, shape, seed ^ (part << 48) ^ (writer << 32));
            writer.overwrite(engine.clone(), None, Watch::new(Duration::MAX), stop)
        };
        let (elapsed, times) =
            callers::run::<E, _>(&runtime, config.writers, config.warm_time, work)?;
        held = times.len() as f64 / elapsed.as_secs_f64();
    }
    let watch = Watch::new(WINDOW.min(config.cell_time / WINDOWS_MIN));
    let pace = Pace::start(config.rate.unwrap_or(held * LOAD));
    let work = |writer: u64, stop| {
        let writer = Writer::new(config, shape, seed ^ (3 << 48) ^ (writer << 32));
        writer.overwrite(engine.clone(), Some(Arc::clone(&pace)), Arc::clone(&watch), stop)
    };
    let (_, times) = callers::run::<E, _>(&runtime, config.writers, config.cell_time, work)?;
    let due = pace.due();
    runtime.block_on(engine.close())?;
    let windows = watch.windows(config.cell_time);
    let [window_worst, window_median, _] = spread(&windows).ok_or("no window was full")?;
    let done = times.len() as f64 / due;
    Ok(Cell { held, times, pause: watch.pause(), window_median, window_worst, done })
}

/// Puts all records in random order.
pub async fn load<E: Engine>(engine: &E, config: &Config, shape: Shape, seed: u64) -> Result<()> {
    let mut values = Values::shaped(&config.pool, seed, shape);
    for id in data::shuffled(config.records, &mut Rng::new(seed)) {
        engine.put(&data::key(id), values.next(id)).await?;
    }
    Ok(())
}

/// One of several that overwrite.
pub struct Writer {
    pool: Arc<[u8]>,
    records: u64,
    shape: Shape,
    seed: u64,
}

impl Writer {
    pub fn new(config: &Config, shape: Shape, seed: u64) -> Self {
        let pool = Arc::clone(&config.pool);
        Self { pool, records: config.records, shape, seed: Rng::new(seed).next() }
    }

    /// Overwrites random records, at a pace or as fast as it can; the times of all puts, since
    /// they were due.
    pub async fn overwrite<E: Engine>(
        self,
        engine: E,
        pace: Option<Arc<Pace>>,
        watch: Arc<Watch>,
        is_stopped: Arc<AtomicBool>,
    ) -> Result<Histogram<u64>> {
        let mut rng = Rng::new(self.seed);
        let mut values = Values::shaped(&self.pool, self.seed, self.shape);
        let mut times = histogram()?;
        while !is_stopped.load(Ordering::Relaxed) {
            let id = rng.below(self.records);
            let (key, value) = (data::key(id), values.next(id));
            let start = match &pace {
                Some(pace) => pace.next().await,
                None => Instant::now(),
            };
            engine.put(&key, value).await?;
            let now = Instant::now();
            times.saturating_record((now - start).as_nanos() as u64);
            watch.note(now);
        }
        Ok(times)
    }
}

/// What all writers did together.
pub struct Watch {
    start: Instant,
    window: Duration,
    /// When the last put came back, and the longest time without one; nanoseconds.
    last: AtomicU64,
    longest: AtomicU64,
    counts: Vec<AtomicU64>,
}

/// A day of windows of ten seconds; what comes later is not counted.
const COUNTS: usize = 8640;

impl Watch {
    pub fn new(window: Duration) -> Arc<Self> {
        let counts = (0..COUNTS).map(|_| AtomicU64::new(0)).collect();
        let (last, longest) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { start: Instant::now(), window, last, longest, counts })
    }

    fn note(&self, now: Instant) {
        let since = now.saturating_duration_since(self.start);
        let at = since.as_nanos() as u64;
        let before = self.last.fetch_max(at, Ordering::Relaxed);
        let pause = at.saturating_sub(before);
        if pause > self.longest.load(Ordering::Relaxed) {
            self.longest.fetch_max(pause, Ordering::Relaxed);
        }
        let index = since.as_nanos() / self.window.as_nanos();
        if let Some(count) = self.counts.get(index as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn pause(&self) -> Duration {
        Duration::from_nanos(self.longest.load(Ordering::Relaxed))
    }

    /// The rates of all full windows of `time`.
    fn windows(&self, time: Duration) -> Vec<f64> {
        let full = (time.as_nanos() / self.window.as_nanos()) as usize;
        let counts = self.counts.iter().take(full);
        counts.map(|n| n.load(Ordering::Relaxed) as f64 / self.window.as_secs_f64()).collect()
    }
}
