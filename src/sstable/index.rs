//! The index of a table in memory: one separator and one handle per data block.
//!
//! Invariants:
//! 1. Separators ascend as internal keys; block `i` holds exactly the entries from separator `i`
//!    up to, and without, separator `i + 1`.
//! 2. Handles adjoin: block 0 at offset 0, every block where the one before ends.

use std::cmp::Ordering;
use std::ops::Range;

use crate::codec::{Cursor, Sink};
use crate::key::{KEY_BYTES_MAX, Trailer};

use super::format::Handle;

/// The trailer before all versions of a key.
const BEFORE_ALL: u64 = u64::MAX;

/// Collects the index while a table is written.
#[derive(Default)]
pub(crate) struct IndexBuilder {
    handles: Vec<Handle>,
    trailers: Vec<u64>,
    ends: Vec<u32>,
    keys: Vec<u8>,
}

impl IndexBuilder {
    /// Adds the separator before an entry that begins a block; `last` is the user key before it.
    pub(crate) fn begin_block(&mut self, last: Option<&[u8]>, key: &[u8], trailer: Trailer) {
        let (separator, trailer) = match last {
            Some(last) if last == key => (key, trailer.to_u64()),
            Some(last) => (shorten(last, key), BEFORE_ALL),
            None => (key, BEFORE_ALL),
        };
        self.trailers.push(trailer);
        self.keys.put(separator);
        let end = u32::try_from(self.keys.len()).expect("a table has far less than 4 GiB of index");
        self.ends.push(end);
    }

    /// Says where the block stands that was begun last.
    pub(crate) fn end_block(&mut self, handle: Handle) {
        self.handles.push(handle);
    }

    /// About how many bytes the index takes.
    pub(crate) fn size(&self) -> usize {
        4 + self.ends.len() * 28 + self.keys.len()
    }

    /// The index block.
    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.size());
        out.put_u32(u32::try_from(self.handles.len()).expect("bounded by the index's bytes"));
        for handle in &self.handles {
            handle.encode(&mut out);
        }
        for trailer in &self.trailers {
            out.put_u64(*trailer);
        }
        for end in &self.ends {
            out.put_u32(*end);
        }
        out.put(&self.keys);
        out
    }
}

/// The shortest key above `last` that is a prefix of `key`; `last` is below `key`.
fn shorten<'a>(last: &[u8], key: &'a [u8]) -> &'a [u8] {
    let common = last.iter().zip(key).take_while(|(a, b)| a == b).count();
    key.get(..=common).unwrap_or(key)
}

/// The index of an open table.
pub(crate) struct Index {
    handles: Box<[Handle]>,
    trailers: Box<[u64]>,
    ends: Box<[u32]>,
    keys: Box<[u8]>,
}

impl Index {
    /// The index that `bytes` hold, for data blocks that fill the file up to `data_end`.
    pub(crate) fn decode(bytes: &[u8], data_end: u64) -> Result<Index, &'static str> {
        let index = Index::fields(bytes).ok_or("its count contradicts its length")?;
        let mut offset = Some(0);
        for handle in &index.handles {
            if Some(handle.offset) != offset {
                return Err("the data blocks do not adjoin");
            }
            offset = handle.end();
        }
        if offset != Some(data_end) {
            return Err("the data blocks do not end where the filter begins");
        }
        let mut from = 0;
        for &end in &index.ends {
            let inside = from <= end && end as usize <= index.keys.len();
            if !inside || (end - from) as usize > KEY_BYTES_MAX {
                return Err("the ends of its keys are out of order");
            }
            from = end;
        }
        if from as usize != index.keys.len() {
            return Err("there are bytes behind its keys");
        }
        let ascending = (1..index.len()).all(|i| index.order(i - 1, i) == Ordering::Less);
        ascending.then_some(index).ok_or("its separators are out of order")
    }

    fn fields(bytes: &[u8]) -> Option<Index> {
        let mut cursor = Cursor::new(bytes);
        let count = cursor.u32()? as usize;
        let handles = cursor.bytes(count.checked_mul(16)?)?;
        let trailers = cursor.bytes(count.checked_mul(8)?)?;
        let ends = cursor.bytes(count.checked_mul(4)?)?;
        let keys = cursor.bytes(cursor.remaining())?;
        let mut handles = Cursor::new(handles);
        let index = Index {
            handles: (0..count).map(|_| Handle::decode(&mut handles)).collect::<Option<_>>()?,
            trailers: trailers.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect(),
            ends: ends.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
            keys: keys.into(),
        };
        (count > 0).then_some(index)
    }

    /// The number of data blocks, at least one.
    pub(crate) fn len(&self) -> usize {
        self.handles.len()
    }

    /// Where block `block` stands.
    pub(crate) fn handle(&self, block: usize) -> Handle {
        *self.handles.get(block).expect("callers name blocks below len")
    }

    /// The user key of the separator before `block`.
    pub(crate) fn key(&self, block: usize) -> &[u8] {
        let from = match block.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(0),
            None => 0,
        };
        let end = self.ends.get(block).copied().unwrap_or(from);
        self.keys.get(from as usize..end as usize).unwrap_or_default()
    }

    fn trailer(&self, block: usize) -> u64 {
        self.trailers.get(block).copied().unwrap_or(BEFORE_ALL)
    }

    fn order(&self, a: usize, b: usize) -> Ordering {
        self.key(a).cmp(self.key(b)).then_with(|| self.trailer(b).cmp(&self.trailer(a)))
    }

    /// The last block whose separator is not above `target`: the only one that can hold it, and
    /// the one where entries from it on begin, unless they begin with the next block. `None` when
    /// the target is before the table.
    pub(crate) fn find(&self, key: &[u8], trailer: Trailer) -> Option<usize> {
        let target = trailer.to_u64();
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let above = match self.key(middle).cmp(key) {
                Ordering::Less => false,
                Ordering::Equal => self.trailer(middle) < target,
                Ordering::Greater => true,
            };
            if above { high = middle } else { low = middle + 1 }
        }
        low.checked_sub(1)
    }

    /// Whether `block` begins with an older version of `key` than those at the end of the block
    /// before.
    pub(crate) fn continues(&self, block: usize, key: &[u8]) -> bool {
        block < self.len() && self.trailer(block) != BEFORE_ALL && self.key(block) == key
    }

    /// Whether the entry may be in `block` by the separators on both sides.
    pub(crate) fn admits(&self, block: usize, key: &[u8], trailer: Trailer) -> bool {
        self.find(key, trailer) == Some(block)
    }

    /// As many blocks from `block` on, at least one, as fit `bytes` of the file.
    pub(crate) fn span_up(&self, block: usize, bytes: usize) -> Range<usize> {
        let mut total = self.handle(block).file_bytes();
        let mut end = block + 1;
        while let Some(handle) = self.handles.get(end) {
            total = total.saturating_add(handle.file_bytes());
            if total > bytes {
                break;
            }
            end += 1;
        }
        block..end
    }

    /// As many blocks up to `block`, at least this one, as fit `bytes` of the file.
    pub(crate) fn span_down(&self, block: usize, bytes: usize) -> Range<usize> {
        let mut total = self.handle(block).file_bytes();
        let mut start = block;
        while let Some(before) = start.checked_sub(1) {
            total = total.saturating_add(self.handle(before).file_bytes());
            if total > bytes {
                break;
            }
            start = before;
        }
        start..block + 1
    }

    /// The memory it takes, in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        size_of_val(&*self.handles)
            + size_of_val(&*self.trailers)
            + size_of_val(&*self.ends)
            + self.keys.len()
    }
}
