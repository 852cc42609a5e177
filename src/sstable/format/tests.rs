//! Blocks and footers whose checksums are right and whose content is not.

use super::*;
use crate::lz4::PACK_BYTES_MAX;

const NUMBER: FileNumber = 7;

fn file() -> FileRef<'static> {
    FileRef { path: Path::new("000007.sst"), number: NUMBER }
}

/// What an error says of the block or footer that it names.
fn told<T: std::fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert!(error.is_corruption(), "{error}");
    assert_eq!(error.location().unwrap().0, file().path);
    error.to_string()
}

/// Opens a block of this content, sealed as the writer would.
fn open(kind: BlockKind, how: u8, stored: &[u8], raw: usize) -> Result<Bytes> {
    let len = |len| u32::try_from(len).unwrap();
    let handle = Handle { offset: 100, stored: len(stored.len()), raw: len(raw) };
    let mut bytes = stored.to_vec();
    bytes.put_u8(how);
    bytes.put_u32(block_crc(NUMBER, handle.offset, kind as u8, how, stored));
    open_block(file(), kind, handle, &Bytes::from(bytes))
}

#[test]
fn a_block_is_what_its_handle_and_its_trailer_say() {
    let raw = [b'a'; 500];
    let packed = lz4_flex::block::compress(&raw);
    assert_eq!(open(BlockKind::Data, 0, &raw, 500).unwrap(), raw.as_slice());
    assert_eq!(open(BlockKind::Data, 1, &packed, 500).unwrap(), raw.as_slice());
    for (kind, how, stored, raw, what) in [
        (BlockKind::Data, 0, &raw[..], 499, "its length contradicts the index"),
        (BlockKind::Data, 2, &raw[..], 500, "unknown compression"),
        (BlockKind::Index, 1, &packed[..], 500, "unknown compression"),
        (BlockKind::Data, 1, &packed[..], 501, "LZ4 cannot unpack it"),
        (BlockKind::Data, 1, &packed[..], 499, "LZ4 cannot unpack it"),
        (BlockKind::Data, 1, &[0xFF; 9][..], 500, "LZ4 cannot unpack it"),
        (BlockKind::Data, 1, &raw[..], PACK_BYTES_MAX + 1, "unpacked it would be too large"),
        (BlockKind::Data, 1, &packed[..2], 1 << 16, "unpacked it would be too large"),
    ] {
        let said = told(open(kind, how, stored, raw));
        assert!(said.contains(what) && said.contains("offset 100"), "{said}, not {what}");
    }
}

#[test]
fn a_block_that_ends_early_is_damaged() {
    let handle = Handle { offset: 0, stored: 10, raw: 10 };
    for len in 0..10 + BLOCK_TRAILER_BYTES {
        let said = told(open_block(file(), BlockKind::Data, handle, &Bytes::from(vec![0; len])));
        assert!(said.contains("the file ends within it"), "{len}: {said}");
    }
}

/// A footer behind a filter, an index and properties of these sizes.
fn footer(filter: u32, index: u32, properties: u32) -> (Footer, u64) {
    let mut offset = 50;
    let mut next = |stored: u32| {
        let handle = Handle { offset, stored, raw: stored };
        offset = handle.end().unwrap();
        handle
    };
    let (filter, index, properties) = (next(filter), next(index), next(properties));
    (Footer { filter, index, properties }, offset + FOOTER_BYTES as u64)
}

#[test]
fn a_footer_names_blocks_that_adjoin() {
    let (good, file_bytes) = footer(10, 20, 30);
    let bytes = good.encode(NUMBER);
    assert_eq!(Footer::decode(file(), file_bytes, &bytes).unwrap(), good);
    let moved = |handle: Handle| Handle { offset: handle.offset + 1, ..handle };
    for bad in [
        Footer { filter: moved(good.filter), ..good },
        Footer { index: moved(good.index), ..good },
        Footer { properties: moved(good.properties), ..good },
        Footer { filter: Handle { offset: u64::MAX, ..good.filter }, ..good },
    ] {
        let said = told(Footer::decode(file(), file_bytes, &bad.encode(NUMBER)));
        assert!(said.contains("its blocks do not adjoin"), "{bad:?}: {said}");
    }
    let said = told(Footer::decode(file(), file_bytes + 1, &bytes));
    assert!(said.contains("its blocks do not adjoin"), "{said}");
    let said = told(Footer::decode(file(), file_bytes, &good.encode_version(NUMBER, 0)));
    assert!(said.contains("its blocks do not adjoin"), "no table has version 0: {said}");
}

#[test]
fn a_footer_is_whole_and_of_sane_sizes() {
    let (good, file_bytes) = footer(10, 20, 30);
    let bytes = good.encode(NUMBER);
    let said = told(Footer::decode(file(), file_bytes, &bytes[1..]));
    assert!(said.contains("the file ends within it"), "{said}");
    let said = told(Footer::decode(file(), file_bytes, &good.encode(NUMBER + 1)));
    assert!(said.contains("it belongs to file 8"), "{said}");
    let mut other = bytes;
    other[FOOTER_BYTES - 1] ^= 1;
    let said = told(Footer::decode(file(), file_bytes, &other));
    assert!(said.contains("no magic"), "{said}");
    let (huge, file_bytes) = footer(u32::try_from(FILTER_BYTES_MAX + 1).unwrap(), 20, 30);
    let said = told(Footer::decode(file(), file_bytes, &huge.encode(NUMBER)));
    assert!(said.contains("no filter is that large"), "{said}");
}
