//! Streams over a range, forward and reverse, at one moment.
//!
//! Invariants:
//! 1. A stream sees exactly what was visible when it was made, whatever happens meanwhile.
//! 2. It pins its seqno, the tables of the version it reads and one chunk per memtable; when it
//!    needs more from a memtable or a version that is gone, it begins anew behind the last key it
//!    gave out, in the present state.
//! 3. Errors end the stream: after one the next item is `None`.

use std::ops::Bound;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;

use super::state::ReadState;
use super::{Core, DB};
use crate::error::{Error, Result};
use crate::iter::merge::Merge;
use crate::iter::visible::{Step, Visible};
use crate::iter::{Direction, Source};
use crate::key::{check_key, prefix_end};
use crate::memtable::MemSource;
use crate::range::KeyRange;
use crate::snapshot::Pin as SeqnoPin;
use crate::sstable::{BlockSource, RunIter};

/// What a stream without a near limit copies from a memtable at first. With a limit, half of it:
/// entries of other sources come between.
const EXPECTED_MAX: usize = 64;

type Item = (Bytes, Bytes);

/// A stream of keys and values in key order; made by [`DB::range`], [`DB::prefix`], [`DB::iter`]
/// and the same methods of [`crate::Snapshot`].
///
/// It implements [`futures::Stream`]; the inherent [`RangeStream::next`] and
/// [`RangeStream::try_next`] need no import. It owns what it needs and may be sent to other tasks.
/// Each value shares the memory of the block it was read from: a kept value keeps about
/// `block_bytes` alive; copy it to keep less.
///
/// # Cancel safety
///
/// Dropping a `next` future loses nothing: the next call yields the item that it would have.
#[must_use = "a stream does nothing until it is polled"]
pub struct RangeStream {
    db: DB,
    pin: SeqnoPin,
    lower: Bound<Bytes>,
    upper: Bound<Bytes>,
    direction: Direction,
    left: usize,
    fill_cache: bool,
    /// The last key given out.
    last: Option<Bytes>,
    state: State,
}

enum State {
    Fresh,
    Refused(Error),
    Ready(Cursor),
    Loading(BoxFuture<'static, (Cursor, Result<()>)>),
    Done,
}

/// The merge of one read state.
struct Cursor {
    merged: Visible,
    /// The generation of the state that it was built from.
    generation: u64,
}

impl RangeStream {
    pub(super) fn new(db: &DB, pin: SeqnoPin, range: impl KeyRange) -> Self {
        let (lower, upper) = range.into_bounds();
        RangeStream::bounded(db, pin, lower, upper)
    }

    pub(super) fn prefix(db: &DB, pin: SeqnoPin, prefix: &[u8]) -> Self {
        let end = match prefix_end(prefix) {
            Some(end) => Bound::Excluded(Bytes::from(end)),
            None => Bound::Unbounded,
        };
        RangeStream::bounded(db, pin, Bound::Included(Bytes::copy_from_slice(prefix)), end)
    }

    fn bounded(db: &DB, pin: SeqnoPin, lower: Bound<Bytes>, upper: Bound<Bytes>) -> Self {
        let state = match check_range(&lower, &upper) {
            Ok(()) => State::Fresh,
            Err(error) => State::Refused(error),
        };
        RangeStream {
            db: db.clone(),
            pin,
            lower,
            upper,
            direction: Direction::Forward,
            left: usize::MAX,
            fill_cache: true,
            last: None,
            state,
        }
    }

    /// Turns the stream around: from the end of the range to its start.
    ///
    /// # Panics
    ///
    /// When items were already taken.
    pub fn rev(mut self) -> Self {
        assert!(
            matches!(self.state, State::Fresh | State::Refused(_)),
            "a stream is reversed before its first item"
        );
        self.direction = match self.direction {
            Direction::Forward => Direction::Reverse,
            Direction::Reverse => Direction::Forward,
        };
        self
    }

    /// Ends the stream after `count` more items.
    pub fn limit(mut self, count: usize) -> Self {
        self.left = count;
        self
    }

    /// Whether blocks read from disk go into the cache (default: true).
    pub fn fill_cache(mut self, yes: bool) -> Self {
        self.fill_cache = yes;
        self
    }

    /// The next item, or `None` at the end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no item.
    pub async fn next(&mut self) -> Option<Result<Item>> {
        std::future::poll_fn(|cx| self.poll_item(cx)).await
    }

    /// The next item, `Ok(None)` at the end.
    ///
    /// # Errors
    ///
    /// As for [`DB::get`]; `InvalidArgument` when the range is inverted.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no item.
    pub async fn try_next(&mut self) -> Result<Option<Item>> {
        self.next().await.transpose()
    }

    fn poll_item(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Item>>> {
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Poll::Ready(None),
                State::Refused(error) => return Poll::Ready(Some(Err(error))),
                _ if self.left == 0 => return Poll::Ready(None),
                State::Fresh => match self.db.core().check_open() {
                    Ok(()) => self.state = State::Ready(self.build()),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                State::Ready(mut cursor) => match cursor.merged.step() {
                    Step::End => return Poll::Ready(None),
                    Step::Item { key, value } => {
                        if self.is_beyond(&key) {
                            return Poll::Ready(None);
                        }
                        self.left -= 1;
                        self.last = Some(key.clone());
                        self.state = State::Ready(cursor);
                        return Poll::Ready(Some(Ok((key, value))));
                    }
                    Step::Blocked => self.state = self.unblock(cursor),
                },
                State::Loading(mut loading) => match loading.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = State::Loading(loading);
                        return Poll::Pending;
                    }
                    Poll::Ready((cursor, Ok(()))) => self.state = State::Ready(cursor),
                    Poll::Ready((_, Err(error))) => return Poll::Ready(Some(Err(error))),
                },
            }
        }
    }

    /// Begins anew when the state has changed, else waits for the disk.
    fn unblock(&self, mut cursor: Cursor) -> State {
        let core = self.db.core();
        if let Err(error) = core.check_open() {
            return State::Refused(error);
        }
        if core.read_states.load().generation != cursor.generation {
            return State::Ready(self.build());
        }
        State::Loading(Box::pin(async move {
            let result = cursor.merged.load().await;
            (cursor, result)
        }))
    }

    /// A merge over the present state, in front of the next key to give out.
    fn build(&self) -> Cursor {
        let core = self.db.core();
        let state = core.read_states.load_full();
        let sources = self.sources(core, &state);
        let merge = Merge::new(sources, self.direction);
        let mut merged = Visible::new(merge, self.direction, self.pin.seqno());
        let start = match (&self.last, self.direction) {
            (Some(last), _) if planted!(RepeatAfterRestart) => Bound::Included(last),
            (Some(last), _) => Bound::Excluded(last),
            (None, Direction::Forward) => self.lower.as_ref(),
            (None, Direction::Reverse) => self.upper.as_ref(),
        };
        merged.seek(start.map(|key| key.as_ref()));
        Cursor { merged, generation: state.generation }
    }

    fn sources(&self, core: &Core, state: &ReadState) -> Vec<Box<dyn Source>> {
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for memtable in &state.memtables {
            let expected = self.left.div_ceil(2).min(EXPECTED_MAX);
            sources.push(Box::new(MemSource::new(memtable, self.direction, expected)));
        }
        for run in state.version.runs() {
            let blocks = BlockSource::Cached { cache: core.cache.clone(), fill: self.fill_cache };
            sources.push(Box::new(RunIter::new(run.clone(), self.direction, blocks)));
        }
        sources
    }

    /// Whether `key` lies behind the end of the range.
    fn is_beyond(&self, key: &[u8]) -> bool {
        match self.direction {
            Direction::Forward => match &self.upper {
                Bound::Included(end) => key > end.as_ref(),
                Bound::Excluded(end) if planted!(BoundOffByOne) => key > end.as_ref(),
                Bound::Excluded(end) => key >= end.as_ref(),
                Bound::Unbounded => false,
            },
            Direction::Reverse => match &self.lower {
                Bound::Included(end) => key < end.as_ref(),
                Bound::Excluded(end) => key <= end.as_ref(),
                Bound::Unbounded => false,
            },
        }
    }
}

fn check_range(lower: &Bound<Bytes>, upper: &Bound<Bytes>) -> Result<()> {
    let inverted = match (lower, upper) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Excluded(a), Bound::Excluded(b)) => a >= b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a > b,
    };
    if inverted {
        return Err(Error::invalid("the range is inverted: its start lies behind its end"));
    }
    for bound in [lower, upper] {
        if let Bound::Included(key) | Bound::Excluded(key) = bound {
            check_key(key)?;
        }
    }
    Ok(())
}

impl Stream for RangeStream {
    type Item = Result<Item>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(cx)
    }
}
