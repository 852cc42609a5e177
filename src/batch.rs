//! The operations of one commit and their encoding: the payload of a data record.
//!
//! | size | field |
//! |---|---|
//! | 1 | kind: 0 delete, 1 put ([`ValueKind`]) |
//! | varint | key length |
//! | varint | value length, puts only |
//! | key length | key |
//! | value length | value |
//!
//! repeated once per operation; operation `i` has the record's first seqno plus `i`.
//!
//! Invariants:
//! 1. The encoding is canonical and ends with the payload; anything else is corruption.
//! 2. Later operations on the same key win, as their seqnos are larger.

use bytes::Bytes;

use crate::codec::{Cursor, Sink, varint_len};
use crate::error::{Error, Result};
use crate::key::{BATCH_BYTES_MAX, BATCH_OPS_MAX, KEY_BYTES_MAX, KeyBuf, ValueKind};
use crate::memtable::entry_bytes;

/// The bytes of an operation in front of its key.
pub(crate) type OpHead = smallvec::SmallVec<[u8; 16]>;

impl Sink for OpHead {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// One operation of a commit.
#[derive(Debug, Clone)]
pub(crate) struct WriteOp {
    pub(crate) kind: ValueKind,
    pub(crate) key: KeyBuf,
    /// Empty for deletes.
    pub(crate) value: Bytes,
}

impl WriteOp {
    /// What stands in front of key and value in the encoding.
    pub(crate) fn head(&self) -> OpHead {
        let mut head = OpHead::new();
        head.put_u8(self.kind as u8);
        head.put_varint(self.key.len() as u64);
        if self.kind == ValueKind::Put {
            head.put_varint(self.value.len() as u64);
        }
        head
    }

    /// The number of bytes that it encodes to.
    pub(crate) fn encoded_bytes(&self) -> usize {
        let value = match self.kind {
            ValueKind::Put => varint_len(self.value.len() as u64),
            ValueKind::Delete => 0,
        };
        1 + varint_len(self.key.len() as u64) + value + self.key.len() + self.value.len()
    }

    /// What it adds to a memtable.
    pub(crate) fn memory_bytes(&self) -> usize {
        entry_bytes(self.key.len(), self.value.len())
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

/// The operations of a payload; `None` when it is malformed.
pub(crate) fn decode(payload: &[u8]) -> Option<Vec<WriteOp>> {
    let mut cursor = Cursor::new(payload);
    let mut ops = Vec::new();
    while !cursor.is_empty() {
        let kind = ValueKind::from_byte(cursor.u8()?)?;
        let key_len = usize::try_from(cursor.varint()?).ok()?;
        let value_len = match kind {
            ValueKind::Put => usize::try_from(cursor.varint()?).ok()?,
            ValueKind::Delete => 0,
        };
        if key_len > KEY_BYTES_MAX || ops.len() >= BATCH_OPS_MAX {
            return None;
        }
        let key = KeyBuf::from_slice(cursor.bytes(key_len)?);
        let value = Bytes::copy_from_slice(cursor.bytes(value_len)?);
        ops.push(WriteOp { kind, key, value });
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

    proptest! {
        #[test]
        fn payloads_round_trip(
            raw in prop::collection::vec(
                (any::<bool>(), prop::collection::vec(any::<u8>(), 0..40),
                 prop::collection::vec(any::<u8>(), 0..300)), 0..20)
        ) {
            let ops: Vec<WriteOp> = raw
                .into_iter()
                .map(|(put, key, value)| WriteOp {
                    kind: if put { ValueKind::Put } else { ValueKind::Delete },
                    key: KeyBuf::from_vec(key),
                    value: if put { Bytes::from(value) } else { Bytes::new() },
                })
                .collect();
            let payload = encode(&ops);
            prop_assert_eq!(payload.len(), ops.iter().map(WriteOp::encoded_bytes).sum::<usize>());
            let decoded = decode(&payload).expect("what was encoded decodes");
            prop_assert_eq!(format!("{decoded:?}"), format!("{ops:?}"));
        }

        #[test]
        fn any_bytes_decode_or_are_refused(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(ops) = decode(&payload) {
                prop_assert_eq!(encode(&ops), payload);
            }
        }
    }
}
