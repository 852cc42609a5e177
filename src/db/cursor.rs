//! Where a stream stands, as a token that a client may keep.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version and direction: 2 forward, 3 reverse; and 0, 2 or 4: see the key |
//! | n | 0: the key behind which to go on; 2: none, at the first item; 4: the key at which to begin |
//! | 4 | CRC32C of all before, little-endian |
//!
//! Its text is that in URL-safe base64 without padding.
//!
//! Invariants:
//! 1. A token says where, not what: neither a range nor a moment. Who resumes says the range again,
//!    and a token cannot lead out of it. So a client may hold one, and may make one up.

use std::fmt;
use std::ops::Bound;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;

use crate::error::{Error, Result};
use crate::iter::Direction;
use crate::key::check_key;

const FORWARD: u8 = 2;
const REVERSE: u8 = 3;
const FRESH: u8 = 2;
const SOUGHT: u8 = 4;
const SUM_BYTES: usize = 4;

/// Where a stream stands; made by [`crate::RangeStream::cursor`], used by
/// [`crate::RangeStream::resume`].
///
/// As text ([`ToString`], [`FromStr`]) it fits into a URL or a form: the continuation token of a
/// page. It holds the last key in the clear; a client who must not see keys gets it encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    direction: Direction,
    /// Where to begin: behind the last item, or at the key that was sought.
    start: Bound<Bytes>,
}

impl Cursor {
    pub(super) fn new(direction: Direction, start: Bound<&Bytes>) -> Self {
        // A copy: the stream's keys share memory with their neighbours.
        Cursor { direction, start: start.map(|key| Bytes::copy_from_slice(key)) }
    }

    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    pub(super) fn start(&self) -> &Bound<Bytes> {
        &self.start
    }

    /// The key of the last item, if there was one.
    pub fn key(&self) -> Option<&[u8]> {
        match &self.start {
            Bound::Excluded(key) => Some(key),
            Bound::Included(_) | Bound::Unbounded => None,
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let direction = match self.direction {
            Direction::Forward => FORWARD,
            Direction::Reverse => REVERSE,
        };
        let (kind, key) = match &self.start {
            Bound::Excluded(key) => (0, &key[..]),
            Bound::Unbounded => (FRESH, &[][..]),
            Bound::Included(key) => (SOUGHT, &key[..]),
        };
        let mut bytes = vec![direction + kind];
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Cursor> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return None;
        }
        let (head, key) = body.split_first()?;
        check_key(key).ok()?;
        let direction = if head % 2 == 0 { Direction::Forward } else { Direction::Reverse };
        let start = match head.checked_sub(FORWARD)? & !1 {
            0 => Bound::Excluded(Bytes::copy_from_slice(key)),
            FRESH if key.is_empty() => Bound::Unbounded,
            SOUGHT => Bound::Included(Bytes::copy_from_slice(key)),
            _ => return None,
        };
        Some(Cursor { direction, start })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

impl FromStr for Cursor {
    type Err = Error;

    /// # Errors
    ///
    /// `InvalidArgument` when it is no cursor, or a damaged one.
    fn from_str(text: &str) -> Result<Cursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let cursor = bytes.and_then(|bytes| Cursor::from_bytes(&bytes));
        cursor.ok_or_else(|| Error::invalid("the text is not a cursor of a stream"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Cursor> {
        let keys = [
            None,
            Some(&b"k"[..]),
            Some(&b""[..]),
            Some(&b"user/\xff\0 1"[..]),
            Some(&[7; 5000][..]),
        ];
        let both = [Direction::Forward, Direction::Reverse];
        let starts = |key: Option<&[u8]>| match key.map(Bytes::copy_from_slice) {
            None => vec![Bound::Unbounded],
            Some(key) => vec![Bound::Excluded(key.clone()), Bound::Included(key)],
        };
        let starts: Vec<_> = keys.into_iter().flat_map(starts).collect();
        let cursors = both.map(|direction| {
            starts.iter().map(move |start| Cursor { direction, start: start.clone() })
        });
        cursors.into_iter().flatten().collect()
    }

    #[test]
    fn a_cursor_survives_being_text() {
        for cursor in all() {
            let text = cursor.to_string();
            assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)));
            assert_eq!(text.parse::<Cursor>().unwrap(), cursor);
        }
    }

    #[test]
    fn the_text_is_pinned() {
        let texts: Vec<_> = all().iter().take(2).map(ToString::to_string).collect();
        assert_eq!(texts, ["BE7E55U", "Amtlf2su"]);
    }

    #[test]
    fn damaged_text_is_refused() {
        for cursor in all().iter().filter(|cursor| cursor.to_string().len() < 100) {
            let text = cursor.to_string();
            for at in 0..text.len() {
                assert!(text[..at].parse::<Cursor>().is_err(), "{text} cut at {at}");
                for other in ["A", "z", "_", "=", "+", " ", "\u{e9}"] {
                    let damaged = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                    assert!(damaged == text || damaged.parse::<Cursor>().is_err(), "{damaged}");
                }
            }
        }
        let with = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
            URL_SAFE_NO_PAD.encode(bytes).parse::<Cursor>()
        };
        assert!(with(b"\x02k").is_ok());
        for bytes in [&b""[..], b"\x04k", b"\x05k", b"\x01k", b"\x08", b"\xffk"] {
            assert!(with(bytes).is_err(), "{bytes:?}");
        }
        assert!(with(&[2; (64 << 10) + 2]).is_err(), "longer than any key");
    }
}
