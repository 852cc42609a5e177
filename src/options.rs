//! Options of a database, validated once at open.
//!
//! Three groups: behaviour (what calls mean), performance (what they cost) and format (what new
//! files look like; old files stay readable whatever is chosen). An option that is not set follows
//! from [`DBOptions::memory_budget`] or has the default that its method names.

use std::time::Duration;

use seerdb_io::{BUF_ALIGN, Backend, Class, Env, OpenOptions};

use crate::error::{Error, Result};
use crate::key::VALUE_BYTES_MAX;
use crate::limits::CompactionLimits;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// How much the writers of files collect for one write: where the rate of a device levels off, and
/// what a small budget makes of it.
const CHUNK_BYTES_MAX: usize = 512 * KIB;
const CHUNK_BYTES_MIN: usize = 64 * KIB;

/// What an open database takes whatever its budget: threads and their stacks, rings, what the
/// allocator keeps for each thread.
const FIXED_BYTES: usize = 8 * MIB;

/// The most runs of a level while their number follows the workload: beyond it writes gain little,
/// and reads lose much.
pub(crate) const ADAPTIVE_RUNS_MAX: usize = 3;

/// When the future of a write resolves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Durability {
    /// When the write is in the engine's log buffer. A killed process may lose the last
    /// [`DBOptions::buffered_delay`] of such writes, never one from the middle.
    Buffered,
    /// When the kernel has the write: it survives a killed process, not a power cut.
    Written,
    /// When the write is on the device: it survives a power cut.
    #[default]
    Synced,
}

/// How the blocks of new tables are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4, where it saves at least an eighth of the block.
    #[default]
    Lz4,
}

/// How to open a database; reusable for any number of opens.
#[derive(Clone)]
pub struct DBOptions {
    pub(crate) create_if_missing: bool,
    pub(crate) error_if_exists: bool,
    pub(crate) durability: Durability,
    pub(crate) io_backend: Backend,
    pub(crate) env: Option<Env>,
    pub(crate) direct_io: bool,
    pub(crate) memory_budget: usize,
    pub(crate) memtable_bytes: Option<usize>,
    pub(crate) cache_bytes: Option<usize>,
    pub(crate) wal_segment_bytes: usize,
    pub(crate) value_threshold: Option<usize>,
    pub(crate) value_segment_bytes: usize,
    pub(crate) max_space_amplification: f64,
    pub(crate) buffered_delay: Duration,
    pub(crate) block_bytes: usize,
    pub(crate) table_bytes: Option<usize>,
    pub(crate) compression: Compression,
    pub(crate) filter_bits_per_key: f64,
    pub(crate) tombstone_age: Option<Duration>,
    pub(crate) compaction_limits: CompactionLimits,
    pub(crate) size_ratio: usize,
    pub(crate) runs_per_level: Option<usize>,
    pub(crate) runs_last_level: usize,
}

impl Default for DBOptions {
    fn default() -> Self {
        DBOptions {
            create_if_missing: true,
            error_if_exists: false,
            durability: Durability::Synced,
            io_backend: Backend::Auto,
            env: None,
            direct_io: false,
            memory_budget: 512 * MIB,
            memtable_bytes: None,
            cache_bytes: None,
            wal_segment_bytes: 64 * MIB,
            value_threshold: Some(4 * KIB),
            value_segment_bytes: 64 * MIB,
            max_space_amplification: 1.5,
            buffered_delay: Duration::from_millis(10),
            block_bytes: 4 * KIB,
            table_bytes: None,
            compression: Compression::Lz4,
            filter_bits_per_key: 10.0,
            tombstone_age: None,
            compaction_limits: CompactionLimits::default(),
            size_ratio: 4,
            runs_per_level: None,
            runs_last_level: 1,
        }
    }
}

impl DBOptions {
    /// The defaults; the same as [`DBOptions::default`].
    pub fn new() -> Self {
        DBOptions::default()
    }

    /// Creates the directory's last component and the database when they are missing (default:
    /// true).
    pub fn create_if_missing(mut self, yes: bool) -> Self {
        self.create_if_missing = yes;
        self
    }

    /// Refuses to open a database that exists (default: false).
    pub fn error_if_exists(mut self, yes: bool) -> Self {
        self.error_if_exists = yes;
        self
    }

    /// The durability of writes that do not name their own (default: [`Durability::Synced`]).
    /// It also decides how the log is written: around the page cache for `Synced`, through it
    /// otherwise; a write's own durability is honoured in either mode.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The file backend (default: [`Backend::Auto`]; the environment variable `SEERDB_IO`
    /// overrides `Auto`).
    pub fn io_backend(mut self, backend: Backend) -> Self {
        self.io_backend = backend;
        self
    }

    /// Reads and writes tables and separated values around the page cache (default: false), where
    /// the file system can: memory beyond [`DBOptions::memory_budget`] is left to others, and every
    /// read that `cache_bytes` cannot answer is one of the device. For databases that are much
    /// larger than memory, or machines whose page cache belongs to somebody else. Logs follow the
    /// [durability](DBOptions::durability), and what was written through the page cache is read
    /// through it until the database is opened again.
    pub fn direct_io(mut self, yes: bool) -> Self {
        self.direct_io = yes;
        self
    }

    /// Uses this environment instead of starting one: several databases may share its threads.
    pub fn env(mut self, env: Env) -> Self {
        self.env = Some(env);
        self
    }

    /// The memory for all that the database keeps, in bytes (default: 512 MiB, at least 1 MiB). An
    /// eighth, at most 64 MiB, is for each of three memtables; an eighth for buffers: of the log,
    /// of flushes and merges, and what streams read ahead (a quarter while that is below 8 MiB,
    /// which threads and rings take anyhow). Filters and indexes of open tables take what they
    /// need, and the cache has the rest; [`crate::DB::stats`] shows the parts. What a caller holds
    /// is its own: values that it got, batches, reads that it waits for. See [Memory](crate#memory)
    /// for what the allocator adds.
    pub fn memory_budget(mut self, bytes: usize) -> Self {
        self.memory_budget = bytes;
        self
    }

    /// The size at which a memtable is sealed and flushed, in bytes (default: an eighth of the
    /// memory budget, at most 64 MiB).
    pub fn memtable_bytes(mut self, bytes: usize) -> Self {
        self.memtable_bytes = Some(bytes);
        self
    }

    /// The size of the block cache, filters and indexes of open tables included, in bytes (default:
    /// what the memory budget leaves, and never more than that).
    pub fn cache_bytes(mut self, bytes: usize) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// The size of a WAL segment, in bytes, a multiple of 4096 (default: 64 MiB).
    pub fn wal_segment_bytes(mut self, bytes: usize) -> Self {
        self.wal_segment_bytes = bytes;
        self
    }

    /// Values of at least this many bytes, 1 to 1 GiB, go into the value log, and tables keep
    /// pointers to them; none with `None`. The default, 4 KiB, is where scans cost the same either
    /// way (ADR 6): from 512 bytes on writes gain, and scans lose.
    pub fn value_threshold(mut self, bytes: impl Into<Option<usize>>) -> Self {
        self.value_threshold = bytes.into();
        self
    }

    /// The size of a segment of the value log, in bytes, a multiple of 4096 (default: 64 MiB).
    pub fn value_segment_bytes(mut self, bytes: usize) -> Self {
        self.value_segment_bytes = bytes;
        self
    }

    /// How much the value log may take on disk, pointers included, over what is alive in it
    /// (default: 1.5, from 1.1). More is faster to write: at 1.5 a value is rewritten about once
    /// in its life when all are overwritten alike. What snapshots and open streams hold counts as
    /// alive.
    pub fn max_space_amplification(mut self, times: f64) -> Self {
        self.max_space_amplification = times;
        self
    }

    /// How long a [`Durability::Buffered`] write may stay in the log buffer (default: 10 ms).
    pub fn buffered_delay(mut self, delay: Duration) -> Self {
        self.buffered_delay = delay;
        self
    }

    /// The size of a table block before compression, 64 bytes to 32 KiB (default: 4 KiB).
    pub fn block_bytes(mut self, bytes: usize) -> Self {
        self.block_bytes = bytes;
        self
    }

    /// The size at which a merge begins its next table, in bytes (default: an eighth of the memory
    /// budget, at most 64 MiB). A table in the making has its filter and index in memory.
    pub fn table_bytes(mut self, bytes: usize) -> Self {
        self.table_bytes = Some(bytes);
        self
    }

    /// The compression of new tables (default: [`Compression::Lz4`]).
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Filter bits per key on average over all levels, 0 to 64 (default: 10). The levels share
    /// them as Monkey prescribes.
    pub fn filter_bits_per_key(mut self, bits: f64) -> Self {
        self.filter_bits_per_key = bits;
        self
    }

    /// How long a deletion may stay a mark beside what it deletes (default: for ever, with `None`;
    /// from a second): then it is merged with all that is older, and both leave the disk, unless a
    /// snapshot needs what was deleted. Counted while the database is open. With deletions all over
    /// the keys that rewrites the whole database about once in this time. Ranges of which half is
    /// such marks are merged in any case, once nothing else is to be merged.
    pub fn tombstone_age(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.tombstone_age = age.into();
        self
    }

    /// What merges and rewrites of values keep to while nothing is urgent (default: no limits).
    pub fn compaction_limits(mut self, limits: CompactionLimits) -> Self {
        self.compaction_limits = limits;
        self
    }

    /// T: how many times larger each level is than the one above, 2 to 64 (default: 4).
    pub fn size_ratio(mut self, ratio: usize) -> Self {
        self.size_ratio = ratio;
        self
    }

    /// K: the most sorted runs in every level but the last, 1 to T - 1. More make writes cheaper,
    /// gets of absent keys and scans dearer. With `None`, the default, K follows what is done: it
    /// begins at 3, or T - 1 if that is less, and goes down to 1 while reads cost more than merges
    /// would; [`crate::DB::explain_compaction`] tells where it stands and why.
    pub fn runs_per_level(mut self, runs: impl Into<Option<usize>>) -> Self {
        self.runs_per_level = runs.into();
        self
    }

    /// Z: the most sorted runs in the last level, 1 to T - 1 (default: 1).
    pub fn runs_last_level(mut self, runs: usize) -> Self {
        self.runs_last_level = runs;
        self
    }

    /// What must hold of the options for the log, with a sentence for each.
    fn log_checks(&self) -> [(bool, &'static str); 6] {
        [
            (
                self.wal_segment_bytes >= 16 * KIB && self.wal_segment_bytes <= 1 << 30,
                "wal_segment_bytes must be from 16 KiB to 1 GiB",
            ),
            (
                self.wal_segment_bytes.is_multiple_of(4096),
                "wal_segment_bytes must be a multiple of 4096",
            ),
            (
                self.value_threshold.is_none_or(|t| (1..=VALUE_BYTES_MAX).contains(&t)),
                "value_threshold must be from 1 byte to 1 GiB",
            ),
            (
                self.value_segment_bytes >= 16 * KIB && self.value_segment_bytes <= 1 << 30,
                "value_segment_bytes must be from 16 KiB to 1 GiB",
            ),
            (
                (1.1..=100.0).contains(&self.max_space_amplification),
                "max_space_amplification must be from 1.1 to 100",
            ),
            (
                self.value_segment_bytes.is_multiple_of(4096),
                "value_segment_bytes must be a multiple of 4096",
            ),
        ]
    }

    /// The options with every default filled in.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` that names the option out of range or the pair in contradiction.
    pub(crate) fn validate(&self) -> Result<Settings> {
        let eighth = self.memory_budget / 8;
        let memtable_bytes = self.memtable_bytes.unwrap_or(eighth.min(64 * MIB));
        let table_bytes = self.table_bytes.unwrap_or(eighth.min(64 * MIB));
        let reserved = memtable_bytes.saturating_mul(3);
        let buffer_bytes = eighth.max((self.memory_budget / 4).min(FIXED_BYTES));
        let left = self.memory_budget.saturating_sub(reserved.saturating_add(buffer_bytes));
        // Without any cache every look would be one of the disk.
        let left = left.max(self.memory_budget / 16);
        let cache_bytes = self.cache_bytes.map_or(left, |wanted| wanted.min(left));
        let checks = [
            (self.memory_budget >= MIB, "memory_budget must be at least 1 MiB"),
            (memtable_bytes >= KIB, "memtable_bytes must be at least 1 KiB"),
            (memtable_bytes <= 1 << 40, "memtable_bytes must be at most 1 TiB"),
            (
                self.memtable_bytes.is_none() || reserved <= self.memory_budget,
                "three memtables of memtable_bytes must fit into memory_budget",
            ),
            (
                self.cache_bytes.is_none_or(|c| c <= self.memory_budget),
                "cache_bytes must fit into memory_budget",
            ),
            (
                self.buffered_delay <= Duration::from_secs(3600),
                "buffered_delay must be at most one hour",
            ),
            (
                (64..=32 * KIB).contains(&self.block_bytes),
                "block_bytes must be from 64 bytes to 32 KiB",
            ),
            (table_bytes >= KIB, "table_bytes must be at least 1 KiB"),
            (
                (0.0..=64.0).contains(&self.filter_bits_per_key),
                "filter_bits_per_key must be from 0 to 64",
            ),
            (
                self.tombstone_age.is_none_or(|age| age >= Duration::from_secs(1)),
                "tombstone_age must be at least one second",
            ),
            ((2..=64).contains(&self.size_ratio), "size_ratio must be from 2 to 64"),
            (
                self.runs_per_level.is_none_or(|k| (1..self.size_ratio.max(2)).contains(&k)),
                "runs_per_level must be from 1 to size_ratio - 1",
            ),
            (
                (1..self.size_ratio.max(2)).contains(&self.runs_last_level),
                "runs_last_level must be from 1 to size_ratio - 1",
            ),
            (
                self.create_if_missing || !self.error_if_exists,
                "error_if_exists contradicts create_if_missing(false): nothing could be opened",
            ),
        ];
        let log_checks = self.log_checks();
        let mut checks = checks.iter().chain(&log_checks);
        if let Some((_, sentence)) = checks.find(|(holds, _)| !holds) {
            return Err(Error::invalid(*sentence));
        }
        self.compaction_limits.check()?;
        let options = self.clone();
        Ok(Settings { options, memtable_bytes, table_bytes, cache_bytes, buffer_bytes })
    }
}

impl Settings {
    /// The K to begin with; it stays if it was asked for.
    pub(crate) fn first_runs_per_level(&self) -> usize {
        let adaptive = ADAPTIVE_RUNS_MAX.min(self.size_ratio - 1);
        self.runs_per_level.unwrap_or(adaptive)
    }

    /// What streams may have read ahead, all together.
    pub(crate) fn stream_bytes(&self) -> usize {
        self.memory_budget / 16
    }

    /// What a merge may have read of its inputs.
    pub(crate) fn merge_bytes(&self) -> usize {
        self.memory_budget / 32
    }

    /// How much a writer of files collects for one write; it holds a few of them.
    pub(crate) fn chunk_bytes(&self) -> usize {
        let bytes = self.memory_budget / 256 / BUF_ALIGN * BUF_ALIGN;
        bytes.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX)
    }

    /// How files are opened for reading.
    pub(crate) fn reading(&self) -> OpenOptions {
        let direct = self.direct_io;
        OpenOptions { direct, class: Class::Foreground, ..OpenOptions::default() }
    }
}

/// Validated options with every default filled in.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) options: DBOptions,
    pub(crate) memtable_bytes: usize,
    pub(crate) table_bytes: usize,
    /// What the cache and the memory of open tables have together.
    pub(crate) cache_bytes: usize,
    /// What is set aside for buffers.
    pub(crate) buffer_bytes: usize,
}

impl std::ops::Deref for Settings {
    type Target = DBOptions;

    fn deref(&self) -> &DBOptions {
        &self.options
    }
}

impl std::fmt::Debug for DBOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DBOptions")
            .field("durability", &self.durability)
            .field("io_backend", &self.io_backend)
            .field("memory_budget", &self.memory_budget)
            .field("memtable_bytes", &self.memtable_bytes)
            .field("cache_bytes", &self.cache_bytes)
            .finish_non_exhaustive()
    }
}
