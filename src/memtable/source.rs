//! A memtable as one sorted source.
//!
//! Invariants:
//! 1. Entries are copied out in chunks: skiplist cursors borrow the memtable and could not live
//!    across an await. The first chunk is as large as the consumer says it will need, within
//!    [`CHUNK_MIN`] and [`CHUNK_MAX`]; each further one is twice as large.
//! 2. Between chunks the source holds the memtable weakly, so that an idle stream pins no memory.
//!    When the memtable has gone, the source is [`Position::Blocked`] and its `load` fails: the
//!    owner then rebuilds its sources from the present state, which holds the entries elsewhere.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use crossbeam_epoch::Guard;
use crossbeam_skiplist::base::Entry as SkipEntry;

use super::Memtable;
use super::partition::MemKey;
use crate::error::{Error, ErrorKind, Result};
use crate::iter::{Direction, Entry, Position, Source};
use crate::key::{KeyBuf, Trailer, compare};

const CHUNK_MIN: usize = 16;
const CHUNK_MAX: usize = 1024;

struct Item {
    key: KeyBuf,
    trailer: Trailer,
    value: Bytes,
}

/// The entries of a memtable in one direction.
pub(crate) struct MemSource {
    memtable: Weak<Memtable>,
    direction: Direction,
    chunk: VecDeque<Item>,
    chunk_len: usize,
    /// The length of the first chunk after a seek.
    first_len: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The chunk is followed by more entries, perhaps.
    More,
    /// The chunk is the end.
    Last,
    /// The memtable has gone.
    Gone,
}

impl MemSource {
    /// The entries of `memtable`; the consumer expects to take about `expected` of them.
    pub(crate) fn new(memtable: &Arc<Memtable>, direction: Direction, expected: usize) -> Self {
        let first_len = expected.clamp(CHUNK_MIN, CHUNK_MAX);
        MemSource {
            memtable: Arc::downgrade(memtable),
            direction,
            chunk: VecDeque::new(),
            chunk_len: first_len,
            first_len,
            state: State::Last,
        }
    }

    fn fill(&mut self, bound: Bound<(&[u8], Trailer)>) {
        let Some(memtable) = self.memtable.upgrade() else {
            self.state = State::Gone;
            return;
        };
        memtable.copy_chunk(self.direction, bound, self.chunk_len, &mut self.chunk);
        self.state = if self.chunk.len() < self.chunk_len { State::Last } else { State::More };
        self.chunk_len = (self.chunk_len * 2).min(CHUNK_MAX);
    }
}

#[async_trait]
impl Source for MemSource {
    fn position(&self) -> Position {
        match (self.chunk.is_empty(), self.state) {
            (false, _) => Position::At,
            (true, State::Gone) => Position::Blocked,
            (true, _) => Position::End,
        }
    }

    fn entry(&self) -> Entry<'_> {
        let item = self.chunk.front().expect("the caller saw Position::At");
        Entry { key: &item.key, trailer: item.trailer, value: &item.value }
    }

    fn value(&self) -> Bytes {
        self.chunk.front().expect("the caller saw Position::At").value.clone()
    }

    fn advance(&mut self) {
        let left = self.chunk.pop_front().expect("the caller saw Position::At");
        if self.chunk.is_empty() && self.state == State::More {
            self.fill(Bound::Excluded((&left.key, left.trailer)));
        }
    }

    fn seek(&mut self, target: Option<(&[u8], Trailer)>) {
        self.chunk.clear();
        self.chunk_len = self.first_len;
        self.fill(target.map_or(Bound::Unbounded, Bound::Included));
    }

    async fn load(&mut self) -> Result<()> {
        if self.position() == Position::Blocked {
            return Err(Error::new(ErrorKind::Io, "the memtable was flushed under its reader"));
        }
        Ok(())
    }
}

/// A skiplist cursor in the merge of the partitions; the heap's greatest is the next entry.
struct Head<'a, 'g> {
    direction: Direction,
    entry: SkipEntry<'a, 'g, MemKey, Bytes>,
}

impl Head<'_, '_> {
    fn order(&self, other: &Self) -> Ordering {
        let (a, b) = (self.entry.key(), other.entry.key());
        let order = compare((&a.key, a.trailer), (&b.key, b.trailer));
        match self.direction {
            Direction::Forward => order.reverse(),
            Direction::Reverse => order,
        }
    }
}

impl Ord for Head<'_, '_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order(other)
    }
}

impl PartialOrd for Head<'_, '_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_, '_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head<'_, '_> {}

impl Memtable {
    /// Appends up to `max` entries from `bound` on, in `direction`, to `out`.
    fn copy_chunk(
        &self,
        direction: Direction,
        bound: Bound<(&[u8], Trailer)>,
        max: usize,
        out: &mut VecDeque<Item>,
    ) {
        let guard: &Guard = &crossbeam_epoch::pin();
        let mut heap: BinaryHeap<Head<'_, '_>> = self
            .partitions
            .iter()
            .filter_map(|p| p.seek(direction, bound, guard))
            .map(|entry| Head { direction, entry })
            .collect();
        while out.len() < max {
            let Some(mut head) = heap.peek_mut() else { return };
            let entry = &head.entry;
            out.push_back(Item {
                key: entry.key().key.clone(),
                trailer: entry.key().trailer,
                value: entry.value().clone(),
            });
            let next = match direction {
                Direction::Forward => entry.next(),
                Direction::Reverse => entry.prev(),
            };
            match next {
                Some(entry) => head.entry = entry,
                None => {
                    std::collections::binary_heap::PeekMut::pop(head);
                }
            }
        }
    }
}
