//! Writes a table: sorted entries in, a finished and synced file out.
//!
//! Invariants:
//! 1. `add` touches memory only; files are touched in `write_full_chunks`, `finish` and `abandon`.
//! 2. Entries ascend in internal-key order; the writer asserts it.
//! 3. Writes are whole multiples of [`BUF_ALIGN`] at such multiples; only the last one is padded,
//!    and the padding is cut off again before the sync.
//! 4. `out` holds the bytes of the file from `out_offset` on; `crc` covers all bytes up to the end
//!    of `out`. What is before `out_offset` was handed to the kernel.
//! 5. Memory is bounded by a few chunks and one block, when the caller writes as `needs_write`
//!    asks.

use std::collections::VecDeque;
use std::path::Path;

use seerdb_io::{AlignedBuf, BUF_ALIGN, BufResult, Class, File, Fs, Op, OpenOptions};

use crate::codec::{Sink, crc32c_append};
use crate::error::Result;
use crate::filename::{FileName, FileNumber};
use crate::filter::{FilterBuilder, hash_tag, key_hash};
use crate::key::{Trailer, ValueKind, compare};
use crate::options::Compression;

use super::TableMeta;
use super::block::BlockBuilder;
use super::format::{
    BLOCK_TRAILER_BYTES, BlockKind, COMPRESS_BYTES_MAX, FOOTER_BYTES, Footer, Handle, Stored,
    block_trailer,
};
use super::index::IndexBuilder;

/// How much is written at once.
const CHUNK_BYTES: usize = 512 << 10;
/// How many writes may be in flight.
const WRITES_MAX: usize = 2;
/// How far ahead of the writes space is reserved.
const ALLOCATE_BYTES: u64 = 8 << 20;

/// How a table is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableWriterOptions {
    /// The size of a block before compression, with its trailer; only a block of one entry is
    /// larger.
    pub(crate) block_bytes: usize,
    pub(crate) compression: Compression,
    pub(crate) filter_bits_per_key: f64,
    /// Around the page cache where the file system can: a ninth of the processor time, but the
    /// table is cold then.
    pub(crate) direct: bool,
}

/// A table being written.
pub(crate) struct TableWriter {
    fs: Fs,
    file: File,
    options: TableWriterOptions,
    meta: TableMeta,
    last: Option<Trailer>,
    last_hash: u64,
    block: BlockBuilder,
    packer: Packer,
    index: IndexBuilder,
    filter: FilterBuilder,
    out: AlignedBuf,
    out_offset: u64,
    crc: u32,
    allocated: u64,
    in_flight: VecDeque<Op<BufResult>>,
    spare: Vec<AlignedBuf>,
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
        let open = OpenOptions {
            write: true,
            create_new: true,
            direct: options.direct,
            class: Class::Background,
        };
        let file = fs.open(FileName::Table(number).in_dir(dir), open).await?;
        Ok(TableWriter {
            fs: fs.clone(),
            file,
            options,
            meta: TableMeta::empty(number),
            last: None,
            last_hash: 0,
            block: BlockBuilder::default(),
            packer: Packer::default(),
            index: IndexBuilder::default(),
            filter: FilterBuilder::new(),
            out: AlignedBuf::new(),
            out_offset: 0,
            crc: 0,
            allocated: 0,
            in_flight: VecDeque::new(),
            spare: Vec::new(),
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
        assert!(trailer.kind() == ValueKind::Put || value.is_empty(), "a tombstone has no value");
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
        self.out.len() >= CHUNK_BYTES
    }

    /// About how large the file would be if it were finished now.
    pub(crate) fn estimated_bytes(&self) -> u64 {
        let filter = self.filter.estimated_bytes(self.options.filter_bits_per_key);
        let rest = self.block.size() + self.index.size() + filter + FOOTER_BYTES;
        self.file_offset() + rest as u64
    }

    /// The number of entries so far.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> u64 {
        self.meta.entries
    }

    /// The offset in the file of the next byte that is put out.
    fn file_offset(&self) -> u64 {
        self.out_offset + self.out.len() as u64
    }

    fn end_block(&mut self) {
        let raw = self.block.finish();
        let (how, stored) = self.packer.pack(self.options.compression, raw);
        let handle = Handle {
            offset: self.out_offset + self.out.len() as u64,
            stored: block_len(stored.len()),
            raw: block_len(raw.len()),
        };
        let trailer = block_trailer(self.meta.number, handle.offset, BlockKind::Data, how, stored);
        put_out(&mut self.out, &mut self.crc, stored);
        put_out(&mut self.out, &mut self.crc, &trailer);
        self.index.end_block(handle);
        self.block.clear();
    }

    fn put_block(&mut self, kind: BlockKind, bytes: &[u8]) -> Handle {
        let len = block_len(bytes.len());
        let handle = Handle { offset: self.file_offset(), stored: len, raw: len };
        let trailer = block_trailer(self.meta.number, handle.offset, kind, Stored::Plain, bytes);
        put_out(&mut self.out, &mut self.crc, bytes);
        put_out(&mut self.out, &mut self.crc, &trailer);
        handle
    }

    /// Starts to write what is collected, and waits while too many writes are in flight.
    ///
    /// # Errors
    ///
    /// Those of this and earlier writes; then the table is lost and should be abandoned.
    ///
    /// # Cancel safety
    ///
    /// A writer whose write was dropped halfway can only be abandoned.
    pub(crate) async fn write_full_chunks(&mut self) -> Result<()> {
        let whole = self.out.len() - self.out.len() % BUF_ALIGN;
        if whole == 0 {
            return Ok(());
        }
        let mut next = self.spare.pop().unwrap_or_default();
        next.clear();
        next.reserve(CHUNK_BYTES + self.options.block_bytes + BUF_ALIGN);
        next.put(self.out.get(whole..).unwrap_or_default());
        let mut full = std::mem::replace(&mut self.out, next);
        full.truncate(whole);
        let offset = self.out_offset;
        self.out_offset += whole as u64;
        if self.out_offset > self.allocated {
            self.allocated = self.out_offset + ALLOCATE_BYTES;
            self.file.allocate(self.allocated).await?;
        }
        self.start_write(full, offset).await
    }

    async fn start_write(&mut self, buf: AlignedBuf, offset: u64) -> Result<()> {
        self.await_writes(WRITES_MAX - 1).await?;
        let mut write = self.file.write_at(buf, offset);
        match futures::poll!(&mut write) {
            std::task::Poll::Ready(result) => self.written(result),
            std::task::Poll::Pending => {
                self.in_flight.push_back(write);
                Ok(())
            }
        }
    }

    /// Waits until no more than `left` writes are in flight.
    async fn await_writes(&mut self, left: usize) -> Result<()> {
        while self.in_flight.len() > left
            && let Some(write) = self.in_flight.front_mut()
        {
            let result = write.await;
            self.in_flight.pop_front();
            self.written(result)?;
        }
        Ok(())
    }

    fn written(&mut self, (result, buf): BufResult) -> Result<()> {
        result?;
        // Only buffers of the usual size: one huge value must not keep its memory to the end.
        if self.spare.len() < WRITES_MAX && buf.capacity() <= 4 * CHUNK_BYTES {
            self.spare.push(buf);
        }
        Ok(())
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
        let filter = std::mem::take(&mut self.filter).finish(self.options.filter_bits_per_key);
        let filter = self.put_block(BlockKind::Filter, &filter);
        let index = self.index.finish();
        let index = self.put_block(BlockKind::Index, &index);
        self.meta.checksum = self.crc;
        let properties = properties(&self.meta, &self.options);
        let properties = self.put_block(BlockKind::Properties, &properties);
        let footer = Footer { filter, index, properties }.encode(self.meta.number);
        put_out(&mut self.out, &mut self.crc, &footer);
        self.meta.file_bytes = self.file_offset();
        match self.flush_and_sync().await {
            Ok(()) => Ok(self.meta),
            Err(error) => {
                self.abandon().await;
                Err(error)
            }
        }
    }

    async fn flush_and_sync(&mut self) -> Result<()> {
        let mut rest = std::mem::take(&mut self.out);
        let padded = rest.len().next_multiple_of(BUF_ALIGN);
        rest.resize(padded);
        let offset = self.out_offset;
        self.out_offset += padded as u64;
        self.start_write(rest, offset).await?;
        self.await_writes(0).await?;
        self.file.set_len(self.meta.file_bytes).await?;
        let synced = match planted!(SkipSyncOfTable) {
            true => Ok(()),
            false => self.file.sync_data().await,
        };
        if !planted!(SwallowSyncErrorOfTable) {
            synced?;
        }
        Ok(())
    }

    /// Gives the table up and removes its file; a file that cannot be removed now is removed when
    /// the database is opened next.
    pub(crate) async fn abandon(mut self) {
        while let Some(write) = self.in_flight.pop_front() {
            drop(write.await);
        }
        let path = self.file.path().to_path_buf();
        if let Err(error) = self.fs.remove_file(path).await {
            tracing::warn!(%error, "an abandoned table could not be removed");
        }
    }
}

fn put_out(out: &mut AlignedBuf, crc: &mut u32, bytes: &[u8]) {
    *crc = crc32c_append(*crc, bytes);
    out.put(bytes);
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

/// Compresses blocks, keeping its memory from one to the next.
#[derive(Default)]
struct Packer {
    out: Vec<u8>,
    table: lz4_flex::block::CompressTable,
}

impl Packer {
    /// The block as it is to be stored: compressed where that saves at least an eighth.
    fn pack<'a>(&'a mut self, compression: Compression, raw: &'a [u8]) -> (Stored, &'a [u8]) {
        if compression == Compression::None || raw.len() > COMPRESS_BYTES_MAX {
            return (Stored::Plain, raw);
        }
        let room = lz4_flex::block::get_maximum_output_size(raw.len());
        if self.out.len() < room {
            self.out.resize(room, 0);
        }
        let packed = lz4_flex::block::compress_into_with_table(raw, &mut self.out, &mut self.table);
        match packed.ok().and_then(|len| self.out.get(..len)) {
            Some(packed) if packed.len() <= raw.len() - raw.len() / 8 => (Stored::Lz4, packed),
            _ => (Stored::Plain, raw),
        }
    }
}
