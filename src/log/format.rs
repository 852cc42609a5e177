//! The header of a segment. Records ([`crate::record`]) follow at [`HEADER_BYTES`].
//!
//! | offset | size | field | reader's duty |
//! |---|---|---|---|
//! | 0 | 8 | magic `seerlog\0` | anything else: corruption |
//! | 8 | 4 | format version, 1 | larger: not supported |
//! | 12 | 1 | stream: 0 WAL, 1 value log | not the stream the manifest says: corruption |
//! | 13 | 3 | reserved, 0 | |
//! | 16 | 8 | segment number | not the number in the name: corruption |
//! | 24 | 8 | salt | not the salt in the manifest: corruption |
//! | 32 | 8 | length of the whole segment | the file is shorter: corruption; longer: never read |
//! | 40 | 4 | CRC32C of bytes 0..40 | mismatch: corruption |
//! | 44 | 4052 | zeros | never read |
//!
//! All integers are little-endian. The header is durable before the manifest names the segment, so
//! a header that does not fit is never a torn write.

use std::path::Path;

use crate::codec::{Cursor, Sink, crc32c};
use crate::error::{Error, ErrorKind, Result};
use crate::filename::{FileName, FileNumber};
use crate::record::FileId;

/// The size of a segment header.
pub(crate) const HEADER_BYTES: usize = 4096;
/// What the last unit of a segment is kept free for: a mark, always.
pub(crate) const RESERVE_BYTES: u64 = 2 * 4096;
const MAGIC: [u8; 8] = *b"seerlog\0";
const VERSION: u32 = 1;
const COVERED_BYTES: usize = 40;

/// Which log a segment belongs to. The numbers are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stream {
    /// The write-ahead log of small commits.
    Wal = 0,
    /// The value log: commits with a large value, which stay here.
    Values = 1,
}

impl Stream {
    /// The name of the stream's segment `number`.
    pub(crate) fn file_name(self, number: FileNumber) -> FileName {
        match self {
            Stream::Wal => FileName::Wal(number),
            Stream::Values => FileName::Values(number),
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Stream> {
        match byte {
            0 => Some(Stream::Wal),
            1 => Some(Stream::Values),
            _ => None,
        }
    }
}

/// The header page of a segment.
pub(crate) fn encode(id: FileId, stream: Stream, segment_bytes: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put(&MAGIC);
    out.put_u32(VERSION);
    out.put_u8(stream as u8);
    out.put(&[0; 3]);
    out.put_u64(id.number);
    out.put_u64(id.salt);
    out.put_u64(segment_bytes);
    debug_assert_eq!(out.len(), COVERED_BYTES);
    out.put_u32(crc32c(&out));
    out.resize(HEADER_BYTES, 0);
    out
}

/// Checks that `page` is the header of the segment that the manifest describes, and that a file of
/// `file_bytes` holds all of it; the length of the segment.
pub(crate) fn check(
    page: &[u8],
    id: FileId,
    stream: Stream,
    path: &Path,
    file_bytes: u64,
) -> Result<u64> {
    let damaged = |offset, what: &str| Err(Error::corruption(path, offset, what));
    let Some(covered) = page.get(..COVERED_BYTES) else {
        return damaged(0, "the segment is shorter than its header");
    };
    let mut cursor = Cursor::new(page);
    let magic = cursor.bytes(MAGIC.len());
    let fields = (|| {
        let version = cursor.u32()?;
        let stream = cursor.u8()?;
        cursor.bytes(3)?;
        let (number, salt) = (cursor.u64()?, cursor.u64()?);
        Some((version, stream, number, salt, cursor.u64()?, cursor.u32()?))
    })();
    let Some((version, found_stream, number, salt, segment_bytes, crc)) = fields else {
        return damaged(0, "the segment is shorter than its header");
    };
    if magic != Some(&MAGIC) {
        return damaged(0, "the file is no log segment");
    }
    if crc != crc32c(covered) {
        return damaged(40, "the checksum of the segment header does not match");
    }
    if version > VERSION {
        return Err(Error::new(
            ErrorKind::NotSupported,
            format!("{} has log format {version}, this version reads {VERSION}", path.display()),
        ));
    }
    if number != id.number || salt != id.salt || found_stream != stream as u8 {
        return damaged(12, "the segment header is that of another segment");
    }
    if file_bytes < segment_bytes {
        return damaged(file_bytes, "the segment was cut short");
    }
    Ok(segment_bytes)
}

/// Whose header `page` is, if it is a whole one of this version and of `stream`.
pub(crate) fn identity(page: &[u8], stream: Stream) -> Option<FileId> {
    let mut cursor = Cursor::new(page.get(MAGIC.len() + 8..)?);
    let id = FileId { number: cursor.u64()?, salt: cursor.u64()? };
    let segment_bytes = cursor.u64()?;
    // Comparing with what we would write checks everything else.
    let expected = encode(id, stream, segment_bytes);
    (page.get(..COVERED_BYTES + 4) == expected.get(..COVERED_BYTES + 4)).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: FileId = FileId { number: 3, salt: 99 };

    #[test]
    fn a_header_fits_only_its_own_segment() {
        let path = Path::new("000003.wal");
        let page = encode(ID, Stream::Wal, 8192);
        assert_eq!(page.len(), HEADER_BYTES);
        assert_eq!(check(&page, ID, Stream::Wal, path, 8192).unwrap(), 8192);
        assert_eq!(identity(&page, Stream::Wal), Some(ID));
        assert_eq!(identity(&page[..20], Stream::Wal), None);
        assert!(
            check(&page, FileId { salt: 98, ..ID }, Stream::Wal, path, 8192)
                .unwrap_err()
                .is_corruption()
        );
        assert!(
            check(&page, FileId { number: 4, ..ID }, Stream::Wal, path, 8192)
                .unwrap_err()
                .is_corruption()
        );
        assert!(check(&page, ID, Stream::Values, path, 8192).unwrap_err().is_corruption());
        assert!(check(&page, ID, Stream::Wal, path, 8191).unwrap_err().is_corruption());
        for len in 0..COVERED_BYTES + 4 {
            let error = check(&page[..len], ID, Stream::Wal, path, 8192).unwrap_err();
            assert!(error.is_corruption() && error.to_string().contains("shorter"), "{error}");
        }
        for bit in 0..44 * 8 {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let error = check(&bad, ID, Stream::Wal, path, 8192).unwrap_err();
            assert!(error.is_corruption(), "bit {bit}: {error}");
            assert_eq!(identity(&bad, Stream::Wal), None, "bit {bit}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_as_such() {
        let mut page = encode(ID, Stream::Wal, 8192);
        page[8] = 2;
        let crc = crc32c(&page[..40]);
        page[40..44].copy_from_slice(&crc.to_le_bytes());
        let error = check(&page, ID, Stream::Wal, Path::new("000003.wal"), 8192).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
    }
}
