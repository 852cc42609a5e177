//! The decoders as functions of bytes, for the fuzz targets in `tests/fuzz`.
//!
//! Compiled with `--cfg fuzzing` only, which cargo-fuzz sets: no build that a user makes has it.
//! Every function must return, whatever the bytes are; what it asserts is that decoding is the
//! inverse of encoding. A fuzzer cannot guess checksums, so the functions put the right ones in:
//! whoever damages a file on purpose can do so as well.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use bytes::Bytes;
use seerdb_io::{AlignedBuf, Env, OpenOptions};

use crate::batch;
use crate::codec::{Cursor, Sink, crc32c, crc32c_append, varint_len};
use crate::error::{Error, Result};
use crate::filename::FileName;
use crate::filter::{Filter, key_hash};
use crate::key::{SEQNO_MAX, SeqNo, Trailer, prefix_end};
use crate::log::format as segment;
use crate::log::replay::{self, Known, SegmentRef};
use crate::record::{self, FileId, HEADER_BYTES, Header, RecordType};
use crate::sstable::Block;
use crate::sstable::format::{self as table, BlockKind, FOOTER_BYTES, FileRef, Footer, Handle};
use crate::sstable::index::Index;
use crate::version::edit::VersionEdit;
use crate::version::state::State;
use crate::version::{format as version, manifest};

const ID: FileId = FileId { number: 7, salt: 0x5EED_0DB0_0000_0001 };
const UNIT: usize = 4096;

fn table_file() -> FileRef<'static> {
    FileRef { path: Path::new("000007.sst"), number: ID.number }
}

/// `bytes` with the four at `at`, where there are so many, replaced by the CRC32C of those before
/// and of `more`.
fn sealed(bytes: &[u8], at: usize, more: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    if let Some((covered, rest)) = sealed.split_at_mut_checked(at)
        && let Some(slot) = rest.first_chunk_mut()
    {
        *slot = crc32c_append(crc32c(covered), more).to_le_bytes();
    }
    sealed
}

/// Varints and slices.
pub fn codec(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    while !cursor.is_empty() {
        let before = cursor;
        let Some(value) = cursor.varint() else {
            cursor = before;
            cursor.u8();
            continue;
        };
        let mut again = Vec::new();
        again.put_varint(value);
        assert_eq!(again.len(), varint_len(value));
        assert_eq!(before.remaining() - cursor.remaining(), again.len(), "{value} is canonical");
        let mut length = before;
        assert!(length.slice().is_none_or(|slice| slice.len() as u64 == value));
    }
}

/// Trailers of internal keys, and the ends of prefixes.
pub fn key(bytes: &[u8]) {
    if let Some(raw) = bytes.first_chunk().map(|raw| u64::from_le_bytes(*raw))
        && let Some(trailer) = Trailer::from_u64(raw)
    {
        assert_eq!(Trailer::new(trailer.seqno(), trailer.kind()), trailer);
    }
    match prefix_end(bytes) {
        Some(end) => assert!(end.as_slice() > bytes && !end.starts_with(bytes)),
        None => assert!(bytes.iter().all(|byte| *byte == 0xFF)),
    }
}

/// Names of files.
pub fn file_name(bytes: &[u8]) {
    if let Some(name) = FileName::parse(OsStr::from_bytes(bytes)) {
        assert_eq!(name.to_string().as_bytes(), bytes);
    }
}

/// The header of a record, with and without the right checksum, and the search for headers.
pub fn record_header(bytes: &[u8]) {
    let position = bytes.len() as u64;
    assert!(record::candidates(bytes, 1).all(|at| at >= 1 && at + 1 < bytes.len()));
    Header::decode(bytes, ID, position);
    let place = [ID.number, ID.salt, position].map(u64::to_le_bytes).concat();
    let sealed = sealed(bytes, HEADER_BYTES - 4, &place);
    if let Some(header) = Header::decode(&sealed, ID, position) {
        assert!(sealed.starts_with(&header.encode(ID, position)));
        assert!(header.last_seqno() <= SEQNO_MAX);
        header.matches(0, &sealed);
    }
}

/// The payload of a data record.
pub fn batch(bytes: &[u8]) {
    if let Some(ops) = batch::decode(bytes) {
        let mut again = Vec::new();
        for op in &ops {
            assert!(op.memory_bytes() >= op.key.len() + op.value.len());
            again.put(&op.head());
            again.put(&op.key);
            again.put(&op.value);
        }
        assert_eq!(again, bytes, "the encoding is canonical");
    }
}

/// The header page of a log segment.
pub fn segment_header(bytes: &[u8]) {
    for page in [bytes, &sealed(bytes, 40, &[])] {
        let found = segment::identity(page);
        let id = found.unwrap_or(ID);
        let checked = segment::check(page, id, 0, Path::new("000007.wal"), u64::MAX);
        assert!(found.is_none() || checked.is_ok(), "{checked:?}");
    }
}

/// What a replay makes of a whole segment: the records that `script` describes, all with the
/// right checksums, and bytes between them. The file is made in `dir`.
pub async fn log_segment(env: &Env, dir: &Path, script: &[u8]) -> Result<()> {
    struct Decoder;
    impl replay::Sink for Decoder {
        fn commit(
            &mut self,
            header: &Header,
            payload: &[u8],
            path: &Path,
            offset: u64,
        ) -> Result<()> {
            let bad = || Error::corruption(path, offset, "a commit cannot be decoded");
            let ops = batch::decode(payload).ok_or_else(bad)?;
            assert!(header.last_seqno() <= SEQNO_MAX && ops.len() <= payload.len());
            Ok(())
        }

        async fn breathe(&mut self) -> Result<()> {
            Ok(())
        }
    }
    let mut cursor = Cursor::new(script);
    let flushed = cursor.u8().map_or(0, SeqNo::from);
    let mut bytes = segment::encode(ID, segment::Stream::Wal, 0);
    put_records(&mut cursor, &mut bytes, flushed, 1);
    bytes.resize(bytes.len().next_multiple_of(UNIT), 0);
    let header = segment::encode(ID, segment::Stream::Wal, bytes.len() as u64);
    bytes.splice(..header.len(), header);
    let path = FileName::Wal(ID.number).in_dir(dir);
    let options = OpenOptions { write: true, create_new: true, ..OpenOptions::default() };
    let mut buf = AlignedBuf::with_capacity(bytes.len());
    buf.extend_from_slice(&bytes);
    env.fs().open(path.clone(), options).await?.write_at(buf, 0).await.0?;
    let segments = [SegmentRef { id: ID, stream: 0 }];
    let known = Known { flushed, durable: 0 };
    let replayed = replay::replay(env, dir, &segments, known, &mut Decoder).await;
    let behind = replay::prove_behind(env, dir, ID.number, flushed).await;
    env.fs().remove_file(path).await?;
    if let Ok(replayed) = replayed {
        assert!(replayed.last_seqno >= flushed && replayed.last_seqno <= SEQNO_MAX);
    }
    behind
}

/// Appends records with right checksums, as `script` says: plain ones in sequence, or with fields
/// that make no sense, each at a multiple of `unit`; and other bytes.
fn put_records(script: &mut Cursor<'_>, out: &mut Vec<u8>, last: SeqNo, unit: usize) {
    let mut chain = record::chain_start(ID);
    let mut next = last + 1;
    while let Some(step) = put_record(script, out, &mut chain, &mut next)
        && out.len() < 1 << 20
    {
        let len = if step { out.len().next_multiple_of(unit) } else { out.len() };
        out.resize(len, 0);
    }
}

/// One step of the script: whether it was a record; `None` at its end.
fn put_record(
    script: &mut Cursor<'_>,
    out: &mut Vec<u8>,
    chain: &mut u32,
    next: &mut SeqNo,
) -> Option<bool> {
    let how = script.u8()?;
    let len = usize::from(script.u8()?) * if how & 0x40 == 0 { 1 } else { 64 };
    let bytes = script.bytes(len.min(script.remaining()))?;
    let kind = match how & 3 {
        0 => {
            out.put(bytes);
            return Some(false);
        }
        1 => RecordType::Data,
        2 => RecordType::Mark,
        _ => RecordType::Edit,
    };
    let count = match kind {
        RecordType::Data => script.u8().map_or(1, u32::from),
        RecordType::Mark => 0,
        RecordType::Edit => 1,
    };
    let mut header = Header {
        kind,
        payload_bytes: u32::try_from(bytes.len()).expect("at most 64 times 255"),
        span: u32::try_from(HEADER_BYTES + bytes.len()).expect("at most 64 times 255"),
        count,
        first_seqno: *next,
        durable_seqno: *next - 1,
        chain: record::chain(*chain, crc32c(bytes)),
    };
    *next += u64::from(count);
    *chain = header.chain;
    if how & 4 != 0 {
        header.first_seqno = script.u64()? & SEQNO_MAX;
    }
    if how & 8 != 0 {
        header.durable_seqno = script.u64()? & SEQNO_MAX;
    }
    if how & 16 != 0 {
        header.span = script.u32()?;
    }
    if how & 32 != 0 {
        header.payload_bytes = script.u32()?;
    }
    let unit = if kind == RecordType::Edit || how & 0x80 != 0 { UNIT } else { 1 };
    if how & 16 == 0 {
        let span = (header.span as usize).next_multiple_of(unit);
        header.span = u32::try_from(span).expect("a unit more");
    }
    let end = out.len() + (header.span as usize).min(1 << 16);
    out.put(&header.encode(ID, out.len() as u64));
    out.put(bytes);
    out.resize(end.max(out.len()), 0);
    Some(true)
}

/// The footer of a table.
pub fn footer(bytes: &[u8]) {
    let size = 1 << 20;
    let magic = b"seerdb\0T";
    let mut sealed = sealed(bytes, FOOTER_BYTES - 12, magic);
    if let Some(slot) = sealed.get_mut(FOOTER_BYTES - 8..FOOTER_BYTES) {
        slot.copy_from_slice(magic);
    }
    for footer in [bytes, &sealed] {
        if let Ok(found) = Footer::decode(table_file(), size, footer) {
            assert_eq!(found.encode(ID.number).as_slice(), footer);
            assert_eq!(footer.len(), FOOTER_BYTES);
        }
    }
}

/// The index block of a table, and searches in it. The first byte says how to search.
pub fn index(bytes: &[u8]) {
    let Some((asked, bytes)) = bytes.split_first() else { return };
    let count = Cursor::new(bytes).u32().unwrap_or(0).min(1 << 16) as usize;
    // The last block ends where the data ends.
    let last = bytes.get(4 + 16 * count.saturating_sub(1)..).map(Cursor::new);
    let end = last.and_then(|mut at| Handle::decode(&mut at)).and_then(|handle| handle.end());
    let Ok(index) = Index::decode(bytes, end.unwrap_or(0)) else { return };
    for block in [0, usize::from(*asked) % index.len(), index.len() - 1] {
        let key = index.key(block).to_vec();
        for trailer in [Trailer::seek(0), Trailer::seek(SEQNO_MAX)] {
            assert!(index.find(&key, trailer).is_none_or(|found| found < index.len()));
            index.admits(block, &key, trailer);
        }
        assert!(!index.continues(index.len(), &key));
        assert!(index.span_up(block, 4096).contains(&block));
        assert!(index.span_down(block, 4096).contains(&block));
    }
    assert!(index.resident_bytes() >= index.len() * 16);
}

/// The filter block of a table.
pub fn filter(bytes: &[u8]) {
    if let Some(filter) = Filter::decode(Bytes::copy_from_slice(bytes)) {
        for hash in [0, u64::MAX, key_hash(bytes)] {
            filter.may_contain(hash);
        }
        assert!(filter.resident_bytes() <= bytes.len() + 64);
    }
}

/// A data block once it is unpacked, and searches in it.
pub fn block(bytes: &[u8]) {
    let Ok(block) = Block::decode(Bytes::copy_from_slice(bytes)) else { return };
    assert_eq!(block.tags().len(), block.len());
    for (index, tag) in block.tags().iter().enumerate() {
        let entry = block.at(index);
        let key = block.key(entry);
        assert_eq!(block.value(entry), block.value_bytes(entry));
        if index < 64 {
            assert!(block.seek(key, entry.trailer) <= block.len());
            assert!(block.get(key, *tag, SEQNO_MAX).is_some(), "every entry is found");
        }
    }
    block.seek(b"", Trailer::seek(SEQNO_MAX));
}

/// A data block as it is stored, packed or not, under the right checksum.
pub fn stored_block(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    let (Some(how), Some(raw)) = (cursor.u8(), cursor.u32()) else { return };
    let Some(stored) = cursor.bytes(cursor.remaining()) else { return };
    let how = if how & 1 == 0 { table::Stored::Plain } else { table::Stored::Lz4 };
    let len = u32::try_from(stored.len()).expect("inputs are small");
    let raw = if how == table::Stored::Plain { len } else { raw & 0xF_FFFF };
    let handle = Handle { offset: 4096, stored: len, raw };
    let trailer = table::block_trailer(ID.number, handle.offset, BlockKind::Data, how, stored);
    let file = Bytes::from([stored, &trailer].concat());
    if let Ok(found) = table::open_block(table_file(), BlockKind::Data, handle, &file) {
        assert_eq!(found.len(), raw as usize);
        block(&found);
    }
    table::open_block(table_file(), BlockKind::Index, handle, &file).ok();
}

/// A version edit, and the state behind it.
pub fn edit(bytes: &[u8]) {
    let Ok(edit) = VersionEdit::decode(bytes) else { return };
    let mut again = Vec::new();
    edit.encode(&mut again);
    assert_eq!(VersionEdit::decode(&again).as_ref(), Ok(&edit));
    if let Ok(state) = State::empty().apply(&edit) {
        let snapshot = state.snapshot();
        assert_eq!(State::empty().apply(&snapshot).as_ref(), Ok(&state));
        // Once more it contradicts itself, or does not.
        state.apply(&edit).ok();
    }
}

/// A manifest of the records that `script` describes, and the state behind its edits.
pub fn manifest(script: &[u8]) {
    let mut bytes = version::encode_header(ID);
    put_records(&mut Cursor::new(script), &mut bytes, 0, UNIT);
    bytes.resize(bytes.len() + UNIT, 0);
    let Ok(edits) = manifest::replay(Path::new("MANIFEST-000007"), &bytes, ID) else { return };
    let mut state = State::empty();
    for (_, edit) in edits {
        let Ok(next) = state.apply(&edit) else { return };
        state = next;
    }
    assert_eq!(State::empty().apply(&state.snapshot()).as_ref(), Ok(&state));
}

/// The header page of a manifest.
pub fn manifest_header(bytes: &[u8]) {
    let mut page = bytes.to_vec();
    page.resize(UNIT, 0);
    if let Ok(id) = version::decode_header(&sealed(&page, UNIT - 4, &[])) {
        let again = version::encode_header(id);
        assert_eq!(version::decode_header(&again), Ok(id));
    }
    version::decode_header(bytes).ok();
    manifest::replay(Path::new("MANIFEST-000007"), bytes, ID).ok();
}

/// CURRENT.
pub fn current(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    if let Some(covered) = bytes.get(..34) {
        let end = format!("{:08x}\n", crc32c(covered));
        sealed.splice(34.., end.into_bytes());
    }
    for line in [bytes, &sealed] {
        if let Some(id) = version::decode_current(line) {
            assert_eq!(version::encode_current(id), line);
        }
    }
}
