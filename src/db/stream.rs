//! Streams over a range, forward and reverse, at one moment.
//!
//! Invariants:
//! 1. A stream sees exactly what was visible when it was made, whatever happens meanwhile.
//! 2. It pins its seqno, the tables of the version it reads and one chunk per memtable; when it
//!    needs more from a memtable or a version that is gone, it begins anew behind the last key it
//!    gave out, in the present state.
//! 3. Errors end the stream: after one the next item is `None`.
//! 4. `given` is the key of the last item given out while there are values in `ahead`, else `last`
//!    is: where a [`Cursor`] goes on.
//! 5. Values that have to be read from the value log are read side by side, ahead of the consumer:
//!    the more the longer it goes on, within [`AHEAD_MAX`] values and [`AHEAD_BYTES_MAX`], and no
//!    further while the streams together hold what they may.

use std::ops::Bound;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::stream::{FuturesOrdered, Stream, StreamExt};

use super::cursor::Cursor;
use super::keys::KeyStream;
use super::monitor::Tally;
use super::state::ReadState;
use super::values::{Look, pointer_of, unknown};
use super::{Core, DB};
use crate::allowance::Charge;
use crate::error::{Error, Result};
use crate::iter::merge::Merge;
use crate::iter::visible::{Step, Visible};
use crate::iter::{Direction, Source};
use crate::key::{Trailer, ValueKind, check_key, prefix_end};
use crate::memtable::MemSource;
use crate::probe::{Origin, Probe, ReadStats};
use crate::range::{KeyRange, check_range};
use crate::snapshot::Pin as SeqnoPin;
use crate::sstable::{BlockSource, RunIter};
use crate::version::Version;

/// What a stream without a near limit copies from a memtable at first. With a limit, half of it:
/// entries of other sources come between.
const EXPECTED_MAX: usize = 64;

/// How many values are read ahead at first, unless a limit says how many will be wanted.
const AHEAD_MIN: usize = 4;
const AHEAD_MAX: usize = 64;
/// How many bytes of values are read ahead, but one value always.
const AHEAD_BYTES_MAX: usize = 1 << 20;

pub(super) type Item = (Bytes, Bytes);

/// A key and what stands beside it: a value, or a pointer to one.
pub(super) struct Entry {
    pub(super) key: Bytes,
    trailer: Trailer,
    value: Bytes,
}

impl Entry {
    /// The length of the value, in bytes.
    pub(super) fn value_bytes(&self) -> usize {
        match self.trailer.kind() {
            ValueKind::Pointer => pointer_of(&self.value).raw as usize,
            ValueKind::Put | ValueKind::Delete => self.value.len(),
        }
    }
}

/// A value that is read, or was found while others before it are.
type Fetching = BoxFuture<'static, (Bytes, usize, Result<Bytes>)>;

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
    probe: Probe,
    tally: Tally,
    /// The last key taken from the reader.
    last: Option<Bytes>,
    state: State,
    /// The key before `last`.
    before: Option<Bytes>,
    /// The last key given out, when it is not `last`.
    given: Option<Bytes>,
    /// Where to begin instead of at the start of the range.
    from: Option<Bytes>,
    ahead: FuturesOrdered<Fetching>,
    /// The bytes of the values in `ahead` that are read.
    ahead_bytes: Charge,
    /// How many values may be in `ahead`; grows while the stream goes on.
    ahead_max: usize,
}

enum State {
    Fresh,
    Refused(Error),
    Ready(Box<Reader>),
    Loading(BoxFuture<'static, (Box<Reader>, Result<()>)>),
    Done,
}

/// What a look for a value came to.
enum Looked {
    Item(Item),
    Fetching(Fetching),
    /// The reader was made anew.
    Again,
}

/// The merge of one read state.
struct Reader {
    merged: Visible,
    version: Arc<Version>,
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
            probe: Probe::default(),
            tally: db.core().monitor.tally(),
            last: None,
            before: None,
            given: None,
            from: None,
            state,
            ahead: FuturesOrdered::new(),
            ahead_bytes: db.core().ahead.charge(0),
            ahead_max: AHEAD_MIN,
        }
    }

    /// Turns the stream around: from the end of the range to its start.
    ///
    /// # Panics
    ///
    /// When items were already taken, or a cursor says where to begin.
    pub fn rev(mut self) -> Self {
        let is_refused = matches!(self.state, State::Refused(_));
        assert!(is_refused || self.is_fresh(), "a stream is reversed before its first item");
        self.direction = match self.direction {
            Direction::Forward => Direction::Reverse,
            Direction::Reverse => Direction::Forward,
        };
        self
    }

    /// Ends the stream after `count` more items.
    pub fn limit(mut self, count: usize) -> Self {
        self.left = count;
        self.ahead_max = self.first_ahead();
        self
    }

    /// How many values to read ahead before it is known that the stream goes on.
    fn first_ahead(&self) -> usize {
        if self.left == usize::MAX { AHEAD_MIN } else { self.left.clamp(AHEAD_MIN, AHEAD_MAX) }
    }

    /// Goes on behind the item at which `cursor` was taken, in the present state of the database.
    /// A cursor from outside the range begins at its start, or finds nothing: it never leads out.
    ///
    /// The stream has to move the way the one did that the cursor is from; otherwise its first
    /// item is an `InvalidArgument`.
    ///
    /// ```
    /// # async fn page(db: &seerdb::DB, token: Option<&str>) -> seerdb::Result<String> {
    /// let mut page = db.prefix("user/").limit(20);
    /// if let Some(token) = token {
    ///     page = page.resume(&token.parse()?);
    /// }
    /// while let Some((key, _)) = page.try_next().await? {
    ///     println!("{}", key.escape_ascii());
    /// }
    /// Ok(page.cursor().to_string())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// When items were already taken.
    pub fn resume(mut self, cursor: &Cursor) -> Self {
        match self.state {
            State::Refused(_) => return self,
            _ => assert!(self.is_fresh(), "a stream is resumed before its first item"),
        }
        if cursor.direction() != self.direction {
            let error = Error::invalid("the cursor is from a stream that moved the other way");
            self.state = State::Refused(error);
            return self;
        }
        match cursor.start().clone() {
            Bound::Excluded(key) => self.last = Some(key),
            Bound::Included(key) => self.from = Some(key),
            Bound::Unbounded => {}
        }
        self
    }

    /// Where the stream stands: behind the last item it gave out, or where it was moved to since.
    pub fn cursor(&self) -> Cursor {
        let last = if self.ahead.is_empty() { &self.last } else { &self.given };
        let start = match (last, &self.from) {
            (Some(last), _) => Bound::Excluded(last),
            (None, Some(from)) => Bound::Included(from),
            (None, None) => Bound::Unbounded,
        };
        Cursor::new(self.direction, start)
    }

    /// Moves to `key`, on or back: the next item is the first that is not before it, as the stream
    /// moves, and lies in the range. The moment that the stream shows stays, and so does what is
    /// left of its limit. A stream at its end, or ended by an error, may be moved likewise.
    ///
    /// ```
    /// # async fn skip(db: &seerdb::DB) -> seerdb::Result<()> {
    /// let mut events = db.prefix("event/");
    /// events.seek("event/2026-11-");
    /// let first_of_november = events.try_next().await?;
    /// # let _ = first_of_november;
    /// # Ok(())
    /// # }
    /// ```
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        self.tally.end();
        self.ahead = FuturesOrdered::new();
        self.ahead_bytes.set(0);
        self.ahead_max = self.first_ahead();
        (self.last, self.before, self.given) = (None, None, None);
        if let Err(error) = check_key(key.as_ref()) {
            self.state = State::Refused(error);
            return;
        }
        self.from = Some(Bytes::copy_from_slice(key.as_ref()));
        let generation = self.db.core().read_states.load().generation;
        self.state = match std::mem::replace(&mut self.state, State::Done) {
            State::Refused(error) => State::Refused(error),
            State::Ready(mut reader) if reader.generation == generation => {
                reader.merged.seek(self.start());
                State::Ready(reader)
            }
            _ => State::Fresh,
        };
    }

    fn is_fresh(&self) -> bool {
        matches!(self.state, State::Fresh) && self.last.is_none() && self.from.is_none()
    }

    /// Only the keys: no value is read from the value log.
    pub fn keys(self) -> KeyStream {
        KeyStream::new(self)
    }

    /// Whether blocks read from disk go into the cache (default: true).
    pub fn fill_cache(mut self, yes: bool) -> Self {
        self.fill_cache = yes;
        self
    }

    /// Counts what the stream does from its first item on, for [`RangeStream::stats`].
    pub fn counted(mut self) -> Self {
        self.probe = Probe::new();
        self
    }

    /// What the stream did so far, if it is [`RangeStream::counted`]: blocks and values, those read
    /// ahead included. The time is not taken.
    pub fn stats(&self) -> ReadStats {
        self.probe.stats(Duration::ZERO)
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
            if self.is_used_up() {
                return Poll::Ready(None);
            }
            if self.ahead.is_empty() {
                match std::task::ready!(self.poll_entry(cx)) {
                    None => return Poll::Ready(None),
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Some(Ok(entry)) => match self.look(entry) {
                        Ok(Looked::Item(item)) => {
                            self.left -= 1;
                            return Poll::Ready(Some(Ok(item)));
                        }
                        Ok(Looked::Fetching(fetching)) => {
                            self.given = self.before.clone();
                            self.ahead.push_back(fetching);
                        }
                        Ok(Looked::Again) => continue,
                        Err(error) => {
                            self.given = self.before.clone();
                            return Poll::Ready(Some(Err(self.end(error))));
                        }
                    },
                }
            }
            self.look_ahead(cx);
            // The reads that are polled first are submitted together.
            let fs = self.db.core().env.fs().clone();
            let _plug = fs.plug();
            let next = std::task::ready!(self.ahead.poll_next_unpin(cx));
            let Some((key, bytes, value)) = next else { continue };
            self.ahead_bytes.set(self.ahead_bytes.bytes() - bytes);
            if planted!(SkipUnreadableValue) && value.is_err() {
                continue;
            }
            let value = match value {
                Ok(value) => value,
                Err(error) => return Poll::Ready(Some(Err(self.end(error)))),
            };
            self.left -= 1;
            self.given = Some(key.clone());
            return Poll::Ready(Some(Ok((key, value))));
        }
    }

    /// Ends the stream with an error.
    fn end(&mut self, error: Error) -> Error {
        self.state = State::Done;
        self.last = self.given.take();
        self.ahead = FuturesOrdered::new();
        self.ahead_bytes.set(0);
        error
    }

    /// Starts to fetch what follows, as far as memory knows the keys.
    fn look_ahead(&mut self, cx: &mut Context<'_>) {
        let before = self.ahead.len();
        while self.ahead.len() < self.ahead_max.min(self.left)
            && self.ahead_bytes.bytes() < AHEAD_BYTES_MAX
            && self.ahead_bytes.share() > 0
            && matches!(self.state, State::Ready(_))
        {
            let entry = match self.poll_entry(cx) {
                Poll::Ready(Some(Ok(entry))) => entry,
                Poll::Ready(Some(Err(error))) => {
                    self.ahead.push_back(Box::pin(ready((Bytes::new(), 0, Err(error)))));
                    break;
                }
                Poll::Ready(None) | Poll::Pending => break,
            };
            let key = entry.key.clone();
            match self.look(entry) {
                Ok(Looked::Item((key, value))) if planted!(OvertakeInStream) => {
                    self.ahead.push_front(Box::pin(ready((key, 0, Ok(value)))));
                }
                Ok(Looked::Item((key, value))) => {
                    self.ahead.push_back(Box::pin(ready((key, 0, Ok(value)))));
                }
                Ok(Looked::Fetching(fetching)) => self.ahead.push_back(fetching),
                Ok(Looked::Again) => break,
                Err(error) => self.ahead.push_back(Box::pin(ready((key, 0, Err(error))))),
            }
        }
        if self.ahead.len() > before {
            self.ahead_max = (self.ahead_max * 2).min(AHEAD_MAX);
        }
    }

    /// Gets the value of an entry, as far as memory has it.
    fn look(&mut self, entry: Entry) -> Result<Looked> {
        let Entry { key, trailer, value } = entry;
        if trailer.kind() != ValueKind::Pointer {
            return Ok(Looked::Item((key, value)));
        }
        let core = self.db.core();
        let State::Ready(reader) = &self.state else {
            unreachable!("the entry came from a reader that is ready");
        };
        let (seqno, fill) = (trailer.seqno(), self.fill_cache);
        match core.look_up(&reader.version, &key, seqno, &value, fill, &self.probe)? {
            Look::Value(value) => Ok(Looked::Item((key, value))),
            Look::Disk(distant) => {
                self.probe.value(Origin::Disk);
                let bytes = distant.bytes();
                let fetching = core.fetch(distant, &key, self.fill_cache);
                self.ahead_bytes.set(self.ahead_bytes.bytes() + bytes);
                Ok(Looked::Fetching(Box::pin(async move { (key, bytes, fetching.await) })))
            }
            Look::Unknown if core.read_states.load().generation == reader.generation => {
                Err(unknown(&pointer_of(&value)))
            }
            Look::Unknown => {
                // The segment was begun after the reader was made: the entry comes again.
                self.last = self.before.take();
                self.state = State::Ready(self.build());
                Ok(Looked::Again)
            }
        }
    }

    /// The next entry, without its value if that is in the value log.
    pub(super) fn poll_entry(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Entry>>> {
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return Poll::Ready(None),
                State::Refused(error) => return Poll::Ready(Some(Err(error))),
                State::Fresh => match self.db.core().check_open() {
                    Ok(()) => {
                        self.tally.begin(self.db.core());
                        self.state = State::Ready(self.build());
                    }
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                State::Ready(mut reader) => match self.tally.step(&mut reader.merged) {
                    Step::End => return Poll::Ready(None),
                    Step::Item { key, trailer, value } => {
                        if self.is_beyond(&key) {
                            return Poll::Ready(None);
                        }
                        self.before = self.last.replace(key.clone());
                        self.state = State::Ready(reader);
                        return Poll::Ready(Some(Ok(Entry { key, trailer, value })));
                    }
                    Step::Blocked => self.state = self.unblock(reader),
                },
                State::Loading(mut loading) => match loading.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = State::Loading(loading);
                        return Poll::Pending;
                    }
                    Poll::Ready((reader, Ok(()))) => self.state = State::Ready(reader),
                    Poll::Ready((_, Err(error))) => return Poll::Ready(Some(Err(error))),
                },
            }
        }
    }

    /// Counts an item as given out.
    pub(super) fn take_one(&mut self) {
        self.left = self.left.saturating_sub(1);
    }

    /// Whether all items that were asked for are given out. A range that is refused is refused
    /// whatever the limit.
    pub(super) fn is_used_up(&self) -> bool {
        self.left == 0 && !matches!(self.state, State::Refused(_))
    }

    /// Begins anew when the state has changed, else waits for the disk.
    fn unblock(&self, mut reader: Box<Reader>) -> State {
        let core = self.db.core();
        if let Err(error) = core.check_open() {
            return State::Refused(error);
        }
        if core.read_states.load().generation != reader.generation {
            return State::Ready(self.build());
        }
        State::Loading(Box::pin(async move {
            let result = reader.merged.load().await;
            (reader, result)
        }))
    }

    /// A merge over the present state, in front of the next key to give out.
    fn build(&self) -> Box<Reader> {
        let core = self.db.core();
        let state = core.read_states.load_full();
        let sources = self.sources(core, &state);
        let merge = Merge::new(sources, self.direction);
        let mut merged = Visible::new(merge, self.direction, self.pin.seqno());
        merged.seek(self.start());
        let (version, generation) = (state.version.clone(), state.generation);
        Box::new(Reader { merged, version, generation })
    }

    /// Where the next key to give out may be: within the range, whatever was sought or resumed.
    fn start(&self) -> Bound<&[u8]> {
        let wanted = match (&self.last, &self.from) {
            (Some(last), _) if planted!(RepeatAfterRestart) => Bound::Included(&**last),
            (Some(last), _) => Bound::Excluded(&**last),
            (None, Some(from)) => Bound::Included(&**from),
            (None, None) => Bound::Unbounded,
        };
        let edge = match self.direction {
            Direction::Forward => &self.lower,
            Direction::Reverse => &self.upper,
        };
        let edge = edge.as_ref().map(|key| &**key);
        let (Bound::Included(key) | Bound::Excluded(key)) = wanted else { return edge };
        let is_outside = match (edge, self.direction) {
            (Bound::Unbounded, _) => false,
            (Bound::Included(edge), Direction::Forward) => key < edge,
            (Bound::Excluded(edge), Direction::Forward) => key <= edge,
            (Bound::Included(edge), Direction::Reverse) => key > edge,
            (Bound::Excluded(edge), Direction::Reverse) => key >= edge,
        };
        if is_outside { edge } else { wanted }
    }

    fn sources(&self, core: &Core, state: &ReadState) -> Vec<Box<dyn Source>> {
        let mut sources: Vec<Box<dyn Source>> = Vec::new();
        for memtable in &state.memtables {
            let expected = self.left.div_ceil(2).min(EXPECTED_MAX);
            sources.push(Box::new(MemSource::new(memtable, self.direction, expected)));
        }
        for run in state.version.runs() {
            let blocks = BlockSource::Cached { cache: core.cache.clone(), fill: self.fill_cache };
            let scan = RunIter::new(run.clone(), self.direction, blocks);
            let (ahead, probe) = (core.ahead.clone(), self.probe.clone());
            sources.push(Box::new(scan.for_stream(self.left, ahead, probe)));
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

impl Stream for RangeStream {
    type Item = Result<Item>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_item(cx)
    }
}
