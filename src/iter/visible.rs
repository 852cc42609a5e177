//! What a reader at one seqno sees: for each user key the newest version not above the seqno, if
//! it is a put.
//!
//! Invariants:
//! 1. A user key comes out at most once, in the order of the direction.
//! 2. Forward, `current` is the last user key that is decided; its older versions are skipped.
//! 3. In reverse, versions come oldest first: `current` is the user key under way and `held` its
//!    newest visible version so far. Both survive being blocked between two versions.

use std::ops::Bound;

use bytes::{Bytes, BytesMut};

use crate::error::Result;
use crate::iter::merge::Merge;
use crate::iter::{Direction, Position, Source};
use crate::key::{KeyBuf, SEQNO_MAX, SeqNo, Trailer, ValueKind};

/// Keys are copied into pieces of memory of this size, which they share.
const KEYS_BYTES: usize = 2048;

/// What a step of [`Visible`] came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// The next visible pair.
    Item {
        /// The user key; keeps up to 2 KiB of memory together with its neighbours.
        key: Bytes,
        /// Put or pointer.
        trailer: Trailer,
        /// The value or the pointer, sharing the memory that it was found in.
        value: Bytes,
    },
    /// There are no more.
    End,
    /// Only a [`Visible::load`] can tell.
    Blocked,
}

/// A scan as a reader at one seqno sees it.
pub(crate) struct Visible {
    merge: Merge,
    direction: Direction,
    seqno: SeqNo,
    current: Option<KeyBuf>,
    held: Option<(Trailer, Bytes)>,
    keys: BytesMut,
}

impl Visible {
    /// What `merge`, which moves in `direction`, shows at `seqno`. It stands nowhere.
    pub(crate) fn new(merge: Merge, direction: Direction, seqno: SeqNo) -> Visible {
        assert_eq!(merge.direction(), direction, "merge and reader move alike");
        let keys = BytesMut::new();
        Visible { merge, direction, seqno, current: None, held: None, keys }
    }

    /// Moves to the first key in its direction that is within `bound`: the lower bound of a
    /// forward scan, the upper bound of a reverse one.
    pub(crate) fn seek(&mut self, bound: Bound<&[u8]>) {
        let newest = Trailer::seek(SEQNO_MAX);
        let oldest = Trailer::new(0, ValueKind::Delete);
        self.current = None;
        self.held = None;
        let target = match (bound, self.direction) {
            (Bound::Unbounded, _) => None,
            (Bound::Included(key), Direction::Forward) => Some((key, newest)),
            (Bound::Excluded(key), Direction::Reverse) => Some((key, newest)),
            (Bound::Included(key), Direction::Reverse) => Some((key, oldest)),
            (Bound::Excluded(key), Direction::Forward) => {
                // The oldest possible version would be met: it counts as decided.
                self.current = Some(KeyBuf::from_slice(key));
                Some((key, oldest))
            }
        };
        self.merge.seek(target);
    }

    /// The next visible pair, as far as memory can tell.
    pub(crate) fn step(&mut self) -> Step {
        match self.direction {
            Direction::Forward => self.step_forward(),
            Direction::Reverse => self.step_reverse(),
        }
    }

    fn step_forward(&mut self) -> Step {
        loop {
            match self.merge.position() {
                Position::Blocked => return Step::Blocked,
                Position::End => return Step::End,
                Position::At => {}
            }
            let entry = self.merge.entry();
            let decided = self.current.as_deref() == Some(entry.key);
            if decided || entry.trailer.seqno() > self.seqno {
                self.merge.advance();
                continue;
            }
            set_key(&mut self.current, entry.key);
            let item = (entry.trailer.kind() != ValueKind::Delete).then(|| Step::Item {
                key: copy_key(&mut self.keys, entry.key),
                trailer: entry.trailer,
                value: self.merge.value(),
            });
            self.merge.advance();
            if let Some(item) = item {
                return item;
            }
        }
    }

    fn step_reverse(&mut self) -> Step {
        loop {
            match self.merge.position() {
                Position::Blocked => return Step::Blocked,
                Position::End => return self.release().unwrap_or(Step::End),
                Position::At => {}
            }
            let entry = self.merge.entry();
            if self.current.as_deref() != Some(entry.key) {
                // The key under way is complete; the entry waits for the next step.
                if let Some(item) = self.release() {
                    return item;
                }
                let entry = self.merge.entry();
                set_key(&mut self.current, entry.key);
            }
            let trailer = self.merge.entry().trailer;
            let is_held = planted!(ReverseShowsOldest) && self.held.is_some();
            if trailer.seqno() <= self.seqno && !is_held {
                self.held = Some((trailer, self.merge.value()));
            }
            self.merge.advance();
        }
    }

    /// The key under way, if its newest visible version is a put.
    fn release(&mut self) -> Option<Step> {
        let (trailer, value) = self.held.take()?;
        let key = self.current.as_deref()?;
        (trailer.kind() != ValueKind::Delete).then(|| Step::Item {
            key: copy_key(&mut self.keys, key),
            trailer,
            value,
        })
    }

    /// Brings what the scan is blocked on into memory.
    ///
    /// # Errors
    ///
    /// Those of the sources; they are final.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the scan blocked where it was.
    pub(crate) async fn load(&mut self) -> Result<()> {
        self.merge.load().await
    }
}

fn set_key(current: &mut Option<KeyBuf>, key: &[u8]) {
    let buf = current.get_or_insert_default();
    buf.clear();
    buf.extend_from_slice(key);
}

fn copy_key(keys: &mut BytesMut, key: &[u8]) -> Bytes {
    if keys.capacity() < key.len() {
        keys.reserve(KEYS_BYTES.max(key.len()));
    }
    keys.extend_from_slice(key);
    keys.split().freeze()
}
