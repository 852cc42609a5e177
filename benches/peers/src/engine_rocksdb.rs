//! RocksDB, by its cheapest calls: options made once, pinned reads, raw iterators.
//!
//! With separated values it is integrated BlobDB, set up as its own `tools/run_blob_bench.sh` and
//! its wiki advise: blob files as large as the memtable, smaller tables in proportion to what is
//! left in them, a first level of eight of those, blobs in the block cache. The script's garbage
//! collection looks at the oldest quarter of the files and forces nothing. For a bound on space it
//! looks at the older half, and is forced at the share of garbage that the bound allows: merges
//! rewrite all values below the cutoff, garbage or not, so one that spares no file for its age
//! writes half as much again and hardly saves space (4 MiB memtables, 100,000 x 1 KiB, 1.5).

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompactionStyle, DBCompressionType, Options, ReadOptions,
    WaitForCompactOptions, WriteOptions,
};
use tokio::task::spawn_blocking;

use crate::Result;
use crate::data::{self, Key};
use crate::engine::{Engine, FILTER_BITS, Separation, Setup, Sync, Tree};

/// Of a key and a pointer to its value in a table, as `tools/run_blob_bench.sh` has it.
const ENTRY_BYTES: usize = 32;
const BLOB_TABLES_IN_FIRST_LEVEL: usize = 8;
/// RocksDB's default has the same proportion.
const TABLES_IN_FIRST_LEVEL: usize = 4;
/// The share of the blob files, oldest first, that merges collect when space is bounded.
const BOUNDED_AGE_CUTOFF: f64 = 0.5;

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
        let cache = Cache::new_lru_cache(setup.cache_bytes);
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_bloom_filter(FILTER_BITS, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(setup.memtable_bytes);
        options.set_target_file_size_base(setup.memtable_bytes as u64);
        let level_bytes = TABLES_IN_FIRST_LEVEL * setup.memtable_bytes;
        options.set_max_bytes_for_level_base(level_bytes as u64);
        if let Some(separation) = setup.separation {
            separate(&mut options, separation, setup.memtable_bytes, &cache);
        }
        if matches!(setup.tree, Tree::Universal) {
            options.set_compaction_style(DBCompactionStyle::Universal);
        }
        options.set_use_direct_reads(setup.is_direct);
        let mut write = WriteOptions::default();
        write.set_sync(setup.sync == Sync::Synced);
        let db = DB::open(&options, dir)?;
        Ok(Self(Arc::new(Open { db, read: ReadOptions::default(), write })))
    }

    async fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        Ok(self.0.db.put_opt(key, value, &self.0.write)?)
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        Ok(self.0.db.delete_opt(key, &self.0.write)?)
    }

    async fn read(&self, id: u64) -> Result<()> {
        let value = self.0.db.get_pinned_opt(data::key(id), &self.0.read)?;
        data::check(id, value.as_deref())
    }

    async fn read_many(&self, ids: &[u64]) -> Result<()> {
        let keys = ids.iter().map(|&id| data::key(id));
        let values = self.0.db.multi_get_opt(keys, &self.0.read);
        for (&id, value) in ids.iter().zip(values) {
            data::check(id, value?.as_deref())?;
        }
        Ok(())
    }

    async fn read_from_task(&self, id: u64) -> Result<()> {
        let open = Arc::clone(&self.0);
        let key = data::key(id);
        let value = spawn_blocking(move || open.db.get_opt(key, &open.read)).await??;
        data::check(id, value.as_deref())
    }

    async fn scan_from(&self, from: u64, first: u64, count: u64) -> Result<()> {
        let mut entries = self.0.db.raw_iterator();
        entries.seek(data::key(from));
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

fn separate(options: &mut Options, separation: Separation, memtable_bytes: usize, cache: &Cache) {
    let table_bytes = ENTRY_BYTES * memtable_bytes / separation.threshold_bytes;
    options.set_target_file_size_base(table_bytes as u64);
    options.set_max_bytes_for_level_base((BLOB_TABLES_IN_FIRST_LEVEL * table_bytes) as u64);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(separation.threshold_bytes as u64);
    options.set_blob_file_size(memtable_bytes as u64);
    options.set_blob_compression_type(DBCompressionType::Lz4);
    options.set_blob_cache(cache);
    options.set_enable_blob_gc(separation.is_collected);
    if let Some(space) = separation.space_max {
        options.set_blob_gc_age_cutoff(BOUNDED_AGE_CUTOFF);
        options.set_blob_gc_force_threshold(1.0 - 1.0 / space);
    }
}
