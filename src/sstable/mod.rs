//! Sorted tables: immutable files of internal keys and values.
//!
//! A table is written by [`TableWriter`], described by a [`TableMeta`] that the manifest keeps,
//! opened as a [`Table`], and grouped with others into a [`Run`].
//!
//! Invariants:
//! 1. A table's file never changes after its writer finished.
//! 2. All versions of a user key that one run holds are in one table.
//! 3. A table's file outlives every handle to the table.

mod block;
pub(crate) mod format;
pub(crate) mod index;
mod iter;
mod reader;
pub(crate) mod references;
mod run;
mod tags;
#[cfg(test)]
mod tests;
mod verify;
mod writer;

use bytes::Bytes;

use crate::cache::{ByteCache, Weigh};
use crate::codec::{Cursor, Sink};
use crate::filename::FileNumber;
use crate::key::{KEY_BYTES_MAX, SEQNO_MAX, SeqNo, Trailer, ValueKind};
use crate::pointer::Pointer;

pub(crate) use block::Block;
pub(crate) use iter::{BlockSource, RunIter};
pub(crate) use reader::{Lookup, PinnedMemory, Sought, Table};
pub(crate) use references::Reference;
pub(crate) use run::{Run, Trim};
pub(crate) use writer::{TableWriter, TableWriterOptions};

/// The cache of decoded data blocks and of values.
pub(crate) type BlockCache = ByteCache<CacheId, Cached>;

/// What is in the cache: a file number serves once, so that blocks and values never share an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CacheId {
    /// The number of a table, or of a segment of the value log.
    file: FileNumber,
    /// The number of the block in its table, from 0; the position of the value.
    at: u64,
}

impl CacheId {
    pub(crate) fn block(file: FileNumber, block: usize) -> Self {
        CacheId { file, at: block as u64 }
    }

    pub(crate) fn value(pointer: &Pointer) -> Self {
        let file = if planted!(CacheByPositionOnly) { 0 } else { pointer.segment };
        CacheId { file, at: u64::from(pointer.position) }
    }
}

/// A cached block or value.
#[derive(Clone)]
pub(crate) enum Cached {
    Block(Block),
    /// A value, and the check of the pointer that it was read by.
    Value(u32, Bytes),
}

impl Cached {
    fn into_block(self) -> Option<Block> {
        match self {
            Cached::Block(block) => Some(block),
            Cached::Value(..) => None,
        }
    }

    /// The value, if `pointer` is the one that it was read by.
    pub(crate) fn into_value(self, pointer: &Pointer) -> Option<Bytes> {
        match self {
            Cached::Value(check, value) if check == pointer.check() => Some(value),
            _ => None,
        }
    }
}

impl Weigh for Cached {
    fn weight(&self) -> usize {
        match self {
            Cached::Block(block) => block.weight(),
            Cached::Value(_, value) => value.len(),
        }
    }
}

/// What the manifest says about a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableMeta {
    pub(crate) number: FileNumber,
    pub(crate) file_bytes: u64,
    /// The CRC32C of the file up to its properties block, which repeats it: a table of another
    /// database, or of another life of this one, never passes for this one.
    pub(crate) checksum: u32,
    pub(crate) entries: u64,
    /// The entries that are deletions.
    pub(crate) tombstones: u64,
    /// The smallest user key.
    pub(crate) smallest: Vec<u8>,
    /// The largest user key.
    pub(crate) largest: Vec<u8>,
    pub(crate) seqno_min: SeqNo,
    pub(crate) seqno_max: SeqNo,
    /// What it refers to in the value log, by segment, ascending.
    pub(crate) references: Vec<Reference>,
}

impl TableMeta {
    /// Appends the description.
    pub(crate) fn encode(&self, sink: &mut impl Sink) {
        sink.put_u64(self.file_bytes);
        self.put_facts(sink);
    }

    /// Appends what the table's properties block repeats: all but the size of the file.
    pub(crate) fn put_facts(&self, sink: &mut impl Sink) {
        sink.put_u32(self.checksum);
        sink.put_u64(self.number);
        sink.put_varint(self.entries);
        sink.put_varint(self.tombstones);
        sink.put_varint(self.seqno_min);
        sink.put_varint(self.seqno_max);
        sink.put_slice(&self.smallest);
        sink.put_slice(&self.largest);
        sink.put_varint(self.references.len() as u64);
        for reference in &self.references {
            reference.encode(sink);
        }
    }

    /// The description of a table without entries, to be completed by [`TableMeta::note`].
    fn empty(number: FileNumber) -> TableMeta {
        TableMeta {
            number,
            file_bytes: 0,
            checksum: 0,
            entries: 0,
            tombstones: 0,
            smallest: Vec::new(),
            largest: Vec::new(),
            seqno_min: SEQNO_MAX,
            seqno_max: 0,
            references: Vec::new(),
        }
    }

    /// The bytes in the value log that it refers to.
    pub(crate) fn referenced_bytes(&self) -> u64 {
        self.references.iter().map(|reference| reference.bytes).sum()
    }

    /// Takes the next entry of the table into account.
    fn note(&mut self, key: &[u8], trailer: Trailer) {
        if self.entries == 0 {
            self.smallest = key.to_vec();
        }
        if self.largest != key {
            self.largest.clear();
            self.largest.extend_from_slice(key);
        }
        self.entries += 1;
        self.tombstones += u64::from(trailer.kind() == ValueKind::Delete);
        self.seqno_min = self.seqno_min.min(trailer.seqno());
        self.seqno_max = self.seqno_max.max(trailer.seqno());
    }

    /// Reads what [`TableMeta::encode`] wrote; `None` when the bytes are no such thing.
    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Option<TableMeta> {
        let file_bytes = cursor.u64()?;
        let checksum = cursor.u32()?;
        let meta = TableMeta {
            file_bytes,
            checksum,
            number: cursor.u64()?,
            entries: cursor.varint()?,
            tombstones: cursor.varint()?,
            seqno_min: cursor.varint()?,
            seqno_max: cursor.varint()?,
            smallest: cursor.slice()?.to_vec(),
            largest: cursor.slice()?.to_vec(),
            references: references::decode_list(cursor)?,
        };
        let valid = meta.entries > 0
            && meta.tombstones <= meta.entries
            && meta.references.iter().map(|r| r.bodies).sum::<u64>() <= meta.entries
            && meta.seqno_min <= meta.seqno_max
            && meta.seqno_max <= SEQNO_MAX
            && meta.smallest <= meta.largest
            && meta.smallest.len() <= KEY_BYTES_MAX
            && meta.largest.len() <= KEY_BYTES_MAX;
        valid.then_some(meta)
    }
}
