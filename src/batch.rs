//! The operations of one commit and their encoding: the payload of a data record.
//!
//! | size | field |
//! |---|---|
//! | 1 | kind: 0 delete, 1 put, 2 put to refer to, 3 the same, packed with LZ4 |
//! | varint | key length |
//! | varint | stored length of the value, puts only |
//! | varint | length of the value, packed puts only: more than the stored length |
//! | key length | key |
//! | stored length | value |
//!
//! repeated once per operation; operation `i` has the record's first seqno plus `i`.
//!
//! Invariants:
//! 1. The encoding is canonical and ends with the payload; anything else is corruption.
//! 2. Later operations on the same key win, as their seqnos are larger.
//! 3. What a put is for is decided when it is written: reading the log back asks no option.

use bytes::Bytes;

use crate::codec::{Cursor, Sink};
use crate::error::{Error, Result};
use crate::key::{
    BATCH_BYTES_MAX, BATCH_OPS_MAX, KEY_BYTES_MAX, KeyBuf, VALUE_BYTES_MAX, ValueKind,
};
use crate::lz4::Packer;
use crate::memtable::entry_bytes;

/// The bytes of an operation in front of its key.
pub(crate) type OpHead = smallvec::SmallVec<[u8; 16]>;

const DELETE: u8 = 0;
const PUT: u8 = 1;
const SEPARATE: u8 = 2;
const SEPARATE_PACKED: u8 = 3;

/// One operation of a commit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WriteOp {
    /// [`ValueKind::Pointer`] when the value stays in the log and is referred to.
    pub(crate) kind: ValueKind,
    pub(crate) key: KeyBuf,
    /// As it is stored; empty for deletes.
    pub(crate) value: Bytes,
    /// The length of the value: more than is stored when it is packed.
    pub(crate) raw: u32,
}

impl WriteOp {
    pub(crate) fn put(key: &[u8], value: Bytes) -> Self {
        let raw = u32::try_from(value.len()).expect("a value has at most 1 GiB");
        WriteOp { kind: ValueKind::Put, key: KeyBuf::from_slice(key), value, raw }
    }

    pub(crate) fn delete(key: &[u8]) -> Self {
        let value = Bytes::new();
        WriteOp { kind: ValueKind::Delete, key: KeyBuf::from_slice(key), value, raw: 0 }
    }

    /// Leaves the value in the log, packed if that pays.
    pub(crate) fn separate(&mut self, packer: Option<&mut Packer>) {
        assert_eq!(self.kind, ValueKind::Put, "only a put has a value");
        self.kind = ValueKind::Pointer;
        if let Some(packed) = packer.and_then(|packer| packer.pack(&self.value)) {
            self.value = Bytes::copy_from_slice(packed);
        }
    }

    fn is_packed(&self) -> bool {
        self.value.len() < self.raw as usize
    }

    /// What stands in front of key and value in the encoding.
    pub(crate) fn head(&self) -> OpHead {
        let mut head = OpHead::new();
        head.put_u8(match self.kind {
            ValueKind::Delete => DELETE,
            ValueKind::Put => PUT,
            ValueKind::Pointer if self.is_packed() => SEPARATE_PACKED,
            ValueKind::Pointer => SEPARATE,
        });
        head.put_varint(self.key.len() as u64);
        if self.kind != ValueKind::Delete {
            head.put_varint(self.value.len() as u64);
        }
        if self.is_packed() {
            head.put_varint(u64::from(self.raw));
        }
        head
    }

    /// The number of bytes that it encodes to.
    pub(crate) fn encoded_bytes(&self) -> usize {
        self.head().len() + self.key.len() + self.value.len()
    }

    /// What it keeps in memory beside the memtable until it is written.
    pub(crate) fn unwritten_bytes(&self) -> usize {
        if self.kind == ValueKind::Pointer { self.value.len() } else { 0 }
    }

    /// What it adds to a memtable.
    pub(crate) fn memory_bytes(&self) -> usize {
        entry_bytes(self.key.len(), self.kind, self.value.len())
    }
}

/// Refuses commits above the limits.
pub(crate) fn check_size(ops: &[WriteOp]) -> Result<()> {
    if ops.len() > BATCH_OPS_MAX {
        return Err(Error::invalid(format!(
            "the batch has {} operations, the limit is {BATCH_OPS_MAX}",
            ops.len()
        )));
    }
    let bytes: usize = ops.iter().map(WriteOp::encoded_bytes).sum();
    // One value at its own limit must fit with its key.
    if bytes > BATCH_BYTES_MAX + KEY_BYTES_MAX + 16 {
        return Err(Error::invalid(format!(
            "the batch has {bytes} bytes, the limit is {BATCH_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// An operation as it stands in a payload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ReadOp<'a> {
    /// [`ValueKind::Pointer`] when the value stays in the log and is referred to.
    pub(crate) kind: ValueKind,
    pub(crate) key: &'a [u8],
    /// Where the key begins in the payload; the value follows it.
    pub(crate) key_at: usize,
    /// As it is stored.
    pub(crate) value: &'a [u8],
    /// The length of the value.
    pub(crate) raw: u32,
}

/// The operations of a payload; `None` when it is malformed.
pub(crate) fn decode(payload: &[u8]) -> Option<Vec<ReadOp<'_>>> {
    let mut cursor = Cursor::new(payload);
    let mut ops = Vec::new();
    while !cursor.is_empty() {
        let code = cursor.u8()?;
        let kind = match code {
            DELETE => ValueKind::Delete,
            PUT => ValueKind::Put,
            SEPARATE | SEPARATE_PACKED => ValueKind::Pointer,
            _ => return None,
        };
        let key_len = usize::try_from(cursor.varint()?).ok()?;
        let stored = if code == DELETE { 0 } else { cursor.varint()? };
        let raw = if code == SEPARATE_PACKED { cursor.varint()? } else { stored };
        let is_sound = raw <= VALUE_BYTES_MAX as u64 && (code == SEPARATE_PACKED) == (stored < raw);
        if !is_sound || key_len > KEY_BYTES_MAX || ops.len() >= BATCH_OPS_MAX {
            return None;
        }
        let key_at = payload.len() - cursor.remaining();
        let key = cursor.bytes(key_len)?;
        let value = cursor.bytes(usize::try_from(stored).ok()?)?;
        ops.push(ReadOp { kind, key, key_at, value, raw: u32::try_from(raw).ok()? });
    }
    Some(ops)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(ops: &[WriteOp]) -> Vec<u8> {
        let mut out = Vec::new();
        for op in ops {
            out.put(&op.head());
            out.put(&op.key);
            out.put(&op.value);
        }
        out
    }

    fn owned(op: &ReadOp<'_>) -> WriteOp {
        let (key, value) = (KeyBuf::from_slice(op.key), Bytes::copy_from_slice(op.value));
        WriteOp { kind: op.kind, key, value, raw: op.raw }
    }

    proptest! {
        #[test]
        fn payloads_round_trip(
            raw in prop::collection::vec(
                (0u8..4, prop::collection::vec(any::<u8>(), 0..40),
                 prop::collection::vec(0u8..3, 0..300)), 0..20)
        ) {
            let mut packer = Packer::default();
            let ops: Vec<WriteOp> = raw
                .into_iter()
                .map(|(kind, key, value)| {
                    let mut op = match kind {
                        0 => return WriteOp::delete(&key),
                        _ => WriteOp::put(&key, Bytes::from(value)),
                    };
                    if kind > 1 {
                        op.separate(Some(&mut packer).filter(|_| kind == 3));
                    }
                    op
                })
                .collect();
            let payload = encode(&ops);
            prop_assert_eq!(payload.len(), ops.iter().map(WriteOp::encoded_bytes).sum::<usize>());
            let decoded = decode(&payload).expect("what was encoded decodes");
            prop_assert_eq!(decoded.iter().map(owned).collect::<Vec<_>>(), ops);
            for op in decoded {
                prop_assert_eq!(&payload[op.key_at..op.key_at + op.key.len()], op.key);
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(ops) = decode(&payload) {
                prop_assert_eq!(encode(&ops.iter().map(owned).collect::<Vec<_>>()), payload);
            }
        }
    }

    #[test]
    fn values_that_do_not_shrink_by_packing_are_refused() {
        assert!(decode(&[SEPARATE_PACKED, 1, 2, 3, b'k', 1, 2]).is_some());
        assert!(decode(&[SEPARATE_PACKED, 1, 2, 2, b'k', 1, 2]).is_none());
        assert!(decode(&[SEPARATE_PACKED, 1, 2, 1, b'k', 1, 2]).is_none());
        assert!(decode(&[4, 0, 0]).is_none());
    }
}
