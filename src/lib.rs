//! seerdb: an async-first embedded key-value storage engine on io_uring.

mod batch;
pub mod blocking;
mod cache;
mod codec;
mod compaction;
mod db;
mod error;
mod filename;
mod filter;
mod iter;
mod key;
mod log;
mod memtable;
mod options;
mod record;
mod snapshot;
mod sstable;
mod version;

pub use db::{
    Batch, BatchCommit, DB, Get, GetFuture, IntoValue, LevelStats, Pressure, RangeStream, Snapshot,
    Stats, Write, WriteFuture,
};
pub use error::{Error, ErrorKind, Result};
pub use key::{BATCH_BYTES_MAX, BATCH_OPS_MAX, KEY_BYTES_MAX, SEQNO_MAX, SeqNo, VALUE_BYTES_MAX};
pub use options::{Compression, DBOptions, Durability};
pub use seerdb_io::{Backend, Env, EnvOptions, IoBackend};

/// jemalloc, for a program to install as its allocator: `#[global_allocator] static ALLOCATOR:
/// seerdb::Jemalloc = seerdb::Jemalloc;`. The library itself never installs one.
#[cfg(feature = "jemalloc")]
pub use tikv_jemallocator::Jemalloc;
