//! A version edit: what one flush, merge or log rotation changes, and its encoding.
//!
//! An encoded edit is a sequence of items, each a tag (varint) and its fields:
//!
//! | tag | item | fields |
//! |---|---|---|
//! | 1 | table added | level u8, run id varint, table description (length varint, bytes) |
//! | 2 | table removed | number varint |
//! | 3 | table moved | number varint, level u8, run id varint |
//! | 4 | segment added | number varint, salt u64, stream u8 |
//! | 5 | segment removed | number varint |
//! | 6 | flushed seqno | varint, at most once |
//! | 7 | next file number | varint, at most once |
//! | 8 | next run id | varint, at most once |
//! | 9 | durable seqno | varint, at most once |
//! | 10 | values added | description as in `vlog`: a segment that is sealed, or a rewritten file |
//! | 11 | values removed | file number varint |
//! | 12 | run trimmed | run id varint, entries varint, first key (length varint, bytes) |
//!
//! Invariants:
//! 1. The tags are frozen. A reader refuses a tag it does not know: a newer version wrote it.
//! 2. Decoding never panics, whatever the bytes are; the checksum around an edit is the record's.

use std::sync::Arc;

use crate::codec::{Cursor, Sink};
use crate::filename::FileNumber;
use crate::key::{KeyBuf, SeqNo};
use crate::log::format::Stream;
use crate::sstable::{TableMeta, Trim};
use crate::vlog::ValuesMeta;

use super::RunId;

const TABLE_ADDED: u64 = 1;
const TABLE_REMOVED: u64 = 2;
const TABLE_MOVED: u64 = 3;
const SEGMENT_ADDED: u64 = 4;
const SEGMENT_REMOVED: u64 = 5;
const FLUSHED_SEQNO: u64 = 6;
const NEXT_FILE: u64 = 7;
const NEXT_RUN: u64 = 8;
const DURABLE_SEQNO: u64 = 9;
const VALUES_ADDED: u64 = 10;
const VALUES_REMOVED: u64 = 11;
const RUN_TRIMMED: u64 = 12;

/// A log segment that recovery must read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentName {
    pub(crate) number: FileNumber,
    /// The salt that its records were written with.
    pub(crate) salt: u64,
    pub(crate) stream: Stream,
}

/// A change of the database's state.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct VersionEdit {
    /// Level, run and description of each new table.
    pub(crate) tables_added: Vec<(u8, RunId, Arc<TableMeta>)>,
    pub(crate) tables_removed: Vec<FileNumber>,
    /// New level and run of tables that stay as they are.
    pub(crate) tables_moved: Vec<(FileNumber, u8, RunId)>,
    /// Where runs begin from now on whose first entries went to older runs.
    pub(crate) runs_trimmed: Vec<(RunId, Trim)>,
    pub(crate) segments_added: Vec<SegmentName>,
    pub(crate) segments_removed: Vec<FileNumber>,
    /// Files of the value log that need no replay from now on: segments that leave the log, which
    /// `segments_removed` names too, and rewritten files.
    pub(crate) values_added: Vec<ValuesMeta>,
    pub(crate) values_removed: Vec<FileNumber>,
    /// Every seqno up to this one is in tables.
    pub(crate) flushed_seqno: Option<SeqNo>,
    /// Every seqno up to this one was durable before the edit was written.
    pub(crate) durable_seqno: Option<SeqNo>,
    /// Filled in by the version set.
    pub(crate) next_file: Option<FileNumber>,
    /// Filled in by the version set.
    pub(crate) next_run: Option<RunId>,
}

/// Why bytes are not an edit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadEdit {
    /// The bytes make no sense.
    Malformed,
    /// A newer version wrote this item.
    UnknownTag(u64),
}

impl VersionEdit {
    /// Appends the encoding.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        for (level, run, meta) in &self.tables_added {
            out.put_varint(TABLE_ADDED);
            out.put_u8(*level);
            out.put_varint(*run);
            let mut description = Vec::new();
            meta.encode(&mut description);
            out.put_slice(&description);
        }
        for number in &self.tables_removed {
            out.put_varint(TABLE_REMOVED);
            out.put_varint(*number);
        }
        for (number, level, run) in &self.tables_moved {
            out.put_varint(TABLE_MOVED);
            out.put_varint(*number);
            out.put_u8(*level);
            out.put_varint(*run);
        }
        for (run, trim) in &self.runs_trimmed {
            out.put_varint(RUN_TRIMMED);
            out.put_varint(*run);
            out.put_varint(trim.entries);
            out.put_slice(&trim.from);
        }
        for named in &self.segments_added {
            out.put_varint(SEGMENT_ADDED);
            out.put_varint(named.number);
            out.put_u64(named.salt);
            out.put_u8(named.stream as u8);
        }
        for number in &self.segments_removed {
            out.put_varint(SEGMENT_REMOVED);
            out.put_varint(*number);
        }
        for meta in &self.values_added {
            out.put_varint(VALUES_ADDED);
            meta.encode(out);
        }
        for number in &self.values_removed {
            out.put_varint(VALUES_REMOVED);
            out.put_varint(*number);
        }
        let counters = [
            (FLUSHED_SEQNO, self.flushed_seqno),
            (NEXT_FILE, self.next_file),
            (NEXT_RUN, self.next_run),
            (DURABLE_SEQNO, self.durable_seqno),
        ];
        for (tag, value) in counters {
            if let Some(value) = value {
                out.put_varint(tag);
                out.put_varint(value);
            }
        }
        assert!(out.len() - start <= u32::MAX as usize, "an edit beyond 4 GiB");
    }

    /// The edit that `bytes` encode.
    pub(crate) fn decode(bytes: &[u8]) -> Result<VersionEdit, BadEdit> {
        let mut edit = VersionEdit::default();
        let mut cursor = Cursor::new(bytes);
        while !cursor.is_empty() {
            let tag = cursor.varint().ok_or(BadEdit::Malformed)?;
            if !edit.decode_item(tag, &mut cursor).ok_or(BadEdit::Malformed)? {
                return Err(BadEdit::UnknownTag(tag));
            }
        }
        Ok(edit)
    }

    /// Reads the fields of an item; `Some(false)` when the tag is unknown.
    fn decode_item(&mut self, tag: u64, cursor: &mut Cursor<'_>) -> Option<bool> {
        match tag {
            TABLE_ADDED => {
                let level = cursor.u8()?;
                let run = cursor.varint()?;
                let mut description = Cursor::new(cursor.slice()?);
                let meta = TableMeta::decode(&mut description)?;
                if !description.is_empty() {
                    return None;
                }
                self.tables_added.push((level, run, Arc::new(meta)));
            }
            TABLE_REMOVED => self.tables_removed.push(cursor.varint()?),
            TABLE_MOVED => {
                self.tables_moved.push((cursor.varint()?, cursor.u8()?, cursor.varint()?));
            }
            RUN_TRIMMED => {
                let (run, entries) = (cursor.varint()?, cursor.varint()?);
                let from = KeyBuf::from_slice(cursor.slice()?);
                self.runs_trimmed.push((run, Trim { from, entries }));
            }
            SEGMENT_ADDED => self.segments_added.push(SegmentName {
                number: cursor.varint()?,
                salt: cursor.u64()?,
                stream: Stream::from_byte(cursor.u8()?)?,
            }),
            SEGMENT_REMOVED => self.segments_removed.push(cursor.varint()?),
            VALUES_ADDED => self.values_added.push(ValuesMeta::decode(cursor)?),
            VALUES_REMOVED => self.values_removed.push(cursor.varint()?),
            FLUSHED_SEQNO => once(&mut self.flushed_seqno, cursor.varint()?)?,
            NEXT_FILE => once(&mut self.next_file, cursor.varint()?)?,
            NEXT_RUN => once(&mut self.next_run, cursor.varint()?)?,
            DURABLE_SEQNO => once(&mut self.durable_seqno, cursor.varint()?)?,
            _ => return Some(false),
        }
        Some(true)
    }
}

/// Sets a field that may occur once.
fn once(slot: &mut Option<u64>, value: u64) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}
