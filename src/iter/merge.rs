//! Several sorted sources as one.
//!
//! Invariants:
//! 1. `heap` is a binary heap of the sources that are at an entry, the one with the next entry of
//!    the direction first; equal entries come from the first of their sources first.
//! 2. `blocked` are the sources that are blocked; with any of them the merge is blocked, because
//!    any of them may have the next entry.

use std::cmp::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::try_join_all;

use crate::error::Result;
use crate::iter::{Direction, Entry, Position, Source};
use crate::key::{Trailer, compare};

/// A merge of sources; itself a source.
pub(crate) struct Merge {
    sources: Vec<Box<dyn Source>>,
    direction: Direction,
    heap: Vec<usize>,
    blocked: Vec<usize>,
}

impl Merge {
    /// A merge of `sources`, all of which move in `direction`. It stands nowhere.
    pub(crate) fn new(sources: Vec<Box<dyn Source>>, direction: Direction) -> Merge {
        let heap = Vec::with_capacity(sources.len());
        Merge { sources, direction, heap, blocked: Vec::new() }
    }

    /// The direction of the merge.
    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    fn source(&self, index: usize) -> &dyn Source {
        &**self.sources.get(index).expect("the heap holds indices of sources")
    }

    /// Which of its sources has the next entry.
    pub(crate) fn at(&self) -> usize {
        *self.heap.first().expect("the merge is at an entry")
    }

    /// The source that has the next entry.
    fn top(&self) -> &dyn Source {
        self.source(self.at())
    }

    /// Whether source `a` comes before source `b`.
    fn is_before(&self, a: usize, b: usize) -> bool {
        let (x, y) = (self.source(a).entry(), self.source(b).entry());
        let order = compare((x.key, x.trailer), (y.key, y.trailer));
        let order = match self.direction {
            Direction::Forward => order,
            Direction::Reverse => order.reverse(),
        };
        order.then_with(|| a.cmp(&b)) == Ordering::Less
    }

    /// Whether the source at heap position `a` comes before the one at `b`; not, if there is none.
    fn slot_is_before(&self, a: usize, b: usize) -> bool {
        match (self.heap.get(a), self.heap.get(b)) {
            (Some(&a), Some(&b)) => self.is_before(a, b),
            _ => false,
        }
    }

    fn sift_down(&mut self, mut slot: usize) {
        loop {
            let (left, right) = (2 * slot + 1, 2 * slot + 2);
            let child = if self.slot_is_before(right, left) { right } else { left };
            if !self.slot_is_before(child, slot) {
                return;
            }
            self.heap.swap(slot, child);
            slot = child;
        }
    }

    /// Sorts the sources into heap and blocked ones.
    fn rebuild(&mut self) {
        self.heap.clear();
        self.blocked.clear();
        for (index, source) in self.sources.iter().enumerate() {
            match source.position() {
                Position::At => self.heap.push(index),
                Position::Blocked => self.blocked.push(index),
                Position::End => {}
            }
        }
        for slot in (0..self.heap.len() / 2).rev() {
            self.sift_down(slot);
        }
    }
}

#[async_trait]
impl Source for Merge {
    fn position(&self) -> Position {
        if !self.blocked.is_empty() {
            Position::Blocked
        } else if self.heap.is_empty() {
            Position::End
        } else {
            Position::At
        }
    }

    fn entry(&self) -> Entry<'_> {
        self.top().entry()
    }

    fn value(&self) -> Bytes {
        self.top().value()
    }

    fn advance(&mut self) {
        assert!(self.blocked.is_empty(), "a blocked merge is at no entry");
        let first = self.at();
        let source = self.sources.get_mut(first).expect("the heap holds indices of sources");
        source.advance();
        match source.position() {
            // The fast path: one source left, nothing to compare.
            Position::At if self.heap.len() == 1 => return,
            Position::At => {}
            Position::End => {
                self.heap.swap_remove(0);
            }
            Position::Blocked => {
                self.heap.swap_remove(0);
                self.blocked.push(first);
            }
        }
        self.sift_down(0);
    }

    fn seek(&mut self, target: Option<(&[u8], Trailer)>) {
        for source in &mut self.sources {
            source.seek(target);
        }
        self.rebuild();
    }

    async fn load(&mut self) -> Result<()> {
        let blocked = self.sources.iter_mut().filter(|s| s.position() == Position::Blocked);
        try_join_all(blocked.map(|source| source.load())).await?;
        self.rebuild();
        Ok(())
    }
}
