//! seerdb: all that this crate asks of its API.

use std::path::Path;
use std::time::Instant;

use seerdb::{DB, DBOptions, Durability};

use crate::Result;
use crate::data::{self, Key};
use crate::engine::{Engine, Separation, Setup, Sync, Tree};

#[derive(Clone)]
pub struct Seerdb(DB);

impl Engine for Seerdb {
    const IS_ASYNC: bool = true;

    async fn open(dir: &Path, setup: Setup) -> Result<Self> {
        let durability = match setup.sync {
            Sync::Written => Durability::Written,
            Sync::Synced => Durability::Synced,
        };
        // The cache shall be as large as the others', whatever else the budget is for.
        let parts = setup.cache_bytes + 3 * setup.memtable_bytes;
        let options = DBOptions::default()
            .memory_budget((512 << 20).max(parts / 7 * 8 + (1 << 20)))
            .durability(durability)
            .memtable_bytes(setup.memtable_bytes)
            .wal_segment_bytes(setup.memtable_bytes)
            .value_segment_bytes(setup.memtable_bytes)
            .table_bytes(setup.memtable_bytes)
            .cache_bytes(setup.cache_bytes)
            .direct_io(setup.is_direct);
        let options = match setup.separation {
            Some(separation) => separate(options, separation),
            None => options,
        };
        let options = match setup.tree {
            Tree::Runs(runs) => options.runs_per_level(runs),
            Tree::Default | Tree::Universal => options,
        };
        Ok(Self(options.open(dir).await?))
    }

    async fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.0.put(key, value).await?;
        Ok(())
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.0.delete(key).await?;
        Ok(())
    }

    async fn read(&self, id: u64) -> Result<()> {
        let value = self.0.get(data::key(id)).await?;
        data::check(id, value.as_deref())
    }

    async fn read_many(&self, ids: &[u64]) -> Result<()> {
        let values = self.0.get_many(ids.iter().map(|&id| data::key(id))).await?;
        for (&id, value) in ids.iter().zip(&values) {
            data::check(id, value.as_deref())?;
        }
        Ok(())
    }

    async fn read_from_task(&self, id: u64) -> Result<()> {
        self.read(id).await
    }

    async fn scan_from(&self, from: u64, first: u64, count: u64) -> Result<()> {
        let mut entries = self.0.range(data::key(from)..).limit(count as usize);
        for id in first..first + count {
            let entry = entries.next().await.transpose()?;
            data::check(id, entry.as_ref().map(|(_, value)| value.as_ref()))?;
        }
        Ok(())
    }

    async fn settle(&self) -> Result<Instant> {
        self.0.flush().await?;
        self.0.wait_for_compaction().await?;
        Ok(Instant::now())
    }

    async fn close(self) -> Result<()> {
        Ok(self.0.close().await?)
    }
}

fn separate(options: DBOptions, separation: Separation) -> DBOptions {
    let space_max = match separation.is_collected {
        true => separation.space_max.unwrap_or(1.5),
        false => 100.0,
    };
    options.value_threshold(separation.threshold_bytes).max_space_amplification(space_max)
}
