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
//! 64 MiB memtable and files of that size, a cache of 64 MiB, a Bloom filter of 10 bits per key or
//! the engine's own (fjall, seerdb), what a write waits for, the check of every value read,
//! jemalloc (in RocksDB's C++ too), the CPU the code is compiled for, and an idle disk at the
//! start. Everything else is each engine's default. Each engine is called in its cheapest way:
//! `engine_*`.
//!
//! - `ancestor`: sequential writes, random reads, mixed, scans by one task.
//! - `durable`: synced puts from 1 and 64 writers.
//! - `hotget`: 64 tasks of an async service reading from the cache.
//! - `amplification`: what loading and overwriting cost in bytes, with values in tables and apart.
//! - `blobscan`: cold scans of values that are stored apart from their keys.
//! - `cold`: gets from data that is eight times the memory; `--records 1000000` for eight.
//! - `sustained`: overwrites by the clock at 80 % of the highest rate: the tail, and pauses.
//! - `busy`: the tail of gets while merging is busy, and while it is idle.
//! - `shift`: loading, reads, scans, mixed, loading; fixed shapes of trees, too.
//! - `queue`: a scan across keys that were put and deleted in order.
//! - `large_merge`: memory and space of one merge of everything, of seerdb alone.
//!
//! For judging merges the last five want time, and more data than memtables:
//!
//! ```text
//! cargo run --release -- sustained --rounds 1 --records 10000000 --memtable 64 \
//!     --warm 120 --seconds 1800
//! cargo run --release -- shift --rounds 1 --records 10000000 --memtable 64 --phase 180
//! cargo run --release -- queue --records 1000000 --queue 1000000
//! cargo run --release -- busy --rounds 3 --records 2000000 --memtable 16 --seconds 30
//! cargo run --release -- large_merge --gib 10
//! ```
//!
//! `amplification`, `blobscan` and `cold` want small memtables, and files of that size,
//! so that little data makes a deep tree: `--memtable`. A quick run, in less than a minute:
//!
//! ```text
//! cargo run --release -- amplification blobscan \
//!     --records 10000 --memtable 1 --rounds 1 --values 1024
//! ```
//!
//! A rate is the median of the rounds, (lowest-highest); latencies are of all rounds together.

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

mod amplification;
mod ancestor;
mod blobscan;
mod busy;
mod callers;
mod cold;
mod config;
mod data;
mod disk;
mod durable;
mod engine;
mod engine_fjall;
mod engine_rocksdb;
#[cfg(feature = "seerdb-engine")]
mod engine_seerdb;
mod hotget;
#[cfg(feature = "seerdb-engine")]
mod large_merge;
mod machine;
mod memory;
mod pace;
mod queue;
mod report;
mod shift;
mod sustained;

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
    #[cfg(feature = "seerdb-engine")]
    if let Some(dir) = &config.load {
        return large_merge::load(&config, dir);
    }
    writeln!(out, "{}", machine::describe(config.base.path())?)?;
    writeln!(out, "run: {} rounds, seed {}", config.rounds, config.seed)?;
    for workload in &config.workloads {
        match workload {
            Workload::Ancestor => write!(out, "{}", ancestor::run(&config)?)?,
            Workload::Durable => write!(out, "{}", durable::run(&config)?)?,
            Workload::Hotget => write!(out, "{}", hotget::run(&config)?)?,
            Workload::Amplification => amplification::run(&config, &mut out)?,
            Workload::Blobscan => write!(out, "{}", blobscan::run(&config)?)?,
            Workload::Cold => {
                for table in cold::run(&config)? {
                    write!(out, "{table}")?;
                }
            }
            Workload::Sustained => write!(out, "{}", sustained::run(&config)?)?,
            Workload::Busy => write!(out, "{}", busy::run(&config)?)?,
            Workload::Shift => write!(out, "{}", shift::run(&config)?)?,
            Workload::Queue => write!(out, "{}", queue::run(&config)?)?,
            #[cfg(feature = "seerdb-engine")]
            Workload::LargeMerge => write!(out, "{}", large_merge::run(&config)?)?,
            #[cfg(not(feature = "seerdb-engine"))]
            Workload::LargeMerge => writeln!(out, "\nlarge_merge: skipped: seerdb is not here")?,
        }
    }
    Ok(())
}
