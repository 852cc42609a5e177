//! What the database should contain: every version of every key.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use seerdb::SeqNo;

use crate::ops::{Scan, Span};

/// A key and its value.
pub(crate) type Item = (Vec<u8>, Bytes);

/// Whether a scan covers a key.
type Inside = Box<dyn Fn(&[u8]) -> bool>;

/// All versions of all keys, oldest first; `None` is a delete.
#[derive(Default)]
pub(crate) struct Model {
    keys: BTreeMap<Vec<u8>, Vec<(SeqNo, Option<Bytes>)>>,
    pub(crate) last: SeqNo,
}

impl Model {
    /// The next write.
    pub(crate) fn write(&mut self, key: Vec<u8>, value: Option<Bytes>) {
        self.last += 1;
        self.keys.entry(key).or_default().push((self.last, value));
    }

    pub(crate) fn get(&self, key: &[u8], at: SeqNo) -> Option<Bytes> {
        visible(self.keys.get(key)?, at)
    }

    /// Every key that was ever written.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.keys.keys().map(Vec::as_slice)
    }

    /// What a scan yields at a seqno; `None` when its range is refused.
    pub(crate) fn scan(&self, scan: &Scan, at: SeqNo) -> Option<Vec<Item>> {
        let inside: Inside = match &scan.span {
            Span::All => Box::new(|_| true),
            Span::Prefix(prefix) => {
                let prefix = prefix.bytes();
                Box::new(move |key| key.starts_with(&prefix))
            }
            Span::Range(from, to) => {
                let (from, to) = (from.as_ref().map(|k| k.bytes()), to.as_ref().map(|k| k.bytes()));
                if is_inverted(&from, &to) {
                    return None;
                }
                Box::new(move |key| is_inside(key, &from, &to))
            }
        };
        let mut items: Vec<Item> = self
            .keys
            .iter()
            .filter(|(key, _)| inside(key))
            .filter_map(|(key, versions)| Some((key.clone(), visible(versions, at)?)))
            .collect();
        if scan.reverse {
            items.reverse();
        }
        items.truncate(scan.limit.map_or(usize::MAX, usize::from));
        Some(items)
    }
}

fn visible(versions: &[(SeqNo, Option<Bytes>)], at: SeqNo) -> Option<Bytes> {
    versions.iter().rev().find(|(seqno, _)| *seqno <= at).and_then(|(_, value)| value.clone())
}

fn is_inverted(from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    match (from, to) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Excluded(a), Bound::Excluded(b)) => a >= b,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => a > b,
    }
}

fn is_inside(key: &[u8], from: &Bound<Vec<u8>>, to: &Bound<Vec<u8>>) -> bool {
    let behind_start = match from {
        Bound::Included(from) => key >= from.as_slice(),
        Bound::Excluded(from) => key > from.as_slice(),
        Bound::Unbounded => true,
    };
    let before_end = match to {
        Bound::Included(to) => key <= to.as_slice(),
        Bound::Excluded(to) => key < to.as_slice(),
        Bound::Unbounded => true,
    };
    behind_start && before_end
}
