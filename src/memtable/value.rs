//! The value of an entry: what is short stands in the node of the skiplist itself.
//!
//! Invariants:
//! 1. A short value is shorter than the slot, whose last byte is its length.
//! 2. A node is as large as it would be with nothing but [`Bytes`] for values.

use bytes::Bytes;

use crate::key::ValueKind;
use crate::pointer::Pointer;

/// The bytes of a node for a short value.
const SLOT_BYTES: usize = 24;
const _: () = assert!(size_of::<MemValue>() == size_of::<Bytes>());

/// A value, or a pointer to one.
#[derive(Clone)]
pub(super) enum MemValue {
    /// In the node.
    Short([u8; SLOT_BYTES]),
    /// In memory of its own, or of the commit.
    Long(Bytes),
}

/// Whether a value of `len` bytes takes no memory beside its node. A pointer counts as if it never
/// did: what leads to a value of more than 2 MiB in a segment with an enormous number does, and is
/// nothing beside the value.
pub(super) fn is_short(kind: ValueKind, len: usize) -> bool {
    kind == ValueKind::Pointer || len < SLOT_BYTES
}

impl MemValue {
    /// A pointer in the place of a value.
    pub(super) fn pointer(pointer: &Pointer) -> Self {
        let encoded = pointer.encode();
        MemValue::short(&encoded)
            .unwrap_or_else(|| MemValue::Long(Bytes::copy_from_slice(&encoded)))
    }

    /// The value of a put; empty for a tombstone.
    pub(super) fn new(value: Bytes) -> Self {
        MemValue::short(&value).unwrap_or(MemValue::Long(value))
    }

    fn short(value: &[u8]) -> Option<Self> {
        let mut slot = [0; SLOT_BYTES];
        let (last, room) = slot.split_last_mut()?;
        room.get_mut(..value.len())?.copy_from_slice(value);
        *last = u8::try_from(value.len()).ok()?;
        Some(MemValue::Short(slot))
    }

    /// The bytes that entered.
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            MemValue::Long(value) => value,
            MemValue::Short([value @ .., len]) => {
                value.get(..usize::from(*len)).expect("the last byte is the length")
            }
        }
    }

    /// The same as a value to hand out, without a copy of a long one.
    pub(super) fn to_bytes(&self) -> Bytes {
        match self {
            MemValue::Long(value) => value.clone(),
            MemValue::Short(_) => Bytes::copy_from_slice(self.bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_all_lengths_come_back() {
        for len in 0..100 {
            let value: Vec<u8> = (1..=len).collect();
            let stored = MemValue::new(Bytes::from(value.clone()));
            assert_eq!(stored.bytes(), value);
            assert_eq!(stored.to_bytes(), value);
            let is_inline = matches!(stored, MemValue::Short(_));
            assert_eq!(is_inline, is_short(ValueKind::Put, value.len()));
        }
    }

    #[test]
    fn pointers_come_back() {
        let value = [1; 2000];
        for (segment, raw) in [(1, 2000), (u64::MAX, 2000), (u64::MAX, 1 << 30)] {
            let pointer = Pointer::new(segment, u32::MAX, b"key", &value, raw, 12);
            let stored = MemValue::pointer(&pointer);
            assert_eq!(matches!(stored, MemValue::Short(_)), raw == 2000);
            assert_eq!(Pointer::decode(stored.bytes()), Some(pointer));
            assert_eq!(stored.to_bytes(), pointer.encode().as_slice());
        }
    }
}
