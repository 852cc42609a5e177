//! What a run is: its arguments, its data directory, and the order of the engines in it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lexopt::prelude::{Long, Short, Value, ValueExt};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Result;
use crate::data;
use crate::engine::Peer;

pub const MEMTABLE_BYTES: usize = 64 << 20;
pub const CACHE_BYTES: usize = 64 << 20;
/// Holds the 100 MiB of the data set in any engine's own form.
pub const HOT_CACHE_BYTES: usize = 256 << 20;
const WORKERS: usize = 2;

const USAGE: &str = "\
usage: peers [options] [ancestor] [durable] [hotget]

  --dir DIR        where the data goes (default: ./target; must be a real disk)
  --engines A,B    of seerdb, rocksdb, fjall (default: all in this build)
  --records N      records of ancestor and hotget (default: 100000)
  --rounds N       rounds, engines interleaved in each (default: 3)
  --seconds S      time of a cell of durable and hotget (default: 3)
  --seed N         of keys, values and their order (default: 1)";

pub struct Config {
    pub workloads: Vec<Workload>,
    pub engines: Vec<Peer>,
    pub records: u64,
    pub rounds: u64,
    pub seed: u64,
    pub cell_time: Duration,
    pub pool: Arc<[u8]>,
    pub base: TempDir,
}

#[derive(Clone, Copy)]
pub enum Workload {
    Ancestor,
    Durable,
    Hotget,
}

impl Config {
    /// The run that the arguments ask for; `None` if they ask for help.
    pub fn from_args() -> Result<Option<Self>> {
        let mut workloads = Vec::new();
        let mut engines = Peer::ALL.to_vec();
        let (mut records, mut rounds, mut seed, mut seconds) = (100_000, 3, 1, 3.0);
        let mut dir = PathBuf::from("target");
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("dir") => dir = args.value()?.into(),
                Long("engines") => {
                    let names = args.value()?.string()?;
                    engines = names.split(',').map(Peer::parse).collect::<Result<_>>()?;
                }
                Long("records") => records = args.value()?.parse()?,
                Long("rounds") => rounds = args.value()?.parse()?,
                Long("seconds") => seconds = args.value()?.parse()?,
                Long("seed") => seed = args.value()?.parse()?,
                Short('h') | Long("help") => return Ok(None),
                Value(name) => workloads.push(Workload::parse(&name.string()?)?),
                _ => return Err(arg.unexpected().into()),
            }
        }
        if workloads.is_empty() {
            workloads = vec![Workload::Ancestor, Workload::Durable, Workload::Hotget];
        }
        std::fs::create_dir_all(&dir)?;
        Ok(Some(Self {
            workloads,
            engines,
            records,
            rounds,
            seed,
            cell_time: Duration::from_secs_f64(seconds),
            pool: data::pool(seed).into(),
            base: tempfile::Builder::new().prefix("peers-").tempdir_in(dir)?,
        }))
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
    ///
    /// Each round begins with another engine, so that none always follows the same one.
    pub fn each_round(
        &self,
        mut measure: impl FnMut(Peer, u64, &Path) -> Result<()>,
    ) -> Result<()> {
        for round in 0..self.rounds {
            let mut order = self.engines.clone();
            order.rotate_left(round as usize % self.engines.len());
            for peer in order {
                sync_file_systems()?;
                let dir = self.base.path().join(peer.name());
                std::fs::create_dir(&dir)?;
                measure(peer, round, &dir).map_err(|e| format!("{}: {e}", peer.name()))?;
                std::fs::remove_dir_all(&dir)?;
            }
        }
        Ok(())
    }
}

impl Workload {
    fn parse(name: &str) -> Result<Self> {
        match name {
            "ancestor" => Ok(Self::Ancestor),
            "durable" => Ok(Self::Durable),
            "hotget" => Ok(Self::Hotget),
            _ => Err(format!("no workload {name:?}").into()),
        }
    }
}

/// Writes back what the engine before has left, so that the next one does not pay for it.
fn sync_file_systems() -> Result<()> {
    let status = Command::new("sync").status()?;
    if status.success() { Ok(()) } else { Err(format!("sync: {status}").into()) }
}
