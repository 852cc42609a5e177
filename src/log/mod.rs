//! The log: commits in the order of their seqnos, in segments.
//!
//! The life of a segment: *prepared* (created or recycled, header durable, named in the manifest)
//! -> *active* (records are appended) -> *closed* (the next one is active) -> *deletable* (every
//! memtable that has a record in it is flushed) -> recycled as a prepared one, or removed. Only
//! the flush that made it deletable retires a segment, after its manifest edit is in force.
//!
//! A segment is written around the page cache (direct) or through it, never both: see
//! [`writer::LogBuffer`].

pub(crate) mod format;
pub(crate) mod reader;
pub(crate) mod replay;
pub(crate) mod segment;
mod tape;
pub(crate) mod writer;
