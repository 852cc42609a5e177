//! The value log: values that are written once and referred to from then on (ADR 5).
//!
//! Glossary: a *segment* is where a commit wrote its values, and what pointers name for ever; a
//! *file* holds what is left of one segment or of several: at first the segment itself, later a
//! rewritten file. A version knows which file holds which segment.

pub(crate) mod bodies;
pub(crate) mod file;
pub(crate) mod format;
pub(crate) mod fresh;
pub(crate) mod offsets;
pub(crate) mod policy;
pub(crate) mod rewrite;

use crate::codec::{Cursor, Sink};
use crate::filename::FileNumber;
use crate::pointer::Pointer;

/// Where a body stands for ever, wherever its file goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) segment: FileNumber,
    pub(crate) position: u32,
}

impl Place {
    pub(crate) fn of(pointer: &Pointer) -> Place {
        Place { segment: pointer.segment, position: pointer.position }
    }
}

/// What the manifest says about a file that needs no replay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValuesMeta {
    pub(crate) number: FileNumber,
    /// The bytes in use; a segment's file may be longer.
    pub(crate) bytes: u64,
    pub(crate) kind: Kind,
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The segment of the same number, as it was first written.
    Segment {
        /// The salt of its records.
        salt: u64,
    },
    /// What was referred to of some segments.
    Rewritten {
        /// Of sections and footer.
        checksum: u32,
        /// Ascending.
        segments: Vec<FileNumber>,
    },
}

impl ValuesMeta {
    /// The segments that the file holds.
    pub(crate) fn segments(&self) -> &[FileNumber] {
        match &self.kind {
            Kind::Segment { .. } => std::slice::from_ref(&self.number),
            Kind::Rewritten { segments, .. } => segments,
        }
    }

    /// Appends the description.
    pub(crate) fn encode(&self, sink: &mut impl Sink) {
        sink.put_varint(self.number);
        sink.put_varint(self.bytes);
        match &self.kind {
            Kind::Segment { salt } => {
                sink.put_u8(0);
                sink.put_u64(*salt);
            }
            Kind::Rewritten { checksum, segments } => {
                sink.put_u8(1);
                sink.put_u32(*checksum);
                sink.put_varint(segments.len() as u64);
                for segment in segments {
                    sink.put_varint(*segment);
                }
            }
        }
    }

    /// Reads what [`ValuesMeta::encode`] wrote; `None` when the bytes are no such thing.
    pub(crate) fn decode(cursor: &mut Cursor<'_>) -> Option<ValuesMeta> {
        let (number, bytes) = (cursor.varint()?, cursor.varint()?);
        let kind = match cursor.u8()? {
            0 => Kind::Segment { salt: cursor.u64()? },
            1 => {
                let checksum = cursor.u32()?;
                let count = cursor.varint()?;
                let mut segments = Vec::new();
                for _ in 0..count {
                    segments.push(cursor.varint()?);
                }
                let is_sound = !segments.is_empty() && segments.is_sorted_by(|a, b| a < b);
                if !is_sound {
                    return None;
                }
                Kind::Rewritten { checksum, segments }
            }
            _ => return None,
        };
        Some(ValuesMeta { number, bytes, kind })
    }
}
