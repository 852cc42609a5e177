//! Reads one segment, record by record.
//!
//! Invariants:
//! 1. Memory is bounded by one chunk and the largest record, whatever a segment holds; lengths are
//!    believed only from a header whose checksum fits, and only within the file.
//! 2. Reading changes nothing on disk: reading twice gives the same answer.

use std::path::{Path, PathBuf};

use seerdb_io::{AlignedBuf, BUF_ALIGN, Class, Env, File, OpenOptions};

use super::format::{self, Stream};
use crate::error::{Error, Result};
use crate::key::SeqNo;
use crate::record::{self, FileId, Header, RecordType, chain_start};

pub(super) const CHUNK_BYTES: usize = 1 << 20;
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
    pub(crate) stream: Stream,
}

/// A window over one segment.
pub(super) struct Reader {
    pub(super) segment: SegmentRef,
    file: File,
    pub(super) path: PathBuf,
    file_bytes: u64,
    /// The bytes of the file from `base` on.
    window: AlignedBuf,
    base: u64,
    /// The next record, relative to `base`.
    at: usize,
    chain: u32,
    previous_chain: u32,
}

impl Reader {
    pub(super) async fn open(env: &Env, dir: &Path, segment: SegmentRef) -> Result<Reader> {
        let path = segment.stream.file_name(segment.id.number).in_dir(dir);
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
            segment,
            file,
            path,
            file_bytes,
            window: AlignedBuf::new(),
            base: 0,
            at: 0,
            chain: chain_start(segment.id),
            previous_chain: 0,
        };
        reader.fill(format::HEADER_BYTES).await?;
        let (window, path) = (&reader.window, &reader.path);
        // What stands behind the segment's own length is nobody's.
        reader.file_bytes = format::check(window, segment.id, segment.stream, path, file_bytes)?;
        reader.at = format::HEADER_BYTES;
        Ok(reader)
    }

    /// The place of the next record in the file.
    pub(super) fn position(&self) -> u64 {
        self.base + self.at as u64
    }

    pub(super) fn offset_of(&self, window_at: usize) -> u64 {
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
    pub(super) async fn next_record(&mut self) -> Result<Option<(Header, usize)>> {
        self.fill(record::HEADER_BYTES).await?;
        let bytes = self.window.get(self.at..).unwrap_or_default();
        let Some(header) = Header::decode(bytes, self.segment.id, self.position()) else {
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

    /// The next record, past damaged marks if it must be: one that does not go back before `from`.
    pub(super) async fn next_or_bridge(&mut self, from: SeqNo) -> Result<Option<(Header, usize)>> {
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
                    if found.0.first_seqno >= from {
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
    pub(super) fn seek(&mut self, position: u64) {
        if position < self.base || position > self.base + self.window.len() as u64 {
            self.window.clear();
            self.base = position - position % BUF_ALIGN as u64;
        }
        self.at = usize::try_from(position - self.base).expect("a window fits the memory");
    }

    pub(super) fn payload(&self, header: &Header, payload_at: usize) -> &[u8] {
        let end = payload_at + header.payload_bytes as usize;
        self.window.get(payload_at..end).unwrap_or_default()
    }

    pub(super) fn skip(&mut self, header: &Header) {
        self.at += header.span as usize;
    }

    /// Takes back the last `next_record`: its record is not in sequence.
    pub(super) fn step_back(&mut self) {
        self.chain = self.previous_chain;
    }

    /// Whether the next record begins with zeros.
    fn is_at_zeros(&self) -> bool {
        let next = self.window.get(self.at..).unwrap_or_default();
        next.iter().take(record::HEADER_BYTES).all(|byte| *byte == 0)
    }

    /// Searches the rest of the segment for valid headers: whether there is one that is not older
    /// than `from`, and the offset of one that calls `from` durable. A header that belongs to
    /// another place says as much: its write went astray, and onto the record that is missed.
    pub(super) async fn search(&mut self, from: SeqNo) -> Result<(bool, Option<u64>)> {
        let mut found = false;
        if planted!(StopAtBadRecord) || planted!(ZerosArePadding) && self.is_at_zeros() {
            return Ok((false, None));
        }
        while self.position() < self.file_bytes {
            self.fill(CHUNK_BYTES).await?;
            // A header may begin in the last bytes of a chunk: the next chunk overlaps by one.
            let last_chunk = self.base + self.window.len() as u64 >= self.file_bytes;
            for at in record::candidates(&self.window, self.at) {
                let bytes = self.window.get(at..).unwrap_or_default();
                let (id, place) = (self.segment.id, self.offset_of(at));
                let strayed = || Header::decode_strayed(bytes, id, place, self.file_bytes);
                let Some(header) = Header::decode(bytes, id, place).or_else(strayed) else {
                    continue;
                };
                // At the very place of the gap stands the record that failed: its header is no
                // proof of what came before it unless it says so.
                found |= header.first_seqno >= from || header.durable_seqno >= from;
                if header.durable_seqno >= from || planted!(TornTailIsDamage) && found {
                    return Ok((true, Some(self.offset_of(at))));
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
        Ok((found, None))
    }
}
