//! Single keys, batches, durability and what a database says about itself.

use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use seerdb::{
    Backend, Compression, DB, Durability, Env, EnvOptions, ErrorKind, IntoValue, IoBackend,
};

use crate::common::{collect, keys, kind, noise, open, place, plain, run, tiny};

fn get(db: &DB, key: &[u8]) -> Option<Bytes> {
    run(db.get(key)).unwrap()
}

#[test]
fn a_put_is_read_until_a_delete_hides_it() {
    let (_dir, db) = open(&plain());
    assert_eq!(get(&db, b"k"), None);
    assert_eq!(run(db.put(b"k", b"one")).unwrap(), 1);
    assert_eq!(run(db.put(b"k", b"two")).unwrap(), 2);
    assert_eq!(get(&db, b"k").unwrap(), "two");
    assert_eq!(run(db.delete(b"k")).unwrap(), 3);
    assert_eq!(get(&db, b"k"), None);
    assert_eq!(run(db.delete(b"never there")).unwrap(), 4);
    run(db.put(b"k", b"three")).unwrap();
    run(db.flush()).unwrap();
    assert_eq!(get(&db, b"k").unwrap(), "three");
    assert_eq!(get(&db, b"never there"), None);
}

#[test]
fn the_empty_key_and_the_empty_value_are_like_any_other() {
    let (_dir, db) = open(&plain());
    for flushed in [false, true] {
        run(db.put(b"", b"empty key")).unwrap();
        run(db.put(b"empty value", b"")).unwrap();
        if flushed {
            run(db.flush()).unwrap();
        }
        assert_eq!(get(&db, b"").unwrap(), "empty key");
        assert_eq!(get(&db, b"empty value").unwrap(), "");
        assert_eq!(keys(db.iter()), ["", "empty value"]);
        assert_eq!(keys(db.prefix(b"").rev()), ["empty value", ""]);
    }
    run(db.delete(b"")).unwrap();
    assert_eq!(get(&db, b""), None);
    assert_eq!(keys(db.iter()), ["empty value"]);
}

#[test]
fn every_kind_of_value_is_taken() {
    let (_dir, db) = open(&plain());
    let expected = Bytes::from_static(b"value");
    fn put(db: &DB, value: impl IntoValue) {
        run(db.put(b"k", value)).unwrap();
        assert_eq!(run(db.get("k")).unwrap().unwrap(), "value");
        run(db.delete(String::from("k"))).unwrap();
    }
    put(&db, expected.clone());
    put(&db, &expected);
    put(&db, b"value");
    put(&db, *b"value");
    put(&db, b"value".as_slice());
    put(&db, "value");
    let owned = (String::from("value"), b"value".to_vec());
    put(&db, &owned.0);
    put(&db, &owned.1);
    put(&db, String::from("value"));
    put(&db, b"value".to_vec());
    put(&db, b"value".to_vec().into_boxed_slice());
}

#[test]
fn get_many_answers_in_the_order_of_the_keys() {
    let (_dir, db) = open(&tiny());
    for i in 0..200u64 {
        run(db.put(format!("{i:03}"), noise(i, 50))).unwrap();
    }
    run(db.delete("017")).unwrap();
    let asked = ["199", "017", "000", "none", "199", "", "100"];
    let found = run(db.get_many(asked)).unwrap();
    let expected = [199, 0, 0, 0, 199, 0, 100].map(|i| Some(noise(i, 50)));
    for (index, key) in asked.iter().enumerate() {
        let expected = if [1, 3, 5].contains(&index) { &None } else { &expected[index] };
        assert_eq!(&found[index], expected, "{key}");
    }
    assert!(run(db.get_many(Vec::<Vec<u8>>::new())).unwrap().is_empty());
    assert_eq!(kind(run(db.get_many([vec![0; 70_000]]))), ErrorKind::InvalidArgument);
}

#[test]
fn in_a_batch_the_last_operation_on_a_key_wins() {
    let (_dir, db) = open(&plain());
    let mut batch = db.batch();
    assert!(batch.is_empty());
    batch.put(b"twice", b"first").put(b"gone", b"put").delete(b"back");
    batch.put(b"twice", b"second").delete(b"gone").put(b"back", b"again");
    assert_eq!(batch.len(), 6);
    assert!(collect(db.iter()).is_empty(), "nothing happens before the commit");
    assert_eq!(run(batch.commit()).unwrap(), 6);
    for _ in 0..2 {
        assert_eq!(get(&db, b"twice").unwrap(), "second");
        assert_eq!(get(&db, b"gone"), None);
        assert_eq!(get(&db, b"back").unwrap(), "again");
        assert_eq!(keys(db.iter()), ["back", "twice"]);
        run(db.flush()).unwrap();
    }
}

#[test]
fn an_empty_batch_resolves_to_the_newest_seqno() {
    let (_dir, db) = open(&plain());
    assert_eq!(run(db.batch().commit()).unwrap(), 0);
    let seqno = run(db.put(b"k", b"v")).unwrap();
    assert_eq!(run(db.batch().commit().durability(Durability::Synced)).unwrap(), seqno);
}

#[test]
fn a_write_or_a_batch_that_is_never_awaited_does_nothing() {
    let (_dir, db) = open(&plain());
    drop(db.put(b"a", b"1"));
    drop(db.put(b"b", b"1").into_future());
    let mut batch = db.batch();
    batch.put(b"c", b"1");
    drop(batch.commit().into_future());
    assert_eq!(run(db.put(b"d", b"1")).unwrap(), 1, "no seqno was used");
    assert_eq!(keys(db.iter()), ["d"]);
}

#[test]
fn a_buffered_write_is_visible_at_once_and_durable_when_asked() {
    for default in [Durability::Buffered, Durability::Written, Durability::Synced] {
        let (_dir, db) = open(&plain().durability(default).buffered_delay(Duration::from_secs(60)));
        let write = db.put(b"k", b"v").durability(Durability::Buffered);
        let seqno = write.into_future().now_or_never().expect("it needs no disk").unwrap();
        assert_eq!(get(&db, b"k").unwrap(), "v", "{default:?}");
        assert!(db.durable_seqno() < seqno, "nobody has asked for a sync: {default:?}");
        run(db.wait_durable(seqno)).unwrap();
        assert_eq!(db.durable_seqno(), seqno, "{default:?}");
    }
}

#[test]
fn a_synced_write_makes_all_before_it_durable() {
    for default in [Durability::Buffered, Durability::Written, Durability::Synced] {
        let (_dir, db) = open(&plain().durability(default).buffered_delay(Duration::from_secs(60)));
        run(db.put(b"a", b"1").durability(Durability::Buffered)).unwrap();
        run(db.put(b"b", b"2").durability(Durability::Written)).unwrap();
        let mut batch = db.batch();
        batch.put(b"c", b"3");
        let seqno = run(batch.commit().durability(Durability::Synced)).unwrap();
        assert!(db.durable_seqno() >= seqno, "{default:?}");
        run(db.wait_durable(0)).unwrap();
        assert_eq!(kind(run(db.wait_durable(seqno + 1))), ErrorKind::InvalidArgument);
    }
}

#[test]
fn try_put_says_when_it_would_have_to_wait() {
    // Memory for two memtables of 4 KiB: the second write does not fit beside the first.
    let (_dir, db) = open(&tiny().wal_segment_bytes(1 << 20));
    run(db.put(b"a", noise(1, 1000))).unwrap();
    assert!(db.pressure().level > 0.0 && !db.pressure().is_stalling());
    let stalled = run(db.try_put(b"b", noise(2, 9000)));
    let after = stalled.as_ref().unwrap_err().retry_after().expect("it says when to come back");
    assert!((Duration::from_millis(1)..=Duration::from_secs(5)).contains(&after), "{after:?}");
    assert_eq!(kind(stalled), ErrorKind::WouldStall);
    assert_eq!(get(&db, b"b"), None);
    assert_eq!(run(db.try_put(b"c", b"small")).unwrap(), 2, "the refused one used no seqno");
    run(db.put(b"b", noise(2, 9000))).unwrap();
    assert_eq!(get(&db, b"b").unwrap(), noise(2, 9000));
}

#[test]
fn stats_tell_what_was_done() {
    let (_dir, db) = open(&tiny());
    for i in 0..300u64 {
        run(db.put(format!("{i:03}"), noise(i, 100))).unwrap();
    }
    run(db.flush()).unwrap();
    let snapshot = db.snapshot();
    let stats = db.stats();
    assert_eq!(stats.commits, 300);
    assert_eq!(stats.visible_seqno, 300);
    assert_eq!(stats.durable_seqno, 300);
    assert_eq!((stats.memtables, stats.memtable_bytes), (1, 0));
    assert_eq!(stats.snapshots, 1);
    assert!(stats.flushes >= 5, "{stats:?}");
    assert!(stats.log_bytes > 30_000 && stats.flushed_bytes > 30_000, "{stats:?}");
    let entries: u64 = stats.levels.iter().map(|level| level.entries).sum();
    assert!(entries >= 300, "{stats:?}");
    drop(snapshot);
    assert_eq!(db.stats().snapshots, 0);
}

#[test]
fn stats_tell_how_blocks_are_found() {
    let numbers = |i: u64| (i * 1000).to_be_bytes().to_vec();
    let words = |i: u64| {
        format!("{:x}", i.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_pow(3)).into_bytes()
    };
    let index_of = |key: &dyn Fn(u64) -> Vec<u8>| {
        let (_dir, db) = open(&plain().block_bytes(256).compression(Compression::None));
        for i in 0..3000 {
            run(db.put(key(i), noise(i, 200))).unwrap();
        }
        run(db.compact_range(..)).unwrap();
        let stats = db.stats();
        stats.levels.iter().find(|level| level.tables > 0).unwrap().indexes
    };
    let even = index_of(&numbers);
    assert_eq!((even.learned, even.tree, even.grouped, even.binary), (1, 0, 0, 0));
    assert!(even.max_error <= 1 && even.mean_error <= 1.0, "{even:?}");
    let uneven = index_of(&words);
    assert_eq!(uneven.learned + uneven.tree + uneven.grouped + uneven.binary, 1);
    // The codes themselves are eight bytes for each of the 3,000 blocks.
    assert!(even.bytes >= 24_000 && uneven.bytes >= 24_000, "{even:?} {uneven:?}");
    assert!(even.bytes <= 36_000 && uneven.bytes <= 36_000, "{even:?} {uneven:?}");
}

#[test]
fn stats_tell_how_the_tables_of_a_run_are_found() {
    let options = plain().table_bytes(8192).compression(Compression::None);
    let (_dir, db) = open(&options);
    for i in 0..3000u64 {
        run(db.put((i * 1000).to_be_bytes(), noise(i, 200))).unwrap();
    }
    run(db.flush()).unwrap();
    run(db.compact_range(..)).unwrap();
    let stats = db.stats();
    let level = stats.levels.iter().find(|level| level.tables > 0).unwrap();
    assert!(level.runs == 1 && level.tables >= 50, "{level:?}");
    let found = &level.run_indexes;
    assert_eq!((found.learned, found.tree, found.grouped, found.binary), (1, 0, 0, 0));
    assert!(found.max_error <= 15 && found.mean_error <= found.max_error as f64, "{found:?}");
    assert!((8 * level.tables..=12 * level.tables).contains(&found.bytes), "{found:?}");
    assert!(stats.table_memory_bytes > found.bytes + level.indexes.bytes);
    // One table needs no search.
    let (_dir, db) = open(&plain());
    run(db.put(b"k", b"v")).unwrap();
    run(db.flush()).unwrap();
    let level = db.stats().levels.into_iter().find(|level| level.tables > 0).unwrap();
    assert_eq!((level.run_indexes.binary, level.run_indexes.bytes), (1, 0));
}

#[test]
fn filters_let_pass_what_is_expected_of_them() {
    let (_dir, db) = open(&plain().filter_bits_per_key(8.0));
    let fill = |ids: std::ops::Range<u64>| {
        for id in ids {
            run(db.put(id.to_be_bytes(), b"v").durability(Durability::Buffered)).unwrap();
        }
    };
    fill(0..40_000);
    run(db.compact_range(..)).unwrap();
    fill(40_000..70_000);
    run(db.flush()).unwrap();
    let levels = db.stats().levels;
    let filters: Vec<_> = levels.iter().filter(|l| l.tables > 0).map(|l| l.filters).collect();
    assert_eq!(filters.len(), 2, "{levels:?}");
    for filter in &filters {
        let off = (filter.false_positives / filter.expected - 1.0).abs();
        assert!(off < 0.2, "{filter:?}");
    }
    assert!(filters[0].expected < filters[1].expected / 4.0, "Monkey: {filters:?}");
    let empty = levels.iter().find(|level| level.tables == 0).unwrap();
    assert_eq!((empty.filters.false_positives, empty.filters.expected), (0.0, 0.0));
}

#[test]
fn the_backend_in_use_is_told_with_its_reason() {
    let env = Env::new(&EnvOptions { backend: Backend::Portable }).unwrap();
    let (_dir, path) = place();
    let db = run(seerdb::DBOptions::new().env(env).open(path)).unwrap();
    match db.io_backend() {
        IoBackend::Portable { reason } => assert!(!reason.is_empty()),
        other => panic!("asked for the portable backend, got {other}"),
    }
    let (_dir, path) = place();
    match run(seerdb::DBOptions::new().io_backend(Backend::Uring).open(path)) {
        Ok(db) => {
            assert!(matches!(db.io_backend(), IoBackend::Uring { .. }));
            run(db.put(b"k", b"v")).unwrap();
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}"),
    }
}

#[test]
fn the_blocking_handle_is_the_same_database() {
    let (_dir, path) = place();
    let db = seerdb::blocking::DB::open_with(&tiny(), path).unwrap();
    db.put(b"a", b"1").unwrap();
    db.put(b"b", b"2").unwrap();
    let snapshot = db.snapshot();
    db.delete(b"a").unwrap();
    let mut batch = db.batch();
    batch.put(b"c", b"3");
    assert_eq!(db.commit(batch).unwrap(), 4);
    db.flush().unwrap();
    assert_eq!(db.get(b"b").unwrap().unwrap(), "2");
    assert_eq!(db.get_many([b"a", b"c"]).unwrap(), [None, Some(Bytes::from_static(b"3"))]);
    let forward: Vec<_> = db.iter().map(|item| item.unwrap().0).collect();
    let backward: Vec<_> = db.range("b".."d").backwards().map(|i| i.unwrap().0).collect();
    assert_eq!(forward, ["b", "c"]);
    assert_eq!(backward, ["c", "b"]);
    assert_eq!(snapshot.iter().limit(1).map(|item| item.unwrap().0).last().unwrap(), "a");
    assert_eq!(snapshot.prefix(b"c").count(), 0);
    assert_eq!(snapshot.get(b"a").unwrap().unwrap(), "1");
    assert_eq!(run(db.as_async().get(b"c")).unwrap().unwrap(), "3");
    db.close().unwrap();
    assert_eq!(kind(db.get(b"b")), ErrorKind::Closed);
}

#[test]
fn errors_are_sentences_for_people() {
    let (_dir, db) = open(&plain());
    let error = run(db.put(vec![b'x'; 65_536], b"v")).unwrap_err();
    assert_eq!(error.to_string(), "the key has 65536 bytes, the limit is 65535");
    assert!(!error.is_retryable() && !error.is_corruption());
    assert!(error.location().is_none());
}
