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

use crate::batch::{self, WriteOp};
use crate::codec::{Cursor, Sink, crc32c, crc32c_append, varint_len};
use crate::error::{Error, Result};
use crate::filename::FileName;
use crate::filter::{Filter, key_hash};
use crate::key::{KeyBuf, SEQNO_MAX, SeqNo, Trailer, VALUE_BYTES_MAX, prefix_end};
use crate::log::format as segment;
use crate::log::format::Stream;
use crate::log::reader::SegmentRef;
use crate::log::replay::{self, Known, Origin};
use crate::lz4::Packer;
use crate::pointer::Pointer;
use crate::record::{self, FileId, HEADER_BYTES, HEADER_SPAN, Header, RecordType};
use crate::sstable::Block;
use crate::sstable::format::{self as table, BlockKind, FOOTER_BYTES, FileRef, Footer, Handle};
use crate::sstable::index::Index;
use crate::sstable::references::{self, Reference};
use crate::version::edit::VersionEdit;
use crate::version::state::State;
use crate::version::{format as version, manifest};
use crate::vlog::format::{self as rewritten, Described, FOOTER_BYTES as VALUES_FOOTER};

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
            let (kind, key) = (op.kind, KeyBuf::from_slice(op.key));
            let value = Bytes::copy_from_slice(op.value);
            let written = WriteOp { kind, key, value, raw: op.raw };
            assert!(written.memory_bytes() >= op.key.len());
            assert_eq!(bytes.get(op.key_at..op.key_at + op.key.len()), Some(op.key));
            again.put(&written.head());
            again.put(op.key);
            again.put(op.value);
        }
        assert_eq!(again, bytes, "the encoding is canonical");
    }
}

/// The header page of a log segment, of either stream.
pub fn segment_header(bytes: &[u8]) {
    for page in [bytes, &sealed(bytes, 40, &[])] {
        for stream in [Stream::Wal, Stream::Values] {
            let path = stream.file_name(ID.number).in_dir(Path::new(""));
            let found = segment::identity(page, stream);
            let id = found.unwrap_or(ID);
            let checked = segment::check(page, id, stream, &path, u64::MAX);
            assert!(found.is_none() || checked.is_ok(), "{checked:?}");
        }
    }
}

/// A pointer, and what it makes of the bytes that it leads to. The first bytes say how long the
/// key and the pointer are.
pub fn pointer(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    let (Some(key_len), Some(len)) = (cursor.u8(), cursor.u8()) else { return };
    let (key_len, len) = (usize::from(key_len), usize::from(len % 32));
    let (Some(encoded), Some(seqno)) = (cursor.bytes(len), cursor.u64()) else { return };
    let seqno = seqno & SEQNO_MAX;
    let body = cursor.bytes(cursor.remaining()).unwrap_or_default();
    let Some((key, stored)) = body.split_at_checked(key_len) else { return };
    let found = Pointer::decode(encoded);
    if let Some(found) = found {
        assert_eq!(found.encode().as_slice(), encoded);
        assert!(found.stored <= found.raw && found.raw as usize <= VALUE_BYTES_MAX);
        check_value(&found, body, key, seqno);
    }
    // The same place and length under the right check: then the bytes decide.
    let (segment, position, raw) = found.map_or((7, 4096, 0), |p| (p.segment, p.position, p.raw));
    let len = u32::try_from(stored.len()).expect("inputs are small");
    let led = Pointer::new(segment, position, key, stored, raw.max(len), seqno);
    assert_eq!(Pointer::decode(&led.encode()), Some(led));
    assert_eq!(led.body(key.len(), seqno).crc, crc32c(body));
    check_value(&led, body, key, seqno);
    let plain = Pointer::new(segment, position, key, stored, len, seqno);
    assert_eq!(check_value(&plain, body, key, seqno).as_deref(), Some(stored));
    assert!(check_value(&plain, body, key, seqno ^ 1).is_none(), "another commit");
    let longer = [body, &[0]].concat();
    assert!(check_value(&plain, &longer, key, seqno).is_none(), "another length");
    if let Some(packed) = Packer::default().pack(stored) {
        let body = [key, packed].concat();
        let packed = Pointer::new(segment, position, key, packed, len, seqno);
        assert_eq!(check_value(&packed, &body, key, seqno).as_deref(), Some(stored));
    }
}

/// The value in `read`, if it is one; its length is what the pointer says.
fn check_value(pointer: &Pointer, read: &[u8], key: &[u8], seqno: SeqNo) -> Option<Bytes> {
    let value = pointer.value(&Bytes::copy_from_slice(read), key, seqno).ok()?;
    assert_eq!(value.len(), pointer.raw as usize);
    Some(value)
}

/// What a replay makes of a whole segment: the records that `script` describes, all with the
/// right checksums, and bytes between them. The file is made in `dir`.
pub async fn log_segment(env: &Env, dir: &Path, script: &[u8]) -> Result<()> {
    struct Decoder;
    impl replay::Sink for Decoder {
        fn commit(&mut self, header: &Header, payload: &[u8], origin: &Origin<'_>) -> Result<()> {
            let what = "a commit cannot be decoded";
            let bad = || Error::corruption(origin.path, origin.offset, what);
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
    let mut bytes = segment::encode(ID, Stream::Wal, 0);
    put_records(&mut cursor, &mut bytes, flushed, 1);
    bytes.resize(bytes.len().next_multiple_of(UNIT), 0);
    let header = segment::encode(ID, Stream::Wal, bytes.len() as u64);
    bytes.splice(..header.len(), header);
    let path = FileName::Wal(ID.number).in_dir(dir);
    let options = OpenOptions { write: true, create_new: true, ..OpenOptions::default() };
    let mut buf = AlignedBuf::with_capacity(bytes.len());
    buf.extend_from_slice(&bytes);
    env.fs().open(path.clone(), options).await?.write_at(buf, 0).await.0?;
    let segments = [SegmentRef { id: ID, stream: Stream::Wal }];
    let known = Known { flushed, durable: 0 };
    let replayed = replay::replay(env, dir, &segments, known, &mut Decoder).await;
    let behind = replay::prove_behind(env, dir, Stream::Wal, ID.number, flushed).await;
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
        header.first_seqno = (script.u64()? & SEQNO_MAX) + 1;
        header.durable_seqno = header.durable_seqno.min(header.first_seqno - 1);
    }
    if how & 8 != 0 {
        header.durable_seqno = (script.u64()? & SEQNO_MAX).min(header.first_seqno - 1);
    }
    if how & 32 != 0 {
        header.payload_bytes = script.u32()?.min(u32::MAX - (1 << 17));
        header.span = HEADER_SPAN + header.payload_bytes;
    }
    if how & 16 != 0 {
        header.span += u32::from(script.u16()?);
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

/// What a table refers to in one segment: the block, as the manifest sums it up or not.
pub fn references(bytes: &[u8]) {
    let mut cursor = Cursor::new(bytes);
    let (Some(bodies), Some(sum)) = (cursor.varint(), cursor.varint()) else { return };
    let block = cursor.bytes(cursor.remaining()).unwrap_or_default();
    let segment = Cursor::new(block).varint().unwrap_or(0);
    let len = u32::try_from(block.len()).expect("inputs are small");
    let handle = Handle { offset: 4096, stored: len, raw: len };
    let said = Reference { segment, bodies, bytes: sum, handle };
    references::decode(block, &said).ok();
    // What the block lists, checks and order aside.
    let mut entries = Cursor::new(block);
    entries.varint();
    let (mut bodies, mut sum) = (0, 0u64);
    while let (Some(_), Some(len), Some(_)) = (entries.varint(), entries.varint(), entries.u32()) {
        (bodies, sum) = (bodies + 1, sum.saturating_add(len));
    }
    let fitting = Reference { bodies, bytes: sum, ..said };
    let Ok(found) = references::decode(block, &fitting) else { return };
    assert!(found.is_sorted_by(|a, b| a.position < b.position));
    assert_eq!(references::encode(segment, &found), block, "the encoding is canonical");
    assert_eq!(references::decode(block, &said).is_ok(), said == fitting);
}

/// The end of a rewritten file of the value log: the sections block, and the footer behind it.
pub fn rewritten(bytes: &[u8]) {
    rewritten_footer(bytes);
    let body_bytes = bodies_of_sections(bytes).unwrap_or(0);
    let Some(file_bytes) = body_bytes.checked_add((bytes.len() + VALUES_FOOTER) as u64) else {
        return;
    };
    let (footer, checksum) = rewritten::footer(ID.number, body_bytes, bytes);
    let file = Described { path: Path::new("000007.vlog"), number: 7, file_bytes, checksum };
    assert_eq!(file.block_bytes(&footer).ok(), Some(bytes.len()));
    let Ok(sections) = file.sections(&Bytes::copy_from_slice(bytes), &footer) else { return };
    assert!(sections.is_sorted_by(|a, b| a.segment < b.segment));
    let mut block = Cursor::new(bytes);
    let mut offset = 0;
    for section in &sections {
        let (segment, _) = (block.varint(), block.varint());
        assert_eq!(segment, Some(section.segment));
        let mut entries = Cursor::new(block.slice().unwrap_or_default());
        let mut position = 0u64;
        while let (Some(step), Some(len)) = (entries.varint(), entries.varint()) {
            position += step;
            let at = u32::try_from(position).expect("it was decoded");
            assert_eq!(
                section.offsets.find(at).map(|(at, len)| (at, len.into())),
                Some((offset, len))
            );
            offset += len;
        }
        assert_eq!(section.offsets.end(), offset);
        for position in [0, u32::MAX] {
            let found = section.offsets.find(position);
            assert!(found.is_none_or(|(at, len)| at + u64::from(len) <= offset));
        }
    }
    assert_eq!(offset, body_bytes);
}

/// The footer of a rewritten file, with and without the right checksum.
fn rewritten_footer(bytes: &[u8]) {
    let footer = bytes.get(..VALUES_FOOTER).unwrap_or(bytes);
    for footer in [footer, &sealed(footer, VALUES_FOOTER - 4, &[])] {
        let number = |at| footer.get(at..).map(Cursor::new);
        let bodies = number(20).and_then(|mut at| at.u64()).unwrap_or(0);
        let block = number(28).and_then(|mut at| at.u32()).unwrap_or(0);
        let checksum = number(VALUES_FOOTER - 4).and_then(|mut at| at.u32()).unwrap_or(0);
        let file_bytes = bodies.wrapping_add(u64::from(block)).wrapping_add(VALUES_FOOTER as u64);
        let file = Described { path: Path::new("000007.vlog"), number: 7, file_bytes, checksum };
        if let Ok(found) = file.block_bytes(footer) {
            assert_eq!(found, block as usize);
            assert!(bodies < file_bytes && found as u64 <= file_bytes);
        }
        let shorter = Described { file_bytes: file_bytes.wrapping_sub(1), ..file };
        assert!(shorter.block_bytes(footer).is_err(), "a byte is missing");
        file.sections(&Bytes::copy_from_slice(bytes), footer).ok();
    }
}

/// The bytes of all bodies that a sections block lists, as far as it can be read.
fn bodies_of_sections(block: &[u8]) -> Option<u64> {
    let mut block = Cursor::new(block);
    let mut sum = 0u64;
    while !block.is_empty() {
        let (_, _, mut entries) = (block.varint()?, block.varint()?, Cursor::new(block.slice()?));
        while let (Some(_), Some(len)) = (entries.varint(), entries.varint()) {
            sum = sum.checked_add(len)?;
        }
    }
    Some(sum)
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
