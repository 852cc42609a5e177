//! Limits and full disks: what is refused is refused whole, and nothing else suffers.

use std::collections::BTreeMap;
use std::future::IntoFuture;

use bytes::Bytes;
use seerdb::{
    BATCH_BYTES_MAX, BATCH_OPS_MAX, DB, DBOptions, Durability, Error, ErrorKind, KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
};

use crate::common::{collect, keys, kind, moment, noise, open, plain, run, tiny};
use crate::host::{self, Mount};

#[test]
fn a_key_at_its_limit_works_and_one_byte_more_is_refused() {
    let (_dir, db) = open(&tiny());
    let longest = vec![b'k'; KEY_BYTES_MAX];
    let too_long = vec![b'k'; KEY_BYTES_MAX + 1];
    run(db.put(&longest, b"v")).unwrap();
    assert_eq!(kind(run(db.put(&too_long, b"v"))), ErrorKind::InvalidArgument);
    assert_eq!(kind(run(db.try_put(&too_long, b"v"))), ErrorKind::InvalidArgument);
    assert_eq!(kind(run(db.delete(&too_long))), ErrorKind::InvalidArgument);
    assert_eq!(kind(run(db.get(&too_long))), ErrorKind::InvalidArgument);
    assert_eq!(kind(run(db.get_many([&too_long]))), ErrorKind::InvalidArgument);
    assert_eq!(kind(run(db.range(too_long.as_slice()..).try_next())), ErrorKind::InvalidArgument);
    for _ in 0..2 {
        assert_eq!(run(db.get(&longest)).unwrap().unwrap(), "v");
        assert_eq!(collect(db.iter()).len(), 1);
        assert_eq!(collect(db.prefix(&longest[..60_000]).rev()).len(), 1);
        run(db.flush()).unwrap();
    }
    run(db.delete(&longest)).unwrap();
    assert!(collect(db.iter()).is_empty());
}

#[test]
fn a_value_or_a_batch_above_its_limit_is_refused_whole() {
    let (_dir, db) = open(&plain());
    // Zeroed memory that is never touched costs nothing.
    let too_large = Bytes::from(vec![0; VALUE_BYTES_MAX + 1]);
    let error = run(db.put(b"k", too_large.clone())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");

    let mut batch = db.batch();
    batch.put(b"a", b"v").put(b"k", too_large.clone()).put(b"b", b"v");
    assert_eq!(kind(run(batch.commit())), ErrorKind::InvalidArgument);
    let mut batch = db.batch();
    batch.put(b"a", b"v").delete(vec![0; KEY_BYTES_MAX + 1]).put(b"b", b"v");
    assert_eq!(kind(run(batch.commit())), ErrorKind::InvalidArgument);

    // Each value is allowed, their sum is not.
    let mut batch = db.batch();
    for key in [b"a", b"b", b"c"] {
        batch.put(key, too_large.slice(..BATCH_BYTES_MAX / 2));
    }
    assert_eq!(kind(run(batch.commit())), ErrorKind::InvalidArgument);
    assert_eq!(db.stats().commits, 0);
    assert!(collect(db.iter()).is_empty(), "nothing of a refused batch is applied");
    assert_eq!(run(db.put(b"k", b"v")).unwrap(), 1, "refused writes use no seqno");
}

#[test]
fn a_batch_of_too_many_operations_is_refused_whole() {
    let (_dir, db) = open(&plain());
    let mut batch = db.batch();
    for _ in 0..=BATCH_OPS_MAX {
        batch.delete(b"");
    }
    let error = run(batch.commit()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert_eq!(db.stats().commits, 0);
    assert_eq!(run(db.put(b"k", b"v")).unwrap(), 1);
}

#[test]
fn values_larger_than_memtable_and_segment_come_back() {
    for durability in [Durability::Buffered, Durability::Written, Durability::Synced] {
        let (dir, db) = open(&tiny().durability(durability));
        let sizes = [0, 1, 4095, 4096, 4097, 16 << 10, 100 << 10, 3 << 20, 17];
        for (i, size) in (0u64..).zip(sizes) {
            run(db.put(format!("{i}"), noise(i, size))).unwrap();
        }
        let mut batch = db.batch();
        for i in 10..14u64 {
            batch.put(format!("{i}"), noise(i, 70_000));
        }
        run(batch.commit()).unwrap();
        run(db.close()).unwrap();
        let db = run(tiny().open(dir.path().join("db"))).unwrap();
        for (i, size) in (0u64..).zip(sizes).chain((10..14).map(|i| (i, 70_000))) {
            assert_eq!(run(db.get(format!("{i}"))).unwrap().unwrap(), noise(i, size));
        }
        assert_eq!(collect(db.iter().rev()).len(), sizes.len() + 4);
    }
}

/// Lost: nothing, but the write and all behind it hung for good. The credits it waited for were
/// in the active memtable, and with all writers waiting nobody sealed it.
#[test]
fn a_write_too_large_for_the_memory_beside_the_active_memtable_goes_through() {
    let (_dir, db) = open(&tiny());
    run(db.put(b"a", noise(1, 500))).unwrap();
    run(async {
        // The first waits for the active memtable, the others behind it.
        let writes =
            (2..10u64).map(|i| IntoFuture::into_future(db.put(format!("b{i}"), noise(i, 9000))));
        for written in futures::future::join_all(writes).await {
            written.unwrap();
        }
    });
    assert!(db.stats().stalled_writes > 0);
    assert_eq!(keys(db.iter()).len(), 9);
}

/// Puts noise of 1 KiB under rising keys until a put fails.
fn write_until_full(db: &DB, acked: &mut BTreeMap<String, u64>) -> Error {
    for i in acked.len() as u64.. {
        let key = format!("{i:06}");
        match run(db.put(&key, noise(i, 1024))) {
            Ok(_) => drop(acked.insert(key, i)),
            Err(error) => {
                assert!(i < 100_000, "the disk never fills");
                return error;
            }
        }
    }
    unreachable!("the keys do not end")
}

fn check(db: &DB, acked: &BTreeMap<String, u64>) {
    let found = collect(db.iter());
    let found: Vec<_> = found.iter().map(|(key, value)| (key.as_ref(), value.clone())).collect();
    let expected: Vec<_> = acked.iter().map(|(key, i)| (key.as_bytes(), noise(*i, 1024))).collect();
    assert_eq!(found.len(), expected.len());
    assert!(found == expected, "a value is wrong");
    for (key, i) in acked {
        assert_eq!(run(db.get(key)).unwrap().unwrap(), noise(*i, 1024));
    }
}

fn fill_a_small_disk(options: DBOptions) {
    let Some(mount) = Mount::tmpfs("size=6m") else {
        println!("skipped: this process may not mount a file system");
        return;
    };
    let path = mount.path().join("db");
    let db = run(options.open(&path)).unwrap();
    let mut acked = BTreeMap::new();
    // Full by somebody else's file, and freed by its removal; then full again by ourselves.
    let ballast = mount.path().join("ballast");
    for round in 0..3 {
        host::write(&ballast, &vec![1; (4 << 20) - round * (1 << 20)]);
        let error = write_until_full(&db, &mut acked);
        assert_eq!(error.kind(), ErrorKind::NoSpace, "round {round}: {error}");
        check(&db, &acked);
        host::remove(&ballast);
        run(async {
            // The engine looks for space again in its own time.
            let i = acked.len() as u64;
            let key = format!("{i:06}");
            loop {
                match db.put(&key, noise(i, 1024)).await {
                    Ok(_) => break,
                    Err(error) => assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}"),
                }
                moment().await;
            }
            acked.insert(key, i);
        });
        check(&db, &acked);
    }
    run(db.close()).unwrap();
    let db = run(options.open(&path)).unwrap();
    check(&db, &acked);
}

fn small_disk_options() -> DBOptions {
    tiny().memtable_bytes(32 << 10).wal_segment_bytes(64 << 10).table_bytes(64 << 10)
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_space_again() {
    fill_a_small_disk(small_disk_options());
}

#[test]
fn a_full_disk_refuses_writes_of_a_page_cached_log_too() {
    fill_a_small_disk(small_disk_options().durability(Durability::Written));
}
