//! The index of a table in memory: one separator and one handle per data block.
//!
//! Invariants:
//! 1. Separators ascend as internal keys; block `i` holds exactly the entries from separator `i`
//!    up to, and without, separator `i + 1`.
//! 2. Handles adjoin: block 0 at offset 0, every block where the one before ends.
//! 3. What finds a separator is derived from the keys when a table is opened, never read from the
//!    file (see `alex`).

use std::cmp::Ordering;
use std::ops::Range;

use crate::alex::{Keys, Locator, Report};
use crate::codec::{Cursor, Sink};
use crate::key::{KEY_BYTES_MAX, Trailer};

use super::format::{BLOCK_BYTES_MAX, Handle};

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
    separators: Separators,
    locator: Locator,
}

/// The user keys of the separators.
struct Separators {
    ends: Box<[u32]>,
    keys: Box<[u8]>,
}

impl Keys for Separators {
    fn len(&self) -> usize {
        self.ends.len()
    }

    fn key(&self, index: usize) -> &[u8] {
        let from = match index.checked_sub(1) {
            Some(before) => self.ends.get(before).copied().unwrap_or(0),
            None => 0,
        };
        let end = self.ends.get(index).copied().unwrap_or(from);
        self.keys.get(from as usize..end as usize).unwrap_or_default()
    }
}

/// What an index block holds, not yet believed.
struct Fields {
    handles: Box<[Handle]>,
    trailers: Box<[u64]>,
    separators: Separators,
}

impl Fields {
    fn decode(bytes: &[u8]) -> Option<Fields> {
        let mut cursor = Cursor::new(bytes);
        let count = cursor.u32()? as usize;
        let handles = cursor.bytes(count.checked_mul(16)?)?;
        let trailers = cursor.bytes(count.checked_mul(8)?)?;
        let ends = cursor.bytes(count.checked_mul(4)?)?;
        let keys = cursor.bytes(cursor.remaining())?;
        let mut handles = Cursor::new(handles);
        let fields = Fields {
            handles: (0..count).map(|_| Handle::decode(&mut handles)).collect::<Option<_>>()?,
            trailers: trailers.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b)).collect(),
            separators: Separators {
                ends: ends.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
                keys: keys.into(),
            },
        };
        (count > 0).then_some(fields)
    }

    fn check(&self, data_end: u64) -> Result<(), &'static str> {
        let mut offset = Some(0);
        for handle in &self.handles {
            if Some(handle.offset) != offset {
                return Err("the data blocks do not adjoin");
            }
            if handle.raw as usize > BLOCK_BYTES_MAX || handle.stored > handle.raw {
                return Err("a data block is larger than any can be");
            }
            offset = handle.end();
        }
        if offset != Some(data_end) {
            return Err("the data blocks do not end where what follows begins");
        }
        let mut from = 0;
        for &end in &self.separators.ends {
            let inside = from <= end && end as usize <= self.separators.keys.len();
            if !inside || (end - from) as usize > KEY_BYTES_MAX {
                return Err("the ends of its keys are out of order");
            }
            from = end;
        }
        if from as usize != self.separators.keys.len() {
            return Err("there are bytes behind its keys");
        }
        let internal = |at| (self.separators.key(at), self.trailers.get(at));
        let ascends = |at| {
            let ((a, newer), (b, older)) = (internal(at), internal(at + 1));
            a.cmp(b).then_with(|| older.cmp(&newer)) == Ordering::Less
        };
        match (0..self.separators.len() - 1).all(ascends) {
            true => Ok(()),
            false => Err("its separators are out of order"),
        }
    }
}

impl Index {
    /// The index that `bytes` hold, for data blocks that fill the file up to `data_end`.
    pub(crate) fn decode(bytes: &[u8], data_end: u64) -> Result<Index, &'static str> {
        let fields = Fields::decode(bytes).ok_or("its count contradicts its length")?;
        fields.check(data_end)?;
        let Fields { handles, trailers, separators } = fields;
        let locator = Locator::new(&separators, None);
        Ok(Index { handles, trailers, separators, locator })
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
        self.separators.key(block)
    }

    fn trailer(&self, block: usize) -> u64 {
        self.trailers.get(block).copied().unwrap_or(BEFORE_ALL)
    }

    /// The last block whose separator is not above `target`: the only one that can hold it, and
    /// the one where entries from it on begin, unless they begin with the next block. `None` when
    /// the target is before the table.
    pub(crate) fn find(&self, key: &[u8], trailer: Trailer) -> Option<usize> {
        let rank = self.rank(key, trailer.to_u64());
        if planted!(BlockBehind) && rank < self.len() {
            return Some(rank);
        }
        rank.checked_sub(1)
    }

    /// The number of separators that are not above the key with this trailer.
    fn rank(&self, key: &[u8], trailer: u64) -> usize {
        let Range { start: mut low, end: mut high } = self.locator.narrow(&self.separators, key);
        while low < high {
            let middle = low + (high - low) / 2;
            let above = match self.key(middle).cmp(key) {
                Ordering::Less => false,
                Ordering::Equal => self.trailer(middle) < trailer,
                Ordering::Greater => true,
            };
            if above { high = middle } else { low = middle + 1 }
        }
        low
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

    /// How it finds a separator.
    pub(crate) fn report(&self) -> Report {
        self.locator.report()
    }

    /// The memory it takes, in bytes.
    pub(crate) fn resident_bytes(&self) -> usize {
        size_of_val(&*self.handles)
            + size_of_val(&*self.trailers)
            + size_of_val(&*self.separators.ends)
            + self.separators.keys.len()
            + self.report().bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::{SEQNO_MAX, ValueKind, compare};

    /// Keys that share prefixes, windows and zero padding as awkwardly as possible.
    fn any_key() -> impl Strategy<Value = Vec<u8>> {
        let tail = prop::collection::vec(prop::sample::select(vec![0u8, 1, b'a', 0xFF]), 0..12);
        let head = prop::sample::select(vec![&b""[..], b"a", b"aaaaaaaa", &[0xFF; 8], &[0; 8]]);
        (head, tail).prop_map(|(head, tail)| [head, &tail].concat())
    }

    fn build(firsts: &[(Vec<u8>, Trailer)]) -> Index {
        let mut builder = IndexBuilder::default();
        let mut last: Option<&[u8]> = None;
        for (at, (key, trailer)) in firsts.iter().enumerate() {
            builder.begin_block(last, key, *trailer);
            builder.end_block(Handle { offset: at as u64 * 15, stored: 10, raw: 10 });
            last = Some(key);
        }
        Index::decode(&builder.finish(), firsts.len() as u64 * 15).unwrap()
    }

    #[test]
    fn an_index_ends_with_its_keys() {
        let mut builder = IndexBuilder::default();
        builder.begin_block(None, b"key", Trailer::new(1, ValueKind::Put));
        builder.end_block(Handle { offset: 0, stored: 10, raw: 10 });
        let mut bytes = builder.finish();
        assert!(Index::decode(&bytes, 15).is_ok());
        bytes.push(b'x');
        assert_eq!(Index::decode(&bytes, 15).err(), Some("there are bytes behind its keys"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        /// Every block holds one entry here, so that separators stand as close as they can.
        #[test]
        fn find_agrees_with_counting(
            prefix in prop::collection::vec(any::<u8>(), 0..12),
            firsts in prop::collection::vec((any_key(), 0u64..4), 1..40),
            asked in prop::collection::vec((any_key(), 0u64..5), 1..20),
        ) {
            let entry = |(key, seqno): &(Vec<u8>, u64)| {
                ([&prefix, key.as_slice()].concat(), Trailer::new(*seqno, ValueKind::Put))
            };
            let mut all: Vec<_> = firsts.iter().map(entry).collect();
            all.sort_by(|a, b| compare((&a.0, a.1), (&b.0, b.1)));
            all.dedup();
            let index = build(&all);
            let outside = asked.iter().map(|(key, s)| (key.clone(), Trailer::seek(*s)));
            let inside = asked.iter().map(entry);
            for (key, trailer) in all.iter().cloned().chain(outside).chain(inside) {
                let target = (key.as_slice(), trailer);
                let found = index.find(&key, trailer);
                // Block i holds the entries from its own first up to the next one's first.
                if let Some(at) = all.iter().position(|(k, t)| (k.as_slice(), *t) == target) {
                    prop_assert_eq!(found, Some(at));
                }
                // What is not above the separators counts, whichever way it is counted.
                let rank = (0..index.len())
                    .filter(|&at| {
                        let order = index.key(at).cmp(&key);
                        let older = index.trailer(at).cmp(&trailer.to_u64());
                        order.then(older.reverse()).is_le()
                    })
                    .count();
                prop_assert_eq!(found, rank.checked_sub(1));
            }
        }
    }

    #[test]
    fn separators_are_short_and_versions_keep_their_key() {
        let put = |key: &[u8], seqno| (key.to_vec(), Trailer::new(seqno, ValueKind::Put));
        let index =
            build(&[put(b"apple", 9), put(b"apricot", 8), put(b"apricot", 5), put(b"banana", 1)]);
        let keys: Vec<_> = (0..4).map(|at| index.key(at)).collect();
        assert_eq!(keys, [&b"apple"[..], b"apr", b"apricot", b"b"]);
        assert!(index.continues(2, b"apricot") && !index.continues(1, b"apr"));
        assert_eq!(index.find(b"apricot", Trailer::seek(SEQNO_MAX)), Some(1));
        assert_eq!(index.find(b"apricot", Trailer::seek(7)), Some(1));
        assert_eq!(index.find(b"apricot", Trailer::seek(5)), Some(1));
        assert_eq!(index.find(b"apricot", Trailer::seek(4)), Some(2));
        assert_eq!(index.find(b"appl", Trailer::seek(4)), None);
        assert_eq!(index.span_up(1, 31), 1..3);
        assert_eq!(index.span_down(1, 1), 1..2);
        assert_eq!(index.span_down(3, 1000), 0..4);
    }
}
