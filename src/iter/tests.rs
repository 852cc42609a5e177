//! Tests of merge and visibility over sources that block wherever they like.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::executor::block_on;
use proptest::prelude::*;

use super::merge::Merge;
use super::visible::{Step, Visible};
use super::*;
use crate::error::Error;
use crate::key::{SEQNO_MAX, SeqNo, ValueKind, compare};

type Entries = Vec<(Vec<u8>, Trailer, Vec<u8>)>;

/// A source in memory that is blocked before some of its places until it is loaded there.
struct Script {
    entries: Entries,
    direction: Direction,
    /// The index of the entry it is at, counted in its direction.
    at: usize,
    sought: bool,
    blocks: BTreeSet<usize>,
    /// How many polls a load takes.
    polls: usize,
    fails: bool,
}

impl Script {
    fn new(mut entries: Entries, direction: Direction, blocks: BTreeSet<usize>) -> Script {
        if direction == Direction::Reverse {
            entries.reverse();
        }
        Script { entries, direction, at: 0, sought: false, blocks, polls: 1, fails: false }
    }

    fn is_before(&self, entry: (&[u8], Trailer), target: (&[u8], Trailer)) -> bool {
        match self.direction {
            Direction::Forward => compare(entry, target).is_lt(),
            Direction::Reverse => compare(entry, target).is_gt(),
        }
    }
}

#[async_trait]
impl Source for Script {
    fn position(&self) -> Position {
        if self.sought && self.blocks.contains(&self.at) {
            Position::Blocked
        } else if !self.sought || self.at >= self.entries.len() {
            Position::End
        } else {
            Position::At
        }
    }

    fn entry(&self) -> Entry<'_> {
        assert_eq!(self.position(), Position::At);
        let (key, trailer, value) = &self.entries[self.at];
        Entry { key, trailer: *trailer, value }
    }

    fn value(&self) -> Bytes {
        Bytes::copy_from_slice(self.entry().value)
    }

    fn advance(&mut self) {
        assert_eq!(self.position(), Position::At);
        self.at += 1;
    }

    fn seek(&mut self, target: Option<(&[u8], Trailer)>) {
        self.sought = true;
        self.at = match target {
            None => 0,
            Some(target) => self
                .entries
                .iter()
                .position(|(key, trailer, _)| !self.is_before((key, *trailer), target))
                .unwrap_or(self.entries.len()),
        };
    }

    async fn load(&mut self) -> Result<()> {
        assert_eq!(self.position(), Position::Blocked);
        for _ in 0..self.polls {
            let mut yielded = false;
            futures::future::poll_fn(|cx| {
                cx.waker().wake_by_ref();
                match std::mem::replace(&mut yielded, true) {
                    true => std::task::Poll::Ready(()),
                    false => std::task::Poll::Pending,
                }
            })
            .await;
        }
        if self.fails {
            return Err(Error::closed());
        }
        let at = self.at;
        self.blocks.remove(&at);
        Ok(())
    }
}

type Versions = BTreeMap<(Vec<u8>, SeqNo), Option<Vec<u8>>>;

/// Versions of few keys, dealt out to a few sources, with places where those block.
#[derive(Debug, Clone)]
struct Case {
    versions: Versions,
    parts: Vec<(Entries, BTreeSet<usize>)>,
}

fn any_case() -> impl Strategy<Value = Case> {
    let version = (
        prop::collection::vec(prop::sample::select(b"ab\xff".to_vec()), 0..3),
        1u64..30,
        prop::option::weighted(0.7, prop::collection::vec(any::<u8>(), 0..3)),
        0usize..5,
    );
    let blocks = prop::collection::vec(prop::collection::btree_set(0usize..20, 0..8), 5);
    (prop::collection::vec(version, 0..60), blocks).prop_map(|(raw, blocks)| {
        let mut dealt: BTreeMap<_, _> = BTreeMap::new();
        for (key, seqno, value, part) in raw {
            dealt.insert((key, seqno), (value, part));
        }
        let mut parts: Vec<(Entries, BTreeSet<usize>)> =
            blocks.into_iter().map(|blocks| (Entries::new(), blocks)).collect();
        let mut versions = Versions::new();
        for ((key, seqno), (value, part)) in dealt {
            let kind = if value.is_some() { ValueKind::Put } else { ValueKind::Delete };
            let trailer = Trailer::new(seqno, kind);
            parts[part].0.push((key.clone(), trailer, value.clone().unwrap_or_default()));
            versions.insert((key, seqno), value);
        }
        for (entries, _) in &mut parts {
            entries.sort_by(|a, b| compare((&a.0, a.1), (&b.0, b.1)));
        }
        Case { versions, parts }
    })
}

impl Case {
    fn merge(&self, direction: Direction) -> Merge {
        let sources = self.parts.iter().map(|(entries, blocks)| {
            Box::new(Script::new(entries.clone(), direction, blocks.clone())) as Box<dyn Source>
        });
        Merge::new(sources.collect(), direction)
    }

    fn visible(&self, seqno: SeqNo) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut out = BTreeMap::new();
        for ((key, at), value) in &self.versions {
            if *at <= seqno {
                match value {
                    Some(value) => out.insert(key.clone(), value.clone()),
                    None => out.remove(key),
                };
            }
        }
        out
    }
}

fn drain(visible: &mut Visible) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut out = Vec::new();
    loop {
        match visible.step() {
            Step::Item { key, value, .. } => out.push((key.to_vec(), value.to_vec())),
            Step::End => {
                assert_eq!(visible.step(), Step::End, "the end is final");
                return out;
            }
            Step::Blocked => {
                // A load that is dropped halfway must leave the scan as it was.
                assert!(visible.load().now_or_never().is_none());
                assert_eq!(visible.step(), Step::Blocked);
                block_on(visible.load()).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_merge_yields_everything_in_order(case in any_case(), seek in any_case()) {
        let mut all: Entries = case.parts.iter().flat_map(|(entries, _)| entries.clone()).collect();
        all.sort_by(|a, b| compare((&a.0, a.1), (&b.0, b.1)));
        let targets = seek.parts.iter().flat_map(|(entries, _)| entries).take(3);
        let targets = targets.map(|(key, trailer, _)| Some((key.as_slice(), *trailer)));
        for target in targets.chain([None]) {
            for direction in [Direction::Forward, Direction::Reverse] {
                let mut merge = case.merge(direction);
                merge.seek(target);
                let mut found = Entries::new();
                loop {
                    match merge.position() {
                        Position::End => break,
                        Position::Blocked => block_on(merge.load()).unwrap(),
                        Position::At => {
                            let entry = merge.entry();
                            let value = merge.value().to_vec();
                            found.push((entry.key.to_vec(), entry.trailer, value));
                            merge.advance();
                        }
                    }
                }
                let mut expected = all.clone();
                if let Some(target) = target {
                    expected.retain(|(key, trailer, _)| match direction {
                        Direction::Forward => compare((key, *trailer), target).is_ge(),
                        Direction::Reverse => compare((key, *trailer), target).is_le(),
                    });
                }
                if direction == Direction::Reverse {
                    expected.reverse();
                }
                prop_assert_eq!(found, expected);
            }
        }
    }

    #[test]
    fn a_reader_sees_the_newest_versions_at_its_seqno(
        case in any_case(),
        seqno in 0u64..32,
        bound in prop::collection::vec(prop::sample::select(b"ab\xff".to_vec()), 0..3),
    ) {
        for seqno in [seqno, SEQNO_MAX] {
            let model = case.visible(seqno);
            for bound in [Bound::Unbounded, Bound::Included(&bound), Bound::Excluded(&bound)] {
                let pair = |(key, value): (&Vec<u8>, &Vec<u8>)| (key.clone(), value.clone());
                let slice = bound.map(|b: &Vec<u8>| b.as_slice());
                let mut forward =
                    Visible::new(case.merge(Direction::Forward), Direction::Forward, seqno);
                let mut reverse =
                    Visible::new(case.merge(Direction::Reverse), Direction::Reverse, seqno);
                for _ in 0..2 {
                    forward.seek(slice);
                    let expected = model.range((bound.cloned(), Bound::Unbounded)).map(pair);
                    prop_assert_eq!(drain(&mut forward), expected.collect::<Vec<_>>());
                    reverse.seek(slice);
                    let expected = model.range((Bound::Unbounded, bound.cloned())).rev().map(pair);
                    prop_assert_eq!(drain(&mut reverse), expected.collect::<Vec<_>>());
                }
            }
        }
    }
}

fn put(key: &[u8], seqno: SeqNo) -> (Vec<u8>, Trailer, Vec<u8>) {
    (key.to_vec(), Trailer::new(seqno, ValueKind::Put), seqno.to_string().into_bytes())
}

#[test]
fn blocked_sources_load_at_the_same_time() {
    let sources = (1..=4).map(|at| {
        let mut script = Script::new(vec![put(b"k", at)], Direction::Forward, BTreeSet::from([0]));
        script.polls = 3;
        Box::new(script) as Box<dyn Source>
    });
    let mut merge = Merge::new(sources.collect(), Direction::Forward);
    merge.seek(None);
    assert_eq!(merge.position(), Position::Blocked);
    let mut polls = 0;
    {
        let mut load = merge.load();
        while (&mut load).now_or_never().is_none() {
            polls += 1;
        }
    }
    assert_eq!(polls, 3, "one after the other it would be 12");
    assert_eq!(merge.position(), Position::At);
    assert_eq!(merge.entry().trailer.seqno(), 4);
}

#[test]
fn a_failed_load_is_reported() {
    let mut script = Script::new(vec![put(b"k", 1)], Direction::Forward, BTreeSet::from([0]));
    script.fails = true;
    let mut merge = Merge::new(vec![Box::new(script)], Direction::Forward);
    merge.seek(None);
    assert!(block_on(merge.load()).is_err());
}

#[test]
fn a_merge_of_nothing_is_at_its_end() {
    for direction in [Direction::Forward, Direction::Reverse] {
        let mut visible = Visible::new(Merge::new(Vec::new(), direction), direction, 5);
        visible.seek(Bound::Unbounded);
        assert_eq!(visible.step(), Step::End);
    }
}
