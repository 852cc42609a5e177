//! The bytes of a rewritten file of the value log. (A segment as it was first written is laid out
//! in `log/format.rs`.)
//!
//! A file is its bodies, the sections block and the footer, with nothing between them. A body is
//! a key and the stored value behind it, as in the record of the commit. Bodies stand in the order
//! of (segment, position). All integers are little-endian, varints as in `codec`.
//!
//! The sections block has a section for each segment, ascending:
//!
//! | size | field | reader's duty |
//! |---|---|---|
//! | varint | segment | above the one before |
//! | varint | number of bodies | at least 1 |
//! | varint | length of what follows | within the block |
//! | any | for each body: varint step of its position, varint length | as in `offsets` |
//!
//! The footer, the last [`FOOTER_BYTES`] of the file:
//!
//! | offset | size | field | reader's duty |
//! |---|---|---|---|
//! | 0 | 8 | magic `seerval\0` | anything else: corruption |
//! | 8 | 4 | format version, 1 | larger: not supported |
//! | 12 | 8 | file number | not the number in the name: corruption |
//! | 20 | 8 | bytes of all bodies | what the sections add up to |
//! | 28 | 4 | length of the sections block | bodies, block and footer fill the file |
//! | 32 | 4 | CRC32C of the sections block | mismatch: corruption |
//! | 36 | 4 | CRC32C of bytes 0..36 | mismatch, or not what the manifest says: corruption |
//!
//! Invariants:
//! 1. No length is believed before the checksum fits, and none of them beyond the file.
//! 2. Bodies have no checksum here: pointers have it, and the lists of the tables.

use std::path::Path;

use bytes::Bytes;

use super::offsets::Offsets;
use crate::codec::{Cursor, Sink, crc32c};
use crate::error::{Error, ErrorKind, Result};
use crate::filename::FileNumber;

/// The size of the footer.
pub(crate) const FOOTER_BYTES: usize = 40;
const MAGIC: [u8; 8] = *b"seerval\0";
const VERSION: u32 = 1;

/// The bodies of one segment in a file.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) segment: FileNumber,
    pub(crate) offsets: Offsets,
}

/// Appends a section to the block.
pub(crate) fn put_section(block: &mut Vec<u8>, segment: FileNumber, count: u64, entries: &[u8]) {
    block.put_varint(segment);
    block.put_varint(count);
    block.put_slice(entries);
}

/// The footer of file `number`, and the checksum in it.
pub(crate) fn footer(number: FileNumber, body_bytes: u64, block: &[u8]) -> (Vec<u8>, u32) {
    let mut out = Vec::with_capacity(FOOTER_BYTES);
    out.put(&MAGIC);
    out.put_u32(VERSION);
    out.put_u64(number);
    out.put_u64(body_bytes);
    out.put_u32(u32::try_from(block.len()).expect("a few bytes for each body of a job"));
    out.put_u32(crc32c(block));
    let crc = crc32c(&out);
    out.put_u32(crc);
    (out, crc)
}

/// A rewritten file as the manifest describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Described<'a> {
    pub(crate) path: &'a Path,
    pub(crate) number: FileNumber,
    pub(crate) file_bytes: u64,
    pub(crate) checksum: u32,
}

impl Described<'_> {
    fn corruption(&self, offset: u64, what: &str) -> Error {
        Error::corruption(self.path, offset, format!("rewritten values: {what}"))
    }

    /// How many bytes before the footer the sections block begins.
    ///
    /// # Errors
    ///
    /// `Corruption` when `footer`, the last bytes of the file, is none; `NotSupported`.
    pub(crate) fn block_bytes(&self, footer: &[u8]) -> Result<usize> {
        let offset = self.file_bytes.saturating_sub(FOOTER_BYTES as u64);
        let bad = |what| self.corruption(offset, what);
        let mut cursor = Cursor::new(footer);
        let fields = (|| {
            let magic = cursor.bytes(MAGIC.len())?;
            let (version, number) = (cursor.u32()?, cursor.u64()?);
            let (body_bytes, block_bytes, _) = (cursor.u64()?, cursor.u32()?, cursor.u32()?);
            Some((magic, version, number, body_bytes, block_bytes, cursor.u32()?))
        })();
        let Some((magic, version, number, body_bytes, block_bytes, crc)) =
            fields.filter(|_| cursor.is_empty())
        else {
            return Err(bad("the file ends within the footer"));
        };
        if magic != MAGIC {
            return Err(bad("no magic, or the end is missing"));
        }
        if footer.get(..FOOTER_BYTES - 4).map(crc32c) != Some(crc) {
            return Err(bad("the checksum of the footer does not match"));
        }
        if version > VERSION {
            let path = self.path.display();
            let what = format!("{path} has format {version}, this version reads {VERSION}");
            return Err(Error::new(ErrorKind::NotSupported, what));
        }
        let total = body_bytes.checked_add(u64::from(block_bytes));
        let fills = total == Some(offset) && self.file_bytes >= FOOTER_BYTES as u64;
        if number != self.number || crc != self.checksum || !fills {
            return Err(bad("the footer contradicts the manifest"));
        }
        Ok(block_bytes as usize)
    }

    /// The sections that stand in `block`, in front of `footer`.
    ///
    /// # Errors
    ///
    /// `Corruption` when they do not check out.
    pub(crate) fn sections(&self, block: &Bytes, footer: &[u8]) -> Result<Vec<Section>> {
        let behind = (block.len() + FOOTER_BYTES) as u64;
        let body_bytes = self.file_bytes.saturating_sub(behind);
        let bad = |what| self.corruption(body_bytes, what);
        let crc = footer.get(FOOTER_BYTES - 8..).and_then(|tail| Cursor::new(tail).u32());
        if crc != Some(crc32c(block)) {
            return Err(bad("the checksum of the sections does not match"));
        }
        let mut cursor = Cursor::new(block);
        let mut sections: Vec<Section> = Vec::new();
        let mut offset = 0;
        while !cursor.is_empty() {
            let segment = cursor.varint().ok_or_else(|| bad("a section is cut short"))?;
            let count = cursor.varint().ok_or_else(|| bad("a section is cut short"))?;
            let entries = cursor.slice().ok_or_else(|| bad("a section is cut short"))?;
            if sections.last().is_some_and(|before| before.segment >= segment) {
                return Err(bad("the sections do not ascend"));
            }
            let offsets = Offsets::decode(block.slice_ref(entries), count, offset).map_err(bad)?;
            offset = offsets.end();
            sections.push(Section { segment, offsets });
        }
        if sections.is_empty() || offset != body_bytes {
            return Err(bad("the sections do not add up to the file"));
        }
        Ok(sections)
    }
}

#[cfg(test)]
mod tests {
    use super::super::offsets::put_entry;
    use super::*;

    fn block() -> Vec<u8> {
        let mut block = Vec::new();
        for (segment, lens) in [(3, [10, 20]), (9, [5, 7])] {
            let mut entries = Vec::new();
            put_entry(&mut entries, 0, 100, lens[0]);
            put_entry(&mut entries, 100, 300, lens[1]);
            put_section(&mut block, segment, 2, &entries);
        }
        block
    }

    fn described(block: &[u8], checksum: u32) -> Described<'static> {
        let file_bytes = (42 + block.len() + FOOTER_BYTES) as u64;
        Described { path: Path::new("000007.vlog"), number: 7, file_bytes, checksum }
    }

    #[test]
    fn sections_come_back_as_they_were_put() {
        let block = block();
        let (footer, checksum) = footer(7, 42, &block);
        let file = described(&block, checksum);
        assert_eq!(file.block_bytes(&footer).unwrap(), block.len());
        let sections = file.sections(&Bytes::from(block), &footer).unwrap();
        let found: Vec<_> =
            sections.iter().map(|s| (s.segment, s.offsets.find(300).unwrap())).collect();
        assert_eq!(found, [(3, (10, 20)), (9, (35, 7))]);
    }

    #[test]
    fn every_damaged_bit_is_noticed() {
        let block = block();
        let (footer, checksum) = footer(7, 42, &block);
        let file = described(&block, checksum);
        for bit in 0..footer.len() * 8 {
            let mut bad = footer.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(file.block_bytes(&bad).unwrap_err().is_corruption(), "bit {bit} of the footer");
        }
        for bit in 0..block.len() * 8 {
            let mut bad = block.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(file.sections(&Bytes::from(bad), &footer).is_err(), "bit {bit} of the block");
        }
        assert!(file.block_bytes(&footer[1..]).is_err());
        let longer = Described { file_bytes: file.file_bytes + 1, ..file };
        assert!(longer.block_bytes(&footer).is_err());
    }

    #[test]
    fn sections_that_contradict_themselves_are_refused() {
        let sealed = |block: &[u8], body_bytes: u64| {
            let (footer, checksum) = footer(7, body_bytes, block);
            let file_bytes = body_bytes + (block.len() + FOOTER_BYTES) as u64;
            let file = Described { file_bytes, ..described(block, checksum) };
            file.sections(&Bytes::copy_from_slice(block), &footer).map(|found| found.len())
        };
        let mut entry = Vec::new();
        put_entry(&mut entry, 0, 1, 10);
        let mut one = Vec::new();
        put_section(&mut one, 4, 1, &entry);
        assert_eq!(sealed(&one, 10).unwrap(), 1);
        assert!(sealed(&one, 11).is_err(), "another sum");
        assert!(sealed(&[one.as_slice(), &one].concat(), 20).is_err(), "a segment twice");
        assert!(sealed(&one[..one.len() - 1], 10).is_err(), "cut short");
        assert!(sealed(&[], 0).is_err(), "nothing");
        let newer = {
            let mut page = footer(7, 10, &one).0;
            page[8] = 2;
            let crc = crc32c(&page[..36]);
            page[36..].copy_from_slice(&crc.to_le_bytes());
            described(&one, crc).block_bytes(&page).unwrap_err().kind()
        };
        assert_eq!(newer, ErrorKind::NotSupported);
    }
}
