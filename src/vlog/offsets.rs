//! Where the bodies of one segment stand in a rewritten file: from old positions to new ones.
//!
//! Bodies keep their order and adjoin, so that the list of (position, length) says it all. It stays
//! encoded in memory as it stands in the file, a few bytes a body, with a sample of it in front.
//!
//! Invariants:
//! 1. Positions ascend; `samples` has every [`SAMPLE`]th of them.
//! 2. The list was decoded once as a whole: later decoding cannot fail.

use bytes::Bytes;

use crate::codec::{Cursor, Sink};

/// One sample for so many bodies: what a look-up decodes at most.
const SAMPLE: usize = 32;

/// The bodies of one segment in a file.
#[derive(Debug)]
pub(crate) struct Offsets {
    /// For each body, varint: position less the one before (the first: as it is), and length.
    encoded: Bytes,
    samples: Box<[Sample]>,
    /// The offset in the file behind the last body.
    end: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    position: u32,
    /// Where the body stands in the file.
    offset: u64,
    /// Where its entry stands in `encoded`.
    at: u32,
}

impl Offsets {
    /// The bodies that `encoded` lists, `count` of them; the first one stands at `offset`.
    ///
    /// # Errors
    ///
    /// What is wrong with the list.
    pub(crate) fn decode(encoded: Bytes, count: u64, offset: u64) -> Result<Self, &'static str> {
        let mut samples = Vec::new();
        let mut walk = Walk { cursor: Cursor::new(&encoded), position: 0, offset };
        for index in 0..count {
            let at = encoded.len() - walk.cursor.remaining();
            let before = walk.position;
            let (position, offset, _) = walk.next().ok_or("the list of bodies is cut short")?;
            if index > 0 && position <= before {
                return Err("positions do not ascend");
            }
            if index % SAMPLE as u64 == 0 {
                let at = u32::try_from(at).map_err(|_| "the list of bodies is too long")?;
                samples.push(Sample { position, offset, at });
            }
        }
        if !walk.cursor.is_empty() || count == 0 {
            return Err("the list of bodies has another length");
        }
        let end = walk.offset;
        Ok(Offsets { encoded, samples: samples.into_boxed_slice(), end })
    }

    /// The offset of the body that stood at `position`, and its length.
    pub(crate) fn find(&self, position: u32) -> Option<(u64, u32)> {
        let index = self.samples.partition_point(|sample| sample.position <= position);
        let sample = self.samples.get(index.checked_sub(1)?)?;
        let rest = self.encoded.get(sample.at as usize..)?;
        let mut walk = Walk { cursor: Cursor::new(rest), position: 0, offset: sample.offset };
        // The entry of a sample is a difference too: what it says is in the sample.
        let (_, offset, len) = walk.next()?;
        walk.position = sample.position;
        let mut found = (sample.position, offset, len);
        while found.0 < position {
            found = walk.next()?;
        }
        (found.0 == position).then_some((found.1, found.2))
    }

    /// The offset in the file behind the last body.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// The memory that it takes, in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        self.encoded.len() + size_of_val(&*self.samples)
    }
}

struct Walk<'a> {
    cursor: Cursor<'a>,
    position: u32,
    offset: u64,
}

impl Walk<'_> {
    /// The next body: its position, its offset and its length.
    fn next(&mut self) -> Option<(u32, u64, u32)> {
        let step = u32::try_from(self.cursor.varint()?).ok()?;
        self.position = self.position.checked_add(step)?;
        let len = u32::try_from(self.cursor.varint()?).ok()?;
        let offset = self.offset;
        self.offset = offset.checked_add(u64::from(len))?;
        Some((self.position, offset, len))
    }
}

/// Appends the entry of a body that follows the one at `before`.
pub(crate) fn put_entry(out: &mut Vec<u8>, before: u32, position: u32, len: u32) {
    assert!(position >= before, "bodies keep their order");
    out.put_varint(u64::from(position - before));
    out.put_varint(u64::from(len));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(bodies: &[(u32, u32)]) -> Bytes {
        let mut out = Vec::new();
        let mut before = 0;
        for (position, len) in bodies {
            put_entry(&mut out, before, *position, *len);
            before = *position;
        }
        Bytes::from(out)
    }

    #[test]
    fn every_body_is_found_and_nothing_between() {
        let bodies: Vec<(u32, u32)> = (0..500).map(|i| (4096 + i * 1300, 1000 + i % 7)).collect();
        let offsets = Offsets::decode(list(&bodies), 500, 70).unwrap();
        let mut at = 70;
        for (position, len) in &bodies {
            assert_eq!(offsets.find(*position), Some((at, *len)));
            assert_eq!(offsets.find(position + 1), None);
            assert_eq!(offsets.find(position - 1), None);
            at += u64::from(*len);
        }
        assert_eq!(offsets.end(), at);
        assert!(offsets.resident_bytes() < 500 * 5, "{}", offsets.resident_bytes());
    }

    #[test]
    fn lists_that_are_none_are_refused() {
        let good = list(&[(5, 1), (9, 2)]);
        assert!(Offsets::decode(good.clone(), 2, 0).is_ok());
        assert!(Offsets::decode(good.clone(), 1, 0).is_err());
        assert!(Offsets::decode(good.clone(), 3, 0).is_err());
        assert!(Offsets::decode(good.slice(1..), 2, 0).is_err());
        assert!(Offsets::decode(Bytes::new(), 0, 0).is_err());
        assert!(Offsets::decode(list(&[(5, 1), (5, 2)]), 2, 0).is_err(), "a position twice");
        assert!(Offsets::decode(list(&[(5, 1)]), 1, u64::MAX).is_err(), "beyond any file");
    }
}
