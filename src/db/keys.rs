//! Streams of keys, with or without the lengths of their values: what needs no value log.
//!
//! Invariants:
//! 1. No value is read that does not stand beside its key.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;

use super::cursor::Cursor;
use super::stream::{Entry, RangeStream};
use crate::error::Result;

/// A stream of keys in key order; made by [`RangeStream::keys`].
///
/// # Cancel safety
///
/// Dropping a `next` future loses nothing: the next call yields the key that it would have.
#[must_use = "a stream does nothing until it is polled"]
pub struct KeyStream {
    entries: RangeStream,
}

impl KeyStream {
    pub(super) fn new(entries: RangeStream) -> Self {
        KeyStream { entries }
    }

    /// Beside each key the length of its value in bytes, which is not read either.
    pub fn sizes(self) -> SizeStream {
        SizeStream { entries: self.entries }
    }

    /// As [`RangeStream::cursor`].
    pub fn cursor(&self) -> Cursor {
        self.entries.cursor()
    }

    /// As [`RangeStream::seek`].
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        self.entries.seek(key);
    }

    /// The next key, or `None` at the end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no key.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next key, `Ok(None)` at the end.
    ///
    /// # Errors
    ///
    /// As for [`RangeStream::try_next`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no key.
    pub async fn try_next(&mut self) -> Result<Option<Bytes>> {
        self.next().await.transpose()
    }
}

impl Stream for KeyStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let entry = std::task::ready!(poll_counted(&mut self.entries, cx));
        Poll::Ready(entry.map(|entry| entry.map(|entry| entry.key)))
    }
}

/// A stream of keys and the lengths of their values, in bytes; made by [`KeyStream::sizes`].
///
/// # Cancel safety
///
/// As for [`KeyStream`].
#[must_use = "a stream does nothing until it is polled"]
pub struct SizeStream {
    entries: RangeStream,
}

impl SizeStream {
    /// As [`RangeStream::cursor`].
    pub fn cursor(&self) -> Cursor {
        self.entries.cursor()
    }

    /// As [`RangeStream::seek`].
    pub fn seek(&mut self, key: impl AsRef<[u8]>) {
        self.entries.seek(key);
    }

    /// The next key and the length of its value, or `None` at the end.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no item.
    pub async fn next(&mut self) -> Option<Result<(Bytes, usize)>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The next key and the length of its value, `Ok(None)` at the end.
    ///
    /// # Errors
    ///
    /// As for [`RangeStream::try_next`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no item.
    pub async fn try_next(&mut self) -> Result<Option<(Bytes, usize)>> {
        self.next().await.transpose()
    }
}

impl Stream for SizeStream {
    type Item = Result<(Bytes, usize)>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let entry = std::task::ready!(poll_counted(&mut self.entries, cx));
        let sized = |entry: Entry| (entry.key.clone(), entry.value_bytes());
        Poll::Ready(entry.map(|entry| entry.map(sized)))
    }
}

/// The next entry, within the limit of the stream.
fn poll_counted(entries: &mut RangeStream, cx: &mut Context<'_>) -> Poll<Option<Result<Entry>>> {
    if entries.is_used_up() {
        return Poll::Ready(None);
    }
    let entry = std::task::ready!(entries.poll_entry(cx));
    entries.take_one();
    Poll::Ready(entry)
}
