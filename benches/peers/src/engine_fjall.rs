//! fjall, one keyspace.

use std::path::Path;
use std::time::{Duration, Instant};

use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tokio::task::spawn_blocking;

use crate::Result;
use crate::data::{self, Key};
use crate::engine::{Engine, Setup, Sync};

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
        let keyspace = db.keyspace("peers", || {
            // By default its two upper levels are not compressed; here all engines use LZ4.
            KeyspaceCreateOptions::default()
                .max_memtable_size(setup.memtable_bytes as u64)
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
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

    async fn read(&self, id: u64) -> Result<()> {
        data::check(id, self.keyspace.get(data::key(id))?.as_deref())
    }

    async fn read_from_task(&self, id: u64) -> Result<()> {
        let keyspace = self.keyspace.clone();
        let value = spawn_blocking(move || keyspace.get(data::key(id))).await??;
        data::check(id, value.as_deref())
    }

    async fn scan(&self, first: u64, count: u64) -> Result<()> {
        let mut entries = self.keyspace.range(data::key(first)..);
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
