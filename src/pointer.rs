//! Pointers to values: what memtables and tables keep in the place of a large value.
//!
//! | size | field | reader's duty |
//! |---|---|---|
//! | 4 | check: CRC32C of key and stored value, xor CRC32C of seqno, segment and position | |
//! | varint | position of the key in the segment as it was first written | within the segment |
//! | varint | stored bytes of the value | |
//! | varint | what LZ4 saved of the value, in bytes; 0 when it is not packed | a legal length |
//! | varint | segment | one that the version knows, else corruption |
//!
//! All integers are little-endian. What differs from one pointer to the next stands first, behind
//! the seqno, which differs too; what is often the same follows in one piece, up to the lengths and
//! the beginning of the key of the next entry, for the sake of packed blocks.
//! In the record of a commit the stored value follows its key without a gap, and so it does in
//! every rewritten file: both are the *body*.
//!
//! Invariants:
//! 1. Bytes that were written for another key, commit or place never pass [`Pointer::value`].

use bytes::Bytes;
use smallvec::SmallVec;

use crate::codec::{Cursor, Sink, crc32c, crc32c_append};
use crate::filename::FileNumber;
use crate::key::{SeqNo, VALUE_BYTES_MAX};
use crate::lz4;

/// An encoded pointer: at most 29 bytes, and a dozen as a rule.
pub(crate) type Encoded = SmallVec<[u8; 32]>;

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

    pub(crate) fn encode(&self) -> Encoded {
        let mut out = Encoded::new();
        out.put_u32(self.check);
        for field in [self.position, self.stored, self.raw - self.stored] {
            out.put_varint(u64::from(field));
        }
        out.put_varint(self.segment);
        out
    }

    /// The pointer that `bytes` encode, if they do.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Pointer> {
        let mut cursor = Cursor::new(bytes);
        let check = cursor.u32()?;
        let mut number = || u32::try_from(cursor.varint()?).ok();
        let (position, stored, saved) = (number()?, number()?, number()?);
        let raw = stored.checked_add(saved)?;
        let segment = cursor.varint()?;
        let fits = cursor.is_empty() && raw as usize <= VALUE_BYTES_MAX;
        fits.then_some(Pointer { segment, position, stored, raw, check })
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
        let pointer = pointer();
        let bytes = pointer.encode();
        for len in 0..bytes.len() {
            assert_eq!(Pointer::decode(&bytes[..len]), None);
        }
        assert_eq!(Pointer::decode(&[&bytes[..], &[0]].concat()), None);
        let long = Pointer { raw: (1 << 30) + 1, ..pointer };
        assert_eq!(Pointer::decode(&long.encode()), None, "a value of more than 1 GiB");
        let fields = |stored, saved| {
            let mut out = Encoded::new();
            out.put_u32(0);
            for field in [1, stored, saved, 7] {
                out.put_varint(field);
            }
            out
        };
        assert!(Pointer::decode(&fields(5, 0)).is_some());
        assert_eq!(Pointer::decode(&fields(u64::from(u32::MAX), 1)), None, "an overflow");
        assert_eq!(Pointer::decode(&fields(1 << 32, 0)), None, "not a length");
    }

    #[test]
    fn pointers_of_all_sizes_round_trip() {
        let most = Pointer { segment: u64::MAX, position: u32::MAX, stored: 0, raw: 0, check: 1 };
        for bits in 0..=30 {
            let stored = (1u32 << bits) / 2;
            let pointer = Pointer { stored, raw: 1 << bits, segment: u64::MAX >> bits, ..most };
            let encoded = pointer.encode();
            assert!(encoded.len() <= 29 && !encoded.spilled());
            assert_eq!(Pointer::decode(&encoded), Some(pointer));
        }
    }
}
