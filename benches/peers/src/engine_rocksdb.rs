//! RocksDB, by its cheapest calls: options made once, pinned reads, raw iterators.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Options, ReadOptions, WaitForCompactOptions,
    WriteOptions,
};
use tokio::task::spawn_blocking;

use crate::Result;
use crate::data::{self, Key};
use crate::engine::{Engine, FILTER_BITS, Setup, Sync};

#[derive(Clone)]
pub struct Rocksdb(Arc<Open>);

struct Open {
    db: DB,
    read: ReadOptions,
    write: WriteOptions,
}

impl Engine for Rocksdb {
    const IS_ASYNC: bool = false;

    async fn open(dir: &Path, setup: Setup) -> Result<Self> {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&Cache::new_lru_cache(setup.cache_bytes));
        table.set_bloom_filter(FILTER_BITS, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(setup.memtable_bytes);
        let mut write = WriteOptions::default();
        write.set_sync(setup.sync == Sync::Synced);
        let db = DB::open(&options, dir)?;
        Ok(Self(Arc::new(Open { db, read: ReadOptions::default(), write })))
    }

    async fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.0.db.put_opt(key, value, &self.0.write)?)
    }

    async fn read(&self, id: u64) -> Result<()> {
        let value = self.0.db.get_pinned_opt(data::key(id), &self.0.read)?;
        data::check(id, value.as_deref())
    }

    async fn read_from_task(&self, id: u64) -> Result<()> {
        let open = Arc::clone(&self.0);
        let key = data::key(id);
        let value = spawn_blocking(move || open.db.get_opt(key, &open.read)).await??;
        data::check(id, value.as_deref())
    }

    async fn scan(&self, first: u64, count: u64) -> Result<()> {
        let mut entries = self.0.db.raw_iterator();
        entries.seek(data::key(first));
        for id in first..first + count {
            data::check(id, entries.value())?;
            entries.next();
        }
        Ok(entries.status()?)
    }

    async fn settle(&self) -> Result<Instant> {
        self.0.db.flush()?;
        self.0.db.wait_for_compact(&WaitForCompactOptions::default())?;
        Ok(Instant::now())
    }

    async fn close(self) -> Result<()> {
        self.0.db.cancel_all_background_work(true);
        Ok(())
    }
}
