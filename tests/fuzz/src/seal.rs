//! Puts right checksums over whatever the files of a database say, as far as it can be parsed.
//!
//! An implementation of its own: it follows the tables in the `format.rs` files, not their code.

use crc32c::{crc32c, crc32c_append};

use crate::damage::Files;

const UNIT: usize = 4096;
const RECORD_HEADER: usize = 32;
const FOOTER: usize = 72;
const BLOCK_TRAILER: usize = 5;
const VALUES_FOOTER: usize = 40;

/// Mends every file. A file of records is mended with the identity that its header page says,
/// which must be the one that its name, CURRENT or the manifest knows, or nobody reads it.
pub fn mend(files: &mut Files) {
    for (name, bytes) in files.iter_mut() {
        let number = name.trim_start_matches("MANIFEST-").split('.').next().unwrap_or_default();
        let number = number.parse().unwrap_or(0);
        if name == "CURRENT" {
            current(bytes);
        } else if name.starts_with("MANIFEST-") {
            put_crc(bytes, 0..UNIT - 4, UNIT - 4, &[]);
            records(bytes, number, true);
        } else if name.ends_with(".vlog") && bytes.len() > VALUES_FOOTER && !is_segment(bytes) {
            rewritten(bytes);
        } else if name.ends_with(".wal") || name.ends_with(".vlog") {
            put_crc(bytes, 0..40, 40, &[]);
            records(bytes, number, false);
        } else if name.ends_with(".sst") {
            table(bytes, number);
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The CRC of `range`, followed by `more`, at `at`.
fn put_crc(bytes: &mut [u8], range: std::ops::Range<usize>, at: usize, more: &[u8]) -> Option<()> {
    let crc = crc32c_append(crc32c(bytes.get(range)?), more);
    *bytes.get_mut(at..)?.first_chunk_mut()? = crc.to_le_bytes();
    Some(())
}

fn current(bytes: &mut Vec<u8>) {
    if bytes.len() >= 34 {
        let end = format!("{:08x}\n", crc32c(&bytes[..34]));
        bytes.splice(34.., end.into_bytes());
    }
}

fn is_segment(bytes: &[u8]) -> bool {
    bytes.starts_with(b"seerlog\0")
}

/// The sections block of a rewritten file, then its footer.
fn rewritten(bytes: &mut [u8]) -> Option<()> {
    let footer = bytes.len().checked_sub(VALUES_FOOTER)?;
    let block = footer.checked_sub(u32_at(bytes, footer + 28)? as usize)?;
    put_crc(bytes, block..footer, footer + 32, &[])?;
    put_crc(bytes, footer..footer + 36, footer + 36, &[])
}

/// The records behind the header page; both kinds of header page have the salt at 24.
fn records(bytes: &mut [u8], number: u64, in_units: bool) -> Option<()> {
    let salt = u64_at(bytes, 24)?;
    let mut chain = crc32c_append(crc32c(&number.to_le_bytes()), &salt.to_le_bytes());
    let mut at = UNIT;
    loop {
        if bytes.get(at..at + 2)? != [0xED, 0x5E] {
            // In a log of groups the next record stands at the next unit.
            at = (at + 1).next_multiple_of(UNIT);
            continue;
        }
        let payload_bytes = u32_at(bytes, at + 12)? as usize;
        let padding = u16::from_le_bytes([*bytes.get(at + 3)?, *bytes.get(at + 4)?]);
        if let Some(payload) = bytes.get(at + RECORD_HEADER..at + RECORD_HEADER + payload_bytes) {
            chain = crc32c_append(chain, &crc32c(payload).to_le_bytes());
        }
        *bytes.get_mut(at + 24..)?.first_chunk_mut()? = chain.to_le_bytes();
        let place = [number, salt, at as u64].map(u64::to_le_bytes).concat();
        put_crc(bytes, at..at + RECORD_HEADER - 4, at + RECORD_HEADER - 4, &place)?;
        at += RECORD_HEADER + payload_bytes + usize::from(padding);
        if in_units {
            at = at.next_multiple_of(UNIT);
        }
    }
}

/// Every block that footer and index name, then the footer.
fn table(bytes: &mut [u8], number: u64) -> Option<()> {
    let footer = bytes.len().checked_sub(FOOTER)?;
    let handle = |bytes: &[u8], at: usize| {
        let offset = usize::try_from(u64_at(bytes, at)?).ok()?;
        Some((offset, u32_at(bytes, at + 8)? as usize))
    };
    let index = handle(bytes, footer + 16)?.0;
    let count = u32_at(bytes, index)? as usize;
    for block in 0..count.min(1 << 12) {
        if let Some(place) = handle(bytes, index + 4 + 16 * block) {
            block_crc(bytes, number, 1, place);
        }
    }
    for (kind, at) in [(3, footer), (2, footer + 16), (4, footer + 32)] {
        if let Some(place) = handle(bytes, at) {
            block_crc(bytes, number, kind, place);
        }
    }
    let magic = *b"seerdb\0T";
    put_crc(bytes, footer..footer + 60, footer + 60, &magic)
}

fn block_crc(bytes: &mut [u8], number: u64, kind: u8, at: (usize, usize)) -> Option<()> {
    let (offset, stored) = at;
    let end = offset.checked_add(stored)?;
    let how = *bytes.get(end..end.checked_add(BLOCK_TRAILER)?)?.first()?;
    let mut place = vec![how, kind];
    place.extend(number.to_le_bytes());
    place.extend((offset as u64).to_le_bytes());
    put_crc(bytes, offset..end, end + 1, &place)
}
