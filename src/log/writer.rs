//! The open end of the log: records are framed here into the group that is written next.
//!
//! Direct segments: a group is padded to [`BUF_ALIGN`] and written by one durable write, so that
//! no unit that holds acknowledged bytes is ever written again. Page-cached segments: the group
//! goes to the page cache with one `write_cached` on the caller's thread, without padding, and a
//! data sync makes it durable. Ahead of them go zeros, [`AHEAD_BYTES`] at a time: the kernel then
//! allocates pages once for many groups, and in large pieces (ADR 4).
//!
//! Invariants:
//! 1. Records stand in the order of their seqnos; what is missing between two is in the other
//!    stream.
//! 2. A record never spans segments; [`RESERVE_BYTES`] at the end stay free for a last mark.
//! 3. A mark stands in a [`BUF_ALIGN`] unit that no earlier record touches: damage to one sector
//!    cannot take both a group and the proof that it was durable.
//! 4. Zeros go ahead of the records only: nothing from `zeroed` on was written in this segment.
//! 5. `stamped` is the highest durable seqno that any record says; it never exceeds what was
//!    durable when that record was framed.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use seerdb_io::{AlignedBuf, BUF_ALIGN};

use super::format::{HEADER_BYTES as SEGMENT_HEADER_BYTES, RESERVE_BYTES};
use super::segment::Segment;
use crate::error::Result;
use crate::key::SeqNo;
use crate::record::{HEADER_BYTES, HEADER_SPAN, Header, RecordType, chain, chain_start};

const ALIGN: u64 = BUF_ALIGN as u64;

/// How much of a page-cached segment is filled with zeros at a time.
const AHEAD_BYTES: usize = 64 << 10;
static ZEROS: [u8; AHEAD_BYTES] = [0; AHEAD_BYTES];

/// The memory of a group that is kept for the next one; a huge commit must not hold its own.
const KEPT_BYTES_MAX: usize = 1 << 20;

const EMPTY: Payload<'_> = Payload { parts: &[], bytes: 0, crc: 0 };

/// Records that are written with one write.
pub(crate) struct Group {
    pub(crate) segment: Arc<Segment>,
    pub(crate) buf: AlignedBuf,
    /// Where it goes in the segment.
    pub(crate) position: u64,
}

/// A payload in parts, with the checksum of the whole, computed outside the commit lock.
pub(crate) struct Payload<'a> {
    pub(crate) parts: &'a [&'a [u8]],
    pub(crate) bytes: u32,
    pub(crate) crc: u32,
}

/// The active segment and the group that is being filled. Guarded by the commit lock.
pub(crate) struct LogBuffer {
    segment: Arc<Segment>,
    buf: AlignedBuf,
    /// Where `buf` goes in the segment.
    position: u64,
    /// Up to where a page-cached segment has pages.
    zeroed: u64,
    chain: u32,
    /// The last header in `buf` and its place there; direct groups stretch its span.
    last: Option<(Header, usize)>,
    stamped: SeqNo,
}

impl LogBuffer {
    /// Begins `segment`.
    pub(crate) fn new(segment: Arc<Segment>) -> Self {
        let chain = chain_start(segment.id);
        LogBuffer {
            segment,
            buf: AlignedBuf::new(),
            position: SEGMENT_HEADER_BYTES as u64,
            zeroed: SEGMENT_HEADER_BYTES as u64,
            chain,
            last: None,
            stamped: 0,
        }
    }

    /// The active segment.
    pub(crate) fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Whether the group is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// The size of the group so far.
    pub(crate) fn group_bytes(&self) -> usize {
        self.buf.len()
    }

    /// The highest durable seqno that a record says (invariant 5).
    pub(crate) fn stamped(&self) -> SeqNo {
        self.stamped
    }

    /// Whether a record with `payload_bytes` fits into what is left of the segment.
    pub(crate) fn has_room(&self, payload_bytes: usize) -> bool {
        let end = self.end() + record_bytes(payload_bytes);
        end.next_multiple_of(ALIGN) + RESERVE_BYTES <= self.segment.bytes
    }

    fn end(&self) -> u64 {
        self.position + self.buf.len() as u64
    }

    /// Appends a commit whose operations have the `seqnos`; the caller saw `has_room`. Where its
    /// payload will stand in the segment.
    pub(crate) fn append(
        &mut self,
        payload: &Payload<'_>,
        seqnos: Range<SeqNo>,
        durable: SeqNo,
    ) -> u64 {
        let span = HEADER_SPAN + payload.bytes;
        let position = self.end() + HEADER_BYTES as u64;
        self.push(RecordType::Data, payload, seqnos, span, durable);
        position
    }

    /// Appends a mark that says `durable` (invariant 3), before the commit `next`; `false` when the
    /// segment has no room for one, which happens only after marks have used the reserve up.
    pub(crate) fn append_mark(&mut self, next: SeqNo, durable: SeqNo) -> bool {
        if self.end() + self.padding() + ALIGN > self.segment.bytes {
            return false;
        }
        self.pad(next, durable);
        self.push(RecordType::Mark, &EMPTY, next..next, HEADER_SPAN, durable);
        true
    }

    /// Fills the unit that the last record touches, so that what comes next never rewrites it: to
    /// be called before a sync of a page-cached segment. A full reserve leaves it as it is.
    pub(crate) fn pad(&mut self, next: SeqNo, durable: SeqNo) {
        let padding = self.padding();
        if padding == 0 || self.end() + padding > self.segment.bytes {
            return;
        }
        let span = u32::try_from(padding).expect("at most two units");
        self.push(RecordType::Mark, &EMPTY, next..next, span, durable);
        let zeros = usize::try_from(padding).unwrap_or(0) - HEADER_BYTES;
        self.buf.resize(self.buf.len() + zeros);
    }

    /// The span of a mark that reaches the next unit, or the one after it when no header fits into
    /// the rest of this one.
    fn padding(&self) -> u64 {
        match self.end().next_multiple_of(ALIGN) - self.end() {
            0 => 0,
            rest if rest < HEADER_BYTES as u64 => rest + ALIGN,
            rest => rest,
        }
    }

    fn push(
        &mut self,
        kind: RecordType,
        payload: &Payload<'_>,
        seqnos: Range<SeqNo>,
        span: u32,
        durable: SeqNo,
    ) {
        debug_assert!(durable < seqnos.start, "durable before it was written");
        self.chain = chain(self.chain, payload.crc);
        let header = Header {
            kind,
            payload_bytes: payload.bytes,
            span,
            count: u32::try_from(seqnos.end - seqnos.start).expect("a batch has a limit"),
            first_seqno: seqnos.start,
            durable_seqno: durable,
            chain: self.chain,
        };
        let at = self.buf.len();
        let encoded = header.encode(self.segment.id, self.end());
        self.buf.extend_from_slice(&encoded);
        for part in payload.parts {
            self.buf.extend_from_slice(part);
        }
        assert_eq!(
            self.buf.len() - at,
            HEADER_BYTES + payload.bytes as usize,
            "the parts do not add up to the payload"
        );
        self.last = Some((header, at));
        self.stamped = self.stamped.max(durable);
    }

    /// Takes the group of a direct segment, padded; the log goes on in `spare`. `None` when there
    /// is nothing to write.
    pub(crate) fn take_group(&mut self, mut spare: AlignedBuf) -> Option<Group> {
        let (mut header, at) = self.last.take()?;
        let padded = self.buf.len().next_multiple_of(BUF_ALIGN);
        header.span = u32::try_from(padded - at).expect("a record is below 4 GiB");
        let encoded = header.encode(self.segment.id, self.position + at as u64);
        let slot = self.buf.get_mut(at..at + HEADER_BYTES).expect("the header was put there");
        slot.copy_from_slice(&encoded);
        self.buf.resize(padded);
        spare.clear();
        let buf = std::mem::replace(&mut self.buf, spare);
        let position = self.position;
        self.position += padded as u64;
        let segment = self.segment.clone();
        Some(Group { segment, buf, position })
    }

    /// Hands the group of a page-cached segment to the kernel, on this thread.
    ///
    /// # Errors
    ///
    /// When the kernel refuses. Any part may have been written: the log cannot go on.
    pub(crate) fn write_cached(&mut self) -> Result<()> {
        if !self.buf.is_empty() {
            self.zero_ahead()?;
            self.segment.file.write_cached(&self.buf, self.position)?;
            self.position += self.buf.len() as u64;
            self.buf.clear();
            if self.buf.capacity() > KEPT_BYTES_MAX {
                self.buf = AlignedBuf::new();
            }
            self.last = None;
        }
        Ok(())
    }

    /// Sees to it that the pages of the group exist, and some behind it.
    fn zero_ahead(&mut self) -> Result<()> {
        let end = self.end();
        if end <= self.zeroed {
            return Ok(());
        }
        let until = (self.zeroed + AHEAD_BYTES as u64).min(self.segment.bytes);
        if end > until {
            // A group this large makes large pages by itself.
            self.zeroed = end.next_multiple_of(ALIGN);
            return Ok(());
        }
        let len = usize::try_from(until - self.zeroed).unwrap_or(ZEROS.len());
        let zeros = ZEROS.get(..len).unwrap_or(&ZEROS);
        self.segment.file.write_cached(zeros, self.zeroed)?;
        self.zeroed = until;
        Ok(())
    }

    /// Goes on in `segment` and returns the one before; the group must have been taken or written.
    pub(crate) fn rotate(&mut self, segment: Arc<Segment>) -> Arc<Segment> {
        assert!(self.buf.is_empty(), "a group belongs to one segment");
        // Order: read by the flush that retires the segment, long after and behind other locks.
        self.segment.end.store(self.position, Ordering::Relaxed);
        self.position = SEGMENT_HEADER_BYTES as u64;
        self.zeroed = self.position;
        self.chain = chain_start(segment.id);
        std::mem::replace(&mut self.segment, segment)
    }
}

fn record_bytes(payload_bytes: usize) -> u64 {
    HEADER_BYTES as u64 + payload_bytes as u64
}

/// The length that a segment needs to hold a record with `payload_bytes`.
pub(crate) fn segment_bytes_for(payload_bytes: usize) -> u64 {
    let records = record_bytes(payload_bytes).next_multiple_of(ALIGN);
    SEGMENT_HEADER_BYTES as u64 + records + RESERVE_BYTES
}

#[cfg(test)]
mod tests;
