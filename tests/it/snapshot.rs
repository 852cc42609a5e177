//! Snapshots, and what outlives what.

use futures::FutureExt;
use seerdb::{DB, ErrorKind};

use crate::common::{
    collect, keys, kind, moment, noise, open, place, reopen, run, stream_kind, tiny,
};

fn fill(db: &DB, round: u64) {
    for i in 0..100u64 {
        run(db.put(format!("{i:03}"), noise(1000 * round + i, 60))).unwrap();
    }
}

fn entries(db: &DB) -> u64 {
    db.stats().levels.iter().map(|level| level.entries).sum()
}

#[test]
fn a_snapshot_stays_exact_through_flushes_and_merges() {
    let (_dir, db) = open(&tiny());
    let empty = db.snapshot();
    fill(&db, 1);
    let first = db.snapshot();
    let again = first.clone();
    fill(&db, 2);
    for i in 0..50u64 {
        run(db.delete(format!("{i:03}"))).unwrap();
    }
    let second = db.snapshot();
    for round in 3..8 {
        fill(&db, round);
        run(db.flush()).unwrap();
    }
    assert!(db.stats().compactions > 0, "{:?}", db.stats());
    drop(first);
    assert!(collect(empty.iter()).is_empty());
    assert_eq!(run(empty.get("000")).unwrap(), None);
    let found = collect(again.iter());
    assert_eq!(found.len(), 100);
    for (i, (_, value)) in (0..100u64).zip(&found) {
        assert_eq!(*value, noise(1000 + i, 60));
        assert_eq!(run(again.get(format!("{i:03}"))).unwrap().unwrap(), *value);
    }
    assert_eq!(keys(second.iter().limit(2)), ["050", "051"]);
    assert_eq!(keys(second.range("000".."052").rev()), ["051", "050"]);
    assert_eq!(keys(second.prefix("09").limit(1)), ["090"]);
    let many = run(second.get_many(["049", "050"])).unwrap();
    assert_eq!(many, [None, Some(noise(2050, 60))]);
    assert_eq!((empty.seqno(), again.seqno(), second.seqno()), (0, 100, 250));
}

#[test]
fn merges_forget_what_no_snapshot_needs() {
    let (_dir, db) = open(&tiny());
    fill(&db, 1);
    let snapshot = db.snapshot();
    for round in 2..8 {
        fill(&db, round);
    }
    drop(snapshot);
    // What is merged from now on keeps one version of each key; the rest goes sooner or later.
    run(async {
        let mut round = 8;
        loop {
            for i in 0..100u64 {
                db.put(format!("{i:03}"), noise(1000 * round + i, 60)).await.unwrap();
            }
            db.flush().await.unwrap();
            round += 1;
            for _ in 0..20 {
                if entries(&db) <= 300 {
                    return;
                }
                moment().await;
            }
        }
    });
    assert_eq!(collect(db.iter()).len(), 100);
}

#[test]
fn snapshots_and_streams_keep_a_dropped_database_open() {
    let (_dir, path) = place();
    let db = run(tiny().open(&path)).unwrap();
    fill(&db, 1);
    let snapshot = db.snapshot();
    let mut stream = db.iter();
    run(stream.next()).unwrap().unwrap();
    run(db.delete("050")).unwrap();
    drop(db);
    assert_eq!(kind(run(tiny().open(&path))), ErrorKind::Locked);
    assert_eq!(run(snapshot.get("050")).unwrap().unwrap(), noise(1050, 60));
    assert_eq!(collect(snapshot.iter().rev()).len(), 100);
    drop(snapshot);
    assert_eq!(kind(run(tiny().open(&path))), ErrorKind::Locked);
    assert_eq!(collect(stream).len(), 99);
    let db = reopen(&tiny(), &path);
    assert_eq!(run(db.get("050")).unwrap(), None);
    assert_eq!(collect(db.iter()).len(), 99);
}

#[test]
fn unawaited_writes_and_batches_keep_a_dropped_database_open_too() {
    let (_dir, path) = place();
    let db = run(tiny().open(&path)).unwrap();
    let write = db.put(b"a", b"1");
    let mut batch = db.batch();
    drop(db);
    batch.put(b"b", b"2");
    run(write).unwrap();
    run(batch.commit()).unwrap();
    let db = reopen(&tiny(), &path);
    assert_eq!(keys(db.iter()), ["a", "b"]);
}

#[test]
fn after_a_close_every_call_says_so() {
    let (_dir, db) = open(&tiny());
    fill(&db, 1);
    let other = db.clone();
    let (snapshot, fresh, mut begun) = (db.snapshot(), db.iter(), db.iter().rev());
    run(begun.next()).unwrap().unwrap();
    let (write, mut batch) = (db.put(b"late", b"v"), db.batch());
    batch.put(b"late", b"v");
    run(db.close()).unwrap();

    for db in [&db, &other] {
        assert_eq!(kind(run(db.close())), ErrorKind::Closed);
        assert_eq!(kind(run(db.put(b"k", b"v"))), ErrorKind::Closed);
        assert_eq!(kind(run(db.try_put(b"k", b"v"))), ErrorKind::Closed);
        assert_eq!(kind(run(db.delete(b"k"))), ErrorKind::Closed);
        assert_eq!(kind(run(db.batch().commit())), ErrorKind::Closed);
        assert_eq!(kind(run(db.get(b"000"))), ErrorKind::Closed);
        assert_eq!(kind(run(db.get_many([b"000"]))), ErrorKind::Closed);
        assert_eq!(kind(run(db.get_many(Vec::<&[u8]>::new()))), ErrorKind::Closed);
        assert_eq!(kind(run(db.flush())), ErrorKind::Closed);
        assert_eq!(stream_kind(db.iter()), ErrorKind::Closed);
        assert_eq!(stream_kind(db.prefix(b"0").rev()), ErrorKind::Closed);
        assert_eq!(stream_kind(db.range("0".."1")), ErrorKind::Closed);
        assert_eq!(kind(run(db.snapshot().get(b"000"))), ErrorKind::Closed);
        // Looking is allowed: what was acknowledged is durable.
        assert_eq!((db.stats().commits, db.durable_seqno()), (100, 100));
        run(db.wait_durable(100)).unwrap();
        assert!(db.pressure().level >= 0.0);
        assert!(!db.io_backend().to_string().is_empty());
    }
    assert_eq!(kind(run(write)), ErrorKind::Closed);
    assert_eq!(kind(run(batch.commit())), ErrorKind::Closed);
    assert_eq!(kind(run(snapshot.get(b"000"))), ErrorKind::Closed);
    assert_eq!(kind(run(snapshot.get_many([b"000"]))), ErrorKind::Closed);
    assert_eq!(stream_kind(snapshot.iter()), ErrorKind::Closed);
    assert_eq!(stream_kind(fresh), ErrorKind::Closed);
    // What a stream has in its hands it may still give out; then it tells.
    let mut left = 99;
    loop {
        match run(begun.next()) {
            Some(Ok(_)) => left -= 1,
            Some(Err(error)) => {
                assert_eq!(error.kind(), ErrorKind::Closed);
                break;
            }
            None => {
                assert_eq!(left, 0, "a stream ended early without an error");
                break;
            }
        }
    }
    assert!(run(begun.next()).is_none());
}

#[test]
fn a_close_that_is_dropped_midway_closes_all_the_same() {
    let (_dir, path) = place();
    let db = run(tiny().open(&path)).unwrap();
    fill(&db, 1);
    drop(db.close().now_or_never());
    assert_eq!(kind(run(db.get(b"000"))), ErrorKind::Closed);
    drop(db);
    let db = reopen(&tiny(), &path);
    assert_eq!(collect(db.iter()).len(), 100);
}
