//! Iteration over internal keys: the contract of one sorted source, and what is built on it.
//!
//! Invariants:
//! 1. A source yields internal keys in the order of [`crate::key::compare`], ascending when its
//!    direction is [`Direction::Forward`] and descending when it is [`Direction::Reverse`].
//! 2. Everything but [`Source::load`] is synchronous and touches memory only. A source that needs
//!    bytes from a file says [`Position::Blocked`] and goes on after a `load`.
//! 3. Errors come from `load` only, and are final: a source that failed is not used again.

pub(crate) mod merge;
pub(crate) mod visible;

#[cfg(test)]
mod tests;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::key::Trailer;

/// Which way a source moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From small keys to large ones, from new versions to old ones.
    Forward,
    /// From large keys to small ones, from old versions to new ones.
    Reverse,
}

/// Where a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// At an entry.
    At,
    /// Beyond the last entry in its direction.
    End,
    /// Before an entry, or the end, that only a [`Source::load`] can tell.
    Blocked,
}

/// An internal key and its value; the value of a tombstone is empty.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) trailer: Trailer,
    pub(crate) value: &'a [u8],
}

/// One sorted source of entries, with its direction fixed when it was made. It stands nowhere
/// until the first `seek`.
#[async_trait]
pub(crate) trait Source: Send + Sync {
    /// Where it stands.
    fn position(&self) -> Position;

    /// The entry it stands at; panics unless the position is [`Position::At`].
    fn entry(&self) -> Entry<'_>;

    /// The value of that entry, sharing the memory that holds it.
    fn value(&self) -> Bytes;

    /// Moves on by one entry; panics unless the position is [`Position::At`].
    fn advance(&mut self);

    /// Moves to the first entry in its direction that is not before `target` (forward: the
    /// smallest entry >= target; reverse: the largest entry <= target); without a target to the
    /// first entry of its direction.
    fn seek(&mut self, target: Option<(&[u8], Trailer)>);

    /// Brings the bytes that it is blocked on into memory. Dropping the future leaves the source
    /// blocked, and it may be loaded again.
    async fn load(&mut self) -> Result<()>;
}
