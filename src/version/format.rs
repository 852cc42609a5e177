//! The bytes of a manifest's header page and of CURRENT. All integers are little-endian.
//!
//! A manifest is a header page followed by records ([`crate::record`]), each of which begins at a
//! multiple of [`UNIT`] and spans whole units:
//!
//! | offset | size | content |
//! |---|---|---|
//! | 0 | 4096 | header page |
//! | 4096 | n * 4096 | edit record 1: the whole state, as one edit; seqno 1, count 1, durable 0 |
//! | next unit | 4096 | mark record 1: durable seqno 1 |
//! | next unit | n * 4096 | edit record 2: durable seqno 1 |
//! | next unit | 4096 | mark record 2: durable seqno 2; and so on |
//! | behind the last | 4096 at least | zeros (allocated ahead) or a torn tail |
//!
//! The header page:
//!
//! | offset | size | field | reader's duty |
//! |---|---|---|---|
//! | 0 | 8 | magic `seerMANI` | mismatch: corruption |
//! | 8 | 4 | format version, 1 | larger: not supported |
//! | 12 | 4 | reserved, 0 | covered by the CRC |
//! | 16 | 8 | file number | must be that of the name |
//! | 24 | 8 | salt | must be that in CURRENT |
//! | 32 | 4060 | zeros | covered by the CRC |
//! | 4092 | 4 | CRC32C of bytes 0..4092 | mismatch: corruption, looked at before all else |
//!
//! CURRENT is one line of 43 ASCII bytes. Only the spelling that we write is accepted:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 16 | file number of the manifest, lower-case hex |
//! | 16 | 1 | space |
//! | 17 | 16 | salt of the manifest, lower-case hex |
//! | 33 | 1 | space |
//! | 34 | 8 | CRC32C of bytes 0..34, lower-case hex |
//! | 42 | 1 | newline |

use crate::codec::{Cursor, Sink, crc32c};
use crate::record::FileId;

/// Records begin at multiples of this, so that no sector holds bytes of two records.
pub(crate) const UNIT: usize = 4096;
/// The format version that we write.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// The length of CURRENT.
pub(crate) const CURRENT_BYTES: usize = 43;

const MAGIC: &[u8; 8] = b"seerMANI";
const CRC_AT: usize = UNIT - 4;

const _: () = assert!(UNIT.is_power_of_two() && UNIT >= 4096);

/// Why a header page was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHeader {
    /// Not a header page of ours, or a damaged one.
    Damaged,
    /// Written by a newer version.
    Newer(u32),
}

/// The header page of the manifest `id`.
pub(crate) fn encode_header(id: FileId) -> Vec<u8> {
    header_of_version(id, FORMAT_VERSION)
}

fn header_of_version(id: FileId, version: u32) -> Vec<u8> {
    let mut page = Vec::with_capacity(UNIT);
    page.put(MAGIC);
    page.put_u32(version);
    page.put_u32(0);
    page.put_u64(id.number);
    page.put_u64(id.salt);
    page.resize(CRC_AT, 0);
    let crc = crc32c(&page);
    page.put_u32(crc);
    assert_eq!(page.len(), UNIT);
    page
}

/// Whose header page this is.
pub(crate) fn decode_header(bytes: &[u8]) -> Result<FileId, BadHeader> {
    let (covered, crc) = bytes
        .get(..UNIT)
        .and_then(|page| page.split_at_checked(CRC_AT))
        .ok_or(BadHeader::Damaged)?;
    if Cursor::new(crc).u32() != Some(crc32c(covered)) {
        return Err(BadHeader::Damaged);
    }
    let mut cursor = Cursor::new(covered);
    if cursor.bytes(MAGIC.len()) != Some(MAGIC) {
        return Err(BadHeader::Damaged);
    }
    let version = cursor.u32().ok_or(BadHeader::Damaged)?;
    if version > FORMAT_VERSION {
        return Err(BadHeader::Newer(version));
    }
    let mut fields = || Some((cursor.u32()?, cursor.u64()?, cursor.u64()?));
    match fields() {
        Some((0, number, salt)) if version == FORMAT_VERSION => Ok(FileId { number, salt }),
        _ => Err(BadHeader::Damaged),
    }
}

/// The content of a CURRENT that names the manifest `id`.
pub(crate) fn encode_current(id: FileId) -> Vec<u8> {
    let mut line = format!("{:016x} {:016x} ", id.number, id.salt);
    let crc = crc32c(line.as_bytes());
    line.push_str(&format!("{crc:08x}\n"));
    assert_eq!(line.len(), CURRENT_BYTES);
    line.into_bytes()
}

/// The manifest that a CURRENT names; `None` when it is damaged.
pub(crate) fn decode_current(bytes: &[u8]) -> Option<FileId> {
    let line = std::str::from_utf8(bytes).ok()?;
    let number = u64::from_str_radix(line.get(..16)?, 16).ok()?;
    let salt = u64::from_str_radix(line.get(17..33)?, 16).ok()?;
    let id = FileId { number, salt };
    // One spelling only, which also compares the CRC and the length.
    (encode_current(id) == bytes).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: FileId = FileId { number: 12, salt: 0xDEAD_BEEF_0123_4567 };

    #[test]
    fn golden_current() {
        let line = String::from_utf8(encode_current(ID)).unwrap();
        assert_eq!(&line[..34], "000000000000000c deadbeef01234567 ");
        assert_eq!(decode_current(line.as_bytes()), Some(ID));
    }

    #[test]
    fn every_bit_of_current_counts() {
        let line = encode_current(ID);
        for bit in 0..line.len() * 8 {
            let mut bad = line.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_current(&bad), None, "bit {bit}");
        }
        for len in 0..line.len() {
            assert_eq!(decode_current(&line[..len]), None, "cut to {len}");
        }
        let mut long = line.clone();
        long.push(b'\n');
        assert_eq!(decode_current(&long), None);
    }

    #[test]
    fn every_bit_of_the_header_page_counts() {
        let page = encode_header(ID);
        assert_eq!(decode_header(&page), Ok(ID));
        for bit in 0..page.len() * 8 {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_header(&bad), Err(BadHeader::Damaged), "bit {bit}");
        }
        assert_eq!(decode_header(&page[..UNIT - 1]), Err(BadHeader::Damaged));
        assert_eq!(decode_header(&[0; UNIT]), Err(BadHeader::Damaged));
        let mut other = page.clone();
        other[0] ^= 1;
        let crc = crc32c(&other[..CRC_AT]).to_le_bytes();
        other[CRC_AT..].copy_from_slice(&crc);
        assert_eq!(decode_header(&other), Err(BadHeader::Damaged), "another magic, well sealed");
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        assert_eq!(decode_header(&header_of_version(ID, 2)), Err(BadHeader::Newer(2)));
        assert_eq!(decode_header(&header_of_version(ID, 0)), Err(BadHeader::Damaged));
    }
}
