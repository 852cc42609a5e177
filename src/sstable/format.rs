//! The bytes of a table file: written once, sealed by checksums, read by nobody but this module's
//! friends.
//!
//! A table is its data blocks, references blocks, filter block, index block, properties block and
//! footer, with nothing between them. All integers are little-endian; varints as in `codec`.
//!
//! Every block stands as its stored bytes followed by a trailer, whose CRC32C covers the stored
//! bytes, the compression, the kind of block, the file number and the offset of the block:
//!
//! | offset | size | field | reader's duty |
//! |---|---|---|---|
//! | 0 | stored | the block, compressed or not | |
//! | stored | 1 | compression: 0 none, 1 LZ4 (data blocks only) | unknown: corruption |
//! | stored + 1 | 4 | CRC32C | mismatch: read again once, then corruption |
//!
//! A data block, uncompressed; `n` entries, at least one:
//!
//! | size | field | reader's duty |
//! |---|---|---|
//! | any | entries without gaps, as below | lengths within limits and block |
//! | 2 n | start of each entry; the first is 0 | each where the entry before ends |
//! | n | tag of each entry: bits 32..40 of the key's hash | a hint: no duty |
//! | 2 | n | consistent with the block's length |
//!
//! An entry is varint key length, varint value length, key, u64 trailer (seqno and kind as `key`
//! packs them), value. The value of a tombstone is empty.
//!
//! The index block; `n` data blocks, in file order:
//!
//! | size | field | reader's duty |
//! |---|---|---|
//! | 4 | n | at least 1, consistent with the block's length |
//! | 16 n | handle of each block: u64 offset, u32 stored, u32 raw bytes | blocks adjoin from 0 |
//! | 8 n | trailer of each separator | separators ascend |
//! | 4 n | end of each separator's user key in what follows | ascending |
//! | any | user keys of the separators | last end = length |
//!
//! A separator is an internal key above every entry of the block before, and not above the first
//! of its own. When both blocks hold versions of one user key it is the block's first internal
//! key; else its trailer is u64::MAX, before all versions of the key, and the user key may be
//! shortened.
//!
//! A references block has what the table refers to in one segment of the value log, and is laid
//! out in `references`; the manifest says where it stands. The filter block is as `filter` encodes
//! it. The properties block holds what the manifest says
//! about the table, from [`super::TableMeta::put_facts`], then u32 target block bytes and u32
//! filter bits per key in thousandths.
//!
//! The footer, the last [`FOOTER_BYTES`] of the file; its frame (magic, CRC, version) is the same
//! in all versions:
//!
//! | offset | size | field | reader's duty |
//! |---|---|---|---|
//! | 0 | 16 | handle of the filter block | blocks follow each other up to the footer |
//! | 16 | 16 | handle of the index block | as above |
//! | 32 | 16 | handle of the properties block | as above |
//! | 48 | 8 | file number | another number: corruption |
//! | 56 | 4 | format version | newer: not supported |
//! | 60 | 4 | CRC32C of bytes 0..60 and 64..72 | mismatch: corruption |
//! | 64 | 8 | magic | anything else: corruption |
//!
//! Invariants:
//! 1. Every byte of a table is covered by the CRC of a block or of the footer.
//! 2. A block is valid only as the kind, in the file and at the offset that it was written for.
//! 3. No length is believed before it is checked against the bytes that are there.

use std::path::Path;

use bytes::Bytes;

use crate::codec::{Cursor, Sink, crc32c, crc32c_append};
use crate::error::{Error, ErrorKind, Result};
use crate::filename::FileNumber;
use crate::filter::FILTER_BYTES_MAX;
use crate::key::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::lz4;

/// The version that is written, and the newest that is read.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// The size of the footer.
pub(crate) const FOOTER_BYTES: usize = 72;
/// The size of a block's trailer.
pub(crate) const BLOCK_TRAILER_BYTES: usize = 5;
/// The largest data block: one entry of the largest key and value.
pub(crate) const BLOCK_BYTES_MAX: usize = KEY_BYTES_MAX + VALUE_BYTES_MAX + 64;
const MAGIC: u64 = u64::from_le_bytes(*b"seerdb\0T");

/// What a block is for; part of its CRC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum BlockKind {
    Data = 1,
    Index = 2,
    Filter = 3,
    Properties = 4,
    References = 5,
}

/// How a block is stored. The numbers are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stored {
    Plain = 0,
    Lz4 = 1,
}

/// Where a block stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle {
    pub(crate) offset: u64,
    /// The bytes in the file, without the block's trailer.
    pub(crate) stored: u32,
    /// The bytes when unpacked.
    pub(crate) raw: u32,
}

impl Handle {
    pub(crate) fn encode(&self, sink: &mut impl Sink) {
        sink.put_u64(self.offset);
        sink.put_u32(self.stored);
        sink.put_u32(self.raw);
    }

    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Option<Handle> {
        Some(Handle { offset: cursor.u64()?, stored: cursor.u32()?, raw: cursor.u32()? })
    }

    /// The bytes in the file, with the block's trailer.
    pub(crate) fn file_bytes(&self) -> usize {
        self.stored as usize + BLOCK_TRAILER_BYTES
    }

    /// The offset behind the block; `None` when it is beyond u64.
    pub(crate) fn end(&self) -> Option<u64> {
        self.offset.checked_add(self.file_bytes() as u64)
    }
}

/// A table file as errors and checksums name it.
#[derive(Clone, Copy)]
pub(crate) struct FileRef<'a> {
    pub(crate) path: &'a Path,
    pub(crate) number: FileNumber,
}

impl FileRef<'_> {
    pub(crate) fn corruption(&self, offset: u64, what: impl Into<String>) -> Error {
        Error::corruption(self.path, offset, what)
    }
}

/// The trailer of a block.
pub(crate) fn block_trailer(
    number: FileNumber,
    offset: u64,
    kind: BlockKind,
    how: Stored,
    stored: &[u8],
) -> [u8; BLOCK_TRAILER_BYTES] {
    let [a, b, c, d] = block_crc(number, offset, kind as u8, how as u8, stored).to_le_bytes();
    [how as u8, a, b, c, d]
}

fn block_crc(number: FileNumber, offset: u64, kind: u8, how: u8, stored: &[u8]) -> u32 {
    let mut place = [0u8; 18];
    let (head, tail) = place.split_at_mut(2);
    head.copy_from_slice(&[how, kind]);
    for (slot, word) in tail.chunks_exact_mut(8).zip([number, offset]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    crc32c_append(crc32c(stored), &place)
}

/// The block that stands as `bytes` (stored bytes and trailer) at `handle`; shares `bytes` when it
/// was stored as it is.
pub(crate) fn open_block(
    file: FileRef<'_>,
    kind: BlockKind,
    handle: Handle,
    bytes: &Bytes,
) -> Result<Bytes> {
    let bad = |what: &str| file.corruption(handle.offset, format!("{kind:?} block: {what}"));
    let short = || bad("the file ends within it");
    let stored_bytes = handle.stored as usize;
    let (stored, trailer) = bytes.split_at_checked(stored_bytes).ok_or_else(short)?;
    let mut cursor = Cursor::new(trailer);
    let how = cursor.u8().ok_or_else(short)?;
    let found = cursor.u32().ok_or_else(short)?;
    let expected = block_crc(file.number, handle.offset, kind as u8, how, stored);
    if found != expected && !planted!(SkipChecksumOfBlock) {
        return Err(bad(&format!("checksum {found:#010x}, expected {expected:#010x}")));
    }
    match how {
        0 if handle.raw == handle.stored => Ok(bytes.slice(..stored_bytes)),
        0 => Err(bad("its length contradicts the index")),
        1 if kind == BlockKind::Data => lz4::unpack(stored, handle.raw as usize).map_err(bad),
        _ => Err(bad("unknown compression")),
    }
}

/// What the footer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) filter: Handle,
    pub(crate) index: Handle,
    pub(crate) properties: Handle,
}

impl Footer {
    /// The footer as the last bytes of the file `number`.
    pub(crate) fn encode(&self, number: FileNumber) -> [u8; FOOTER_BYTES] {
        self.encode_version(number, FORMAT_VERSION)
    }

    pub(super) fn encode_version(&self, number: FileNumber, version: u32) -> [u8; FOOTER_BYTES] {
        let mut out = Vec::with_capacity(FOOTER_BYTES);
        for handle in [self.filter, self.index, self.properties] {
            handle.encode(&mut out);
        }
        out.put_u64(number);
        out.put_u32(version);
        let crc = crc32c_append(crc32c(&out), &MAGIC.to_le_bytes());
        out.put_u32(crc);
        out.put_u64(MAGIC);
        out.try_into().expect("the fields above add up to FOOTER_BYTES")
    }

    /// The footer of a file of `file_bytes` bytes that end with `bytes`.
    pub(crate) fn decode(file: FileRef<'_>, file_bytes: u64, bytes: &[u8]) -> Result<Footer> {
        let offset = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        let bad = |what: &str| file.corruption(offset, format!("table footer: {what}"));
        let mut cursor = Cursor::new(bytes);
        let (fields, found, magic) = cursor
            .bytes(FOOTER_BYTES - 12)
            .and_then(|fields| Some((fields, cursor.u32()?, cursor.u64()?)))
            .filter(|_| cursor.is_empty())
            .ok_or_else(|| bad("the file ends within it"))?;
        if magic != MAGIC {
            return Err(bad("no magic: this is no table, or its end is missing"));
        }
        let expected = crc32c_append(crc32c(fields), &MAGIC.to_le_bytes());
        if found != expected {
            return Err(bad(&format!("checksum {found:#010x}, expected {expected:#010x}")));
        }
        let (footer, number, version) = Footer::fields(fields).ok_or_else(|| bad("too short"))?;
        if version > FORMAT_VERSION {
            let what = format!(
                "the table {} has format {version}, this version reads up to {FORMAT_VERSION}",
                file.path.display()
            );
            return Err(Error::new(ErrorKind::NotSupported, what));
        }
        if number != file.number {
            return Err(bad(&format!("it belongs to file {number}, not {}", file.number)));
        }
        let adjoin = footer.filter.end() == Some(footer.index.offset)
            && footer.index.end() == Some(footer.properties.offset)
            && footer.properties.end() == Some(offset);
        if version == 0 || !adjoin {
            return Err(bad("its blocks do not adjoin"));
        }
        if footer.filter.stored as usize > FILTER_BYTES_MAX {
            return Err(bad("no filter is that large"));
        }
        Ok(footer)
    }

    fn fields(bytes: &[u8]) -> Option<(Footer, FileNumber, u32)> {
        let mut cursor = Cursor::new(bytes);
        let footer = Footer {
            filter: Handle::decode(&mut cursor)?,
            index: Handle::decode(&mut cursor)?,
            properties: Handle::decode(&mut cursor)?,
        };
        Some((footer, cursor.u64()?, cursor.u32()?))
    }
}

#[cfg(test)]
mod tests;
