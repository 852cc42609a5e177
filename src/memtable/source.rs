//! A memtable as one sorted source.
//!
//! Invariants:
//! 1. Entries are copied out in chunks: skiplist cursors borrow the memtable and could not live
//!    across an await. The first chunk is as large as the consumer says it will need, within
//!    [`CHUNK_MIN`] and [`CHUNK_MAX`]; each further one is half of all before it.
//! 2. Between chunks the source holds the memtable weakly, so that an idle stream pins no memory.
//!    When the memtable has gone, the source is [`Position::Blocked`] and its `load` fails: the
//!    owner then rebuilds its sources from the present state, which holds the entries elsewhere.

use std::ops::Bound;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use crossbeam_epoch::Guard;

use super::Memtable;
use super::value::MemValue;
use crate::error::{Error, ErrorKind, Result};
use crate::iter::{Direction, Entry, Position, Source};
use crate::key::{KeyBuf, Trailer};

const CHUNK_MIN: usize = 16;
const CHUNK_MAX: usize = 1024;

struct Item {
    key: KeyBuf,
    trailer: Trailer,
    value: MemValue,
}

/// The entries of a memtable in one direction.
pub(crate) struct MemSource {
    memtable: Weak<Memtable>,
    direction: Direction,
    chunk: Vec<Item>,
    /// The index in the chunk.
    at: usize,
    chunk_len: usize,
    /// The length of the first chunk after a seek.
    first_len: usize,
    /// The entries copied since the seek.
    copied: usize,
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
            chunk: Vec::new(),
            at: 0,
            chunk_len: first_len,
            first_len,
            copied: 0,
            state: State::Last,
        }
    }

    fn item(&self) -> &Item {
        self.chunk.get(self.at).expect("the caller saw Position::At")
    }

    fn fill(&mut self, bound: Bound<(&[u8], Trailer)>) {
        self.chunk.clear();
        self.at = 0;
        let Some(memtable) = self.memtable.upgrade() else {
            self.state = State::Gone;
            return;
        };
        memtable.copy_chunk(self.direction, bound, self.chunk_len, &mut self.chunk);
        self.state = if self.chunk.len() < self.chunk_len { State::Last } else { State::More };
        self.copied += self.chunk.len();
        self.chunk_len = (self.copied / 2).clamp(CHUNK_MIN, CHUNK_MAX);
    }
}

#[async_trait]
impl Source for MemSource {
    fn position(&self) -> Position {
        match (self.at < self.chunk.len(), self.state) {
            (true, _) => Position::At,
            (false, State::Gone) => Position::Blocked,
            (false, _) => Position::End,
        }
    }

    fn entry(&self) -> Entry<'_> {
        let item = self.item();
        let value = item.value.bytes();
        Entry { key: &item.key, trailer: item.trailer, value }
    }

    fn value(&self) -> Bytes {
        let item = self.item();
        item.value.to_bytes()
    }

    fn advance(&mut self) {
        assert!(self.at < self.chunk.len(), "the caller saw Position::At");
        self.at += 1;
        if self.at == self.chunk.len() && self.state == State::More {
            let left = self.chunk.pop().expect("a full chunk is not empty");
            self.fill(Bound::Excluded((&left.key, left.trailer)));
        }
    }

    fn seek(&mut self, target: Option<(&[u8], Trailer)>) {
        self.chunk_len = self.first_len;
        self.copied = 0;
        self.fill(target.map_or(Bound::Unbounded, Bound::Included));
    }

    async fn load(&mut self) -> Result<()> {
        if self.position() == Position::Blocked {
            return Err(Error::new(ErrorKind::Io, "the memtable was flushed under its reader"));
        }
        Ok(())
    }
}

impl Memtable {
    /// Appends up to `max` entries from `bound` on, in `direction`, to `out`.
    fn copy_chunk(
        &self,
        direction: Direction,
        bound: Bound<(&[u8], Trailer)>,
        max: usize,
        out: &mut Vec<Item>,
    ) {
        let guard: &Guard = &crossbeam_epoch::pin();
        let mut index = match (bound, direction) {
            (Bound::Included((key, _)) | Bound::Excluded((key, _)), _) => self.bounds.locate(key),
            (Bound::Unbounded, Direction::Forward) => 0,
            (Bound::Unbounded, Direction::Reverse) => self.bounds.last(),
        };
        let mut next = self.partition(index).seek(direction, bound, guard);
        loop {
            while let Some(entry) = next {
                if out.len() == max {
                    return;
                }
                let key = entry.key();
                out.push(Item {
                    key: KeyBuf::from_slice(&key.key),
                    trailer: key.trailer,
                    value: entry.value().clone(),
                });
                next = match direction {
                    Direction::Forward => entry.next(),
                    Direction::Reverse => entry.prev(),
                };
            }
            index = match direction {
                Direction::Forward if index < self.bounds.last() => index + 1,
                Direction::Reverse if index > 0 => index - 1,
                _ => return,
            };
            next = self.partition(index).seek(direction, Bound::Unbounded, guard);
        }
    }
}
