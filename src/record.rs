//! Checksummed record framing, shared by the log streams and the manifest.
//!
//! A record is a header of [`HEADER_BYTES`] and a payload. All integers are little-endian.
//!
//! | offset | size | field | reader's duty |
//! |---|---|---|---|
//! | 0 | 2 | magic `0x5EED` | anything else: not a record |
//! | 2 | 1 | type: 1 data, 2 mark, 3 edit | unknown: not a record |
//! | 3 | 2 | padding: bytes between the payload and the next header | |
//! | 5 | 7 | base: the seqno before the first | gap: see below |
//! | 12 | 4 | payload length in bytes | trusted after the header CRC only |
//! | 16 | 4 | count: seqnos that the record uses up | the last one is at most `SEQNO_MAX` |
//! | 20 | 4 | lag: so far behind base was the durable seqno; u32::MAX: it was 0 | at most base |
//! | 24 | 4 | chain: CRC32C of (chain of the record before, CRC32C of the payload) | mismatch: damage |
//! | 28 | 4 | CRC32C of bytes 0..28 and of (file id, salt, position) | mismatch: not a record |
//!
//! The *span* of a record are the bytes from its header to the next one; the *durable seqno* is one
//! that all seqnos up to it were durable when the record was written.
//!
//! Invariants:
//! 1. A header is valid only in the file and at the position it was written for, so that recycled
//!    bytes, copies of log bytes inside values and misdirected writes never pass.
//! 2. All zeros is never valid.
//! 3. `durable_seqno` of any valid header proves that every seqno up to it was acknowledged as
//!    durable: a reader that cannot produce such a seqno reports corruption. What is missing
//!    without such a proof is a torn tail. The idea is that of Pebble's WAL sync offsets.
//! 4. Padding is never read, never trusted.
//! 5. A lag that does not fit says that nothing is known to be durable: less than is true.

use seerdb_io::BUF_ALIGN;
use smallvec::SmallVec;

use crate::codec::{Cursor, Sink, crc32c, crc32c_append};
use crate::key::{SEQNO_MAX, SeqNo};

/// The size of a record header.
pub(crate) const HEADER_BYTES: usize = HEADER_SPAN as usize;
/// The span of a record without payload and padding.
pub(crate) const HEADER_SPAN: u32 = 32;
const COVERED_BYTES: usize = HEADER_BYTES - 4;
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
        let base = self.first_seqno.checked_sub(1).expect("seqnos begin at 1");
        let lag = base.checked_sub(self.durable_seqno).expect("durable before it was written");
        let lag = u32::try_from(lag).unwrap_or(u32::MAX);
        let padding = self.span.checked_sub(HEADER_SPAN);
        let padding = padding.and_then(|bytes| bytes.checked_sub(self.payload_bytes));
        let padding = padding.and_then(|bytes| u16::try_from(bytes).ok());
        let padding = padding.expect("a record is followed by less than two units of padding");
        let [b0, b1, b2, b3, b4, b5, b6, over] = base.to_le_bytes();
        assert_eq!(over, 0, "seqnos have 56 bits");
        let mut out = SmallVec::<[u8; HEADER_BYTES]>::new();
        out.put_u16(MAGIC);
        out.put_u8(self.kind as u8);
        out.put_u16(padding);
        out.put(&[b0, b1, b2, b3, b4, b5, b6]);
        for field in [self.payload_bytes, self.count, lag, self.chain] {
            out.put_u32(field);
        }
        out.put_u32(header_crc(&out, id, position));
        out.into_inner().expect("the fields above add up to HEADER_BYTES")
    }

    /// The header that these bytes at `position` would be elsewhere in the first `file_bytes` of
    /// the file `id`: that of a write that went astray, whole units away from its place.
    pub(crate) fn decode_strayed(
        bytes: &[u8],
        id: FileId,
        position: u64,
        file_bytes: u64,
    ) -> Option<Header> {
        let unit = BUF_ALIGN as u64;
        let places = (position % unit..file_bytes).step_by(BUF_ALIGN);
        let header = places.filter(|place| *place != position).find_map(|place| {
            let header = Header::decode(bytes, id, place)?;
            (place + u64::from(header.span) <= file_bytes).then_some(header)
        });
        header.filter(|header| header.kind != RecordType::Edit)
    }

    /// The header at `position` of the file `id`, if these bytes are one.
    pub(crate) fn decode(bytes: &[u8], id: FileId, position: u64) -> Option<Header> {
        let covered = bytes.get(..COVERED_BYTES)?;
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
        let padding = cursor.u16()?;
        let base = cursor.bytes(7)?.iter().rev().fold(0, |base, byte| base << 8 | u64::from(*byte));
        let (payload_bytes, count) = (cursor.u32()?, cursor.u32()?);
        let (lag, chain) = (cursor.u32()?, cursor.u32()?);
        if cursor.u32()? != header_crc(covered, id, position) {
            return None;
        }
        let fixed = HEADER_SPAN + u32::from(padding);
        // A header has one spelling: with u32::MAX, base is at least as far from 0.
        let behind = base.checked_sub(u64::from(lag))?;
        let durable_seqno = if lag == u32::MAX { 0 } else { behind };
        let header = Header {
            kind,
            payload_bytes,
            span: payload_bytes.checked_add(fixed)?,
            count,
            first_seqno: base + 1,
            durable_seqno,
            chain,
        };
        (base + u64::from(count) <= SEQNO_MAX).then_some(header)
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
    fn the_extremes_round_trip() {
        let header = Header { first_seqno: SEQNO_MAX + 1, count: 0, ..sample() };
        let far = Header { durable_seqno: SEQNO_MAX - u64::from(u32::MAX) + 1, ..header };
        let padded = Header { span: 7 + HEADER_SPAN + 0xFFFF, ..sample() };
        let whole = Header { payload_bytes: u32::MAX - HEADER_SPAN, span: u32::MAX, ..sample() };
        for header in [far, padded, whole] {
            assert_eq!(Header::decode(&header.encode(ID, 8), ID, 8), Some(header));
        }
        let unknown = Header { durable_seqno: 0, ..header };
        assert_eq!(Header::decode(&header.encode(ID, 8), ID, 8), Some(unknown), "less, never more");
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
    fn a_header_that_strayed_is_known_by_its_own_place() {
        let header = sample();
        let strayed = |place, position, file_bytes| {
            Header::decode_strayed(&header.encode(ID, place), ID, position, file_bytes)
        };
        assert_eq!(strayed(8192, 4096, 32768), Some(header));
        assert_eq!(strayed(4100, 28676, 32768), Some(header));
        assert_eq!(strayed(4096, 4096, 32768), None, "that is its place");
        assert_eq!(strayed(8192, 4097, 32768), None, "writes stray by whole units");
        assert_eq!(strayed(8192, 4096, 8192 + 40), None, "it does not fit there");
        let other = FileId { salt: 1, ..ID };
        assert_eq!(Header::decode_strayed(&header.encode(ID, 0), other, 4096, 32768), None);
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
