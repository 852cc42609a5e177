//! Integers and checksums to bytes and back: the only place that turns bytes into integers.
//!
//! Invariants:
//! 1. All fixed integers are little-endian; varints are LEB128, at most 10 bytes, canonical.
//! 2. A [`Cursor`] never reads past its slice and never panics, whatever the bytes are.

use seerdb_io::AlignedBuf;

/// Where encoded bytes go.
pub(crate) trait Sink {
    /// Appends `bytes`.
    fn put(&mut self, bytes: &[u8]);

    /// Appends one byte.
    fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// Appends a little-endian u16.
    fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    /// Appends a little-endian u32.
    fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// Appends a little-endian u64.
    fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// Appends a varint.
    fn put_varint(&mut self, mut value: u64) {
        let mut bytes = [0u8; 10];
        let mut len = 0;
        for slot in &mut bytes {
            len += 1;
            let low = (value & 0x7F) as u8;
            value >>= 7;
            if value == 0 {
                *slot = low;
                break;
            }
            *slot = low | 0x80;
        }
        self.put(bytes.get(..len).unwrap_or(&bytes));
    }

    /// Appends a number that may be negative: as a varint, small ones of either sign short.
    fn put_signed(&mut self, value: i64) {
        self.put_varint((value.wrapping_shl(1) ^ (value >> 63)).cast_unsigned());
    }

    /// Appends a varint length and the bytes.
    fn put_slice(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.put(bytes);
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl<A: smallvec::Array<Item = u8>> Sink for smallvec::SmallVec<A> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for AlignedBuf {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// The number of bytes of `value` as a varint.
pub(crate) fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// A bounds-checked reader; every method returns `None` instead of reading past the end.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Cursor { rest: bytes }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.rest.split_at_checked(len)?;
        self.rest = tail;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.rest.split_first_chunk::<N>()?;
        self.rest = tail;
        Some(*head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// What [`Sink::put_signed`] put.
    pub(crate) fn signed(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.u8()?;
            let low = u64::from(byte & 0x7F);
            if shift == 63 && low > 1 {
                return None;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                // A trailing zero group would be a second spelling of the same number.
                return (byte != 0 || shift == 0).then_some(value);
            }
        }
        None
    }

    /// A varint that is a length within the remaining bytes, and those bytes.
    pub(crate) fn slice(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.varint()?).ok()?;
        self.bytes(len)
    }
}

/// The CRC32C of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// The CRC32C of what `crc` covers followed by `bytes`.
pub(crate) fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_round_trip_at_every_length() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut out = Vec::new();
                out.put_varint(value);
                assert_eq!(out.len(), varint_len(value), "length of {value}");
                let mut cursor = Cursor::new(&out);
                assert_eq!(cursor.varint(), Some(value));
                assert!(cursor.is_empty());
                out.pop();
                assert_eq!(Cursor::new(&out).varint(), None, "cut {value}");
            }
        }
    }

    #[test]
    fn signed_numbers_round_trip() {
        for (value, len) in [(0, 1), (-1, 1), (63, 1), (-64, 1), (64, 2), (i64::MAX, 10)] {
            let mut out = Vec::new();
            out.put_signed(value);
            assert_eq!(out.len(), len, "length of {value}");
            assert_eq!(Cursor::new(&out).signed(), Some(value));
        }
        let mut out = Vec::new();
        out.put_signed(i64::MIN);
        assert_eq!(Cursor::new(&out).signed(), Some(i64::MIN));
    }

    #[test]
    fn overlong_varints_are_refused() {
        assert_eq!(Cursor::new(&[0x80, 0x00]).varint(), None);
        assert_eq!(Cursor::new(&[0xFF; 11]).varint(), None);
        let mut too_big = [0xFFu8; 10];
        too_big[9] = 2;
        assert_eq!(Cursor::new(&too_big).varint(), None);
        assert_eq!(Cursor::new(&[0x81; 11]).varint(), None, "it has no end");
    }

    #[test]
    fn a_cursor_stops_at_the_end() {
        let mut cursor = Cursor::new(&[1, 2, 3]);
        assert_eq!(cursor.u16(), Some(0x0201));
        assert_eq!(cursor.u16(), None);
        assert_eq!(cursor.remaining(), 1);
        assert_eq!(Cursor::new(&[5, 1]).slice(), None);
    }
}
