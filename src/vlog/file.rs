//! Files of the value log, open for reading.
//!
//! Invariants:
//! 1. No value leaves this file before its pointer has checked key, commit, place and bytes.
//! 2. A read that fails or does not check out is repeated once: that heals what went wrong on the
//!    way, not what is wrong on the device.
//! 3. The last drop of a retired file sends its name to the one who deletes files, once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::channel::mpsc::UnboundedSender;
use seerdb_io::{AlignedBuf, BUF_ALIGN, Class, File, Fs, OpenOptions};

use super::format::{Described, FOOTER_BYTES, Section};
use super::{Kind, Place, ValuesMeta};
use crate::error::{Error, ErrorKind, Result};
use crate::filename::{FileName, FileNumber};
use crate::key::SeqNo;
use crate::log::format as segment;
use crate::log::format::Stream;
use crate::pointer::Pointer;
use crate::record::FileId;

/// Values above this size are never read on the caller's thread: copying them would take long.
const NOW_BYTES_MAX: usize = 256 << 10;

/// Bytes of files that no version of today needs, but a reader of an older one.
pub(crate) type Pinned = Arc<AtomicU64>;

/// A file of the value log.
pub(crate) struct ValueFile {
    number: FileNumber,
    fs: Fs,
    file: File,
    path: PathBuf,
    /// By segment; none for a segment as it was first written.
    sections: Vec<Section>,
    retired: OnceLock<Retired>,
}

struct Retired {
    trash: UnboundedSender<FileName>,
    bytes: u64,
    pinned: Pinned,
}

/// Where the value of a key stands, and how to tell that it is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) pointer: Pointer,
    pub(crate) key: &'a [u8],
    pub(crate) seqno: SeqNo,
}

impl ValueFile {
    /// Opens a segment that is being written, or was not read back yet; `options` are those of its
    /// file.
    ///
    /// # Errors
    ///
    /// `Corruption` when the file is not the segment `id`.
    pub(crate) async fn open_segment(
        fs: &Fs,
        dir: &Path,
        id: FileId,
        options: OpenOptions,
    ) -> Result<Arc<ValueFile>> {
        let (file, path) = open(fs, dir, id.number, options).await?;
        let (read, mut page) = file.read_at(AlignedBuf::zeroed(segment::HEADER_BYTES), 0).await;
        page.truncate(read?);
        segment::check(&page, id, Stream::Values, &path, u64::MAX)?;
        let (fs, number) = (fs.clone(), id.number);
        let sections = Vec::new();
        Ok(Arc::new(ValueFile { number, fs, file, path, sections, retired: OnceLock::new() }))
    }

    /// Opens the file that `meta` describes, with `options`.
    ///
    /// # Errors
    ///
    /// `Corruption` when the file is missing or shorter, or does not check out; `NotSupported`
    /// when a newer version wrote it.
    pub(crate) async fn open(
        fs: &Fs,
        dir: &Path,
        meta: &ValuesMeta,
        options: OpenOptions,
    ) -> Result<Arc<ValueFile>> {
        let (checksum, segments) = match &meta.kind {
            Kind::Segment { salt } => {
                let id = FileId { number: meta.number, salt: *salt };
                return ValueFile::open_segment(fs, dir, id, options).await;
            }
            Kind::Rewritten { checksum, segments } => (*checksum, segments),
        };
        let (file, path) = open(fs, dir, meta.number, options).await?;
        let (number, file_bytes) = (meta.number, meta.bytes);
        let described = Described { path: &path, number, file_bytes, checksum };
        let sections = match read_sections(&file, described).await {
            Err(error) if is_worth_repeating(&error) => read_sections(&file, described).await?,
            sections => sections?,
        };
        if !sections.iter().map(|section| section.segment).eq(segments.iter().copied()) {
            let what = "the file has other segments than the manifest says";
            return Err(Error::corruption(path, 0, what));
        }
        let fs = fs.clone();
        Ok(Arc::new(ValueFile { number, fs, file, path, sections, retired: OnceLock::new() }))
    }

    pub(crate) fn number(&self) -> FileNumber {
        self.number
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The memory that it takes while open, in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        let sections = self.sections.iter();
        size_of::<ValueFile>() + sections.map(|s| s.offsets.resident_bytes()).sum::<usize>()
    }

    /// Where the bodies of a rewritten file end.
    pub(crate) fn bodies_end(&self) -> Option<u64> {
        self.sections.last().map(|section| section.offsets.end())
    }

    /// Another handle, for the background class.
    pub(super) async fn open_background(&self, direct: bool) -> Result<File> {
        let options = OpenOptions { direct, class: Class::Background, ..OpenOptions::default() };
        Ok(self.fs.open(self.path.clone(), options).await?)
    }

    /// The length of the file.
    pub(crate) async fn file_bytes(&self) -> Result<u64> {
        Ok(self.file.len().await?)
    }

    /// Sends the name of the file to `trash` when the last handle is dropped; until then its
    /// `bytes` count as `pinned`.
    pub(crate) fn retire(&self, trash: UnboundedSender<FileName>, bytes: u64, pinned: &Pinned) {
        // A second call changes nothing: the name must be sent once.
        self.retired.get_or_init(|| {
            // Order: a figure, it orders nothing.
            pinned.fetch_add(bytes, Ordering::Relaxed);
            Retired { trash, bytes, pinned: pinned.clone() }
        });
    }

    /// Where the body of `len` bytes stands that was written at `place`.
    ///
    /// # Errors
    ///
    /// `Corruption` when the file has no such body.
    pub(crate) fn locate(&self, place: Place, len: u32) -> Result<u64> {
        if self.sections.is_empty() || planted!(MapToOldPosition) {
            return Ok(u64::from(place.position));
        }
        let index = self.sections.binary_search_by_key(&place.segment, |s| s.segment).ok();
        let section = index.and_then(|index| self.sections.get(index));
        match section.and_then(|section| section.offsets.find(place.position)) {
            Some((offset, found)) if found == len => Ok(offset),
            _ => {
                let what = format!("nothing was kept of {place:?}");
                Err(Error::corruption(&self.path, 0, what))
            }
        }
    }

    fn range(&self, wanted: &Wanted<'_>) -> Result<(u64, usize)> {
        let body = wanted.pointer.body(wanted.key.len(), wanted.seqno);
        let offset = self.locate(Place::of(&wanted.pointer), body.len)?;
        Ok((offset, body.len as usize))
    }

    /// The value, if the page cache has it: one system call on this thread. A damaged one is none
    /// here: the way that may wait reads it again and reports it.
    pub(crate) fn read_now(&self, wanted: &Wanted<'_>) -> Option<Bytes> {
        let (offset, len) = self.range(wanted).ok()?;
        if len > NOW_BYTES_MAX || self.file.is_direct() {
            return None;
        }
        let mut bytes = vec![0; len];
        let read = self.file.try_read_at(&mut bytes, offset)?.ok()?;
        let bytes = Bytes::from(bytes);
        wanted.pointer.value(&bytes, wanted.key, wanted.seqno).ok().filter(|_| read == len)
    }

    /// The value.
    ///
    /// # Errors
    ///
    /// `Corruption` when it does not check out twice in a row, `Io` when it cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn read(&self, wanted: &Wanted<'_>) -> Result<Bytes> {
        match self.read_once(wanted).await {
            Err(error) if is_worth_repeating(&error) => self.read_once(wanted).await,
            result => result,
        }
    }

    async fn read_once(&self, wanted: &Wanted<'_>) -> Result<Bytes> {
        let (offset, len) = self.range(wanted)?;
        let bytes = read_bytes(&self.file, offset, len).await?;
        let value = wanted.pointer.value(&bytes, wanted.key, wanted.seqno);
        value.map_err(|what| Error::corruption(&self.path, offset, what))
    }
}

impl Drop for ValueFile {
    fn drop(&mut self) {
        if let Some(Retired { trash, bytes, pinned }) = self.retired.take() {
            pinned.fetch_sub(bytes, Ordering::Relaxed);
            // When nobody listens any more, the next open of the database removes the file.
            if trash.unbounded_send(FileName::Values(self.number)).is_err() {
                tracing::debug!(file = self.number, "retired after its database closed");
            }
        }
    }
}

/// Whether the same read may go better a second time.
pub(super) fn is_worth_repeating(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io) && !planted!(ReadOnce)
}

async fn open(
    fs: &Fs,
    dir: &Path,
    number: FileNumber,
    options: OpenOptions,
) -> Result<(File, PathBuf)> {
    let path = FileName::Values(number).in_dir(dir);
    match fs.open(path.clone(), options).await {
        Ok(file) => Ok((file, path)),
        Err(error) if error.is_not_found() => {
            let what = "a file of the value log that the manifest names is missing";
            Err(Error::corruption(path, 0, what))
        }
        Err(error) => Err(error.into()),
    }
}

async fn read_sections(file: &File, described: Described<'_>) -> Result<Vec<Section>> {
    let footer_at = described.file_bytes.saturating_sub(FOOTER_BYTES as u64);
    let footer = read_bytes(file, footer_at, FOOTER_BYTES).await?;
    let len = described.block_bytes(&footer)?;
    let block = read_bytes(file, footer_at - len as u64, len).await?;
    described.sections(&block, &footer)
}

/// The `len` bytes at `offset`, fewer at the end of the file.
async fn read_bytes(file: &File, offset: u64, len: usize) -> Result<Bytes> {
    let (from, wanted) = file.cover(offset, len);
    let (read, mut buf) = file.read_at(AlignedBuf::zeroed(wanted), from).await;
    buf.truncate(read?);
    let skip = usize::try_from(offset - from).expect("below BUF_ALIGN").min(buf.len());
    let end = (skip + len).min(buf.len());
    // What shares its read buffer should not keep much more memory than it weighs.
    let is_wasteful = wanted.next_multiple_of(BUF_ALIGN) - len > len / 8;
    let bytes = if is_wasteful {
        Bytes::copy_from_slice(buf.get(skip..end).unwrap_or_default())
    } else {
        buf.freeze().slice(skip..end)
    };
    Ok(bytes)
}
