//! Writes a table: sorted entries in, a finished and synced file out.
//!
//! Invariants:
//! 1. `add` touches memory only; files are touched in `write_full_chunks`, `finish` and `abandon`.
//! 2. Entries ascend in internal-key order; the writer asserts it.
//! 3. Memory is bounded by a few chunks, one block and 12 bytes for each pointer, when the caller
//!    writes as `needs_write` asks.

use std::path::Path;

use seerdb_io::Fs;

use crate::appender::{Appender, Manner};
use crate::codec::Sink;
use crate::error::Result;
use crate::filename::{FileName, FileNumber};
use crate::filter::{FilterBuilder, hash_tag, key_hash};
use crate::key::{Trailer, ValueKind, compare};
use crate::lz4::Packer;
use crate::options::Compression;

use super::TableMeta;
use super::block::BlockBuilder;
use super::format::{
    BLOCK_TRAILER_BYTES, BlockKind, FOOTER_BYTES, Footer, Handle, Stored, block_trailer,
};
use super::index::IndexBuilder;
use super::references::{self, Reference, ReferencesBuilder};

/// How a table is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableWriterOptions {
    /// The size of a block before compression, with its trailer; only a block of one entry is
    /// larger.
    pub(crate) block_bytes: usize,
    pub(crate) compression: Compression,
    pub(crate) filter_bits_per_key: f64,
    pub(crate) manner: Manner,
}

/// A table being written.
pub(crate) struct TableWriter {
    appender: Appender,
    options: TableWriterOptions,
    meta: TableMeta,
    last: Option<Trailer>,
    last_hash: u64,
    block: BlockBuilder,
    packer: Packer,
    index: IndexBuilder,
    filter: FilterBuilder,
    references: ReferencesBuilder,
}

impl TableWriter {
    /// Creates the file of table `number` in `dir`.
    ///
    /// # Errors
    ///
    /// When the file exists or cannot be created.
    pub(crate) async fn create(
        fs: &Fs,
        dir: &Path,
        number: FileNumber,
        options: TableWriterOptions,
    ) -> Result<TableWriter> {
        let name = FileName::Table(number);
        let appender = Appender::create(fs, dir, name, options.manner).await?;
        Ok(TableWriter {
            appender,
            options,
            meta: TableMeta::empty(number),
            last: None,
            last_hash: 0,
            block: BlockBuilder::default(),
            packer: Packer::default(),
            index: IndexBuilder::default(),
            filter: FilterBuilder::new(),
            references: ReferencesBuilder::default(),
        })
    }

    /// Appends an entry.
    ///
    /// # Panics
    ///
    /// When it is not above the entry before.
    pub(crate) fn add(&mut self, key: &[u8], trailer: Trailer, value: &[u8]) {
        let same_key = match self.last {
            Some(last) => {
                let last = (self.meta.largest.as_slice(), last);
                assert!(compare(last, (key, trailer)).is_lt(), "entries of a table ascend");
                last.0 == key
            }
            None => false,
        };
        match trailer.kind() {
            ValueKind::Delete => assert!(value.is_empty(), "a tombstone has no value"),
            ValueKind::Put => {}
            ValueKind::Pointer => self.references.note(key, trailer, value),
        }
        if self.is_block_full(self.block.size_with(key, value)) {
            self.end_block();
        }
        if self.block.is_empty() {
            let last = self.last.map(|_| self.meta.largest.as_slice());
            self.index.begin_block(last, key, trailer);
        }
        if !same_key {
            self.last_hash = key_hash(key);
            self.filter.add(self.last_hash);
        }
        self.block.add(key, trailer, value, hash_tag(self.last_hash));
        self.last = Some(trailer);
        self.meta.note(key, trailer);
    }

    /// Whether the block ends before an entry that would make it `with` bytes long. A block that is
    /// not nearly full takes one that makes it a little too long: entries of a quarter of a block
    /// would otherwise leave a quarter of every block empty, and of the cache's look-ups more.
    fn is_block_full(&self, with: usize) -> bool {
        let (size, target) = (self.block.size(), self.options.block_bytes);
        let nearly_full = size + BLOCK_TRAILER_BYTES > target - target / 8;
        let far_too_long = with > target + target / 4;
        !self.block.is_empty()
            && with + BLOCK_TRAILER_BYTES > target
            && (nearly_full || far_too_long)
    }

    /// Whether enough is collected for [`TableWriter::write_full_chunks`].
    pub(crate) fn needs_write(&self) -> bool {
        self.appender.needs_write()
    }

    /// About how large the file would be if it were finished now.
    pub(crate) fn estimated_bytes(&self) -> u64 {
        let filter = self.filter.estimated_bytes(self.options.filter_bits_per_key);
        let rest = self.block.size() + self.index.size() + filter + FOOTER_BYTES;
        self.appender.offset() + (rest + self.references.estimated_bytes()) as u64
    }

    /// The number of entries so far.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> u64 {
        self.meta.entries
    }

    fn end_block(&mut self) {
        let raw = self.block.finish();
        let packed = match self.options.compression {
            Compression::None => None,
            Compression::Lz4 => self.packer.pack(raw),
        };
        let (how, stored) = packed.map_or((Stored::Plain, raw), |packed| (Stored::Lz4, packed));
        let handle = Handle {
            offset: self.appender.offset(),
            stored: block_len(stored.len()),
            raw: block_len(raw.len()),
        };
        let trailer = block_trailer(self.meta.number, handle.offset, BlockKind::Data, how, stored);
        self.appender.put(stored);
        self.appender.put(&trailer);
        self.index.end_block(handle);
        self.block.clear();
    }

    fn put_block(&mut self, kind: BlockKind, bytes: &[u8]) -> Handle {
        let len = block_len(bytes.len());
        let handle = Handle { offset: self.appender.offset(), stored: len, raw: len };
        let trailer = block_trailer(self.meta.number, handle.offset, kind, Stored::Plain, bytes);
        self.appender.put(bytes);
        self.appender.put(&trailer);
        handle
    }

    /// Writes what is collected; see [`Appender::write_full_chunks`].
    ///
    /// # Errors
    ///
    /// Those of this and earlier writes; then the table is lost and should be abandoned.
    ///
    /// # Cancel safety
    ///
    /// A writer whose write was dropped halfway can only be abandoned.
    pub(crate) async fn write_full_chunks(&mut self) -> Result<()> {
        self.appender.write_full_chunks().await
    }

    /// Completes the file and syncs it. The name is durable when the caller synced the directory.
    ///
    /// # Errors
    ///
    /// When a write or the sync fails: then the file is removed where that is possible.
    ///
    /// # Panics
    ///
    /// When nothing was added.
    pub(crate) async fn finish(mut self) -> Result<TableMeta> {
        assert!(self.meta.entries > 0, "a table has at least one entry");
        self.end_block();
        for (segment, bodies) in std::mem::take(&mut self.references).finish() {
            let bytes = references::encode(segment, &bodies);
            let handle = self.put_block(BlockKind::References, &bytes);
            self.meta.references.push(Reference::new(segment, &bodies, handle));
        }
        let filter = std::mem::take(&mut self.filter).finish(self.options.filter_bits_per_key);
        let filter = self.put_block(BlockKind::Filter, &filter);
        let index = self.index.finish();
        let index = self.put_block(BlockKind::Index, &index);
        self.meta.checksum = self.appender.crc();
        let properties = properties(&self.meta, &self.options);
        let properties = self.put_block(BlockKind::Properties, &properties);
        let footer = Footer { filter, index, properties }.encode(self.meta.number);
        self.appender.put(&footer);
        self.meta.file_bytes = self.appender.finish().await?;
        Ok(self.meta)
    }

    /// Gives the table up; see [`Appender::abandon`].
    pub(crate) async fn abandon(self) {
        self.appender.abandon().await;
    }
}

fn block_len(len: usize) -> u32 {
    u32::try_from(len).expect("keys, values, filters and indexes are far below 4 GiB")
}

#[expect(clippy::cast_possible_truncation, reason = "bits per key are at most 64")]
fn properties(meta: &TableMeta, options: &TableWriterOptions) -> Vec<u8> {
    let mut out = Vec::new();
    meta.put_facts(&mut out);
    out.put_u32(block_len(options.block_bytes));
    out.put_u32((options.filter_bits_per_key * 1000.0).round() as u32);
    out
}
