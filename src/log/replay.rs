//! Reading the log back, and telling a torn tail from damage.
//!
//! Records are read in order of their seqnos through all segments. Where the next seqno is not to
//! be had, everything that follows is searched for a valid header whose durable seqno covers it:
//!
//! - there is one: the missing commit was acknowledged as durable. That is [`Corruption`] with the
//!   segment and the offset of the gap.
//! - there is none: nobody was promised anything behind the gap. It is a torn tail, and what
//!   stands behind it is dropped with it.
//!
//! The manifest may know more: a log that ends before a seqno which it says was durable is damaged
//! too. And a gap in which nothing but marks can have stood is none: the chain tells how many marks
//! there were, and they say nothing that the records behind them do not.
//!
//! Invariants:
//! 1. Memory is bounded by one chunk and the largest record, whatever a segment holds; lengths are
//!    believed only from a header whose checksum fits, and only within the file.
//! 2. Reading changes nothing on disk: reading twice gives the same answer.
//!
//! [`Corruption`]: crate::error::ErrorKind::Corruption

use std::path::{Path, PathBuf};

use seerdb_io::{AlignedBuf, BUF_ALIGN, Class, Env, File, OpenOptions};

use super::format;
use crate::error::{Error, Result};
use crate::filename::{FileName, FileNumber};
use crate::key::SeqNo;
use crate::record::{self, FileId, Header, RecordType, chain_start};

const CHUNK_BYTES: usize = 1 << 20;
/// How many damaged marks in a row are passed over, and how far they may reach: a mark and what
/// pads the unit before it, and as many again.
const MARKS_MAX: usize = 4;
/// The checksum of no payload.
const EMPTY_CRC: u32 = 0;
const MARKS_BYTES: usize = 4 * BUF_ALIGN;

/// A segment to read, as the manifest describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentRef {
    pub(crate) id: FileId,
    pub(crate) stream: u8,
}

/// Takes the records of a replay, in order.
pub(crate) trait Sink: Send {
    /// One commit. `offset` is that of its record in `path`, for the error when the payload is
    /// malformed.
    fn commit(&mut self, header: &Header, payload: &[u8], path: &Path, offset: u64) -> Result<()>;

    /// Called between commits with no record in hand: the place to make room.
    fn breathe(&mut self) -> impl Future<Output = Result<()>> + Send;
}

/// What a replay found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replayed {
    /// The last seqno of the unbroken sequence.
    pub(crate) last_seqno: SeqNo,
    /// Commits handed to the sink.
    pub(crate) commits: u64,
    /// Whether something behind the sequence was dropped as a torn tail.
    pub(crate) torn: bool,
}

/// What is known of the commits before the log is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// Up to here they are in tables.
    pub(crate) flushed: SeqNo,
    /// Up to here they were durable.
    pub(crate) durable: SeqNo,
}

/// Reads `segments` in order; commits that are not in tables yet go to `sink`.
///
/// # Errors
///
/// Corruption as above, a segment that is missing or is not the one in the manifest, and whatever
/// the file system or the sink says.
pub(crate) async fn replay<S: Sink>(
    env: &Env,
    dir: &Path,
    segments: &[SegmentRef],
    known: Known,
    sink: &mut S,
) -> Result<Replayed> {
    let flushed = known.flushed;
    let mut expected: Option<SeqNo> = None;
    let mut commits = 0;
    let mut stopped: Option<Gap> = None;
    // Where the records of the segment before end.
    let mut end: Option<(PathBuf, u64)> = None;
    // Behind the last record.
    let mut last: Option<(PathBuf, u64)> = None;
    for &segment in segments {
        let mut reader = match Reader::open(env, dir, segment).await {
            Err(_) if planted!(IgnoreMissingLog) => continue,
            reader => reader?,
        };
        if let Some(gap) = &stopped {
            reader.prove_nothing(gap).await?;
            continue;
        }
        while let Some((header, payload_at)) = reader.next_or_bridge(expected, flushed).await? {
            let next = expected.unwrap_or(header.first_seqno.min(flushed + 1));
            if header.first_seqno != next {
                reader.step_back();
                break;
            }
            end = None;
            if header.kind == RecordType::Data {
                expected = Some(header.last_seqno() + 1);
                if header.last_seqno() > flushed {
                    let offset = reader.offset_of(payload_at);
                    if header.first_seqno <= flushed {
                        let what = format!("commit {flushed} is the end of no record");
                        return Err(Error::corruption(&reader.path, offset, what));
                    }
                    let payload = reader.payload(&header, payload_at);
                    sink.commit(&header, payload, &reader.path, offset)?;
                    commits += 1;
                }
                sink.breathe().await?;
            }
            reader.skip(&header);
        }
        // The segment may simply end here; it has a gap if a valid header follows in it.
        let missing = expected.unwrap_or(flushed + 1);
        let here = (reader.path.clone(), reader.position());
        if here.1 > format::HEADER_BYTES as u64 || last.is_none() {
            last = Some(here.clone());
        }
        // A whole record that comes too early accuses the segment before.
        let accused = end.take().filter(|_| reader.stepped_back);
        let (path, offset) = accused.unwrap_or_else(|| here.clone());
        let gap = Gap { path, offset, missing };
        if reader.prove_nothing(&gap).await? {
            stopped = Some(gap);
        }
        end = Some(here);
    }
    let last_seqno = expected.map_or(flushed, |e| (e - 1).max(flushed));
    if last_seqno < known.durable && !planted!(ForgetDurableMark) {
        let place = stopped.map(|gap| (gap.path, gap.offset)).or(last);
        let (path, offset) = place.unwrap_or_else(|| (dir.to_path_buf(), 0));
        let durable = known.durable;
        let what =
            format!("the log ends with commit {last_seqno}, but commit {durable} was durable");
        return Err(Error::corruption(path, offset, what));
    }
    Ok(Replayed { last_seqno, commits, torn: stopped.is_some() })
}

/// Looks at the segment `number`, which the manifest does not name.
///
/// A segment is named before anything enters it, and leaves the manifest when all of it is in
/// tables or was dropped behind a gap: one that goes on where the log ends is proof that the
/// manifest is an older one than it was.
///
/// # Errors
///
/// Corruption when the segment has the commit behind `last_seqno`; those of the file system.
pub(crate) async fn prove_behind(
    env: &Env,
    dir: &Path,
    number: FileNumber,
    last_seqno: SeqNo,
) -> Result<()> {
    let path = FileName::Wal(number).in_dir(dir);
    let options = OpenOptions { class: Class::Background, ..OpenOptions::default() };
    let file = match env.fs().open(path, options).await {
        Err(error) if error.is_not_found() => return Ok(()),
        file => file?,
    };
    let (read, mut page) = file.read_at(AlignedBuf::zeroed(format::HEADER_BYTES), 0).await;
    page.truncate(read?);
    // A segment that was being made, or recycled, is nobody's.
    let Some(id) = format::identity(&page).filter(|id| id.number == number) else {
        return Ok(());
    };
    let segment = SegmentRef { id, stream: format::Stream::Wal as u8 };
    let mut reader = match Reader::open(env, dir, segment).await {
        Err(error) if error.is_corruption() => return Ok(()),
        reader => reader?,
    };
    while let Some((header, _)) = reader.next_record().await? {
        if header.first_seqno != last_seqno + 1 {
            break;
        }
        if header.kind == RecordType::Data {
            let what = format!(
                "the log ends with commit {last_seqno} and goes on in this segment, which the \
                 manifest does not name: the manifest is an older one"
            );
            return Err(Error::corruption(&reader.path, reader.position(), what));
        }
        reader.skip(&header);
    }
    Ok(())
}

/// Where the sequence breaks.
struct Gap {
    path: PathBuf,
    offset: u64,
    missing: SeqNo,
}

/// A window over one segment.
struct Reader {
    file: File,
    path: PathBuf,
    id: FileId,
    file_bytes: u64,
    /// The bytes of the file from `base` on.
    window: AlignedBuf,
    base: u64,
    /// The next record, relative to `base`.
    at: usize,
    chain: u32,
    previous_chain: u32,
    /// The next record is whole, but not in sequence.
    stepped_back: bool,
}

impl Reader {
    async fn open(env: &Env, dir: &Path, segment: SegmentRef) -> Result<Reader> {
        let path = FileName::Wal(segment.id.number).in_dir(dir);
        let options = OpenOptions { class: Class::Background, ..OpenOptions::default() };
        let file = match env.fs().open(path.clone(), options).await {
            Ok(file) => file,
            Err(e) if e.is_not_found() => {
                return Err(Error::corruption(
                    path,
                    0,
                    "a segment that the manifest names is gone",
                ));
            }
            Err(e) => return Err(e.into()),
        };
        let file_bytes = file.len().await?;
        let mut reader = Reader {
            file,
            path,
            id: segment.id,
            file_bytes,
            window: AlignedBuf::new(),
            base: 0,
            at: 0,
            chain: chain_start(segment.id),
            previous_chain: 0,
            stepped_back: false,
        };
        reader.fill(format::HEADER_BYTES).await?;
        let (window, path) = (&reader.window, &reader.path);
        // What stands behind the segment's own length is nobody's.
        reader.file_bytes = format::check(window, segment.id, segment.stream, path, file_bytes)?;
        reader.at = format::HEADER_BYTES;
        Ok(reader)
    }

    /// The place of the next record in the file.
    fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    fn offset_of(&self, window_at: usize) -> u64 {
        self.base + window_at as u64
    }

    /// Makes `len` bytes from the next record on available, as far as the file has them.
    async fn fill(&mut self, len: usize) -> Result<()> {
        let wanted = self.at.saturating_add(len);
        if wanted <= self.window.len() || self.base + self.window.len() as u64 >= self.file_bytes {
            return Ok(());
        }
        // Slide: the window begins at the unit of the next record.
        let drop = self.at - self.at % BUF_ALIGN;
        self.base += drop as u64;
        self.at -= drop;
        let left = usize::try_from(self.file_bytes - self.base).unwrap_or(usize::MAX);
        let size = (self.at + len).max(CHUNK_BYTES).next_multiple_of(BUF_ALIGN).min(left);
        let (read, mut buf) = self.file.read_at(AlignedBuf::zeroed(size), self.base).await;
        buf.truncate(read?);
        if buf.len() < size {
            let end = self.base + buf.len() as u64;
            return Err(Error::corruption(&self.path, end, "the segment ends before its length"));
        }
        self.window = buf;
        Ok(())
    }

    /// The next record if it is whole and in sequence, with the place of its payload in the
    /// window; the reader stays in front of it until [`Reader::skip`].
    async fn next_record(&mut self) -> Result<Option<(Header, usize)>> {
        self.fill(record::HEADER_BYTES).await?;
        let bytes = self.window.get(self.at..).unwrap_or_default();
        let Some(header) = Header::decode(bytes, self.id, self.position()) else {
            return Ok(None);
        };
        if header.kind == RecordType::Edit
            || self.position() + u64::from(header.span) > self.file_bytes
        {
            return Ok(None);
        }
        let whole = record::HEADER_BYTES + header.payload_bytes as usize;
        self.fill(whole).await?;
        let payload_at = self.at + record::HEADER_BYTES;
        if !header.matches(self.chain, self.payload(&header, payload_at)) {
            return Ok(None);
        }
        self.previous_chain = self.chain;
        self.chain = header.chain;
        Ok(Some((header, payload_at)))
    }

    /// The next record, past damaged marks if it must be. `expected` is the seqno that comes next;
    /// without it, one that `flushed` covers, or the next one.
    async fn next_or_bridge(
        &mut self,
        expected: Option<SeqNo>,
        flushed: SeqNo,
    ) -> Result<Option<(Header, usize)>> {
        if let Some(found) = self.next_record().await? {
            return Ok(Some(found));
        }
        let (start, chain) = (self.position(), self.chain);
        self.fill(MARKS_BYTES).await?;
        let end = self.window.len().min(self.at + MARKS_BYTES);
        let near = self.window.get(..end).unwrap_or_default();
        let places: Vec<u64> =
            record::candidates(near, self.at + 1).map(|at| self.offset_of(at)).collect();
        for place in places {
            self.chain = chain;
            for _ in 0..MARKS_MAX {
                self.chain = record::chain(self.chain, EMPTY_CRC);
                self.seek(place);
                if let Some(found) = self.next_record().await? {
                    let first = found.0.first_seqno;
                    if expected.map_or(first <= flushed + 1, |expected| first == expected) {
                        let bytes = place - start;
                        tracing::warn!(path = %self.path.display(), start, bytes, "damaged marks");
                        return Ok(Some(found));
                    }
                    self.chain = self.previous_chain;
                }
            }
        }
        self.seek(start);
        self.chain = chain;
        Ok(None)
    }

    /// Goes to `position`, reading anew if the window has slid past it.
    fn seek(&mut self, position: u64) {
        if position < self.base || position > self.base + self.window.len() as u64 {
            self.window.clear();
            self.base = position - position % BUF_ALIGN as u64;
        }
        self.at = usize::try_from(position - self.base).expect("a window fits the memory");
    }

    fn payload(&self, header: &Header, payload_at: usize) -> &[u8] {
        let end = payload_at + header.payload_bytes as usize;
        self.window.get(payload_at..end).unwrap_or_default()
    }

    fn skip(&mut self, header: &Header) {
        self.at += header.span as usize;
    }

    /// Takes back the last `next_record`: its record is not in sequence.
    fn step_back(&mut self) {
        self.chain = self.previous_chain;
        self.stepped_back = true;
    }

    /// Whether the next record begins with zeros.
    fn is_at_zeros(&self) -> bool {
        let next = self.window.get(self.at..).unwrap_or_default();
        next.iter().take(record::HEADER_BYTES).all(|byte| *byte == 0)
    }

    /// Searches the rest of the segment for valid headers: whether there is one.
    ///
    /// # Errors
    ///
    /// Corruption at the gap when one proves that the missing seqno was durable.
    async fn prove_nothing(&mut self, gap: &Gap) -> Result<bool> {
        let mut found = false;
        if planted!(StopAtBadRecord) || planted!(ZerosArePadding) && self.is_at_zeros() {
            return Ok(false);
        }
        while self.position() < self.file_bytes {
            self.fill(CHUNK_BYTES).await?;
            // A header may begin in the last bytes of a chunk: the next chunk overlaps by one.
            let last_chunk = self.base + self.window.len() as u64 >= self.file_bytes;
            for at in record::candidates(&self.window, self.at) {
                let bytes = self.window.get(at..).unwrap_or_default();
                let Some(header) = Header::decode(bytes, self.id, self.offset_of(at)) else {
                    continue;
                };
                // At the very place of the gap stands the record that failed: its header is no
                // proof of what came before it unless it says so.
                found |= header.first_seqno >= gap.missing || header.durable_seqno >= gap.missing;
                if header.durable_seqno >= gap.missing || planted!(TornTailIsDamage) && found {
                    return Err(Error::corruption(
                        &gap.path,
                        gap.offset,
                        format!(
                            "commit {} was durable, as the record at offset {} of {} says, but its \
                             record cannot be read",
                            gap.missing,
                            self.offset_of(at),
                            self.path.display()
                        ),
                    ));
                }
            }
            let consumed = self.window.len();
            self.at = if last_chunk {
                consumed
            } else {
                consumed.saturating_sub(record::HEADER_BYTES).max(self.at + 1)
            };
            if last_chunk {
                break;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
