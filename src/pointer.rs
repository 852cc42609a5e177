//! Pointers to values: what memtables and tables keep in the place of a large value.
//!
//! | offset | size | field | reader's duty |
//! |---|---|---|---|
//! | 0 | 4 | check: CRC32C of key and stored value, xor CRC32C of seqno, segment and position | |
//! | 4 | 4 | position of the key in the segment as it was first written | within the segment |
//! | 8 | 4 | stored bytes of the value | at most the next |
//! | 12 | 4 | bytes of the value; more than stored when it is packed with LZ4 | a legal length |
//! | 16 | 8 | segment | one that the version knows, else corruption |
//!
//! All integers are little-endian. What differs from one pointer to the next stands first, behind
//! the end of its key, which differs too; what is often the same follows in one piece, up to the
//! lengths of the next entry: a block of a table packs a tenth smaller than with the segment first.
//! In the record of a commit the stored value follows its key without a gap, and so it does in
//! every rewritten file: both are the *body*.
//!
//! Invariants:
//! 1. A pointer is [`POINTER_BYTES`] long, whatever it points to: a writer knows what it will add
//!    to a memtable before the log has given it a position.
//! 2. Bytes that were written for another key, commit or place never pass [`Pointer::value`].

use bytes::Bytes;

use crate::codec::{Cursor, Sink, crc32c, crc32c_append};
use crate::filename::FileNumber;
use crate::key::{SeqNo, VALUE_BYTES_MAX};
use crate::lz4;

/// The size of an encoded pointer.
pub(crate) const POINTER_BYTES: usize = 24;

/// Where a value stands in the value log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pointer {
    /// The number of the segment that the commit was written to.
    pub(crate) segment: FileNumber,
    /// Where the key stood there.
    pub(crate) position: u32,
    /// The bytes of the value in the file.
    pub(crate) stored: u32,
    /// The bytes of the value.
    pub(crate) raw: u32,
    check: u32,
}

/// A body that a table refers to, as collection sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Body {
    pub(crate) position: u32,
    /// Key and stored value, in bytes.
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

impl Pointer {
    /// The pointer to `stored`, which the commit `seqno` wrote behind `key` at `position`; the
    /// value is `raw` bytes long.
    pub(crate) fn new(
        segment: FileNumber,
        position: u32,
        key: &[u8],
        stored: &[u8],
        raw: u32,
        seqno: SeqNo,
    ) -> Self {
        let bytes = u32::try_from(stored.len()).expect("a value has at most 1 GiB");
        let check = crc32c_append(crc32c(key), stored) ^ place_crc(seqno, segment, position);
        Pointer { segment, position, stored: bytes, raw, check }
    }

    pub(crate) fn encode(&self) -> [u8; POINTER_BYTES] {
        let mut out = Vec::with_capacity(POINTER_BYTES);
        for field in [self.check, self.position, self.stored, self.raw] {
            out.put_u32(field);
        }
        out.put_u64(self.segment);
        out.try_into().expect("the fields above add up to POINTER_BYTES")
    }

    /// The pointer that `bytes` encode, if they do.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Pointer> {
        let mut cursor = Cursor::new(bytes);
        let pointer = Pointer {
            check: cursor.u32()?,
            position: cursor.u32()?,
            stored: cursor.u32()?,
            raw: cursor.u32()?,
            segment: cursor.u64()?,
        };
        let fits = cursor.is_empty()
            && pointer.stored <= pointer.raw
            && pointer.raw as usize <= VALUE_BYTES_MAX;
        fits.then_some(pointer)
    }

    /// The body that the pointer leads to, of the commit `seqno` and a key of `key_len` bytes.
    pub(crate) fn body(&self, key_len: usize, seqno: SeqNo) -> Body {
        let key_len = u32::try_from(key_len).expect("a key has at most 64 KiB");
        let crc = self.check ^ place_crc(seqno, self.segment, self.position);
        Body { position: self.position, len: key_len + self.stored, crc }
    }

    /// What tells this pointer from others to the same place.
    pub(crate) fn check(&self) -> u32 {
        self.check
    }

    /// The value in `read`, the bytes that stand where the pointer leads.
    ///
    /// # Errors
    ///
    /// What is wrong, when they are not `key` and the value that the commit `seqno` wrote with it.
    pub(crate) fn value(
        &self,
        read: &Bytes,
        key: &[u8],
        seqno: SeqNo,
    ) -> Result<Bytes, &'static str> {
        let crc = crc32c(read) ^ place_crc(seqno, self.segment, self.position);
        let is_it = read.len() == key.len() + self.stored as usize
            && (read.starts_with(key) && crc == self.check || planted!(SkipChecksumOfValue));
        if !is_it {
            return Err("a value is not the one that was written");
        }
        let stored = read.slice(key.len()..);
        if self.raw == self.stored { Ok(stored) } else { lz4::unpack(&stored, self.raw as usize) }
    }
}

fn place_crc(seqno: SeqNo, segment: FileNumber, position: u32) -> u32 {
    let mut place = [0u8; 20];
    let (words, tail) = place.split_at_mut(16);
    for (slot, word) in words.chunks_exact_mut(8).zip([seqno, segment]) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    tail.copy_from_slice(&position.to_le_bytes());
    crc32c(&place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointer() -> Pointer {
        Pointer::new(7, 4200, b"key", b"value", 5, 12)
    }

    fn value(pointer: &Pointer, read: &[u8], key: &[u8], seqno: SeqNo) -> Option<Bytes> {
        pointer.value(&Bytes::copy_from_slice(read), key, seqno).ok()
    }

    #[test]
    fn a_pointer_leads_to_its_own_bytes_and_no_others() {
        let pointer = pointer();
        assert_eq!(Pointer::decode(&pointer.encode()), Some(pointer));
        assert_eq!(value(&pointer, b"keyvalue", b"key", 12).as_deref(), Some(&b"value"[..]));
        assert_eq!(value(&pointer, b"keyvalue", b"key", 13), None, "another commit");
        assert_eq!(value(&pointer, b"kexvalue", b"kex", 12), None, "another key");
        assert_eq!(value(&pointer, b"keyvalue", b"keyv", 12), None, "another border");
        assert_eq!(value(&pointer, b"keyvalues", b"key", 12), None, "another length");
        for bit in 0..64 {
            let mut bad = *b"keyvalue";
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(value(&pointer, &bad, &bad[..3], 12), None, "bit {bit}");
        }
        let moved = Pointer { position: 4201, ..pointer };
        assert_eq!(value(&moved, b"keyvalue", b"key", 12), None, "another place");
        let other = Pointer { segment: 8, ..pointer };
        assert_eq!(value(&other, b"keyvalue", b"key", 12), None, "another segment");
    }

    #[test]
    fn a_body_is_checked_without_the_pointer() {
        let body = pointer().body(3, 12);
        assert_eq!(body, Body { position: 4200, len: 8, crc: crc32c(b"keyvalue") });
    }

    #[test]
    fn packed_values_are_unpacked() {
        let raw = [9u8; 1000];
        let mut packer = lz4::Packer::default();
        let packed = packer.pack(&raw).unwrap().to_vec();
        let pointer = Pointer::new(7, 1, b"k", &packed, 1000, 12);
        let read = [b"k", &packed[..]].concat();
        assert_eq!(value(&pointer, &read, b"k", 12).unwrap(), raw.as_slice());
        let wrong = Pointer { raw: 999, ..pointer };
        assert_eq!(value(&wrong, &read, b"k", 12), None);
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        let bytes = pointer().encode();
        assert_eq!(Pointer::decode(&bytes[..23]), None);
        assert_eq!(Pointer::decode(&[&bytes[..], &[0]].concat()), None);
        let mut long = bytes;
        long[12..16].copy_from_slice(&((1u32 << 30) + 1).to_le_bytes());
        assert_eq!(Pointer::decode(&long), None);
        let mut short = bytes;
        short[12..16].copy_from_slice(&4u32.to_le_bytes());
        assert_eq!(Pointer::decode(&short), None, "a value grows no shorter by unpacking");
    }
}
