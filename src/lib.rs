//! An embedded key-value store for async Rust: an LSM tree over io_uring, with no runtime of its
//! own and none of yours.
//!
//! # The promise
//!
//! - A write is as durable as it was asked to be when its future resolves; a batch is whole or
//!   absent, whatever happens.
//! - Bytes that come back are the bytes that were put, or the call fails with
//!   [`ErrorKind::Corruption`], which names the file and the offset.
//! - Dropping a future is safe at every await point, and no future needs a particular executor.
//!
//! # Quick start
//!
//! ```no_run
//! # use bytes::Bytes;
//! # use seerdb::{DB, Result};
//! # async fn quick_start() -> Result<()> {
//! let db = DB::open("path").await?;
//! db.put(b"key1", b"value1").await?;
//! let v: Option<Bytes> = db.get(b"key1").await?;
//! db.delete(b"key1").await?;
//! let mut batch = db.batch();
//! batch.put(b"user:1", b"alice");
//! batch.put(b"user:2", b"bob");
//! batch.commit().await?;
//! let mut users = db.prefix(b"user:"); // a Stream of Result<(Bytes, Bytes)>; also .rev()
//! while let Some((key, value)) = users.try_next().await? {
//!     assert!(key.starts_with(b"user:") && !value.is_empty());
//! }
//! let mut some = db.range(b"user:".as_slice()..b"user:~"); // any range of byte strings
//! let first = some.next().await.transpose()?;
//! let snapshot = db.snapshot();
//! snapshot.get(b"key1").await?; // also get_many, range, prefix, iter
//! db.get_many([b"a", b"b"]).await?; // one submission for all that misses
//! db.flush().await?;
//! db.close().await?;
//! # drop((v, first));
//! # Ok(()) }
//! ```
//!
//! [`DB`] is a cheap handle: clone it into any task. [`DBOptions`] opens with other than the
//! defaults, and [`blocking::DB`] is the same database with synchronous calls.
//!
//! # Durability
//!
//! Every write has a [`Durability`], its own or the database's:
//!
//! | level | the future resolves when | survives a killed process | survives a power cut |
//! |---|---|---|---|
//! | [`Synced`](Durability::Synced) (default) | it is on the device | yes | yes |
//! | [`Written`](Durability::Written) | the kernel has it | yes | once synced later |
//! | [`Buffered`](Durability::Buffered) | it is in the log buffer | after [`DBOptions::buffered_delay`] | once synced later |
//!
//! Seqnos order all writes, and what survives a crash is always a prefix of them: a `Synced` write
//! makes every earlier write durable too. [`DB::durable_seqno`] and [`DB::wait_durable`] let a
//! caller acknowledge later than it writes. After a failed sync the engine stops writing
//! ([`ErrorKind::FailStop`]) and goes on reading; it never repeats a failed sync.
//!
//! One exemption: damage to the newest group of commits in the few milliseconds before the log
//! records that it became durable cannot be told from a torn write. The group is then dropped.
//!
//! # Cancellation
//!
//! - The first poll does the work. What memory can answer is ready on that poll; only a real wait
//!   for the disk, or for memory, suspends.
//! - Dropping the future of a read has no effect.
//! - Dropping the future of a write before its record has entered the log means that nothing
//!   happened; afterwards the write takes place as if it had been awaited, whole.
//! - No task of yours leads work that others wait for: groups are written by threads of the
//!   engine. Dropping the last handle closes the database on those threads; [`DB::close`] waits
//!   for the end and tells what went wrong.
//!
//! Every async function says under "Cancel safety" what holds when its future is dropped.
//!
//! # Forks
//!
//! A process that forks without a following exec has the handle in both processes, and its threads
//! in the parent alone. The child must not use it, and can do no harm: nothing of what it does
//! reaches the directory. What would wait for a thread fails with [`ErrorKind::Forked`]; but a
//! lock that a thread held at the fork is held for ever. A child that executes another program
//! inherits neither files nor the lock.
//!
//! # Memory
//!
//! [`DBOptions::memory_budget`] covers memtables, the cache of blocks and values, the filters and
//! indexes of open tables, the offsets of rewritten value files, and buffers: what filters and
//! indexes take, those included that only an open stream still needs, the cache gives up. Entries
//! of the cache count as what an allocator spends on them. When flushes fall behind, writers wait
//! for memory, first come, first served; [`DB::try_put`] fails instead, and [`DB::pressure`] tells
//! beforehand. What stays above the budget is the allocator's: with the feature `jemalloc` and a
//! budget of at least 64 MiB the resident memory stays within a tenth of it; below that the memory
//! which jemalloc keeps for each thread shows, and the environment variable
//! `_RJEM_MALLOC_CONF=narenas:1,dirty_decay_ms:100` does the same at some cost to many threads.
//! `examples/memory_soak.rs` measures it.
//!
//! A value that a get or a stream returns is a [`bytes::Bytes`] that shares the block or the
//! memtable entry it was found in: a kept value keeps about [`DBOptions::block_bytes`] alive. Copy
//! what is kept for long.
//!
//! # File backends
//!
//! On Linux the engine drives io_uring from threads of its own. Where the kernel refuses a ring,
//! and on other systems, a bounded pool of threads serves with the same contract; the switch is
//! made at open, logged once, and [`DB::io_backend`] tells which backend serves and why.
//! [`DBOptions::io_backend`] or the environment variable `SEERDB_IO` (`auto`, `uring`, `portable`)
//! chooses. [`Env`] shares one set of threads between several databases.
//!
//! # Feature flags
//!
//! - `tokio-uring` (default): flush and compaction run on tokio-uring. Without it the engine's own
//!   ring serves them, with the same interface, and there is no tokio in the dependency tree.
//! - `jemalloc`: offers jemalloc as `seerdb::Jemalloc`, for a program to install as its allocator.
//!   The library never installs an allocator.
//!
//! # Map
//!
//! A module imports only from layers above it in this table; `tests/house` checks that.
//!
//! | layer | modules | what they are |
//! |---|---|---|
//! | 0 | crate `seerdb_io` | files, clock, random numbers and tasks, behind [`Env`] |
//! | 1 | error, limits, options, key, codec, lz4, filename, sync | values; no async, no files |
//! | 2 | alex, allowance, record, batch, pointer, memtable, filter, cache, iter, snapshot | bytes and memory; no files |
//! | 3 | appender, log, sstable, vlog | one file kind each, with its format |
//! | 4 | version | which files make up the database: versions, edits, the manifest |
//! | 5 | compaction | what to merge (policy, picker, tombstones), at what pace, and the merge itself (job) |
//! | 6 | db | the handle, the commit pipeline, reads, streams, background tasks |
//! | 7 | blocking | synchronous calls over the handle |
//! | 7 | fuzz | the decoders for the fuzz targets, compiled for them alone |
//!
//! # Glossary
//!
//! One word, one thing:
//!
//! - **batch**: operations that a user commits together. **commit**: one batch, or one single
//!   write, on its way from the log to visibility.
//! - **seqno**: the number of an operation; grows by one over the life of a database.
//!   **internal key**: user key, seqno and kind. **tombstone**: the internal key of a delete.
//! - **record**: a checksummed frame in a log or manifest file. A data record holds one commit, an
//!   edit record one version edit, a **mark** nothing but the newest durable seqno.
//! - **group**: records that the engine writes to the log together.
//! - **WAL segment**: a file of the write-ahead log. Prepared, active, closed, deletable.
//! - **value log**: the second stream of the log, for commits with a value of at least
//!   [`DBOptions::value_threshold`]. Its segments stay; a **pointer** in memtable and tables leads
//!   to a **body** there, a key and its value. **collection**: rewriting files of the value log
//!   without what nobody refers to.
//! - **memtable**: the sorted memory of recent writes: active, then sealed. **flush**: writing a
//!   sealed memtable to a table.
//! - **table** (sstable): an immutable sorted file: **blocks**, each found by a **block handle**,
//!   then filter, index, properties and **footer**.
//! - **run**: tables with disjoint keys in order. **level**: runs of similar size, newest first.
//! - **compaction**: merging runs: the policy sets the shape, the picker chooses, the job merges,
//!   a long merge in **pieces**, ranges of keys; a run is **trimmed** of those that are merged.
//!   **debt**: how far merges are behind.
//! - **version**: an immutable list of levels. **version edit**: the step to the next version.
//!   **manifest**: the log of version edits. **CURRENT**: the file that names the manifest.
//! - **snapshot**: a seqno that a reader holds. **watermark**: the oldest such seqno.
//! - **torn tail**: the end of a log that a crash cut. **corruption**: anything else that is not
//!   as it was written.
//! - **stall**: a writer waits for memory. **fail-stop**: writing has ended until the next open.

// Ahead of the others, which use its macro.
#[macro_use]
mod planted;

mod alex;
mod allowance;
mod appender;
mod batch;
pub mod blocking;
mod cache;
mod codec;
mod compaction;
mod db;
mod error;
mod filename;
mod filter;
#[cfg(fuzzing)]
pub mod fuzz;
mod iter;
mod key;
mod limits;
mod log;
mod lz4;
mod memtable;
mod options;
mod pointer;
mod probe;
mod range;
mod record;
mod snapshot;
mod sstable;
mod sync;
mod version;
mod vlog;

pub use compaction::MergeReason;
pub use compaction::cost::TreeCosts;
pub use compaction::workload::{RunsChoice, RunsCost, RunsSwitch, Workload};
pub use db::{
    Batch, BatchCommit, CompactionPause, CompactionProgress, CompactionReport, Cursor, DB,
    FilterStats, Get, GetFuture, GetStats, GetStatsFuture, IndexStats, IntoValue, KeyStream,
    LevelReport, LevelStats, NextMerge, Pressure, RangeStream, RunReport, SizeStream, Snapshot,
    Stats, ValueFileStats, ValueLogStats, Write, WriteFuture,
};
pub use error::{Error, ErrorKind, Result};
pub use key::{BATCH_BYTES_MAX, BATCH_OPS_MAX, KEY_BYTES_MAX, SEQNO_MAX, SeqNo, VALUE_BYTES_MAX};
pub use limits::{CompactionLimits, DailyWindow};
pub use options::{Compression, DBOptions, Durability};
pub use probe::{ReadStats, Sources};
pub use range::KeyRange;
#[cfg(feature = "sim")]
pub use seerdb_io::sim;
pub use seerdb_io::{Backend, Env, EnvOptions, IoBackend};

/// jemalloc, for a program to install as its allocator; the library itself never installs one.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: seerdb::Jemalloc = seerdb::Jemalloc;
/// # fn main() {}
/// ```
#[cfg(feature = "jemalloc")]
pub use tikv_jemallocator::Jemalloc;

#[doc = include_str!("docs/format.md")]
pub mod format {}

#[doc = include_str!("docs/reliability.md")]
pub mod reliability {}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
