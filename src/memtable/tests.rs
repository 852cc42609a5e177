use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::iter::{Direction, Position, Source};
use crate::key::ValueKind;

fn insert(memtable: &Memtable, key: &[u8], seqno: SeqNo) {
    let value = Bytes::from(format!("{seqno}"));
    let trailer = Trailer::new(seqno, ValueKind::Put);
    memtable.insert(KeyBuf::from_slice(key), trailer, value);
}

#[test]
fn a_lookup_finds_the_newest_version_at_its_seqno() {
    let memtable = Memtable::new(Floor { wal: 1, values: 0 });
    for seqno in [3, 7, 5] {
        insert(&memtable, b"k", seqno);
    }
    let at = |seqno| memtable.get(b"k", seqno).map(|(t, _)| t.seqno());
    assert_eq!([at(2), at(3), at(4), at(6), at(100)], [None, Some(3), Some(3), Some(5), Some(7)]);
    assert!(memtable.get(b"j", 100).is_none());
}

#[test]
fn a_source_outlives_its_memtable_without_pinning_it() {
    let memtable = Arc::new(Memtable::new(Floor { wal: 1, values: 0 }));
    for i in 0..200u32 {
        insert(&memtable, &i.to_be_bytes(), u64::from(i) + 1);
    }
    let mut source = MemSource::new(&memtable, Direction::Forward, 50);
    source.seek(None);
    drop(memtable);
    let mut seen = 0;
    while source.position() == Position::At {
        source.advance();
        seen += 1;
    }
    assert!(seen < 200, "the first chunk only");
    assert_eq!(source.position(), Position::Blocked);
    assert!(futures::executor::block_on(source.load()).is_err());
}

proptest! {
    #[test]
    fn a_source_yields_internal_order_in_both_directions(
        keys in prop::collection::vec(prop::collection::vec(0u8..3, 0..4), 0..150),
        before in prop::collection::vec(prop::collection::vec(0u8..3, 0..4), 0..40),
        target in prop::option::of((prop::collection::vec(0u8..3, 0..4), 0u64..200)),
    ) {
        let last = Memtable::new(Floor { wal: 1, values: 0 });
        for (i, key) in before.iter().enumerate() {
            insert(&last, key, i as u64);
        }
        let memtable = Arc::new(last.follower(Floor { wal: 1, values: 0 }));
        let mut model = BTreeMap::new();
        for (i, key) in keys.iter().enumerate() {
            let seqno = i as u64 + 1;
            insert(&memtable, key, seqno);
            model.insert((key.clone(), u64::MAX - seqno), seqno);
        }
        for direction in [Direction::Forward, Direction::Reverse] {
            let mut source = MemSource::new(&memtable, direction, 20);
            let seek = target.as_ref().map(|(k, s)| (k.as_slice(), Trailer::seek(*s)));
            source.seek(seek);
            let mut got = Vec::new();
            while source.position() == Position::At {
                let entry = source.entry();
                got.push((entry.key.to_vec(), entry.trailer.seqno()));
                source.advance();
            }
            let expected: Vec<_> = model
                .iter()
                .map(|((k, _), s)| (k.clone(), *s))
                .filter(|(k, s)| match (&target, direction) {
                    (None, _) => true,
                    // Trailer::seek(s) stands just before version s of the key.
                    (Some((tk, ts)), Direction::Forward) => k > tk || (k == tk && s <= ts),
                    (Some((tk, ts)), Direction::Reverse) => k < tk || (k == tk && s > ts),
                })
                .collect();
            let expected: Vec<_> = match direction {
                Direction::Forward => expected,
                Direction::Reverse => expected.into_iter().rev().collect(),
            };
            prop_assert_eq!(got, expected);
        }
    }
}
