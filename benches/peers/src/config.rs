//! What a run is: its arguments, its data directory, and the order of the engines in it.

use std::ffi::OsString;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lexopt::prelude::{Long, Short, Value, ValueExt};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Result;
use crate::data::{self, VALUE_BYTES_MIN};
use crate::disk;
use crate::engine::Peer;

pub const MEMTABLE_BYTES: usize = 64 << 20;
pub const CACHE_BYTES: usize = 64 << 20;
/// Holds the 100 MiB of the data set in any engine's own form.
pub const HOT_CACHE_BYTES: usize = 256 << 20;
const WORKERS: usize = 2;

const USAGE: &str = "\
usage: peers [options] [ancestor] [durable] [hotget] [amplification] [blobscan] [cold]
             [sustained] [busy] [shift] [queue] [large_merge]

  --dir DIR        where the data goes (default: ./target; must be a real disk)
  --engines A,B    of seerdb, rocksdb, fjall (default: all in this build)
  --records N      records of all workloads but durable (default: 100000)
  --rounds N       rounds, engines interleaved in each (default: 3)
  --seconds S      time of a cell of durable, hotget, cold and busy, and of sustained (default: 3)
  --seed N         of keys, values and their order (default: 1)

of amplification, blobscan, cold, sustained, busy, shift and queue:
  --memtable MIB   memtables and files, small to make deep trees (default: 4)
  --compressible   values that LZ4 halves (default: random ones)
  --values A,B     amplification: bytes of a value (default: 1024,8192)
  --space F        amplification: the bound where space is bounded, in times of the live values
                   (default: 1.5)
  --overwrites N   amplification: times the records, in each order (default: 3)
  --direct         cold: around the page cache, for engines that can; cache of half the memory
  --scans N        blobscan: scans, and groups of gets; queue: scans (default: 100)

of sustained, busy, shift and queue:
  --value BYTES    of a value (default: 100)
  --writers N      sustained: writers (default: 8)
  --warm S         sustained: time to reach the steady state, and to measure the rate (default: 4)
  --rate N         sustained: puts a second instead of 80 % of the rate held; busy: puts a second
                   (default: 20000)
  --gets N         busy: gets a second by the clock (default: as many as 8 readers can)
  --phase S        shift: time of a phase (default: 2)
  --queue N        queue: keys that are put and deleted (default: 100000)
  --idle S         queue: time without any work before the scans (default: 1)
  --gib G          large_merge: GiB of records (default: 1)";

pub struct Config {
    args: Args,
    pub pool: Arc<[u8]>,
    pub base: TempDir,
}

pub struct Args {
    pub workloads: Vec<Workload>,
    pub engines: Vec<Peer>,
    pub records: u64,
    pub rounds: u64,
    pub seed: u64,
    pub cell_time: Duration,
    pub memtable_bytes: usize,
    pub space: f64,
    pub is_compressible: bool,
    pub is_direct: bool,
    pub value_sizes: Vec<usize>,
    pub overwrites: u64,
    pub scans: u64,
    pub value_bytes: usize,
    pub writers: u64,
    pub warm_time: Duration,
    pub rate: Option<f64>,
    pub gets: Option<f64>,
    pub phase_time: Duration,
    pub queue: u64,
    pub idle_time: Duration,
    pub gib: f64,
    /// Only load what `large_merge` merges, into this directory: how it calls itself.
    pub load: Option<PathBuf>,
    dir: PathBuf,
}

#[derive(Clone, Copy)]
pub enum Workload {
    Ancestor,
    Durable,
    Hotget,
    Amplification,
    Blobscan,
    Cold,
    Sustained,
    Busy,
    Shift,
    Queue,
    LargeMerge,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            workloads: Vec::new(),
            engines: Peer::ALL.to_vec(),
            records: 100_000,
            rounds: 3,
            seed: 1,
            cell_time: Duration::from_secs(3),
            memtable_bytes: 4 << 20,
            space: 1.5,
            is_compressible: false,
            is_direct: false,
            value_sizes: vec![1024, 8192],
            overwrites: 3,
            scans: 100,
            value_bytes: 100,
            writers: 8,
            warm_time: Duration::from_secs(4),
            rate: None,
            gets: None,
            phase_time: Duration::from_secs(2),
            queue: 100_000,
            idle_time: Duration::from_secs(1),
            gib: 1.0,
            load: None,
            dir: PathBuf::from("target"),
        }
    }
}

impl Args {
    /// The arguments; `None` if they ask for help.
    fn parse() -> Result<Option<Self>> {
        let mut parsed = Self::default();
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("dir") => parsed.dir = args.value()?.into(),
                Long("engines") => parsed.engines = list(args.value()?, Peer::parse)?,
                Long("records") => parsed.records = args.value()?.parse()?,
                Long("rounds") => parsed.rounds = args.value()?.parse()?,
                Long("seconds") => parsed.cell_time = seconds(args.value()?)?,
                Long("seed") => parsed.seed = args.value()?.parse()?,
                Long("memtable") => parsed.memtable_bytes = mebibytes(args.value()?)?,
                Long("space") => parsed.space = args.value()?.parse()?,
                Long("compressible") => parsed.is_compressible = true,
                Long("direct") => parsed.is_direct = true,
                Long("values") => parsed.value_sizes = list(args.value()?, value_size)?,
                Long("overwrites") => parsed.overwrites = args.value()?.parse()?,
                Long("scans") => parsed.scans = args.value()?.parse()?,
                Long("value") => parsed.value_bytes = value_size(&args.value()?.string()?)?,
                Long("writers") => parsed.writers = args.value()?.parse::<u64>()?.max(1),
                Long("warm") => parsed.warm_time = seconds(args.value()?)?,
                Long("rate") => parsed.rate = Some(args.value()?.parse()?),
                Long("gets") => parsed.gets = Some(args.value()?.parse()?),
                Long("phase") => parsed.phase_time = seconds(args.value()?)?,
                Long("queue") => parsed.queue = args.value()?.parse()?,
                Long("idle") => parsed.idle_time = seconds(args.value()?)?,
                Long("load") => parsed.load = Some(args.value()?.into()),
                Long("gib") => parsed.gib = args.value()?.parse()?,
                Short('h') | Long("help") => return Ok(None),
                Value(name) => parsed.workloads.push(Workload::parse(&name.string()?)?),
                _ => return Err(arg.unexpected().into()),
            }
        }
        if parsed.workloads.is_empty() {
            parsed.workloads = Workload::ALL.into();
        }
        if parsed.rate.into_iter().chain(parsed.gets).any(|rate| rate.is_nan() || rate <= 0.0) {
            return Err("--rate and --gets are above 0".into());
        }
        if parsed.cell_time.is_zero() {
            return Err("--seconds must be above 0".into());
        }
        if parsed.space <= 1.0 {
            return Err("--space must be above 1: the live values take that much".into());
        }
        Ok(Some(parsed))
    }
}

fn list<T>(value: OsString, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    value.string()?.split(',').map(parse).collect()
}

fn mebibytes(value: OsString) -> Result<usize> {
    let count: usize = value.parse()?;
    if count == 0 { Err("memtables have 1 MiB at least".into()) } else { Ok(count << 20) }
}

fn seconds(value: OsString) -> Result<Duration> {
    Ok(Duration::try_from_secs_f64(value.parse()?)?)
}

fn value_size(text: &str) -> Result<usize> {
    let bytes = text.parse()?;
    if bytes < VALUE_BYTES_MIN {
        return Err(format!("a value has {VALUE_BYTES_MIN} bytes at least").into());
    }
    Ok(bytes)
}

impl Deref for Config {
    type Target = Args;

    fn deref(&self) -> &Args {
        &self.args
    }
}

impl Config {
    /// The run that the arguments ask for; `None` if they ask for help.
    pub fn from_args() -> Result<Option<Self>> {
        let Some(args) = Args::parse()? else {
            return Ok(None);
        };
        std::fs::create_dir_all(&args.dir)?;
        let pool = data::pool(args.seed).into();
        let base = tempfile::Builder::new().prefix("peers-").tempdir_in(&args.dir)?;
        Ok(Some(Self { args, pool, base }))
    }

    pub fn usage() -> &'static str {
        USAGE
    }

    /// A runtime as a small service has it.
    pub fn runtime(&self) -> Result<Runtime> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        Ok(builder.worker_threads(WORKERS).enable_all().build()?)
    }

    /// Calls `measure` with each engine in each round, in an empty directory.
    pub fn each_round(&self, measure: impl FnMut(Peer, u64, &Path) -> Result<()>) -> Result<()> {
        self.each_round_of(&self.engines, |peer| peer.name(), measure)
    }

    /// Calls `measure` with each of `all` in each round, in an empty directory.
    ///
    /// Each round begins with another one, so that none always follows the same one.
    pub fn each_round_of<T: Copy>(
        &self,
        all: &[T],
        name: impl Fn(T) -> &'static str,
        mut measure: impl FnMut(T, u64, &Path) -> Result<()>,
    ) -> Result<()> {
        for round in 0..self.rounds {
            let mut order = all.to_vec();
            order.rotate_left(round as usize % all.len());
            for one in order {
                disk::sync()?;
                let dir = self.base.path().join("data");
                std::fs::create_dir(&dir)?;
                measure(one, round, &dir).map_err(|e| format!("{}: {e}", name(one)))?;
                std::fs::remove_dir_all(&dir)?;
            }
        }
        Ok(())
    }
}

impl Workload {
    const ALL: [Self; 11] = [
        Self::Ancestor,
        Self::Durable,
        Self::Hotget,
        Self::Amplification,
        Self::Blobscan,
        Self::Cold,
        Self::Sustained,
        Self::Busy,
        Self::Shift,
        Self::Queue,
        Self::LargeMerge,
    ];

    fn parse(name: &str) -> Result<Self> {
        match name {
            "ancestor" => Ok(Self::Ancestor),
            "durable" => Ok(Self::Durable),
            "hotget" => Ok(Self::Hotget),
            "amplification" => Ok(Self::Amplification),
            "blobscan" => Ok(Self::Blobscan),
            "cold" => Ok(Self::Cold),
            "sustained" => Ok(Self::Sustained),
            "busy" => Ok(Self::Busy),
            "shift" => Ok(Self::Shift),
            "queue" => Ok(Self::Queue),
            "large_merge" => Ok(Self::LargeMerge),
            _ => Err(format!("no workload {name:?}").into()),
        }
    }
}
