//! Where a stream stands, as a token that a client may keep.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version and direction: 2 forward, 3 reverse; with 2 added, in front of the first item |
//! | n | the key behind which to go on |
//! | 4 | CRC32C of all before, little-endian |
//!
//! Its text is that in URL-safe base64 without padding.
//!
//! Invariants:
//! 1. A token says where, not what: neither a range nor a moment. Who resumes says the range again,
//!    and a token cannot lead out of it. So a client may hold one, and may make one up.

use std::fmt;
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
const SUM_BYTES: usize = 4;

/// Where a stream stands; made by [`crate::RangeStream::cursor`], used by
/// [`crate::RangeStream::resume`].
///
/// As text ([`ToString`], [`FromStr`]) it fits into a URL or a form: the continuation token of a
/// page. It holds the last key in the clear; a client who must not see keys gets it encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    direction: Direction,
    key: Option<Bytes>,
}

impl Cursor {
    pub(super) fn new(direction: Direction, key: Option<&Bytes>) -> Self {
        // A copy: the stream's keys share memory with their neighbours.
        Cursor { direction, key: key.map(|key| Bytes::copy_from_slice(key)) }
    }

    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    /// The key of the last item, if there was one.
    pub fn key(&self) -> Option<&[u8]> {
        self.key.as_deref()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let direction = match self.direction {
            Direction::Forward => FORWARD,
            Direction::Reverse => REVERSE,
        };
        let mut bytes = vec![direction + if self.key.is_none() { FRESH } else { 0 }];
        bytes.extend_from_slice(self.key().unwrap_or_default());
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Cursor> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return None;
        }
        let (head, key) = body.split_first()?;
        let direction = |forward| if forward { Direction::Forward } else { Direction::Reverse };
        match *head {
            FORWARD | REVERSE => {
                check_key(key).ok()?;
                let key = Some(Bytes::copy_from_slice(key));
                Some(Cursor { direction: direction(*head == FORWARD), key })
            }
            head if key.is_empty() && [FORWARD, REVERSE].contains(&head.wrapping_sub(FRESH)) => {
                Some(Cursor { direction: direction(head - FRESH == FORWARD), key: None })
            }
            _ => None,
        }
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
        let cursor = |direction, key: Option<&[u8]>| Cursor {
            direction,
            key: key.map(Bytes::copy_from_slice),
        };
        both.iter().flat_map(|&d| keys.map(|key| cursor(d, key))).collect()
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
        for cursor in all().iter().filter(|cursor| cursor.key().is_none_or(|k| k.len() < 100)) {
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
        for bytes in [&b""[..], b"\x04k", b"\x05k", b"\x01k", b"\x06", b"\xffk"] {
            assert!(with(bytes).is_err(), "{bytes:?}");
        }
        assert!(with(&[2; (64 << 10) + 2]).is_err(), "longer than any key");
    }
}
