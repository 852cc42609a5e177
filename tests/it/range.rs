//! Ranges, prefixes and whole scans, both ways.

use std::ops::Bound::{self, Excluded, Included, Unbounded};

use futures::{FutureExt, StreamExt};
use seerdb::{Cursor, DB, ErrorKind};

use crate::common::{collect, keys, noise, open, plain, run, stream_kind, tiny};

/// The same keys in a memtable and in tables.
fn everywhere(written: &[&str], check: impl Fn(&DB)) {
    let (_dir, db) = open(&plain());
    for key in written {
        run(db.put(key, *key)).unwrap();
    }
    check(&db);
    run(db.flush()).unwrap();
    check(&db);
}

fn range(db: &DB, from: Bound<&str>, to: Bound<&str>) -> Vec<String> {
    let forward = keys(db.range((from, to)));
    let mut backward = keys(db.range((from, to)).rev());
    backward.reverse();
    assert_eq!(forward, backward, "from {from:?} to {to:?}");
    forward
}

#[test]
fn every_kind_of_bound_means_what_it_says() {
    everywhere(&["a", "b", "c", "d"], |db| {
        assert_eq!(range(db, Included("b"), Excluded("d")), ["b", "c"]);
        assert_eq!(range(db, Included("b"), Included("d")), ["b", "c", "d"]);
        assert_eq!(range(db, Excluded("b"), Excluded("d")), ["c"]);
        assert_eq!(range(db, Excluded("b"), Included("d")), ["c", "d"]);
        assert_eq!(range(db, Unbounded, Excluded("c")), ["a", "b"]);
        assert_eq!(range(db, Excluded("c"), Unbounded), ["d"]);
        assert_eq!(range(db, Unbounded, Unbounded), ["a", "b", "c", "d"]);
        assert_eq!(range(db, Included("aa"), Excluded("cc")), ["b", "c"]);
        assert_eq!(range(db, Included("e"), Unbounded), Vec::<String>::new());
        assert_eq!(range(db, Unbounded, Excluded("")), Vec::<String>::new());
        assert_eq!(keys(db.range("b".."d")), ["b", "c"]);
        assert_eq!(keys(db.range("b"..="d")), ["b", "c", "d"]);
        assert_eq!(keys(db.range(.."b")), ["a"]);
        assert_eq!(keys(db.range(..)), ["a", "b", "c", "d"]);
    });
}

#[test]
fn a_range_may_be_empty_but_not_inverted() {
    everywhere(&["a", "b"], |db| {
        assert_eq!(range(db, Included("a"), Excluded("a")), Vec::<String>::new());
        assert_eq!(range(db, Excluded("a"), Included("a")), Vec::<String>::new());
        assert_eq!(range(db, Included("a"), Included("a")), ["a"]);
        let inverted = [
            (Included("b"), Included("a")),
            (Included("b"), Excluded("a")),
            (Excluded("b"), Included("a")),
            (Excluded("a"), Excluded("a")),
        ];
        for bounds in inverted {
            assert_eq!(stream_kind(db.range(bounds)), ErrorKind::InvalidArgument, "{bounds:?}");
            assert_eq!(stream_kind(db.range(bounds).rev()), ErrorKind::InvalidArgument);
            assert_eq!(stream_kind(db.range(bounds).limit(0)), ErrorKind::InvalidArgument);
            assert_eq!(stream_kind(db.snapshot().range(bounds)), ErrorKind::InvalidArgument);
        }
        assert_eq!(keys(db.iter()), ["a", "b"], "nothing was lost");
    });
}

#[test]
fn a_prefix_covers_its_keys_and_no_others() {
    let (_dir, db) = open(&plain());
    let written: [&[u8]; 9] =
        [b"", b"\x00", b"a", b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff\x01"];
    for key in written {
        run(db.put(key, b"v")).unwrap();
    }
    for _ in 0..2 {
        let prefixes: [&[u8]; 8] =
            [b"", b"\x00", b"a", b"a\xff", b"a\xff\xff", b"\xff", b"\xff\xff", b"c"];
        for prefix in prefixes {
            let mut expected: Vec<&[u8]> =
                written.iter().copied().filter(|key| key.starts_with(prefix)).collect();
            let found: Vec<_> = collect(db.prefix(prefix)).into_iter().map(|i| i.0).collect();
            assert_eq!(found, expected, "{prefix:?}");
            expected.reverse();
            let found: Vec<_> = collect(db.prefix(prefix).rev()).into_iter().map(|i| i.0).collect();
            assert_eq!(found, expected, "{prefix:?} reversed");
        }
        run(db.flush()).unwrap();
    }
}

#[test]
fn a_limit_counts_items_not_versions() {
    everywhere(&["a", "b", "c", "d"], |db| {
        run(db.put("b", "again")).unwrap();
        run(db.delete("c")).unwrap();
        assert_eq!(keys(db.iter().limit(0)), Vec::<String>::new());
        assert_eq!(keys(db.iter().limit(2)), ["a", "b"]);
        assert_eq!(keys(db.iter().limit(3)), ["a", "b", "d"]);
        assert_eq!(keys(db.iter().rev().limit(2)), ["d", "b"]);
        assert_eq!(keys(db.iter().limit(usize::MAX)), ["a", "b", "d"]);
        run(db.put("c", "c")).unwrap();
    });
}

#[test]
fn turning_a_stream_twice_changes_nothing_and_later_it_panics() {
    everywhere(&["a", "b"], |db| {
        assert_eq!(keys(db.iter().rev().rev()), ["a", "b"]);
        let mut stream = db.iter();
        run(stream.next()).unwrap().unwrap();
        let turned = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stream.rev()));
        assert!(turned.is_err());
        assert_eq!(keys(db.iter()), ["a", "b"], "the database goes on");
    });
}

#[test]
fn a_stream_sees_the_moment_it_was_made() {
    let (_dir, db) = open(&tiny());
    for i in 0..100u64 {
        run(db.put(format!("{i:03}"), noise(i, 60))).unwrap();
    }
    // One has not begun, one stands in the middle, one runs the other way.
    let mut streams = [db.iter(), db.iter(), db.iter().rev()];
    let mut found = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..50 {
        found[1].push(run(streams[1].next()).unwrap().unwrap());
        found[2].push(run(streams[2].next()).unwrap().unwrap());
    }
    for round in 1..6u64 {
        for i in 0..120u64 {
            if (i + round) % 3 == 0 {
                run(db.delete(format!("{i:03}"))).unwrap();
            } else {
                run(db.put(format!("{i:03}"), noise(1000 * round + i, 60))).unwrap();
            }
        }
        run(db.flush()).unwrap();
        for (stream, found) in streams.iter_mut().zip(&mut found) {
            found.push(run(stream.next()).unwrap().unwrap());
        }
    }
    for (stream, found) in streams.into_iter().zip(&mut found) {
        found.extend(collect(stream));
    }
    found[2].reverse();
    let expected: Vec<_> =
        (0..100u64).map(|i| (format!("{i:03}").into_bytes().into(), noise(i, 60))).collect();
    for found in found {
        assert_eq!(found, expected);
    }
}

#[test]
fn dropping_a_next_loses_no_item() {
    let (_dir, db) = open(&tiny().cache_bytes(0));
    for i in 0..300u64 {
        run(db.put(format!("{i:03}"), noise(i, 60))).unwrap();
    }
    run(db.flush()).unwrap();
    for reverse in [false, true] {
        let mut stream = if reverse { db.iter().rev() } else { db.iter() };
        let mut found = Vec::new();
        loop {
            // Polled once; what was pending comes again.
            let next = match stream.next().now_or_never() {
                Some(next) => next,
                None => run(stream.next()),
            };
            let Some(item) = next else { break };
            found.push(item.unwrap().0);
        }
        let mut expected: Vec<String> = (0..300).map(|i| format!("{i:03}")).collect();
        if reverse {
            expected.reverse();
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn a_stream_dropped_midway_lets_the_database_go_on() {
    let (_dir, db) = open(&tiny());
    for i in 0..200u64 {
        run(db.put(format!("{i:03}"), noise(i, 60))).unwrap();
    }
    let mut stream = db.iter();
    for _ in 0..5 {
        run(stream.try_next()).unwrap().unwrap();
    }
    // In the middle of a load, if there is one.
    drop(stream.next().now_or_never());
    drop(stream);
    assert_eq!(db.stats().snapshots, 0);
    assert_eq!(collect(db.iter()).len(), 200);
}

#[test]
fn a_stream_moves_to_a_key() {
    everywhere(&["a", "b", "d", "e"], |db| {
        let mut stream = db.range("b".."e");
        for (to, expected) in [("c", "d"), ("a", "b"), ("d", "d"), ("", "b")] {
            stream.seek(to);
            assert_eq!(run(stream.next()).unwrap().unwrap().0, expected, "to {to:?}");
        }
        stream.seek("e");
        assert!(run(stream.next()).is_none(), "the end of the range stays");
        stream.seek("b");
        assert_eq!(keys(stream), ["b", "d"], "from its end back");
        let mut stream = db.range("b".."e").rev();
        for (to, expected) in [("c", "b"), ("z", "d"), ("d", "d")] {
            stream.seek(to);
            assert_eq!(run(stream.next()).unwrap().unwrap().0, expected, "to {to:?} in reverse");
        }
        let mut stream = db.iter().limit(3);
        run(stream.next()).unwrap().unwrap();
        stream.seek("a");
        assert_eq!(keys(stream), ["a", "b"], "the limit goes on");
        let mut only = db.iter().keys();
        only.seek("d");
        assert_eq!(run(only.try_next()).unwrap().unwrap(), "d");
        let mut stream = db.iter();
        stream.seek([0; 70_000]);
        assert_eq!(stream_kind(stream), ErrorKind::InvalidArgument);
    });
}

#[test]
fn pages_go_on_where_a_cursor_was_taken() {
    everywhere(&["k/1", "k/2", "k/3", "l/1"], |db| {
        for (reverse, expected) in [(false, ["k/1", "k/2", "k/3"]), (true, ["k/3", "k/2", "k/1"])] {
            let page = || if reverse { db.prefix("k/").rev() } else { db.prefix("k/") };
            let (mut token, mut found) = (page().cursor().to_string(), Vec::new());
            for _ in 0..4 {
                let mut page = page().limit(1).resume(&token.parse().unwrap()).keys();
                if let Some(key) = run(page.try_next()).unwrap() {
                    found.push(String::from_utf8(key.to_vec()).unwrap());
                }
                token = page.cursor().to_string();
            }
            assert_eq!(found, expected);
        }
        let at = |key: &str| {
            let mut stream = db.iter();
            stream.seek(key);
            run(stream.next()).unwrap().unwrap();
            stream.cursor()
        };
        assert_eq!(at("k/2").key(), Some(&b"k/2"[..]));
        // Where a stream was moved to, without an item since.
        let mut stream = db.prefix("k/");
        run(stream.next()).unwrap().unwrap();
        stream.seek("k/3");
        let token = stream.cursor().to_string();
        assert_eq!(keys(db.prefix("k/").resume(&token.parse().unwrap())), ["k/3"]);
        // A cursor of another range does not lead out of this one.
        assert_eq!(keys(db.range("k/2".."l/1").resume(&at("k/1"))), ["k/2", "k/3"]);
        assert_eq!(keys(db.prefix("k/").resume(&at("l/1"))), Vec::<String>::new());
        let other_way = db.iter().rev().resume(&at("k/2"));
        assert_eq!(stream_kind(other_way), ErrorKind::InvalidArgument);
        assert_eq!("x".parse::<Cursor>().unwrap_err().kind(), ErrorKind::InvalidArgument);
    });
}

#[test]
fn a_stream_works_with_the_combinators_of_futures() {
    let (_dir, db) = open(&plain());
    for i in 0..10u8 {
        run(db.put([i], [i; 3])).unwrap();
    }
    let found = run(db
        .iter()
        .rev()
        .map(|item| item.unwrap().0[0])
        .filter(|key| futures::future::ready(key % 2 == 0))
        .take(3)
        .collect::<Vec<_>>());
    assert_eq!(found, [8, 6, 4]);
}

#[test]
fn long_runs_of_tombstones_are_passed_over() {
    let (_dir, db) = open(&tiny());
    for i in 0..2000u64 {
        run(db.put(format!("{i:04}"), b"x")).unwrap();
    }
    for i in 1..1999u64 {
        run(db.delete(format!("{i:04}"))).unwrap();
    }
    assert_eq!(keys(db.iter()), ["0000", "1999"]);
    assert_eq!(keys(db.iter().rev()), ["1999", "0000"]);
    assert_eq!(keys(db.range("0001".."1999")), Vec::<String>::new());
}
