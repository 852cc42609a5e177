//! One stream of the log, read from segment to segment.
//!
//! Invariants:
//! 1. Every record between the first one of a segment and the head was whole: the chain of its
//!    segment says so. So what is missing stands in the other stream, behind `broken`, or where
//!    two segments border.
//! 2. A tape that is broken gives out nothing any more.
//! 3. What is in tables already is passed over: damage there takes nothing with it.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use seerdb_io::Env;

use super::format;
use super::reader::{Reader, SegmentRef};
use crate::error::{Error, Result};
use crate::key::SeqNo;
use crate::record::{Header, RecordType};

/// Takes the records of a replay, in order.
pub(crate) trait Sink: Send {
    /// One commit.
    fn commit(&mut self, header: &Header, payload: &[u8], origin: &Origin<'_>) -> Result<()>;

    /// Called between commits with no record in hand: the place to make room.
    fn breathe(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// Where the payload of a commit stands.
pub(crate) struct Origin<'a> {
    pub(crate) path: &'a Path,
    pub(crate) segment: SegmentRef,
    pub(crate) offset: u64,
}

/// Where the sequence breaks.
pub(super) struct Gap {
    pub(super) place: Place,
    pub(super) missing: SeqNo,
}

/// A file and an offset in it.
pub(super) type Place = (PathBuf, u64);

/// The segments of one stream, and what was read last.
pub(super) struct Tape<'a> {
    env: &'a Env,
    dir: &'a Path,
    rest: VecDeque<SegmentRef>,
    reader: Option<Reader>,
    /// The next commit, and where its payload is in the window of the reader.
    pub(super) head: Option<(Header, usize)>,
    /// Where the stream breaks off in the midst of a segment.
    pub(super) broken: Option<Place>,
    /// The end of the segment before, while nothing of this one was read.
    pub(super) border: Option<Place>,
    /// Behind the last record.
    pub(super) last: Option<Place>,
    /// No record that follows has a smaller seqno.
    next: SeqNo,
    /// What the marks so far call durable.
    proven: SeqNo,
}

impl<'a> Tape<'a> {
    pub(super) fn new(
        env: &'a Env,
        dir: &'a Path,
        segments: impl Iterator<Item = SegmentRef>,
    ) -> Self {
        Tape {
            env,
            dir,
            rest: segments.collect(),
            reader: None,
            head: None,
            broken: None,
            border: None,
            last: None,
            next: 0,
            proven: 0,
        }
    }

    /// The next commit behind `flushed`, if it is whole; it stays until it is delivered.
    pub(super) async fn head(&mut self, flushed: SeqNo) -> Result<Option<Header>> {
        while self.head.is_none() && self.broken.is_none() {
            let Some(reader) = &mut self.reader else {
                let Some(segment) = self.rest.pop_front() else { break };
                self.reader = match Reader::open(self.env, self.dir, segment).await {
                    Err(_) if planted!(IgnoreMissingLog) => continue,
                    reader => Some(reader?),
                };
                continue;
            };
            match reader.next_or_bridge(self.next).await? {
                Some((header, payload_at)) => self.take(header, payload_at, flushed)?,
                None => self.end_segment(flushed).await?,
            }
        }
        Ok(self.head.map(|(header, _)| header))
    }

    /// Whether a record of this stream speaks of commits beyond `missing`.
    pub(super) fn is_ahead(&self, missing: SeqNo) -> bool {
        self.head.is_some() || self.proven >= missing
    }

    /// Where the next record stands.
    pub(super) fn place(&self) -> Option<Place> {
        self.reader.as_ref().map(|reader| (reader.path.clone(), reader.position()))
    }

    /// Passes over the record in front of the reader, or makes it the head.
    fn take(&mut self, header: Header, payload_at: usize, flushed: SeqNo) -> Result<()> {
        let Some(reader) = &mut self.reader else { return Ok(()) };
        if header.first_seqno < self.next {
            reader.step_back();
            self.broken = Some((reader.path.clone(), reader.position()));
            return Ok(());
        }
        if header.kind == RecordType::Data && header.last_seqno() > flushed {
            if header.first_seqno <= flushed {
                let what = format!("commit {flushed} is the end of no record");
                return Err(Error::corruption(&reader.path, reader.offset_of(payload_at), what));
            }
            self.head = Some((header, payload_at));
            return Ok(());
        }
        self.proven = self.proven.max(header.durable_seqno);
        self.next = header.last_seqno() + 1;
        self.border = None;
        reader.skip(&header);
        Ok(())
    }

    /// No whole record follows: the segment may simply end here, or it has a gap, if a valid
    /// header follows in it.
    async fn end_segment(&mut self, flushed: SeqNo) -> Result<()> {
        let Some(mut reader) = self.reader.take() else { return Ok(()) };
        let here = (reader.path.clone(), reader.position());
        if here.1 > format::HEADER_BYTES as u64 || self.last.is_none() {
            self.last = Some(here.clone());
        }
        let (found, _) = reader.search(self.next.max(flushed + 1)).await?;
        if found {
            reader.seek(here.1);
            self.broken = Some(here);
            self.reader = Some(reader);
        } else {
            self.border = Some(here);
        }
        Ok(())
    }

    /// Hands the head to `sink`.
    pub(super) fn deliver<S: Sink>(&mut self, header: &Header, sink: &mut S) -> Result<()> {
        let (Some(reader), Some((_, payload_at))) = (&mut self.reader, self.head.take()) else {
            return Ok(());
        };
        let offset = reader.offset_of(payload_at);
        let origin = Origin { path: &reader.path, segment: reader.segment, offset };
        sink.commit(header, reader.payload(header, payload_at), &origin)?;
        self.next = header.last_seqno() + 1;
        self.border = None;
        reader.skip(header);
        Ok(())
    }

    /// Searches all that was not given out for a proof that the missing commit was durable.
    ///
    /// # Errors
    ///
    /// Corruption at the gap when there is one.
    pub(super) async fn prove_nothing(&mut self, gap: &Gap) -> Result<()> {
        let (path, offset) = &gap.place;
        let missing = gap.missing;
        if self.proven >= missing {
            let what = format!("commit {missing} was durable, as a mark says, but is not there");
            return Err(Error::corruption(path, *offset, what));
        }
        loop {
            if let Some(reader) = &mut self.reader
                && let (_, Some(at)) = reader.search(missing).await?
            {
                let what = format!(
                    "commit {missing} was durable, as the record at offset {at} of {} says, but \
                     its record cannot be read",
                    reader.path.display()
                );
                return Err(Error::corruption(path, *offset, what));
            }
            let Some(segment) = self.rest.pop_front() else { return Ok(()) };
            self.reader = match Reader::open(self.env, self.dir, segment).await {
                Err(_) if planted!(IgnoreMissingLog) => None,
                reader => Some(reader?),
            };
        }
    }
}

#[cfg(test)]
mod tests;
