//! The value of an entry: what is short stands in the node of the skiplist itself.
//!
//! Invariants:
//! 1. A pointer fills the slot; any other short value is shorter than the slot, whose last byte is
//!    then its length. The kind of the entry tells which of them it is.
//! 2. A node is as large as it would be with nothing but [`Bytes`] for values.

use bytes::Bytes;

use crate::key::ValueKind;
use crate::pointer::POINTER_BYTES;

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
    /// The value of an entry of `kind`; a pointer has [`POINTER_BYTES`].
    pub(super) fn new(kind: ValueKind, value: Bytes) -> Self {
        if !is_short(kind, value.len()) {
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
            for kind in [ValueKind::Put, ValueKind::Pointer] {
                if kind == ValueKind::Pointer && value.len() != POINTER_BYTES {
                    continue;
                }
                let stored = MemValue::new(kind, Bytes::from(value.clone()));
                assert_eq!(stored.bytes(kind), value);
                assert_eq!(stored.to_bytes(kind), value);
                assert_eq!(matches!(stored, MemValue::Short(_)), is_short(kind, value.len()));
            }
        }
    }
}
