//! What a workload asks of an engine, and the set-up that all engines share.
//!
//! The trait is async for seerdb's sake; the futures of the blocking engines are ready at once and
//! are monomorphised away, so all engines run the very same loops.

use std::future::Future;
use std::path::Path;
use std::time::Instant;

use crate::Result;
use crate::data::Key;

/// When a write is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// When the kernel has it: it survives a killed process, not a power cut.
    Written,
    /// When the device has it.
    Synced,
}

/// Equal for all engines: everything else is each engine's own default.
#[derive(Clone, Copy)]
pub struct Setup {
    pub sync: Sync,
    /// Of tables, and of files with values alone, it is the size too.
    pub memtable_bytes: usize,
    pub cache_bytes: usize,
    /// Reads around the page cache, if the engine can.
    pub is_direct: bool,
    pub tree: Tree,
    /// How values are stored apart from their keys, if they are.
    pub separation: Option<Separation>,
}

/// How runs are merged.
#[derive(Clone, Copy)]
pub enum Tree {
    /// As the engine does when it is told nothing.
    Default,
    /// seerdb: so many runs in each level but the last. Others have no such option.
    #[cfg(feature = "seerdb-engine")]
    Runs(usize),
    /// RocksDB: universal, its tiering. Others have no such option.
    Universal,
}

#[derive(Clone, Copy)]
pub struct Separation {
    /// The smallest value that is stored apart; those of the workload are not much larger.
    pub threshold_bytes: usize,
    /// How many times the space of the live values all may take; `None` for what the engine's
    /// makers advise.
    pub space_max: Option<f64>,
    /// Whether space is won back at all. BlobDB moves values for it that nobody has overwritten.
    pub is_collected: bool,
}

/// Bits per key of the Bloom filter; fjall and seerdb have one without being asked.
pub const FILTER_BITS: f64 = 10.0;

pub trait Engine: Clone + Send + std::marker::Sync + 'static {
    /// Whether writers are tasks of a runtime; if not, each is a thread.
    const IS_ASYNC: bool;

    fn open(dir: &Path, setup: Setup) -> impl Future<Output = Result<Self>> + Send;

    fn put(&self, key: &Key, value: &[u8]) -> impl Future<Output = Result<()>> + Send;

    fn delete(&self, key: &Key) -> impl Future<Output = Result<()>> + Send;

    /// Reads record `id` and checks it.
    fn read(&self, id: u64) -> impl Future<Output = Result<()>> + Send;

    /// Reads the records `ids` in one call, if the engine has one, and checks each.
    fn read_many(&self, ids: &[u64]) -> impl Future<Output = Result<()>> + Send {
        async move {
            for &id in ids {
                self.read(id).await?;
            }
            Ok(())
        }
    }

    /// Reads record `id` the way an async service has to: off its workers if the call may block.
    fn read_from_task(&self, id: u64) -> impl Future<Output = Result<()>> + Send;

    /// Reads the `count` records from `first` on, in order, and checks each.
    fn scan(&self, first: u64, count: u64) -> impl Future<Output = Result<()>> + Send {
        self.scan_from(first, first, count)
    }

    /// As [`Engine::scan`], but begins to look at the place of record `from`.
    fn scan_from(
        &self,
        from: u64,
        first: u64,
        count: u64,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Brings every write into tables and waits until no background work is left; since when.
    fn settle(&self) -> impl Future<Output = Result<Instant>> + Send;

    fn close(self) -> impl Future<Output = Result<()>> + Send;
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Peer {
    #[cfg(feature = "seerdb-engine")]
    Seerdb,
    Rocksdb,
    Fjall,
}

impl Peer {
    pub const ALL: &[Self] = &[
        #[cfg(feature = "seerdb-engine")]
        Self::Seerdb,
        Self::Rocksdb,
        Self::Fjall,
    ];

    pub fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "seerdb-engine")]
            Self::Seerdb => "seerdb",
            Self::Rocksdb => "rocksdb",
            Self::Fjall => "fjall",
        }
    }

    pub fn parse(name: &str) -> Result<Self> {
        let found = Self::ALL.iter().find(|peer| peer.name() == name);
        found.copied().ok_or_else(|| format!("no engine {name:?} in this build").into())
    }
}

/// Evaluates `$body` with `$engine` naming the type of the engine that `$peer` stands for.
macro_rules! with_engine {
    ($peer:expr, $engine:ident => $body:expr) => {
        match $peer {
            #[cfg(feature = "seerdb-engine")]
            $crate::engine::Peer::Seerdb => {
                type $engine = $crate::engine_seerdb::Seerdb;
                $body
            }
            $crate::engine::Peer::Rocksdb => {
                type $engine = $crate::engine_rocksdb::Rocksdb;
                $body
            }
            $crate::engine::Peer::Fjall => {
                type $engine = $crate::engine_fjall::Fjall;
                $body
            }
        }
    };
}
pub(crate) use with_engine;
