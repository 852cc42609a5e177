//! Streams that are held while the database goes on, and how a check fails.

use bytes::Bytes;
use futures::FutureExt;
use seerdb::{Cursor, ErrorKind, RangeStream};

use crate::ops::Scan;
use crate::oracle::Item;

/// What went wrong, if anything.
pub(crate) type Check<T = ()> = Result<T, String>;

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(format!($($what)+));
        }
    };
}
pub(crate) use ensure;

/// A stream and what it still has to yield.
pub(crate) struct Held {
    stream: RangeStream,
    /// All items of its range, as it moves; `None` when the range is refused.
    all: Option<Vec<Item>>,
    reverse: bool,
    /// The index of the next item.
    next: usize,
    /// What its limit leaves.
    left: usize,
    /// The last key that it yielded since it was made or moved.
    last: Option<Vec<u8>>,
    is_done: bool,
}

impl Held {
    /// `all` is what the stream would yield without the limit of `scan`.
    pub(crate) fn new(stream: RangeStream, scan: &Scan, all: Option<Vec<Item>>) -> Held {
        let left = scan.limit.map_or(usize::MAX, usize::from);
        Held { stream, all, reverse: scan.reverse, next: 0, left, last: None, is_done: false }
    }

    /// Moves the stream to `key`.
    pub(crate) fn seek(&mut self, key: &[u8]) {
        self.stream.seek(key);
        if let Some(all) = &self.all {
            let is_before = |item: &Item| match self.reverse {
                false => item.0.as_slice() < key,
                true => item.0.as_slice() > key,
            };
            self.next = all.partition_point(is_before);
            self.is_done = false;
        }
        self.last = None;
    }

    /// The cursor stands behind what was yielded, whatever was read ahead.
    fn check_cursor(&self) -> Check {
        let cursor = self.stream.cursor();
        let same = cursor.key() == self.last.as_deref();
        ensure!(same, "a cursor is at {cursor:?} instead of {:?}", self.last);
        let text = cursor.to_string();
        let read = text.parse::<Cursor>();
        ensure!(read.as_ref().ok() == Some(&cursor), "the cursor {cursor:?} is read as {read:?}");
        Ok(())
    }

    /// Takes up to `count` items; with `polled` a `next` is polled once and dropped before each.
    pub(crate) async fn take(&mut self, count: usize, polled: bool) -> Check {
        for _ in 0..count {
            if self.is_done {
                let more = self.stream.next().await;
                ensure!(more.is_none(), "an ended stream yields {}", shown(&more));
                return Ok(());
            }
            let early = if polled { self.stream.next().now_or_never() } else { None };
            if early.is_none() {
                self.check_cursor()?;
            }
            let found = match early {
                Some(found) => found,
                None => self.stream.next().await,
            };
            self.compare(found)?;
        }
        Ok(())
    }

    fn compare(&mut self, found: Option<seerdb::Result<(Bytes, Bytes)>>) -> Check {
        let Some(all) = &self.all else {
            self.is_done = true;
            let refused = matches!(&found, Some(Err(e)) if e.kind() == ErrorKind::InvalidArgument);
            ensure!(refused, "an inverted range yields {}", shown(&found));
            return Ok(());
        };
        let wanted = all.get(self.next).filter(|_| self.left > 0).cloned();
        self.is_done = wanted.is_none();
        let same = match (&found, &wanted) {
            (None, None) => true,
            (Some(Ok((key, value))), Some(wanted)) => *key == wanted.0 && *value == wanted.1,
            _ => false,
        };
        if let Some((key, _)) = &wanted {
            self.last = Some(key.clone());
            self.next += 1;
            self.left -= 1;
        }
        let wanted = wanted.map(|(key, value)| Ok((Bytes::from(key), value)));
        ensure!(same, "a stream yields {} instead of {}", shown(&found), shown(&wanted));
        self.check_cursor()
    }

    /// The database was closed: what is still yielded must be right, then comes `Closed`.
    pub(crate) async fn check_closed(mut self) -> Check {
        while !self.is_done {
            let found = self.stream.next().await;
            if matches!(&found, Some(Err(e)) if e.kind() == ErrorKind::Closed) {
                let more = self.stream.next().await;
                ensure!(more.is_none(), "after `Closed` a stream yields {}", shown(&more));
                return Ok(());
            }
            self.compare(found)?;
        }
        Ok(())
    }
}

fn shown(item: &Option<seerdb::Result<(Bytes, Bytes)>>) -> String {
    match item {
        None => "its end".into(),
        Some(Err(error)) => format!("{error:?}"),
        Some(Ok((key, value))) => {
            let key = key.get(..40).unwrap_or(key).escape_ascii().to_string();
            format!("\"{key}\" = {}", shown_value(Some(value)))
        }
    }
}

pub(crate) fn shown_value(value: Option<&Bytes>) -> String {
    match value {
        None => "nothing".into(),
        Some(value) => {
            let head = value.get(..8).unwrap_or(value);
            format!("{} bytes of write {head:?}", value.len())
        }
    }
}
