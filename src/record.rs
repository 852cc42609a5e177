//! Checksummed record framing, shared by the log streams and the manifest.
//!
//! A record is a header of [`HEADER_BYTES`] and a payload. All integers are little-endian.
//!
//! | offset | size | field | reader's duty |
//! |---|---|---|---|
//! | 0 | 2 | magic `0x5EED` | anything else: not a record |
//! | 2 | 1 | type: 1 data, 2 mark, 3 edit | unknown: not a record |
//! | 3 | 1 | reserved, 0 | anything else: not a record |
//! | 4 | 4 | payload length in bytes | trusted after the header CRC only |
//! | 8 | 4 | span: bytes from this header to the next one | at least header + payload |
//! | 12 | 4 | count: seqnos that the record uses up | |
//! | 16 | 8 | first seqno | gap: see below |
//! | 24 | 8 | durable seqno: all up to it were durable when this was written | |
//! | 32 | 4 | chain: CRC32C of (chain of the record before, CRC32C of the payload) | mismatch: damage |
//! | 36 | 4 | CRC32C of bytes 0..36 and of (file id, salt, position) | mismatch: not a record |
//!
//! Invariants:
//! 1. A header is valid only in the file and at the position it was written for, so that recycled
//!    bytes, copies of log bytes inside values and misdirected writes never pass.
//! 2. All zeros is never valid.
//! 3. `durable_seqno` of any valid header proves that every seqno up to it was acknowledged as
//!    durable: a reader that cannot produce such a seqno reports corruption. What is missing
//!    without such a proof is a torn tail. The idea is that of Pebble's WAL sync offsets.
//! 4. Bytes between payload end and span end are padding: never read, never trusted.

use crate::codec::{Cursor, Sink, crc32c, crc32c_append};
use crate::key::{SEQNO_MAX, SeqNo};

/// The size of a record header.
pub(crate) const HEADER_BYTES: usize = 40;
const MAGIC: u16 = 0x5EED;

/// What a record is for. The numbers are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordType {
    /// A commit.
    Data = 1,
    /// Nothing but the proof of what is durable.
    Mark = 2,
    /// A version edit; its seqno is the number of the edit.
    Edit = 3,
}

/// The identity of a file that holds records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    /// The file's number.
    pub(crate) number: u64,
    /// A random number drawn when the file was created or recycled.
    pub(crate) salt: u64,
}

/// A decoded header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: RecordType,
    pub(crate) payload_bytes: u32,
    pub(crate) span: u32,
    pub(crate) count: u32,
    pub(crate) first_seqno: SeqNo,
    pub(crate) durable_seqno: SeqNo,
    pub(crate) chain: u32,
}

impl Header {
    /// The seqno of the last operation; `first_seqno - 1` for a record that uses none up.
    pub(crate) fn last_seqno(&self) -> SeqNo {
        (self.first_seqno + u64::from(self.count)).saturating_sub(1)
    }

    /// The header as bytes for `position` of the file `id`.
    pub(crate) fn encode(&self, id: FileId, position: u64) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.put_u16(MAGIC);
        out.put_u8(self.kind as u8);
        out.put_u8(0);
        out.put_u32(self.payload_bytes);
        out.put_u32(self.span);
        out.put_u32(self.count);
        out.put_u64(self.first_seqno);
        out.put_u64(self.durable_seqno);
        out.put_u32(self.chain);
        out.put_u32(header_crc(&out, id, position));
        out.try_into().expect("the fields above add up to HEADER_BYTES")
    }

    /// The header at `position` of the file `id`, if these bytes are one.
    pub(crate) fn decode(bytes: &[u8], id: FileId, position: u64) -> Option<Header> {
        let covered = bytes.get(..HEADER_BYTES - 4)?;
        let mut cursor = Cursor::new(bytes.get(..HEADER_BYTES)?);
        if cursor.u16()? != MAGIC {
            return None;
        }
        let kind = match cursor.u8()? {
            1 => RecordType::Data,
            2 => RecordType::Mark,
            3 => RecordType::Edit,
            _ => return None,
        };
        let reserved = cursor.u8()?;
        let header = Header {
            kind,
            payload_bytes: cursor.u32()?,
            span: cursor.u32()?,
            count: cursor.u32()?,
            first_seqno: cursor.u64()?,
            durable_seqno: cursor.u64()?,
            chain: cursor.u32()?,
        };
        let valid = cursor.u32()? == header_crc(covered, id, position)
            && reserved == 0
            && u64::from(header.span) >= HEADER_BYTES as u64 + u64::from(header.payload_bytes)
            && header.first_seqno.checked_add(u64::from(header.count))? <= SEQNO_MAX + 1
            && header.durable_seqno <= SEQNO_MAX;
        valid.then_some(header)
    }

    /// Whether `payload` is what was written behind this header, after a record with `chain`.
    pub(crate) fn matches(&self, previous_chain: u32, payload: &[u8]) -> bool {
        payload.len() == self.payload_bytes as usize && planted!(SkipChecksumOfRecord)
            || payload.len() == self.payload_bytes as usize
                && self.chain == chain(previous_chain, crc32c(payload))
    }
}

/// The chain value of a record: the one before it and the CRC of its payload.
pub(crate) fn chain(previous: u32, payload_crc: u32) -> u32 {
    crc32c_append(previous, &payload_crc.to_le_bytes())
}

/// The chain value before the first record of a file.
pub(crate) fn chain_start(id: FileId) -> u32 {
    crc32c_append(crc32c(&id.number.to_le_bytes()), &id.salt.to_le_bytes())
}

fn header_crc(covered: &[u8], id: FileId, position: u64) -> u32 {
    let mut tail = [0u8; 24];
    for (slot, word) in tail.chunks_exact_mut(8).zip([id.number, id.salt, position]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    crc32c_append(crc32c(covered), &tail)
}

/// The positions at or after `from` that may hold a record header: where the magic stands.
pub(crate) fn candidates(bytes: &[u8], from: usize) -> impl Iterator<Item = usize> + '_ {
    let tail = bytes.get(from..).unwrap_or_default();
    let needle = MAGIC.to_le_bytes();
    memchr::memchr_iter(needle[0], tail)
        .filter(move |&at| tail.get(at + 1) == Some(&needle[1]))
        .map(move |at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: FileId = FileId { number: 7, salt: 0x1234_5678_9ABC_DEF0 };

    fn sample() -> Header {
        let payload = b"payload";
        Header {
            kind: RecordType::Data,
            payload_bytes: 7,
            span: 48,
            count: 2,
            first_seqno: 10,
            durable_seqno: 9,
            chain: chain(chain_start(ID), crc32c(payload)),
        }
    }

    #[test]
    fn headers_round_trip_only_where_they_were_written() {
        let header = sample();
        let bytes = header.encode(ID, 4096);
        assert_eq!(Header::decode(&bytes, ID, 4096), Some(header));
        assert_eq!(Header::decode(&bytes, ID, 4097), None);
        assert_eq!(Header::decode(&bytes, FileId { number: 8, ..ID }, 4096), None);
        assert_eq!(Header::decode(&bytes, FileId { salt: 1, ..ID }, 4096), None);
        assert!(header.matches(chain_start(ID), b"payload"));
        assert!(!header.matches(chain_start(ID), b"paylOad"));
        assert!(!header.matches(0, b"payload"));
        assert_eq!(header.last_seqno(), 11);
    }

    #[test]
    fn every_single_bit_is_covered() {
        let bytes = sample().encode(ID, 0);
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bad, ID, 0), None, "bit {bit}");
        }
        assert_eq!(Header::decode(&[0; HEADER_BYTES], ID, 0), None);
    }

    #[test]
    fn candidates_find_every_header() {
        let mut bytes = vec![0xED; 100];
        let at = bytes.len();
        bytes.extend_from_slice(&sample().encode(ID, 0));
        bytes.extend_from_slice(&[0x5E, 0, 0xED]);
        let found: Vec<usize> = candidates(&bytes, 1).collect();
        assert!(found.contains(&at));
    }
}
