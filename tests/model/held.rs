//! Streams that are held while the database goes on, and how a check fails.

use bytes::Bytes;
use futures::FutureExt;
use seerdb::{ErrorKind, RangeStream};

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
    /// `None` when the range is refused.
    expected: Option<std::vec::IntoIter<Item>>,
    is_done: bool,
}

impl Held {
    pub(crate) fn new(stream: RangeStream, expected: Option<Vec<Item>>) -> Held {
        Held { stream, expected: expected.map(Vec::into_iter), is_done: false }
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
            let found = match early {
                Some(found) => found,
                None => self.stream.next().await,
            };
            self.compare(found)?;
        }
        Ok(())
    }

    fn compare(&mut self, found: Option<seerdb::Result<(Bytes, Bytes)>>) -> Check {
        let Some(expected) = &mut self.expected else {
            self.is_done = true;
            let refused = matches!(&found, Some(Err(e)) if e.kind() == ErrorKind::InvalidArgument);
            ensure!(refused, "an inverted range yields {}", shown(&found));
            return Ok(());
        };
        let wanted = expected.next();
        self.is_done = wanted.is_none();
        let same = match (&found, &wanted) {
            (None, None) => true,
            (Some(Ok((key, value))), Some(wanted)) => *key == wanted.0 && *value == wanted.1,
            _ => false,
        };
        let wanted = wanted.map(|(key, value)| Ok((Bytes::from(key), value)));
        ensure!(same, "a stream yields {} instead of {}", shown(&found), shown(&wanted));
        Ok(())
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
