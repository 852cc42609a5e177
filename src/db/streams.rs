//! The streams of the log as one: which segment a commit enters, and what is written together.
//!
//! Invariants:
//! 1. A commit is one record in one stream. Seqnos ascend over both streams, each given out once.
//! 2. A [`Unit`] takes what both streams hold at one moment: when its writes are done, everything
//!    up to its last seqno is durable, provided that the units before it are.
//! 3. A stream goes on in another segment only when what it held for the one before is in a unit
//!    or with the kernel.
//! 4. Marks stand in the WAL: they speak for both streams.

use std::collections::VecDeque;
use std::sync::Arc;

use seerdb_io::AlignedBuf;
use smallvec::SmallVec;

use crate::error::{Error, Result};
use crate::key::SeqNo;
use crate::log::format::Stream;
use crate::log::segment::Segment;
use crate::log::writer::{Group, LogBuffer, Payload};
use crate::memtable::Floor;

/// Groups that are written side by side, at most one of each stream.
pub(crate) struct Unit {
    pub(crate) groups: SmallVec<[Group; 2]>,
    /// The last seqno that it makes durable.
    pub(crate) last_seqno: SeqNo,
}

/// The segment after the active one.
pub(super) enum Next {
    /// Nobody has needed one yet.
    Unwanted,
    Wanted,
    Ready(Arc<Segment>),
    Failed(Error),
}

/// One stream.
pub(super) struct Lane {
    /// None before the first commit of the stream.
    log: Option<LogBuffer>,
    pub(super) next: Next,
    /// The length that the next segment must have at least.
    pub(super) wanted_bytes: u64,
    /// The active segment has records that no sync was asked for (cached).
    is_dirty: bool,
}

impl Lane {
    fn has_room(&self, payload_bytes: usize) -> bool {
        self.log.as_ref().is_some_and(|log| log.has_room(payload_bytes))
    }

    fn is_empty(&self) -> bool {
        self.log.as_ref().is_none_or(LogBuffer::is_empty)
    }
}

/// Both streams. Guarded by the commit lock.
pub(super) struct Streams {
    wal: Lane,
    values: Lane,
    last_seqno: SeqNo,
    /// What was handed on to be written since the open, in bytes.
    written_bytes: u64,
    /// Units of segments that are closed and not yet written (grouped).
    units: VecDeque<Unit>,
    /// Closed segments with records that no sync was asked for (cached).
    unsynced: Vec<Arc<Segment>>,
}

impl Streams {
    /// The log goes on in `wal` behind the commit `last_seqno`.
    pub(super) fn new(wal: Arc<Segment>, last_seqno: SeqNo) -> Self {
        let lane = |log, next| Lane { log, next, wanted_bytes: 0, is_dirty: false };
        Streams {
            wal: lane(Some(LogBuffer::new(wal)), Next::Wanted),
            values: lane(None, Next::Unwanted),
            last_seqno,
            written_bytes: 0,
            units: VecDeque::new(),
            unsynced: Vec::new(),
        }
    }

    pub(super) fn lane(&mut self, stream: Stream) -> &mut Lane {
        match stream {
            Stream::Wal => &mut self.wal,
            Stream::Values => &mut self.values,
        }
    }

    fn logs(&self) -> impl Iterator<Item = &LogBuffer> {
        self.wal.log.iter().chain(&self.values.log)
    }

    /// What was handed on to be written since the open, in bytes.
    pub(super) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The last seqno given out.
    pub(super) fn last_seqno(&self) -> SeqNo {
        self.last_seqno
    }

    /// Whether nothing waits to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.wal.is_empty() && self.values.is_empty()
    }

    /// The bytes that wait to be written, without those of closed segments.
    pub(super) fn group_bytes(&self) -> usize {
        self.logs().map(LogBuffer::group_bytes).sum()
    }

    /// The highest durable seqno that a record says.
    pub(super) fn stamped(&self) -> SeqNo {
        self.logs().map(LogBuffer::stamped).max().unwrap_or(0)
    }

    /// The active segments.
    pub(super) fn first_segments(&self) -> Floor {
        let number = |lane: &Lane| lane.log.as_ref().map_or(0, |log| log.segment().id.number);
        Floor { wal: number(&self.wal), values: number(&self.values) }
    }

    pub(super) fn has_room(&mut self, stream: Stream, payload_bytes: usize) -> bool {
        self.lane(stream).has_room(payload_bytes)
    }

    /// Appends a commit of `count` operations; the caller saw `has_room`. The segment and where
    /// the payload stands in it.
    pub(super) fn append(
        &mut self,
        stream: Stream,
        payload: &Payload<'_>,
        count: u32,
        durable: SeqNo,
    ) -> (Arc<Segment>, u64) {
        let first = self.last_seqno + 1;
        self.last_seqno += u64::from(count);
        let log = self.lane(stream).log.as_mut().expect("the caller saw room in it");
        let position = log.append(payload, first..first + u64::from(count), durable);
        (log.segment().clone(), position)
    }

    /// Appends a mark that says `durable`; whether there was room for it.
    pub(super) fn append_mark(&mut self, durable: SeqNo) -> bool {
        let next = self.last_seqno + 1;
        self.wal.log.as_mut().is_some_and(|log| log.append_mark(next, durable))
    }

    /// Fills the units of the last records of both streams, before a sync.
    pub(super) fn pad(&mut self, durable: SeqNo) {
        let next = self.last_seqno + 1;
        for lane in [&mut self.wal, &mut self.values] {
            if let Some(log) = &mut lane.log {
                log.pad(next, durable);
            }
        }
    }

    /// The next unit to write: one of closed segments first.
    pub(super) fn take_unit(&mut self, spares: &mut Vec<AlignedBuf>) -> Option<Unit> {
        self.units.pop_front().or_else(|| self.unit(spares))
    }

    /// What both streams hold now.
    fn unit(&mut self, spares: &mut Vec<AlignedBuf>) -> Option<Unit> {
        let mut groups = SmallVec::new();
        for log in self.wal.log.iter_mut().chain(&mut self.values.log) {
            if !log.is_empty() {
                groups.extend(log.take_group(spares.pop().unwrap_or_default()));
            }
        }
        self.written_bytes +=
            groups.iter().map(|group: &Group| group.buf.len() as u64).sum::<u64>();
        (!groups.is_empty()).then_some(Unit { groups, last_seqno: self.last_seqno })
    }

    /// Hands what both streams hold to the kernel (cached).
    ///
    /// # Errors
    ///
    /// When the kernel refuses. Any part may have been written: the log cannot go on.
    pub(super) fn write_cached(&mut self) -> Result<()> {
        for lane in [&mut self.wal, &mut self.values] {
            if let Some(log) = lane.log.as_mut().filter(|log| !log.is_empty()) {
                self.written_bytes += log.group_bytes() as u64;
                log.write_cached()?;
                lane.is_dirty = true;
            }
        }
        Ok(())
    }

    /// The segments that a sync must cover for all that was written (cached).
    pub(super) fn take_unsynced(&mut self) -> Vec<Arc<Segment>> {
        let mut segments = std::mem::take(&mut self.unsynced);
        for lane in [&mut self.wal, &mut self.values] {
            if std::mem::take(&mut lane.is_dirty) {
                segments.extend(lane.log.as_ref().map(|log| log.segment().clone()));
            }
        }
        segments
    }

    /// Goes on in `segment`: what was held for the one before becomes a unit (grouped), or goes to
    /// the kernel (cached). Whether a unit came of it.
    ///
    /// # Errors
    ///
    /// Those of [`Streams::write_cached`].
    pub(super) fn rotate(
        &mut self,
        stream: Stream,
        segment: Arc<Segment>,
        grouped: bool,
        spares: &mut Vec<AlignedBuf>,
    ) -> Result<bool> {
        let unit = if grouped { self.unit(spares) } else { None };
        let is_unit = unit.is_some();
        self.units.extend(unit);
        if !grouped {
            self.write_cached()?;
        }
        let lane = self.lane(stream);
        let was_dirty = std::mem::take(&mut lane.is_dirty);
        match &mut lane.log {
            None => lane.log = Some(LogBuffer::new(segment)),
            Some(log) => {
                let closed = log.rotate(segment);
                if was_dirty && !planted!(ForgetClosedSegment) {
                    self.unsynced.push(closed);
                }
            }
        }
        Ok(is_unit)
    }

    /// Whether a unit of closed segments waits.
    pub(super) fn has_unit(&self) -> bool {
        !self.units.is_empty()
    }

    /// The records of the segments below `first_live` are in tables: nobody needs them synced.
    pub(super) fn retire(&mut self, first_live: Floor) {
        self.unsynced.retain(|segment| !is_below(segment, first_live));
    }
}

/// Whether all records of `segment` are older than those of a memtable that begins at `floor`.
pub(super) fn is_below(segment: &Segment, floor: Floor) -> bool {
    let first = match segment.stream {
        Stream::Wal => floor.wal,
        Stream::Values => floor.values,
    };
    segment.id.number < first
}
