//! Which versions of a key survive a merge, given the snapshots that are alive. Pure.
//!
//! The seqnos of the snapshots cut all seqnos into strata: a version belongs to the smallest
//! snapshot that sees it. Of each stratum a reader sees the newest version only.
//!
//! Invariants:
//! 1. For every snapshot of the list, and every seqno above the newest of them, a read before the
//!    merge and a read after it give the same answer.
//! 2. The newest visible seqno is always on the list, so that a snapshot taken while the merge
//!    runs is never older than the newest one listed; versions above it all survive.
//! 3. A tombstone goes only when the merge is the bottommost, it is the newest of the oldest
//!    stratum, and so everything that it hides is dropped with it or does not exist.
//!
//! Entries come in internal key order: newest version of a key first.

use std::cmp::Ordering;

use crate::key::{KeyBuf, SeqNo, Trailer, ValueKind};

/// The rule as a filter over a sorted stream of entries.
pub(crate) struct Retain {
    /// Ascending, without repetition, never empty; the last is the newest visible seqno.
    snapshots: Vec<SeqNo>,
    bottommost: bool,
    /// The user key of the entry before.
    key: Option<KeyBuf>,
    /// The stratum and trailer of the entry before.
    previous: Option<(usize, Trailer)>,
}

impl Retain {
    /// A filter for one merge. `snapshots` are the seqnos of all live snapshots together with the
    /// newest visible seqno, in any order.
    pub(crate) fn new(mut snapshots: Vec<SeqNo>, bottommost: bool) -> Self {
        assert!(!snapshots.is_empty(), "the newest visible seqno is missing");
        snapshots.sort_unstable();
        snapshots.dedup();
        if planted!(IgnoreSnapshots) {
            snapshots.drain(..snapshots.len() - 1);
        }
        Retain { snapshots, bottommost, key: None, previous: None }
    }

    /// Whether the next entry survives; `None` when it does not sort behind the entry before.
    /// Every entry of the stream must be asked for, in order.
    pub(crate) fn keep(&mut self, key: &[u8], trailer: Trailer) -> Option<bool> {
        let order = self.key.as_deref().map_or(Ordering::Less, |before| before.cmp(key));
        let previous = self.previous.take().filter(|_| order == Ordering::Equal);
        let is_behind = previous.is_none_or(|(_, newer)| newer > trailer);
        if order == Ordering::Greater || !is_behind {
            return None;
        }
        if order == Ordering::Less {
            let slot = self.key.get_or_insert_with(KeyBuf::new);
            slot.clear();
            slot.extend_from_slice(key);
        }
        let stratum = self.snapshots.partition_point(|&seqno| seqno < trailer.seqno());
        assert!(stratum <= self.snapshots.len());
        self.previous = Some((stratum, trailer));
        if stratum == self.snapshots.len() {
            // Above the newest visible seqno: any of these may be the newest for a coming reader.
            return Some(true);
        }
        let is_shadowed = previous.is_some_and(|(newer, _)| newer == stratum);
        let is_last = self.bottommost || planted!(DropTombstoneEarly);
        let is_void = is_last && stratum == 0 && trailer.kind() == ValueKind::Delete;
        Some(!is_shadowed && !is_void)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `(key, seqno, kind)` in internal key order.
    type Versions = Vec<(Vec<u8>, Trailer)>;

    /// What a reader at `seqno` sees of `key`: the seqno of the put, or nothing.
    fn read(versions: &Versions, key: &[u8], seqno: SeqNo) -> Option<SeqNo> {
        let newest = versions
            .iter()
            .filter(|(k, trailer)| k == key && trailer.seqno() <= seqno)
            .max_by_key(|(_, trailer)| trailer.seqno())?;
        (newest.1.kind() == ValueKind::Put).then(|| newest.1.seqno())
    }

    fn run(versions: &Versions, snapshots: &[SeqNo], bottommost: bool) -> Versions {
        let mut retain = Retain::new(snapshots.to_vec(), bottommost);
        versions.iter().filter(|(k, t)| retain.keep(k, *t).unwrap()).cloned().collect()
    }

    fn versions(text: &str) -> Versions {
        text.split_whitespace()
            .map(|word| {
                let (key, rest) = word.split_at(1);
                let (number, kind) = match rest.strip_suffix('-') {
                    Some(number) => (number, ValueKind::Delete),
                    None => (rest, ValueKind::Put),
                };
                (key.as_bytes().to_vec(), Trailer::new(number.parse().unwrap(), kind))
            })
            .collect()
    }

    fn show(versions: &Versions) -> String {
        let words: Vec<String> = versions
            .iter()
            .map(|(key, t)| {
                let sign = if t.kind() == ValueKind::Delete { "-" } else { "" };
                format!("{}{}{sign}", String::from_utf8_lossy(key), t.seqno())
            })
            .collect();
        words.join(" ")
    }

    /// Entries are key, seqno and `-` for a tombstone; snapshots stand before the colon.
    #[test]
    fn text_cases() {
        let cases = [
            ("9: a3 a2 a1 b4", "a3 b4", "a3 b4"),
            ("2 9: a3 a2 a1", "a3 a2", "a3 a2"),
            ("1 2 3: a3 a2 a1", "a3 a2 a1", "a3 a2 a1"),
            ("2: a4 a3 a2 a1", "a4 a3 a2", "a4 a3 a2"),
            ("9: a3- a2", "a3-", ""),
            ("2 9: a3- a2", "a3- a2", "a3- a2"),
            ("2 9: a3- a2- a1", "a3- a2-", "a3-"),
            ("2 9: a1- b5- b1-", "a1- b5- b1-", "b5-"),
            ("0: a3- a2", "a3- a2", "a3- a2"),
        ];
        for (line, upper, bottom) in cases {
            let (snapshots, entries) = line.split_once(':').unwrap();
            let snapshots: Vec<SeqNo> =
                snapshots.split_whitespace().map(|s| s.parse().unwrap()).collect();
            let entries = versions(entries);
            assert_eq!(show(&run(&entries, &snapshots, false)), upper, "{line}");
            assert_eq!(show(&run(&entries, &snapshots, true)), bottom, "{line}, bottommost");
        }
    }

    proptest! {
        /// Against a naive reader: every listed snapshot, and every seqno above the newest.
        #[test]
        fn no_reader_can_tell(
            raw in proptest::collection::btree_map(0u64..40, (0u8..4, any::<bool>()), 0..40),
            mut snapshots in proptest::collection::vec(0u64..40, 1..6),
            split in 0u64..40,
            bottommost: bool,
        ) {
            // A seqno belongs to one entry; newer runs hold newer seqnos, so that what lies below
            // a merge that is not bottommost is everything under `split`.
            let mut all: Versions = raw
                .iter()
                .map(|(&seqno, &(key, put))| {
                    let kind = if put { ValueKind::Put } else { ValueKind::Delete };
                    (vec![key], Trailer::new(seqno, kind))
                })
                .collect();
            all.sort_by(|a, b| crate::key::compare((&a.0, a.1), (&b.0, b.1)));
            let split = if bottommost { 0 } else { split };
            let (merged, below): (Versions, Versions) =
                all.iter().cloned().partition(|(_, t)| t.seqno() >= split);
            snapshots.sort_unstable();
            let kept = run(&merged, &snapshots, bottommost);
            let mut after = below;
            after.extend(kept.iter().cloned());
            let newest = *snapshots.last().unwrap();
            for seqno in snapshots.iter().copied().chain(newest..=41) {
                for key in 0u8..4 {
                    prop_assert_eq!(
                        read(&all, &[key], seqno),
                        read(&after, &[key], seqno),
                        "key {} at {}", key, seqno
                    );
                }
            }
            // A second pass changes nothing, and no stratum keeps two versions.
            prop_assert_eq!(run(&kept, &snapshots, bottommost), kept);
        }
    }
}
