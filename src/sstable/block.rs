//! Data blocks: built entry by entry, and read in place. The layout is in `format`.
//!
//! Invariants:
//! 1. A [`Block`] was validated as a whole when it was made: entries tile the bytes before the
//!    offsets, every length is within its entry. Access to an index below `len` cannot fail.
//! 2. Keys of a block ascend. The writer asserts it, the checksum keeps it, `Table::verify` checks
//!    it; decoding does not, and no access relies on it for more than its answer.
//! 3. Everything a block hands out shares its bytes: a value keeps the whole block in memory.

use std::cmp::Ordering;

use bytes::Bytes;

use super::tags;
use crate::cache::Weigh;
use crate::codec::{Cursor, Sink, varint_len};
use crate::key::{KEY_BYTES_MAX, SeqNo, Trailer, VALUE_BYTES_MAX, ValueKind, compare};
use crate::pointer::Pointer;

/// What an entry costs beside its own bytes: its offset and its tag.
const ENTRY_EXTRA: usize = 3;
/// The count at the end of a block.
const COUNT_BYTES: usize = 2;

/// Collects the entries of one block.
#[derive(Default)]
pub(crate) struct BlockBuilder {
    entries: Vec<u8>,
    starts: Vec<u16>,
    tags: Vec<u8>,
}

impl BlockBuilder {
    /// The size of the block if this entry were its last.
    pub(crate) fn size_with(&self, key: &[u8], value: &[u8]) -> usize {
        self.size()
            + ENTRY_EXTRA
            + varint_len(key.len() as u64)
            + varint_len(value.len() as u64)
            + size_of::<u64>()
            + key.len()
            + value.len()
    }

    /// The size of the block.
    pub(crate) fn size(&self) -> usize {
        self.entries.len() + self.tags.len() * ENTRY_EXTRA + COUNT_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Appends an entry; the caller cuts blocks before an entry would start above u16.
    pub(crate) fn add(&mut self, key: &[u8], trailer: Trailer, value: &[u8], tag: u8) {
        let start = u16::try_from(self.entries.len()).expect("blocks are cut below 64 KiB");
        self.starts.push(start);
        self.tags.push(tag);
        self.entries.put_varint(key.len() as u64);
        self.entries.put_varint(value.len() as u64);
        self.entries.put(key);
        self.entries.put_u64(trailer.to_u64());
        self.entries.put(value);
    }

    /// The finished block.
    pub(crate) fn finish(&mut self) -> &[u8] {
        for start in self.starts.drain(..) {
            self.entries.put_u16(start);
        }
        self.entries.put(&self.tags);
        let count = u16::try_from(self.tags.len()).expect("every entry starts below 64 KiB");
        self.entries.put_u16(count);
        &self.entries
    }

    /// Makes the builder ready for the next block, keeping memory that such blocks need.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.entries.shrink_to(128 << 10);
        self.starts.clear();
        self.tags.clear();
    }
}

/// More entries than this stand so near each other that the processor sees what comes next.
const TOUCH_MAX: usize = 12;

/// A data block in memory. A clone shares the bytes.
#[derive(Clone)]
pub(crate) struct Block {
    data: Bytes,
    /// Where the entries end and the offsets begin.
    entries_end: usize,
    count: usize,
}

/// Where the parts of one entry stand in its block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntryAt {
    pub(crate) trailer: Trailer,
    key: usize,
    key_end: usize,
    value: usize,
    end: usize,
}

impl Block {
    /// The block that `data` holds, or what is wrong with it.
    pub(crate) fn decode(data: Bytes) -> Result<Block, &'static str> {
        let (body, count) = data.split_last_chunk::<COUNT_BYTES>().ok_or("it has no count")?;
        let count = usize::from(u16::from_le_bytes(*count));
        let entries_end = body
            .len()
            .checked_sub(count * ENTRY_EXTRA)
            .filter(|_| count > 0)
            .ok_or("its count contradicts its length")?;
        let (entries, table) = body.split_at(entries_end);
        let (starts, _tags) = table.split_at(count * 2);
        let mut cursor = Cursor::new(entries);
        for start in starts.as_chunks::<2>().0 {
            let at = entries.len() - cursor.remaining();
            if usize::from(u16::from_le_bytes(*start)) != at {
                return Err("an entry does not begin where the one before ends");
            }
            skip_entry(&mut cursor).ok_or("an entry is not well-formed")?;
        }
        if !cursor.is_empty() {
            return Err("there are bytes between entries and offsets");
        }
        Ok(Block { data, entries_end, count })
    }

    /// The number of entries, at least one.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The entry `index`, below `len`.
    pub(crate) fn at(&self, index: usize) -> EntryAt {
        self.parse(index).expect("the block was validated and the index is below len")
    }

    fn parse(&self, index: usize) -> Option<EntryAt> {
        let slot = self.entries_end + 2 * index;
        let start = usize::from(u16::from_le_bytes(*self.data.get(slot..)?.first_chunk::<2>()?));
        let bytes = self.data.get(start..self.entries_end)?;
        // Most keys and many values are below 128 bytes: their lengths are one byte each.
        let (key_len, value_len, rest) = match bytes {
            [k, v, rest @ ..] if (k | v) & 0x80 == 0 => (usize::from(*k), usize::from(*v), rest),
            _ => {
                let mut cursor = Cursor::new(bytes);
                let key_len = usize::try_from(cursor.varint()?).ok()?;
                let value_len = usize::try_from(cursor.varint()?).ok()?;
                (key_len, value_len, bytes.get(bytes.len() - cursor.remaining()..)?)
            }
        };
        let trailer = u64::from_le_bytes(*rest.get(key_len..)?.first_chunk()?);
        let trailer = Trailer::from_u64(trailer)?;
        let key = self.entries_end - rest.len();
        let key_end = key + key_len;
        let value = key_end + size_of::<u64>();
        Some(EntryAt { trailer, key, key_end, value, end: value + value_len })
    }

    /// Touches the heads of a few large entries: reads that do not wait for each other bring them
    /// into the processor's cache together, which a scan would do one after the other.
    pub(crate) fn touch_heads(&self) {
        if self.count <= TOUCH_MAX {
            let starts = self.data.get(self.entries_end..self.entries_end + 2 * self.count);
            let heads = starts.unwrap_or_default().as_chunks::<2>().0.iter();
            let sum: usize = heads
                .filter_map(|start| self.data.get(usize::from(u16::from_le_bytes(*start))))
                .map(|byte| usize::from(*byte))
                .sum();
            std::hint::black_box(sum);
        }
    }

    /// The same block in memory of its own.
    pub(crate) fn to_owned_bytes(&self) -> Block {
        Block { data: Bytes::copy_from_slice(&self.data), ..*self }
    }

    /// The user key of an entry.
    pub(crate) fn key(&self, entry: EntryAt) -> &[u8] {
        self.data.get(entry.key..entry.key_end).unwrap_or_default()
    }

    /// The value of an entry.
    pub(crate) fn value(&self, entry: EntryAt) -> &[u8] {
        self.data.get(entry.value..entry.end).unwrap_or_default()
    }

    /// The value of an entry, sharing the memory of the block.
    pub(crate) fn value_bytes(&self, entry: EntryAt) -> Bytes {
        if entry.value == entry.end {
            // An empty value need not keep the block in memory.
            return Bytes::new();
        }
        self.data.slice(entry.value..entry.end)
    }

    /// The tags, one for each entry.
    pub(crate) fn tags(&self) -> &[u8] {
        let (bytes, start) = self.up_to_tags();
        bytes.get(start..).unwrap_or_default()
    }

    /// The block without its count, and where the tags begin in it.
    fn up_to_tags(&self) -> (&[u8], usize) {
        let start = self.entries_end + 2 * self.count;
        (self.data.get(..start + self.count).unwrap_or_default(), start)
    }

    /// The newest version of `key` in this block that is visible at `seqno`; `tag` is the key's.
    pub(crate) fn get(&self, key: &[u8], tag: u8, seqno: SeqNo) -> Option<(Trailer, Bytes)> {
        let (bytes, start) = self.up_to_tags();
        tags::find(bytes, start, tag)
            .map(|index| self.at(index))
            // Versions of a key stand together, newest first: the first that fits is the answer.
            .find(|&entry| entry.trailer.seqno() <= seqno && self.key(entry) == key)
            .map(|entry| (entry.trailer, self.value_bytes(entry)))
    }

    /// The number of entries before `target`.
    pub(crate) fn seek(&self, key: &[u8], trailer: Trailer) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let entry = self.at(middle);
            match compare((self.key(entry), entry.trailer), (key, trailer)) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal | Ordering::Greater => high = middle,
            }
        }
        low
    }
}

impl Weigh for Block {
    fn weight(&self) -> usize {
        self.data.len()
    }
}

/// Reads over one entry; `None` when it is not well-formed.
fn skip_entry(cursor: &mut Cursor<'_>) -> Option<()> {
    let key_len = usize::try_from(cursor.varint()?).ok()?;
    let value_len = usize::try_from(cursor.varint()?).ok()?;
    cursor.bytes(key_len)?;
    let trailer = Trailer::from_u64(cursor.u64()?)?;
    let value = cursor.bytes(value_len)?;
    let fits = match trailer.kind() {
        ValueKind::Delete => value.is_empty(),
        ValueKind::Put => value_len <= VALUE_BYTES_MAX,
        ValueKind::Pointer => Pointer::decode(value).is_some(),
    };
    (fits && key_len <= KEY_BYTES_MAX).then_some(())
}
