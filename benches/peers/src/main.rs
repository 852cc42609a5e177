//! seerdb, RocksDB and fjall side by side, in one run on one machine.
//!
//! ```text
//! cd benches/peers                      # its .cargo/config.toml counts: see there
//! apt-get install -y clang libclang-dev # for RocksDB's bindings; building it takes 15 minutes
//! cargo run --release                   # everything; `-- --help` lists workloads and options
//! ```
//!
//! Without the feature `seerdb-engine` only the peers run.
//!
//! What is equal for all engines: the data set and its order (`data`), LZ4 on every level, a
//! 64 MiB memtable, a cache of the same size, a Bloom filter of 10 bits per key or the engine's own
//! (fjall, seerdb), what a write waits for, the check of every value read, jemalloc (in RocksDB's
//! C++ too), the CPU the code is compiled for, and an idle disk at the start. Everything else is
//! each engine's default. Each engine is called in its cheapest way: `engine_*`.
//!
//! - `ancestor`: sequential writes, random reads, mixed, scans by one task.
//! - `durable`: synced puts from 1 and 64 writers.
//! - `hotget`: 64 tasks of an async service reading from the cache.
//!
//! A rate is the median of the rounds, (lowest-highest); latencies are of all rounds together.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

mod ancestor;
mod config;
mod data;
mod durable;
mod engine;
mod engine_fjall;
mod engine_rocksdb;
#[cfg(feature = "seerdb-engine")]
mod engine_seerdb;
mod hotget;
mod machine;
mod report;

use config::{Config, Workload};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("peers: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut out = std::io::stdout();
    let Some(config) = Config::from_args()? else {
        return Ok(writeln!(out, "{}", Config::usage())?);
    };
    writeln!(out, "{}", machine::describe(config.base.path())?)?;
    writeln!(out, "run: {} rounds, seed {}", config.rounds, config.seed)?;
    for workload in &config.workloads {
        let table = match workload {
            Workload::Ancestor => ancestor::run(&config)?,
            Workload::Durable => durable::run(&config)?,
            Workload::Hotget => hotget::run(&config)?,
        };
        write!(out, "{table}")?;
    }
    Ok(())
}
