//! fjall, one keyspace.
//!
//! With separated values it is its own defaults for them, or for a bound on space the share of
//! garbage in a file that the bound allows, whatever the age of the file.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fjall::compaction::Leveled;
use fjall::config::CompressionPolicy;
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode,
};
use tokio::task::spawn_blocking;

use crate::Result;
use crate::data::{self, Key};
use crate::engine::{Engine, Separation, Setup, Sync};

const SETTLE_POLL: Duration = Duration::from_millis(5);
/// Polls in a row without background work after which none is taken to be coming.
const SETTLE_POLLS: u32 = 20;

#[derive(Clone)]
pub struct Fjall {
    db: Database,
    keyspace: Keyspace,
    sync: Sync,
}

impl Engine for Fjall {
    const IS_ASYNC: bool = false;

    async fn open(dir: &Path, setup: Setup) -> Result<Self> {
        let db = Database::builder(dir).cache_size(setup.cache_bytes as u64).open()?;
        let file_bytes = setup.memtable_bytes as u64;
        let keyspace = db.keyspace("peers", || {
            let levels = Leveled::default().with_table_target_size(file_bytes);
            // By default its two upper levels are not compressed; here all engines use LZ4.
            KeyspaceCreateOptions::default()
                .max_memtable_size(file_bytes)
                .compaction_strategy(Arc::new(levels))
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
                .with_kv_separation(setup.separation.map(|apart| separation(apart, file_bytes)))
        })?;
        Ok(Self { db, keyspace, sync: setup.sync })
    }

    async fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        // An insert hands the record to the kernel: PersistMode::Buffer is implied.
        self.keyspace.insert(key, value)?;
        if self.sync == Sync::Synced {
            self.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.keyspace.remove(key)?;
        if self.sync == Sync::Synced {
            self.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    async fn read(&self, id: u64) -> Result<()> {
        data::check(id, self.keyspace.get(data::key(id))?.as_deref())
    }

    async fn read_from_task(&self, id: u64) -> Result<()> {
        let keyspace = self.keyspace.clone();
        let value = spawn_blocking(move || keyspace.get(data::key(id))).await??;
        data::check(id, value.as_deref())
    }

    async fn scan_from(&self, from: u64, first: u64, count: u64) -> Result<()> {
        let mut entries = self.keyspace.range(data::key(from)..);
        for id in first..first + count {
            let entry = entries.next().map(fjall::Guard::value).transpose()?;
            data::check(id, entry.as_deref())?;
        }
        Ok(())
    }

    async fn settle(&self) -> Result<Instant> {
        self.keyspace.rotate_memtable_and_wait()?;
        let mut idle_since = Instant::now();
        let mut idle_polls = 0;
        while idle_polls < SETTLE_POLLS {
            let is_busy = self.db.outstanding_flushes() > 0 || self.db.active_compactions() > 0;
            std::thread::sleep(SETTLE_POLL);
            idle_polls += 1;
            if is_busy {
                (idle_polls, idle_since) = (0, Instant::now());
            }
        }
        Ok(idle_since)
    }

    async fn close(self) -> Result<()> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }
}

fn separation(separation: Separation, file_bytes: u64) -> KvSeparationOptions {
    let options = KvSeparationOptions::default()
        .separation_threshold(separation.threshold_bytes as u32)
        .file_target_size(file_bytes);
    match separation.space_max {
        None => options,
        Some(space) => options.staleness_threshold((1.0 - 1.0 / space) as f32).age_cutoff(1.0),
    }
}
