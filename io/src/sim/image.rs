//! The bytes of a file as shared pages: copies cost a reference for each page.
//!
//! Invariants:
//! 1. There is a slot for every page below the length; an empty slot is a page of zeros.
//! 2. The bytes of the last page behind the length are zeros.

use std::ops::Range;
use std::sync::Arc;

/// The bytes of a page.
pub(super) const PAGE: usize = 4096;

type Page = Arc<[u8; PAGE]>;

/// A sparse file content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Image {
    len: u64,
    pages: Vec<Option<Page>>,
}

/// What a simulated disk holds fits into memory.
pub(super) fn index(n: u64) -> usize {
    usize::try_from(n).expect("a simulated file fits into memory")
}

/// The parts of a transfer: number of the page, range in the page, range in the buffer.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = index(offset) + done;
        let (page, start) = (at / PAGE, at % PAGE);
        let count = (PAGE - start).min(len - done);
        done += count;
        Some((page, start..start + count, done - count..done))
    })
}

impl Image {
    pub(super) fn from_bytes(bytes: &[u8]) -> Image {
        let mut image = Image::default();
        image.write(bytes, 0);
        image
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Copies what there is from `offset` on; the number of bytes below the length.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let len = index(self.len.saturating_sub(offset).min(buf.len() as u64));
        for (page, within, part) in parts(offset, len) {
            let Some(to) = buf.get_mut(part) else { continue };
            match self.pages.get(page).and_then(Option::as_deref).and_then(|p| p.get(within)) {
                Some(from) => to.copy_from_slice(from),
                None => to.fill(0),
            }
        }
        len
    }

    /// Writes, growing the file where needed.
    pub(super) fn write(&mut self, bytes: &[u8], offset: u64) {
        if bytes.is_empty() {
            return;
        }
        self.grow(offset + bytes.len() as u64);
        for (page, within, part) in parts(offset, bytes.len()) {
            let (Some(slot), Some(from)) = (self.pages.get_mut(page), bytes.get(part)) else {
                continue;
            };
            if let Ok(whole) = <&[u8; PAGE]>::try_from(from) {
                let zeros = whole.iter().all(|b| *b == 0);
                *slot = (!zeros).then(|| Arc::new(*whole));
                continue;
            }
            let page = Arc::make_mut(slot.get_or_insert_with(|| Arc::new([0; PAGE])));
            if let Some(to) = page.get_mut(within) {
                to.copy_from_slice(from);
            }
        }
    }

    /// Makes the file at least `len` bytes long.
    pub(super) fn grow(&mut self, len: u64) {
        if len > self.len {
            self.len = len;
            self.pages.resize(index(len).div_ceil(PAGE), None);
        }
    }

    /// Sets the length; what is new is zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        if len >= self.len {
            return self.grow(len);
        }
        self.len = len;
        self.pages.truncate(index(len).div_ceil(PAGE));
        let tail = index(len) % PAGE;
        if tail > 0
            && let Some(Some(page)) = self.pages.last_mut()
            && let Some(rest) = Arc::make_mut(page).get_mut(tail..)
        {
            rest.fill(0);
        }
    }

    /// The bytes of `range` that are below the length.
    pub(super) fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let end = range.end.min(self.len);
        let mut bytes = vec![0; index(end.saturating_sub(range.start))];
        self.read(&mut bytes, range.start);
        bytes
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.bytes(0..self.len)
    }

    /// A hash of the length and the bytes; pages of zeros cost nothing.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hash = self.len;
        for (number, page) in (1u64..).zip(&self.pages) {
            let Some(page) = page.as_deref().filter(|page| page.iter().any(|b| *b != 0)) else {
                continue;
            };
            hash = (hash.rotate_left(27) ^ number ^ super::trace::hash_bytes(page))
                .wrapping_mul(0xC4CE_B9FE_1A85_EC53);
        }
        hash
    }

    /// Inverts one bit of the byte at `offset`, if there is such a byte.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        if offset < self.len {
            let mut byte = [0];
            self.read(&mut byte, offset);
            self.write(&[byte.first().copied().unwrap_or(0) ^ (1 << (bit % 8))], offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_cuts_behave_as_a_plain_vector() {
        let mut chance = super::super::chance::Chance::new(7);
        for _ in 0..200 {
            let (mut image, mut plain) = (Image::default(), Vec::new());
            for _ in 0..20 {
                let offset = chance.index(20_000);
                let mut bytes = vec![0; chance.index(9000)];
                if !chance.one_in(4) {
                    chance.fill(&mut bytes);
                }
                if chance.one_in(4) {
                    image.set_len(offset as u64);
                    plain.resize(offset, 0);
                } else if !bytes.is_empty() {
                    image.write(&bytes, offset as u64);
                    plain.resize(plain.len().max(offset + bytes.len()), 0);
                    plain[offset..offset + bytes.len()].copy_from_slice(&bytes);
                }
                assert!(image.to_vec() == plain);
            }
        }
    }

    #[test]
    fn a_copy_does_not_follow_the_original() {
        let mut image = Image::from_bytes(&[1; 10_000]);
        let copy = image.clone();
        image.write(&[2; 10], 4090);
        image.flip(0, 3);
        assert!(copy.to_vec() == [1; 10_000]);
        assert_eq!((image.bytes(0..1), image.bytes(4089..4091)), (vec![9], vec![1, 2]));
    }
}
