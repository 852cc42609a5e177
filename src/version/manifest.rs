//! The manifest: the log of version edits, and CURRENT, the file that names the manifest in force.
//! The bytes are in [`super::format`].
//!
//! Invariants:
//! 1. An edit is in force only when its record, and then the mark record behind it, are written
//!    and synced; nothing that follows from an edit (deleting a file, acknowledging a flush)
//!    happens before. So an edit that is damaged later is contradicted by its mark, or by what
//!    follows the mark, and never passes for a torn tail.
//! 2. Every record stands in whole units of 4 KiB of its own: a torn write never touches a record
//!    that was in force.
//! 3. A manifest is appended to only by the process that created it. After any failed write or
//!    sync the writer is not used again.
//! 4. At least one unit behind the last record belongs to the file: a file that ends sooner was
//!    cut short. Space is there, durably, before it is written to, so that no crash within an
//!    append shortens it.
//! 5. CURRENT is replaced only when the manifest that it will name is durable, its name included.
//!
//! Reading stops at the first bad record. If any valid record header behind it declares the
//! missing edit durable the manifest is damaged; otherwise the rest is a torn tail. An edit that is
//! whole but has no mark is taken: whoever wrote it did not act on it, and all that it refers to
//! was made durable before it.

use std::path::{Path, PathBuf};

use seerdb_io::{AlignedBuf, Class, File, Fs, OpenOptions};

use crate::error::{Error, ErrorKind, Result};
use crate::filename::FileName;
use crate::record::{self, FileId, HEADER_BYTES, Header, RecordType};

use super::edit::{BadEdit, VersionEdit};
use super::format::{self, BadHeader, CURRENT_BYTES, UNIT};

/// The file is extended in steps of this size, so that an append finds its space reserved.
const ALLOCATE_BYTES: u64 = 256 * 1024;
/// A manifest beyond this size was not written by us; reading it would need unbounded memory.
const MANIFEST_BYTES_MAX: u64 = 1 << 30;

/// The appending end of the manifest in force.
pub(super) struct Writer {
    file: File,
    id: FileId,
    /// Where the next record goes; a multiple of [`UNIT`].
    position: u64,
    /// Bytes of the file that are allocated.
    allocated: u64,
    /// The file was extended, and no sync has made that durable yet.
    is_grown: bool,
    chain: u32,
    /// The number of the last edit in force.
    edit: u64,
}

impl Writer {
    /// Creates the manifest `id` with `snapshot` as its first edit; durable when it returns, its
    /// name included. CURRENT is not touched.
    pub(super) async fn create(
        fs: &Fs,
        dir: &Path,
        id: FileId,
        snapshot: &VersionEdit,
    ) -> Result<Writer> {
        assert!(id.number > 0, "file numbers begin at 1");
        let path = FileName::Manifest(id.number).in_dir(dir);
        let options =
            OpenOptions { write: true, create_new: true, direct: false, class: Class::Background };
        let file = fs.open(path, options).await?;
        let chain = record::chain_start(id);
        let (position, allocated) = (UNIT as u64, 0);
        let mut writer = Writer { file, id, position, allocated, is_grown: false, chain, edit: 0 };
        let payload = encode(snapshot);
        writer.reserve(&payload).await?;
        // Nothing refers to this file before the syncs of its first edit.
        writer.is_grown = false;
        let header = format::encode_header(id);
        write(&writer.file, &header, 0).await?;
        writer.append(&payload).await?;
        fs.sync_dir(dir).await?;
        Ok(writer)
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    /// For tests of failing writes.
    #[cfg(test)]
    pub(super) fn replace_file(&mut self, file: File) {
        self.file = file;
    }

    /// The bytes in use.
    pub(super) fn bytes(&self) -> u64 {
        self.position
    }

    /// Makes sure that the file has space for an edit. Failing changes nothing: the writer stays
    /// usable.
    pub(super) async fn reserve(&mut self, payload: &[u8]) -> Result<()> {
        // The mark, and the spare unit (invariant 4).
        let end = self.position + span(payload.len()) + 2 * UNIT as u64;
        if end > self.allocated {
            let len = end.next_multiple_of(ALLOCATE_BYTES);
            self.file.allocate(len).await?;
            self.allocated = len;
            self.is_grown = true;
        }
        assert!(end <= self.allocated);
        Ok(())
    }

    /// Appends an edit; in force when it returns. After an error, or when dropped midway, the
    /// writer must not be used again (invariant 3).
    pub(super) async fn append(&mut self, payload: &[u8]) -> Result<()> {
        let number = self.edit + 1;
        assert_eq!(self.position % UNIT as u64, 0, "records begin at units");
        if self.is_grown {
            // Else a power cut could leave the edit, whole, as the last unit of the file: that is
            // what a file looks like that was cut short behind it (invariant 4).
            self.file.sync_data().await?;
            self.is_grown = false;
        }
        let count = 1;
        self.write_record(RecordType::Edit, number, count, self.edit, payload).await?;
        if planted!(SkipSyncsOfManifest) {
            self.write_record(RecordType::Mark, number + 1, 0, number, &[]).await?;
            self.edit = number;
            return Ok(());
        }
        if !planted!(SkipSyncOfEdit) {
            self.file.sync_data().await?;
        }
        self.write_record(RecordType::Mark, number + 1, 0, number, &[]).await?;
        self.file.sync_data().await?;
        self.edit = number;
        Ok(())
    }

    async fn write_record(
        &mut self,
        kind: RecordType,
        first_seqno: u64,
        count: u32,
        durable_seqno: u64,
        payload: &[u8],
    ) -> Result<()> {
        let span = span(payload.len());
        let chain = record::chain(self.chain, crate::codec::crc32c(payload));
        let header = Header {
            kind,
            payload_bytes: u32::try_from(payload.len()).expect("edits are below 4 GiB"),
            span: u32::try_from(span).expect("edits are below 4 GiB"),
            count,
            first_seqno,
            durable_seqno,
            chain,
        };
        let mut bytes = header.encode(self.id, self.position).to_vec();
        bytes.extend_from_slice(payload);
        bytes.resize(usize::try_from(span).expect("just encoded"), 0);
        assert!(self.position + span <= self.allocated, "an append without reserve");
        write(&self.file, &bytes, self.position).await?;
        self.chain = chain;
        self.position += span;
        Ok(())
    }
}

/// The payload of the record of `edit`.
pub(super) fn encode(edit: &VersionEdit) -> Vec<u8> {
    let mut payload = Vec::new();
    edit.encode(&mut payload);
    payload
}

/// The bytes that a record of `payload` bytes takes.
fn span(payload: usize) -> u64 {
    (HEADER_BYTES + payload).next_multiple_of(UNIT) as u64
}

async fn write(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    let mut buf = AlignedBuf::with_capacity(bytes.len());
    buf.extend_from_slice(bytes);
    let (result, _) = file.write_at(buf, offset).await;
    let written = result?;
    assert_eq!(written, bytes.len(), "a short write counted as success");
    Ok(())
}

/// Makes CURRENT name the durable manifest `id`. After an error either manifest may be in force.
pub(super) async fn point_current(fs: &Fs, dir: &Path, id: FileId) -> Result<()> {
    let temp = FileName::CurrentTemp.in_dir(dir);
    match fs.remove_file(temp.clone()).await {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => {}
    }
    let options =
        OpenOptions { write: true, create_new: true, direct: false, class: Class::Background };
    let file = fs.open(temp.clone(), options).await?;
    write(&file, &format::encode_current(id), 0).await?;
    if !planted!(SkipSyncOfCurrent) {
        file.sync_data().await?;
    }
    fs.rename(temp, FileName::Current.in_dir(dir)).await?;
    if !planted!(SkipDirSyncOfCurrent) {
        fs.sync_dir(dir).await?;
    }
    Ok(())
}

/// The manifest that CURRENT names.
pub(super) async fn read_current(fs: &Fs, dir: &Path) -> Result<FileId> {
    let path = FileName::Current.in_dir(dir);
    let file = fs.open(path.clone(), OpenOptions::default()).await?;
    let buf = AlignedBuf::zeroed(CURRENT_BYTES + 1);
    let (result, mut buf) = file.read_at(buf, 0).await;
    buf.truncate(result?);
    format::decode_current(&buf)
        .ok_or_else(|| Error::corruption(path, 0, "CURRENT is damaged: it names no manifest"))
}

/// An edit and the offset of its record.
pub(crate) type ReadEdit = (u64, VersionEdit);

/// All edits in force of the manifest `id`.
pub(super) async fn read(fs: &Fs, dir: &Path, id: FileId) -> Result<Vec<ReadEdit>> {
    let path = FileName::Manifest(id.number).in_dir(dir);
    let options = OpenOptions { class: Class::Background, ..OpenOptions::default() };
    let file = match fs.open(path.clone(), options).await {
        Err(error) if error.is_not_found() => {
            return Err(Error::corruption(path, 0, "the manifest that CURRENT names is missing"));
        }
        file => file?,
    };
    let len = file.len().await?;
    if len > MANIFEST_BYTES_MAX {
        return Err(Error::corruption(path, len, "the manifest is longer than any we write"));
    }
    let buf = AlignedBuf::zeroed(usize::try_from(len).expect("bounded above"));
    let (result, mut buf) = file.read_at(buf, 0).await;
    buf.truncate(result?);
    replay(&path, &buf, id)
}

/// All edits in force in the `bytes` of the manifest `id`.
pub(crate) fn replay(path: &Path, bytes: &[u8], id: FileId) -> Result<Vec<ReadEdit>> {
    match format::decode_header(bytes) {
        Ok(found) if found == id => {}
        Ok(_) => return Err(Error::corruption(path, 0, "this is not the manifest in CURRENT")),
        Err(BadHeader::Damaged) => {
            return Err(Error::corruption(path, 0, "the header page of the manifest is damaged"));
        }
        Err(BadHeader::Newer(version)) => {
            let what = format!("{}: manifest format {version} is newer than 1", path.display());
            return Err(Error::new(ErrorKind::NotSupported, what));
        }
    }
    let mut reader = Reader { bytes, id, position: UNIT, chain: record::chain_start(id) };
    let mut edits: Vec<ReadEdit> = Vec::new();
    loop {
        let number = edits.len() as u64 + 1;
        let position = reader.position;
        let Some(payload) = reader.record(RecordType::Edit, number, number - 1) else { break };
        edits.push((position as u64, decode(path, position as u64, payload)?));
        if reader.record(RecordType::Mark, number + 1, number).is_none() {
            break;
        }
    }
    let missing = edits.len() as u64 + 1;
    if missing == 1 || reader.proves(missing) {
        let what = format!("edit {missing} of the manifest is damaged");
        return Err(Error::corruption(path, reader.position.min(bytes.len()) as u64, what));
    }
    if reader.position + UNIT > bytes.len() || reader.is_cut() {
        let what = format!("the manifest was cut short behind edit {}", edits.len());
        return Err(Error::corruption(path, bytes.len() as u64, what));
    }
    Ok(edits)
}

fn decode(path: &Path, position: u64, payload: &[u8]) -> Result<VersionEdit> {
    VersionEdit::decode(payload).map_err(|bad| match bad {
        BadEdit::Malformed => {
            Error::corruption(PathBuf::from(path), position, "a version edit makes no sense")
        }
        BadEdit::UnknownTag(tag) => Error::new(
            ErrorKind::NotSupported,
            format!("{}: version edit item {tag} is of a newer version", path.display()),
        ),
    })
}

/// Walks over the records of a manifest in memory.
struct Reader<'a> {
    bytes: &'a [u8],
    id: FileId,
    /// Where the next record begins, or the first bad one.
    position: usize,
    chain: u32,
}

impl<'a> Reader<'a> {
    /// The payload of the next record, if it is whole and as expected.
    fn record(&mut self, kind: RecordType, first_seqno: u64, durable: u64) -> Option<&'a [u8]> {
        assert_eq!(self.position % UNIT, 0, "records begin at units");
        let rest = self.bytes.get(self.position..)?;
        let header = Header::decode(rest, self.id, self.position as u64)?;
        let payload_end = HEADER_BYTES.checked_add(header.payload_bytes as usize)?;
        let payload = rest.get(HEADER_BYTES..payload_end)?;
        let is_expected = header.kind == kind
            && header.first_seqno == first_seqno
            && header.count == u32::from(kind == RecordType::Edit)
            && header.durable_seqno == durable
            && u64::from(header.span) == span(payload.len());
        if !is_expected || !header.matches(self.chain, payload) {
            return None;
        }
        self.chain = header.chain;
        self.position += header.span as usize;
        Some(payload)
    }

    /// Whether the bad record reaches beyond the end of the file (invariant 4).
    fn is_cut(&self) -> bool {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        Header::decode(rest, self.id, self.position as u64)
            .is_some_and(|header| u64::from(header.span) > rest.len() as u64)
    }

    /// Whether a record behind the bad one declares edit `missing` durable. A record of ours can
    /// begin at units only, yet a header is looked for wherever its magic stands: a false length
    /// must not hide anything.
    fn proves(&self, missing: u64) -> bool {
        record::candidates(self.bytes, self.position)
            .filter_map(|at| {
                let rest = self.bytes.get(at..)?;
                Header::decode(rest, self.id, at as u64)
            })
            .any(|header| header.durable_seqno >= missing)
    }
}

#[cfg(test)]
mod tests;
