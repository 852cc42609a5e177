//! User keys, sequence numbers and internal keys, with their one order.
//!
//! Invariants:
//! 1. Internal keys sort by user key ascending (bytewise), then by seqno descending: a forward scan
//!    meets the newest version of a key first.
//! 2. The numbers of [`ValueKind`] are frozen: they stand on disk.
//! 3. A seqno never exceeds [`SEQNO_MAX`], so that it packs with its kind into a [`Trailer`].

use std::cmp::Ordering;

use smallvec::SmallVec;

use crate::error::{Error, Result};

/// The number of a commit's operation; grows by one per operation over the life of a database.
pub type SeqNo = u64;

/// The largest seqno (2^56 - 1).
pub const SEQNO_MAX: SeqNo = (1 << 56) - 1;
/// The longest key, in bytes. The empty key is a key like any other.
pub const KEY_BYTES_MAX: usize = 65_535;
/// The longest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 30;
/// The largest batch: keys, values and framing, in bytes.
pub const BATCH_BYTES_MAX: usize = 1 << 30;
/// The largest number of operations in a batch.
pub const BATCH_OPS_MAX: usize = 1 << 24;

/// A key of our own; up to 24 bytes need no allocation.
pub(crate) type KeyBuf = SmallVec<[u8; 24]>;

/// What an internal key says about its user key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ValueKind {
    /// A tombstone: the key was deleted.
    Delete = 0,
    /// The value follows.
    Put = 1,
    /// A pointer into the value log follows.
    Pointer = 2,
}

impl ValueKind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(ValueKind::Delete),
            1 => Some(ValueKind::Put),
            2 => Some(ValueKind::Pointer),
            _ => None,
        }
    }
}

/// Seqno and kind in one word: `seqno << 8 | kind`. A larger trailer is newer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trailer(u64);

impl Trailer {
    pub(crate) fn new(seqno: SeqNo, kind: ValueKind) -> Self {
        debug_assert!(seqno <= SEQNO_MAX, "seqno {seqno} does not fit its 56 bits");
        Trailer(seqno << 8 | kind as u64)
    }

    /// The trailer that sorts before every version of a key that is visible at `seqno`.
    pub(crate) fn seek(seqno: SeqNo) -> Self {
        Trailer(seqno << 8 | 0xFF)
    }

    /// The trailer as it stands on disk, if it is one.
    pub(crate) fn from_u64(raw: u64) -> Option<Self> {
        ValueKind::from_byte((raw & 0xFF) as u8).map(|_| Trailer(raw))
    }

    pub(crate) fn to_u64(self) -> u64 {
        self.0
    }

    pub(crate) fn seqno(self) -> SeqNo {
        self.0 >> 8
    }

    pub(crate) fn kind(self) -> ValueKind {
        match self.0 & 0xFF {
            0 => ValueKind::Delete,
            1 => ValueKind::Put,
            _ => ValueKind::Pointer,
        }
    }
}

/// The order of internal keys (invariant 1).
pub(crate) fn compare(a: (&[u8], Trailer), b: (&[u8], Trailer)) -> Ordering {
    a.0.cmp(b.0).then_with(|| b.1.cmp(&a.1))
}

/// Refuses keys above [`KEY_BYTES_MAX`].
pub(crate) fn check_key(key: &[u8]) -> Result<()> {
    if key.len() > KEY_BYTES_MAX {
        return Err(Error::invalid(format!(
            "the key has {} bytes, the limit is {KEY_BYTES_MAX}",
            key.len()
        )));
    }
    Ok(())
}

/// Refuses values above [`VALUE_BYTES_MAX`].
pub(crate) fn check_value(value: &[u8]) -> Result<()> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "the value has {} bytes, the limit is {VALUE_BYTES_MAX}",
            value.len()
        )));
    }
    Ok(())
}

/// The smallest key that is greater than every key with `prefix`; `None` when there is none
/// (the prefix is empty or all 0xFF).
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&b| b != 0xFF)?;
    let mut end = prefix.get(..=last)?.to_vec();
    *end.last_mut()? += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_sort_first() {
        let old = Trailer::new(3, ValueKind::Put);
        let new = Trailer::new(4, ValueKind::Delete);
        assert_eq!(compare((b"a", new), (b"a", old)), Ordering::Less);
        assert_eq!(compare((b"a", old), (b"b", new)), Ordering::Less);
        assert_eq!(compare((b"", old), (b"\0", new)), Ordering::Less);
        assert!(compare((b"a", Trailer::seek(4)), (b"a", new)) == Ordering::Less);
        assert!(compare((b"a", Trailer::seek(3)), (b"a", new)) == Ordering::Greater);
    }

    #[test]
    fn trailers_keep_seqno_and_kind() {
        let trailer = Trailer::new(SEQNO_MAX, ValueKind::Put);
        assert_eq!(trailer.seqno(), SEQNO_MAX);
        assert_eq!(trailer.kind(), ValueKind::Put);
        assert_eq!(Trailer::from_u64(trailer.to_u64()), Some(trailer));
        assert_eq!(Trailer::from_u64(7 << 8 | 9), None);
    }

    #[test]
    fn prefix_end_is_the_next_key_outside() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }
}
