//! What one written byte costs: bytes written and occupied, with values in tables and apart.
//!
//! Each engine loads all records in random order, overwrites them uniformly, then with a few much
//! more often than others; one task, writes acknowledged when the kernel has them. A phase ends
//! when the engine is at rest. "written" is what the process wrote in the phase, logs included, per
//! byte of the keys and values it put; "on disk" is what all files occupy at its end, per byte of
//! the live keys and values, and "in logs" the part of it in logs, which does not grow with the
//! data. "settled puts" counts the time until the engine is at rest. The ratios are those of
//! seerdb with values apart over each row's.
//!
//! Garbage collection trades bytes written for bytes occupied: RocksDB and fjall have a row with
//! what their makers advise, and one set up for the bound that seerdb keeps.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::config::{CACHE_BYTES, Config};
use crate::data::{self, KEY_BYTES, Rng, Shape, Values, Zipfian};
use crate::disk;
use crate::engine::{Engine, Peer, Separation, Setup, Sync, Tree, with_engine};
use crate::report::{short, spread};

/// An engine and how it stores values.
#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    peer: Peer,
    values: Placement,
}

#[derive(Clone, Copy)]
enum Placement {
    InTables,
    Apart,
    ApartBounded,
}

/// The variant that all are compared with.
const COMPARED: &str = "seerdb apart";

const VARIANTS: &[Variant] = &[
    #[cfg(feature = "seerdb-engine")]
    Variant { name: COMPARED, peer: Peer::Seerdb, values: Placement::ApartBounded },
    #[cfg(feature = "seerdb-engine")]
    Variant { name: "seerdb", peer: Peer::Seerdb, values: Placement::InTables },
    Variant { name: "rocksdb blob", peer: Peer::Rocksdb, values: Placement::Apart },
    Variant { name: "rocksdb blob, bounded", peer: Peer::Rocksdb, values: Placement::ApartBounded },
    Variant { name: "rocksdb", peer: Peer::Rocksdb, values: Placement::InTables },
    Variant { name: "fjall apart", peer: Peer::Fjall, values: Placement::Apart },
    Variant { name: "fjall apart, bounded", peer: Peer::Fjall, values: Placement::ApartBounded },
];

#[derive(Clone, Copy)]
enum Phase {
    Load,
    Uniform,
    Zipfian,
}

const PHASES: [Phase; 3] = [Phase::Load, Phase::Uniform, Phase::Zipfian];

/// Of one phase.
#[derive(Clone, Copy)]
struct Cost {
    written: f64,
    on_disk: f64,
    in_logs: f64,
    puts: f64,
    settled_puts: f64,
}

/// The costs of one phase, those of each round for every variant that ran.
struct Costs {
    title: String,
    rows: Vec<(&'static str, Vec<Cost>)>,
}

/// Writes the tables of each size of values when they are there.
pub fn run(config: &Config, out: &mut impl Write) -> Result<()> {
    disk::check_counted(config.base.path())?;
    for &bytes in &config.value_sizes {
        for table in run_size(config, bytes)? {
            write!(out, "{table}")?;
        }
    }
    Ok(())
}

fn run_size(config: &Config, value_bytes: usize) -> Result<Vec<Costs>> {
    let shape = Shape { bytes: value_bytes, is_compressible: config.is_compressible };
    let chosen = VARIANTS.iter().filter(|variant| config.engines.contains(&variant.peer));
    let variants: Vec<Variant> = chosen.copied().collect();
    let mut tables = PHASES.map(|phase| Costs {
        title: phase.title(config, shape),
        rows: variants.iter().map(|variant| (variant.name, Vec::new())).collect(),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let indexes: Vec<usize> = (0..variants.len()).collect();
    config.each_round_of(
        &indexes,
        |index| variants[index].name,
        |index, round, dir| {
            let variant = variants[index];
            let seed = config.seed.wrapping_add(round);
            let costs = with_engine!(variant.peer, E => {
                runtime.block_on(measure::<E>(config, variant.values, shape, seed, dir))
            })?;
            for (table, cost) in tables.iter_mut().zip(costs) {
                table.rows[index].1.push(cost);
            }
            Ok(())
        },
    )?;
    Ok(tables.into())
}

async fn measure<E: Engine>(
    config: &Config,
    placement: Placement,
    shape: Shape,
    seed: u64,
    dir: &Path,
) -> Result<[Cost; PHASES.len()]> {
    disk::rest(dir)?;
    let mut written = disk::written()?;
    let engine = E::open(dir, setup(config, placement, shape)).await?;
    let mut rng = Rng::new(seed);
    let mut values = Values::shaped(&config.pool, seed, shape);
    let record_bytes = (KEY_BYTES + shape.bytes) as u64;
    let live_bytes = (config.records * record_bytes) as f64;
    let mut costs = Vec::new();
    for phase in PHASES {
        let ids = phase.ids(config, &mut rng)?;
        let start = Instant::now();
        for &id in &ids {
            engine.put(&data::key(id), values.next(id)).await?;
        }
        let elapsed = start.elapsed();
        engine.settle().await?;
        let settled = disk::rest(dir)? - start;
        let (before, occupied) = (written, disk::occupied(dir)?);
        written = disk::written()?;
        costs.push(Cost {
            written: (written - before) as f64 / (ids.len() as u64 * record_bytes) as f64,
            on_disk: occupied.bytes as f64 / live_bytes,
            in_logs: occupied.log_bytes as f64 / live_bytes,
            puts: ids.len() as f64 / elapsed.as_secs_f64(),
            settled_puts: ids.len() as f64 / settled.as_secs_f64(),
        });
    }
    for id in 0..config.records {
        engine.read(id).await?;
    }
    engine.close().await?;
    Ok(costs.try_into().map_err(|_| "a cost for every phase")?)
}

fn setup(config: &Config, placement: Placement, shape: Shape) -> Setup {
    let threshold_bytes = shape.bytes;
    let apart = |space_max| Some(Separation { threshold_bytes, space_max, is_collected: true });
    Setup {
        sync: Sync::Written,
        memtable_bytes: config.memtable_bytes,
        cache_bytes: CACHE_BYTES,
        is_direct: false,
        tree: Tree::Default,
        separation: match placement {
            Placement::InTables => None,
            Placement::Apart => apart(None),
            Placement::ApartBounded => apart(Some(config.space)),
        },
    }
}

impl Phase {
    /// The records that are written, one after the other.
    fn ids(self, config: &Config, rng: &mut Rng) -> Result<Vec<u64>> {
        let count = config.records * config.overwrites;
        Ok(match self {
            Phase::Load => data::shuffled(config.records, rng),
            Phase::Uniform => (0..count).map(|_| rng.below(config.records)).collect(),
            Phase::Zipfian => {
                let mut zipfian = Zipfian::new(config.records, rng)?;
                (0..count).map(|_| zipfian.next()).collect()
            }
        })
    }

    fn title(self, config: &Config, shape: Shape) -> String {
        let records = config.records;
        let writes = match self {
            Phase::Load => "loaded in random order".into(),
            Phase::Uniform => format!("then overwritten {} x, uniformly", config.overwrites),
            Phase::Zipfian => format!("then overwritten {} x, zipfian", config.overwrites),
        };
        let kind = if shape.is_compressible { "half compressible" } else { "random" };
        let (bytes, memtable) = (shape.bytes, config.memtable_bytes >> 20);
        format!(
            "amplification: {records} x {bytes} B, {kind}, memtables of {memtable} MiB, \
             bound {:.2}: {writes}",
            config.space
        )
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.title)?;
        write!(f, "{:<24}", "")?;
        for head in ["written", "on disk", "in logs", "puts", "settled puts"] {
            write!(f, "{head:>22}")?;
        }
        writeln!(f, "{:>14}{:>12}{:>16}", "s / written", "s / disk", "s / settled")?;
        for (name, costs) in &self.rows {
            write!(f, "{name:<24}")?;
            for cell in [
                times(costs, |cost| cost.written),
                times(costs, |cost| cost.on_disk),
                times(costs, |cost| cost.in_logs),
                rate(costs, |cost| cost.puts),
                rate(costs, |cost| cost.settled_puts),
            ] {
                write!(f, "{cell:>22}")?;
            }
            let written = self.ratio(costs, |cost| cost.written);
            let on_disk = self.ratio(costs, |cost| cost.on_disk);
            let settled = self.ratio(costs, |cost| cost.settled_puts);
            writeln!(f, "{written:>14}{on_disk:>12}{settled:>16}")?;
        }
        Ok(())
    }
}

impl Costs {
    /// The median of seerdb with separated values over that of `costs`.
    fn ratio(&self, costs: &[Cost], of: impl Fn(&Cost) -> f64) -> String {
        let Some((_, ours)) = self.rows.iter().find(|(name, _)| *name == COMPARED) else {
            return "-".into();
        };
        let [[_, ours, _], [_, theirs, _]] =
            [ours.as_slice(), costs].map(|costs| samples(costs, &of));
        format!("{:.2}x", ours / theirs)
    }
}

fn samples(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> [f64; 3] {
    spread(&costs.iter().map(of).collect::<Vec<_>>()).unwrap_or([f64::NAN; 3])
}

fn times(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> String {
    match samples(costs, of) {
        [min, median, max] if min == max => format!("{median:.2}"),
        [min, median, max] => format!("{median:.2} ({min:.2}-{max:.2})"),
    }
}

fn rate(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> String {
    match samples(costs, of) {
        [min, median, max] if min == max => format!("{}/s", short(median)),
        [min, median, max] => format!("{}/s ({}-{})", short(median), short(min), short(max)),
    }
}
