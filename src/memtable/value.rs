//! The value of an entry: what is short stands in the node of the skiplist itself.
//!
//! Invariants:
//! 1. A pointer fills the slot; any other short value is shorter than the slot, whose last byte is
//!    then its length. The kind of the entry tells which of them it is.
//! 2. A node is as large as it would be with nothing but [`Bytes`] for values.

use bytes::Bytes;

use crate::key::ValueKind;
use crate::pointer::{POINTER_BYTES, Pointer};

/// The bytes of a node for a short value.
const SLOT_BYTES: usize = POINTER_BYTES;
const _: () = assert!(size_of::<MemValue>() == size_of::<Bytes>());

/// A value, or a pointer to one.
#[derive(Clone)]
pub(super) enum MemValue {
    /// In the node.
    Short([u8; SLOT_BYTES]),
    /// In memory of its own, or of the commit.
    Long(Bytes),
}

/// Whether a value of `len` bytes takes no memory beside its node.
pub(super) fn is_short(kind: ValueKind, len: usize) -> bool {
    kind == ValueKind::Pointer || len < SLOT_BYTES
}

impl MemValue {
    /// A pointer in the place of a value.
    pub(super) fn pointer(pointer: &Pointer) -> Self {
        MemValue::Short(pointer.encode())
    }

    /// The value of a put; empty for a tombstone.
    pub(super) fn new(value: Bytes) -> Self {
        if !is_short(ValueKind::Put, value.len()) {
            return MemValue::Long(value);
        }
        let mut slot = [0; SLOT_BYTES];
        let len = value.len();
        if let Some(last) = slot.last_mut() {
            *last = u8::try_from(len).expect("a short value has no more bytes than the slot");
        }
        slot.get_mut(..len).expect("a short value fits").copy_from_slice(&value);
        MemValue::Short(slot)
    }

    /// The bytes, which entered with `kind`.
    pub(super) fn bytes(&self, kind: ValueKind) -> &[u8] {
        match self {
            MemValue::Long(value) => value,
            MemValue::Short(slot) if kind == ValueKind::Pointer => slot,
            MemValue::Short([value @ .., len]) => {
                value.get(..usize::from(*len)).expect("the last byte is the length")
            }
        }
    }

    /// The same as a value to hand out, without a copy of a long one.
    pub(super) fn to_bytes(&self, kind: ValueKind) -> Bytes {
        match self {
            MemValue::Long(value) => value.clone(),
            MemValue::Short(_) => Bytes::copy_from_slice(self.bytes(kind)),
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
            assert_eq!(stored.bytes(ValueKind::Put), value);
            assert_eq!(stored.to_bytes(ValueKind::Put), value);
            assert_eq!(matches!(stored, MemValue::Short(_)), value.len() < SLOT_BYTES);
        }
    }

    #[test]
    fn pointers_come_back() {
        let pointer = Pointer::new(u64::MAX, u32::MAX, b"key", b"value", 5, 12);
        let stored = MemValue::pointer(&pointer);
        assert_eq!(Pointer::decode(stored.bytes(ValueKind::Pointer)), Some(pointer));
        assert_eq!(stored.to_bytes(ValueKind::Pointer), pointer.encode().as_slice());
    }
}
