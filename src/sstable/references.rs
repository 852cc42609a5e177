//! What a table refers to in the value log: for each segment a block of bodies, and its summary in
//! the description of the table.
//!
//! A references block, bodies by position:
//!
//! | size | field | reader's duty |
//! |---|---|---|
//! | varint | segment | as in the summary |
//! | for each body: signed | its position less the end of the one before; at first, 0 | they ascend |
//! | signed | its length, key and stored value, less the one before; at first, 0 | |
//! | 4 | CRC32C of the body | |
//!
//! Signed numbers are as `codec` puts them: neighbours of one size take a byte for each.
//!
//! A summary is varint segment, varint bodies, varint sum of their lengths, and the handle of the
//! block. Blocks and summaries stand in the order of their segments.
//!
//! Invariants:
//! 1. The bodies of all tables of a version are what is alive in the value log, each counted once:
//!    an entry stands in one table, and no two entries share a body.

use std::collections::BTreeMap;

use super::format::Handle;
use crate::codec::{Cursor, Sink};
use crate::filename::FileNumber;
use crate::key::Trailer;
use crate::pointer::{Body, Pointer};

/// What a body takes in a block, about.
const BODY_BYTES: usize = 7;

/// What a table refers to in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) segment: FileNumber,
    pub(crate) bodies: u64,
    /// The sum of their lengths.
    pub(crate) bytes: u64,
    /// Where the block is.
    pub(crate) handle: Handle,
}

impl Reference {
    pub(super) fn new(segment: FileNumber, bodies: &[Body], handle: Handle) -> Self {
        let bytes = bodies.iter().map(|body| u64::from(body.len)).sum();
        Reference { segment, bodies: bodies.len() as u64, bytes, handle }
    }

    pub(super) fn encode(&self, sink: &mut impl Sink) {
        sink.put_varint(self.segment);
        sink.put_varint(self.bodies);
        sink.put_varint(self.bytes);
        self.handle.encode(sink);
    }

    fn decode(cursor: &mut Cursor<'_>) -> Option<Self> {
        let (segment, bodies, bytes) = (cursor.varint()?, cursor.varint()?, cursor.varint()?);
        let handle = Handle::decode(cursor)?;
        (bodies > 0 && handle.stored == handle.raw).then_some(Reference {
            segment,
            bodies,
            bytes,
            handle,
        })
    }
}

/// Reads a varint count and so many summaries.
pub(super) fn decode_list(cursor: &mut Cursor<'_>) -> Option<Vec<Reference>> {
    let count = cursor.varint()?;
    let mut references: Vec<Reference> = Vec::new();
    for _ in 0..count {
        let reference = Reference::decode(cursor)?;
        if let Some(before) = references.last()
            && (before.segment >= reference.segment
                || before.handle.end() != Some(reference.handle.offset))
        {
            return None;
        }
        references.push(reference);
    }
    references.iter().try_fold(0u64, |sum, r| sum.checked_add(r.bytes)?.checked_add(r.bodies))?;
    Some(references)
}

/// Collects what a table refers to.
#[derive(Default)]
pub(super) struct ReferencesBuilder {
    segments: BTreeMap<FileNumber, Vec<Body>>,
    count: usize,
}

impl ReferencesBuilder {
    /// Takes the entry `key` with an encoded pointer into account.
    pub(super) fn note(&mut self, key: &[u8], trailer: Trailer, pointer: &[u8]) {
        let pointer = Pointer::decode(pointer).expect("blocks and memtables hold whole pointers");
        let body = pointer.body(key.len(), trailer.seqno());
        if planted!(ForgetReference) && self.count % 7 == 6 {
            self.count += 1;
            return;
        }
        self.segments.entry(pointer.segment).or_default().push(body);
        self.count += 1;
    }

    pub(super) fn estimated_bytes(&self) -> usize {
        self.count * BODY_BYTES
    }

    /// The bodies by segment and position.
    pub(super) fn finish(self) -> BTreeMap<FileNumber, Vec<Body>> {
        let mut segments = self.segments;
        for bodies in segments.values_mut() {
            bodies.sort_unstable();
        }
        segments
    }
}

/// The block of `bodies`, which ascend, in `segment`.
pub(crate) fn encode(segment: FileNumber, bodies: &[Body]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bodies.len() * (BODY_BYTES + 2));
    out.put_varint(segment);
    let (mut end, mut len) = (0, 0);
    for body in bodies {
        out.put_signed(i64::from(body.position) - end);
        out.put_signed(i64::from(body.len) - len);
        out.put_u32(body.crc);
        len = i64::from(body.len);
        end = i64::from(body.position) + len;
    }
    out
}

/// The bodies that `block` lists.
///
/// # Errors
///
/// What contradicts `reference`, or itself.
pub(crate) fn decode(block: &[u8], reference: &Reference) -> Result<Vec<Body>, &'static str> {
    let mut cursor = Cursor::new(block);
    if cursor.varint() != Some(reference.segment) {
        return Err("it is of another segment");
    }
    let mut bodies: Vec<Body> = Vec::new();
    let (mut end, mut len) = (0i64, 0i64);
    while !cursor.is_empty() {
        let body = (|| {
            let position = u32::try_from(end.checked_add(cursor.signed()?)?).ok()?;
            len = len.checked_add(cursor.signed()?)?;
            end = i64::from(position).checked_add(len)?;
            Some(Body { position, len: u32::try_from(len).ok()?, crc: cursor.u32()? })
        })();
        let body = body.ok_or("a body is cut short")?;
        if bodies.last().is_some_and(|before| before.position >= body.position) {
            return Err("its bodies do not ascend");
        }
        bodies.push(body);
    }
    let bytes: u64 = bodies.iter().map(|body| u64::from(body.len)).sum();
    if (bodies.len() as u64, bytes) != (reference.bodies, reference.bytes) {
        return Err("it does not add up to what the manifest says");
    }
    Ok(bodies)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::ValueKind;

    #[test]
    fn bodies_come_back_sorted_by_segment_and_position() {
        let mut builder = ReferencesBuilder::default();
        for (key, segment, position) in [(b"a", 9, 500), (b"b", 4, 70), (b"c", 9, 100)] {
            let pointer = Pointer::new(segment, position, key, b"value", 5, 33);
            let trailer = Trailer::new(33, ValueKind::Pointer);
            builder.note(key, trailer, &pointer.encode());
        }
        let segments = builder.finish();
        let places: Vec<_> =
            segments.iter().flat_map(|(s, b)| b.iter().map(move |b| (*s, b.position))).collect();
        assert_eq!(places, [(4, 70), (9, 100), (9, 500)]);

        let bodies = &segments[&9];
        let handle = Handle { offset: 0, stored: 1, raw: 1 };
        let reference = Reference::new(9, bodies, handle);
        let block = encode(9, bodies);
        assert_eq!(decode(&block, &reference), Ok(bodies.clone()));
        assert!(decode(&block, &Reference { segment: 4, ..reference }).is_err());
        assert!(decode(&block, &Reference { bodies: 1, ..reference }).is_err());
        assert!(decode(&block, &Reference { bytes: 13, ..reference }).is_err());
        assert!(decode(&block[..block.len() - 1], &reference).is_err());
        let twice = encode(9, &[bodies[0], bodies[0]]);
        assert!(decode(&twice, &reference).is_err());
    }

    #[test]
    fn summaries_that_contradict_themselves_are_refused() {
        let handle = |offset| Handle { offset, stored: 10, raw: 10 };
        let list = |references: &[Reference]| {
            let mut out = Vec::new();
            out.put_varint(references.len() as u64);
            references.iter().for_each(|reference| reference.encode(&mut out));
            decode_list(&mut Cursor::new(&out))
        };
        let first = Reference { segment: 4, bodies: 1, bytes: 9, handle: handle(0) };
        let second = Reference { segment: 9, bodies: 2, bytes: 9, handle: handle(15) };
        assert_eq!(list(&[first, second]), Some(vec![first, second]));
        assert_eq!(list(&[second, first]), None);
        assert_eq!(list(&[first, Reference { segment: 4, ..second }]), None);
        assert_eq!(list(&[first, Reference { handle: handle(16), ..second }]), None);
        assert_eq!(list(&[Reference { bodies: 0, ..first }]), None);
        assert_eq!(list(&[first, Reference { bytes: u64::MAX, ..second }]), None);
    }
}
