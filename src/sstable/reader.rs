//! Open tables: point lookups and the loading of blocks.
//!
//! Invariants:
//! 1. Nothing of a table is used before its checksum matched and its lengths were checked.
//! 2. A read that fails or does not match is repeated once: that heals what went wrong on the way,
//!    not what is wrong on the device.
//! 3. Lookups that find their blocks in the cache allocate nothing and wait for nothing.
//! 4. The last drop of a retired table sends its name to the one who deletes files, once.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::channel::mpsc::UnboundedSender;
use futures::future::{MaybeDone, maybe_done};
use seerdb_io::{AlignedBuf, BUF_ALIGN, BufResult, Class, File, Fs, Op, OpenOptions};

use crate::alex::Report;
use crate::cache::Weigh;
use crate::codec::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::filename::FileName;
use crate::filter::{Filter, hash_tag};
use crate::key::{SeqNo, Trailer};
use crate::pointer::Body;
use crate::probe::{Origin, Probe};

use super::format::{BlockKind, FOOTER_BYTES, FileRef, Footer, Handle, open_block};
use super::index::Index;
use super::references::{self, Reference};
use super::{Block, BlockCache, CacheId, Cached, TableMeta};

/// An open table.
pub(crate) struct Table {
    meta: Arc<TableMeta>,
    fs: Fs,
    path: PathBuf,
    file: File,
    index: Index,
    filter: Filter,
    retired: OnceLock<Retired>,
}

/// What a table does that is not part of the database any more.
struct Retired {
    /// Gets the name of the file, to delete it.
    trash: UnboundedSender<FileName>,
    /// Has the memory of such tables.
    pinned: PinnedMemory,
}

/// The memory of tables that only readers of older versions need, in bytes.
pub(crate) type PinnedMemory = Arc<AtomicUsize>;

/// Blocks above this size are never read on the caller's thread: copying them would take long.
const NOW_BYTES_MAX: usize = 256 << 10;

/// What a point lookup looks for, and how.
#[derive(Clone, Copy)]
pub(crate) struct Sought<'a> {
    /// The user key.
    pub(crate) key: &'a [u8],
    /// Its hash, as filters take it.
    pub(crate) hash: u64,
    /// The newest version that counts.
    pub(crate) seqno: SeqNo,
    /// Whether blocks that are read enter the cache.
    pub(crate) fill: bool,
    pub(crate) probe: &'a Probe,
}

/// The answer of a lookup that may not wait.
#[derive(Debug)]
pub(crate) enum Lookup {
    /// The newest visible version.
    Found(Trailer, Bytes),
    /// The table holds no visible version.
    Absent,
    /// Only this block, which is not in the cache, can tell.
    Blocked(usize),
}

/// What is not data in a table, checked.
pub(super) struct Metadata {
    index: Index,
    filter: Filter,
    /// Where the properties block begins: what the table's checksum covers ends there.
    pub(super) properties_at: u64,
}

/// How the blocks of an open file are read.
#[derive(Clone, Copy)]
pub(super) struct BlockReader<'a> {
    pub(super) file: &'a File,
    pub(super) meta: &'a TableMeta,
}

impl Table {
    /// Opens the table that `meta` describes; `options` are those of its file.
    ///
    /// # Errors
    ///
    /// `Corruption` when the file is missing, has another length or does not check out;
    /// `NotSupported` when a newer version wrote it.
    pub(crate) async fn open(
        fs: &Fs,
        dir: &Path,
        meta: Arc<TableMeta>,
        options: OpenOptions,
    ) -> Result<Arc<Table>> {
        let path = FileName::Table(meta.number).in_dir(dir);
        let file = match fs.open(path.clone(), options).await {
            Ok(file) => file,
            Err(error) if error.is_not_found() => {
                return Err(Error::corruption(
                    path,
                    0,
                    "a table that the manifest names is missing",
                ));
            }
            Err(error) => return Err(error.into()),
        };
        let found = file.len().await?;
        if found != meta.file_bytes {
            let what =
                format!("the table has {found} bytes, the manifest says {}", meta.file_bytes);
            return Err(Error::corruption(path, found.min(meta.file_bytes), what));
        }
        let reader = BlockReader { file: &file, meta: &meta };
        let Metadata { index, filter, .. } = match reader.metadata().await {
            Err(error) if is_worth_repeating(&error) => reader.metadata().await?,
            result => result?,
        };
        let fs = fs.clone();
        Ok(Arc::new(Table { meta, fs, path, file, index, filter, retired: OnceLock::new() }))
    }

    /// What the manifest says about it.
    pub(crate) fn meta(&self) -> &Arc<TableMeta> {
        &self.meta
    }

    /// The memory that it takes while open, in bytes: filter and index.
    pub(crate) fn resident_bytes(&self) -> usize {
        size_of::<Table>() + self.index.resident_bytes() + self.filter.resident_bytes()
    }

    /// How it finds a block.
    pub(crate) fn index_report(&self) -> Report {
        self.index.report()
    }

    /// The share of absent keys that its filter lets pass.
    pub(crate) fn false_positives(&self) -> f64 {
        self.filter.false_positives()
    }

    /// Sends the name of its file to `trash` when the last handle is dropped; until then its
    /// memory counts as `pinned`.
    pub(crate) fn retire(&self, trash: UnboundedSender<FileName>, pinned: &PinnedMemory) {
        // A second call changes nothing: the name must be sent once.
        self.retired.get_or_init(|| {
            // Order: a figure, it orders nothing.
            pinned.fetch_add(self.resident_bytes(), Ordering::Relaxed);
            Retired { trash, pinned: pinned.clone() }
        });
    }

    /// The number of data blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.index.len()
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Another handle to its file, for streaming through the background class, around the page
    /// cache where that is possible.
    pub(super) async fn open_background(&self) -> Result<File> {
        let options =
            OpenOptions { direct: true, class: Class::Background, ..OpenOptions::default() };
        Ok(self.fs.open(self.path.clone(), options).await?)
    }

    pub(super) fn reader(&self) -> BlockReader<'_> {
        BlockReader { file: &self.file, meta: &self.meta }
    }

    /// The bodies of the value log that `reference`, one of this table's, stands for.
    ///
    /// # Errors
    ///
    /// `Corruption` when the list does not check out twice in a row, `Io`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn bodies(&self, reference: &Reference) -> Result<Vec<Body>> {
        match self.reader().bodies(reference).await {
            Err(error) if is_worth_repeating(&error) => self.reader().bodies(reference).await,
            result => result,
        }
    }

    /// The block where the newest version of `key` visible at `seqno` stands, if there is one,
    /// unless it is the first entry of the next block.
    pub(crate) fn find(&self, key: &[u8], seqno: SeqNo) -> Option<usize> {
        self.index.find(key, Trailer::seek(seqno))
    }

    /// The block, if it is in the cache.
    pub(crate) fn cached_block(&self, cache: &BlockCache, block: usize) -> Option<Block> {
        let block = if planted!(CacheByFileOnly) { 0 } else { block };
        cache.get(&CacheId::block(self.meta.number, block))?.into_block()
    }

    /// The block, if the page cache has it: one system call on this thread, without a future.
    /// Kept in `cache` with `fill`. A damaged block is none here: the way that may wait reads it
    /// again and reports it.
    pub(crate) fn block_now(&self, cache: &BlockCache, fill: bool, block: usize) -> Option<Block> {
        let handle = self.index.handle(block);
        let len = handle.file_bytes();
        if len > NOW_BYTES_MAX || self.file.is_direct() {
            return None;
        }
        let mut bytes = vec![0; len];
        let read = self.file.try_read_at(&mut bytes, handle.offset)?.ok()?;
        if read != len {
            return None;
        }
        let found = self.reader().decode_block(handle, &Bytes::from(bytes)).ok()?;
        if fill {
            cache.insert(CacheId::block(self.meta.number, block), Cached::Block(found.clone()));
        }
        Some(found)
    }

    /// Reads a block: through the cache when there is one, keeping it there with `fill`.
    ///
    /// # Errors
    ///
    /// `Corruption` when it does not check out twice in a row, `Io` when it cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn load_block(
        self: &Arc<Self>,
        cache: Option<&BlockCache>,
        fill: bool,
        block: usize,
    ) -> Result<Block> {
        let Some(cache) = cache else {
            return self.reader().block(self.index.handle(block)).await;
        };
        let table = self.clone();
        let handle = table.index.handle(block);
        let load = async move { table.reader().block(handle).await.map(Cached::Block) };
        let block = if planted!(CacheByFileOnly) { 0 } else { block };
        let found = cache.load(CacheId::block(self.meta.number, block), fill, load).await?;
        Ok(found.into_block().expect("tables and value files share no number"))
    }

    /// The newest version of the key that the seqno may see, as far as the cache and the page cache
    /// can tell.
    pub(crate) fn lookup_now(&self, cache: &BlockCache, sought: Sought<'_>) -> Lookup {
        let Sought { key, hash, seqno, fill, probe } = sought;
        let Some(mut block) = self.begin(sought) else { return Lookup::Absent };
        loop {
            let found = if let Some(found) = self.cached_block(cache, block) {
                probe.block(Origin::Memory);
                found
            } else if let Some(found) = self.block_now(cache, fill, block) {
                probe.block(Origin::PageCache);
                found
            } else {
                return Lookup::Blocked(block);
            };
            if let Some((trailer, value)) = found.get(key, hash_tag(hash), seqno) {
                return Lookup::Found(trailer, value);
            }
            block += 1;
            if !self.index.continues(block, key) {
                return Lookup::Absent;
            }
        }
    }

    /// The newest version of the key that the seqno may see.
    ///
    /// # Errors
    ///
    /// Those of [`Table::load_block`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn lookup(
        self: &Arc<Self>,
        cache: &BlockCache,
        sought: Sought<'_>,
    ) -> Result<Option<(Trailer, Bytes)>> {
        match self.begin(sought) {
            Some(block) => self.lookup_from(cache, sought, block).await,
            None => Ok(None),
        }
    }

    /// As [`Table::lookup`], from the block on that a [`Lookup::Blocked`] named.
    pub(crate) async fn lookup_from(
        self: &Arc<Self>,
        cache: &BlockCache,
        sought: Sought<'_>,
        mut block: usize,
    ) -> Result<Option<(Trailer, Bytes)>> {
        let Sought { key, hash, seqno, fill, probe } = sought;
        loop {
            let found = if let Some(found) = self.cached_block(cache, block) {
                probe.block(Origin::Memory);
                found
            } else {
                let found = self.load_block(Some(cache), fill, block).await?;
                probe.block(Origin::Disk);
                found
            };
            if let Some(answer) = found.get(key, hash_tag(hash), seqno) {
                return Ok(Some(answer));
            }
            block += 1;
            if !self.index.continues(block, key) {
                return Ok(None);
            }
        }
    }

    /// Where a lookup begins, if the filter lets it.
    fn begin(&self, sought: Sought<'_>) -> Option<usize> {
        let may_contain = self.filter.may_contain(sought.hash);
        sought.probe.filter(may_contain);
        may_contain.then(|| self.find(sought.key, sought.seqno)).flatten()
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if let Some(Retired { trash, pinned }) = self.retired.take() {
            pinned.fetch_sub(self.resident_bytes(), Ordering::Relaxed);
            // When nobody listens any more, the next open of the database removes the file.
            if trash.unbounded_send(FileName::Table(self.meta.number)).is_err() {
                tracing::debug!(table = self.meta.number, "retired after its database closed");
            }
        }
    }
}

/// Whether the same read may go better a second time.
pub(super) fn is_worth_repeating(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io) && !planted!(ReadOnce)
}

/// A read under way.
pub(super) struct Read {
    op: MaybeDone<Op<BufResult>>,
    /// Where the read begins in the file, `skip` bytes before what is wanted.
    offset: u64,
    skip: usize,
    len: usize,
}

impl Read {
    /// Waits for the read. Dropping the future leaves it under way, to be waited for again.
    pub(super) async fn wait(&mut self) {
        (&mut self.op).await;
    }

    /// What was read, once it was waited for; shares the buffer.
    pub(super) fn finish(mut self, file: FileRef<'_>) -> Result<Bytes> {
        let output = Pin::new(&mut self.op).take_output();
        let (result, buf) = output.expect("the caller waited for the read");
        let read = result?;
        if read < self.skip + self.len {
            let end = self.offset + read as u64;
            return Err(file.corruption(end, "the table ends before its blocks do"));
        }
        Ok(buf.freeze().slice(self.skip..self.skip + self.len))
    }
}

impl<'a> BlockReader<'a> {
    pub(super) fn file_ref(&self) -> FileRef<'a> {
        FileRef { path: self.file.path(), number: self.meta.number }
    }

    /// The `len` bytes at `offset`.
    pub(super) async fn bytes(&self, offset: u64, len: usize) -> Result<Bytes> {
        let mut read = self.start(offset, len);
        read.wait().await;
        read.finish(self.file_ref())
    }

    /// A read of the `len` bytes at `offset`, to be polled.
    pub(super) fn start(&self, offset: u64, len: usize) -> Read {
        let (from, wanted) = self.file.cover(offset, len);
        let skip = usize::try_from(offset - from).expect("below BUF_ALIGN");
        let op = maybe_done(self.file.read_at(AlignedBuf::zeroed(wanted), from));
        Read { op, offset: from, skip, len }
    }

    /// Reads a data block, twice if need be.
    pub(super) async fn block(&self, handle: Handle) -> Result<Block> {
        match self.block_once(handle).await {
            Err(error) if is_worth_repeating(&error) => self.block_once(handle).await,
            result => result,
        }
    }

    async fn block_once(&self, handle: Handle) -> Result<Block> {
        let bytes = self.bytes(handle.offset, handle.file_bytes()).await?;
        let block = self.decode_block(handle, &bytes)?;
        // A block that shares its read buffer should not keep much more memory than it weighs.
        let (_, read) = self.file.cover(handle.offset, handle.file_bytes());
        let buffer = read.next_multiple_of(BUF_ALIGN);
        let wasteful = buffer.saturating_sub(block.weight()) > block.weight() / 8;
        let shares = handle.stored == handle.raw;
        Ok(if shares && wasteful { block.to_owned_bytes() } else { block })
    }

    async fn bodies(&self, reference: &Reference) -> Result<Vec<Body>> {
        let handle = reference.handle;
        let bytes = self.bytes(handle.offset, handle.file_bytes()).await?;
        let block = open_block(self.file_ref(), BlockKind::References, handle, &bytes)?;
        references::decode(&block, reference).map_err(|what| {
            self.file_ref().corruption(handle.offset, format!("references block: {what}"))
        })
    }

    /// The data block that stands as `bytes` at `handle`.
    pub(super) fn decode_block(&self, handle: Handle, bytes: &Bytes) -> Result<Block> {
        let raw = open_block(self.file_ref(), BlockKind::Data, handle, bytes)?;
        Block::decode(raw).map_err(|what| {
            self.file_ref().corruption(handle.offset, format!("data block: {what}"))
        })
    }

    /// Reads and checks all that is not data.
    pub(super) async fn metadata(&self) -> Result<Metadata> {
        let file = self.file_ref();
        let size = self.meta.file_bytes;
        let Some(footer_at) = size.checked_sub(FOOTER_BYTES as u64) else {
            return Err(file.corruption(0, "the file is too short for a table"));
        };
        let bytes = self.bytes(footer_at, FOOTER_BYTES).await?;
        let footer = Footer::decode(file, size, &bytes)?;
        // One read for the three blocks: they adjoin, and end where the footer begins.
        let start = footer.filter.offset;
        let len = usize::try_from(footer_at.saturating_sub(start))
            .map_err(|_| file.corruption(start, "its filter and index exceed the memory"))?;
        let mut rest = self.bytes(start, len).await?;
        let mut part = |kind, handle: Handle| {
            open_block(file, kind, handle, &rest.split_to(handle.file_bytes()))
        };
        let filter = Filter::decode(part(BlockKind::Filter, footer.filter)?)
            .ok_or_else(|| file.corruption(footer.filter.offset, "filter block: no filter"))?;
        let references = self.meta.references.as_slice();
        let data_end = references.first().map_or(start, |first| first.handle.offset);
        if references.last().is_some_and(|last| last.handle.end() != Some(start)) {
            return Err(file.corruption(start, "its references do not end where the filter begins"));
        }
        let index = Index::decode(&part(BlockKind::Index, footer.index)?, data_end)
            .map_err(|what| file.corruption(footer.index.offset, format!("index block: {what}")))?;
        let mut facts = Vec::new();
        self.meta.put_facts(&mut facts);
        let properties = part(BlockKind::Properties, footer.properties)?;
        if Cursor::new(&properties).bytes(facts.len()) != Some(facts.as_slice()) {
            let what = "properties block: it contradicts the manifest";
            return Err(file.corruption(footer.properties.offset, what));
        }
        Ok(Metadata { index, filter, properties_at: footer.properties.offset })
    }
}
