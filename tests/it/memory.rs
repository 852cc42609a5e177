//! What the memory budget is spent on, and what a scan reads beyond what is asked of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use seerdb::{Compression, DB, DBOptions, RangeStream};
use seerdb_io::sim::{OpKind, Options, Phase, Sim};

use crate::common::{noise, open, plain, run};

const MEMTABLE_BYTES: usize = 256 << 10;

/// Tables with much index and filter in them, in a budget that they take a good part of.
fn many_blocks() -> DBOptions {
    plain()
        .memory_budget(4 << 20)
        .memtable_bytes(MEMTABLE_BYTES)
        .block_bytes(256)
        .table_bytes(64 << 10)
        .filter_bits_per_key(32.0)
        .compression(Compression::None)
}

fn fill(db: &DB) {
    for i in 0..20_000u64 {
        run(db.put(format!("key number {i:08}"), noise(i, 40))).unwrap();
    }
    run(db.flush()).unwrap();
    run(db.compact_range(..)).unwrap();
}

async fn read_all(mut stream: RangeStream) -> u64 {
    let mut count = 0;
    while stream.try_next().await.unwrap().is_some() {
        count += 1;
    }
    count
}

#[test]
fn the_parts_of_the_budget_add_up_to_it() {
    let (_dir, db) = open(&many_blocks());
    fill(&db);
    let stats = db.stats();
    assert!(stats.table_memory_bytes > 200 << 10, "{stats:?}");
    assert_eq!(stats.memory_budget, 4 << 20);
    assert_eq!(stats.buffer_bytes, 1 << 20, "a quarter of a small budget");
    let kept = 3 * MEMTABLE_BYTES + stats.buffer_bytes + stats.table_memory_bytes;
    // The shards of the cache round their shares.
    assert!((kept as u64 + stats.cache_capacity).abs_diff(4 << 20) < 64, "{stats:?}");
    assert_eq!(run(read_all(db.iter())), 20_000);
    let stats = db.stats();
    assert!(stats.cache_bytes > stats.cache_capacity / 2, "{stats:?}");
    assert!(stats.cache_bytes <= stats.cache_capacity, "{stats:?}");
    assert!(stats.memory_bytes() <= 4 << 20, "{stats:?}");
    assert_eq!(stats.ahead_bytes, 0, "the stream has gone");
}

#[test]
fn tables_that_only_a_stream_needs_count() {
    let (_dir, db) = open(&many_blocks());
    fill(&db);
    let before = db.stats();
    let mut stream = db.iter();
    run(stream.try_next()).unwrap().unwrap();
    fill(&db);
    let (during, capacity) = (db.stats().table_memory_bytes, db.stats().cache_capacity);
    assert!(during > before.table_memory_bytes * 3 / 2, "{during} against {before:?}");
    assert!(capacity < before.cache_capacity);
    drop(stream);
    assert!(db.stats().table_memory_bytes < during * 3 / 4);
    run(db.put("one", "more")).unwrap();
    run(db.flush()).unwrap();
    assert!(db.stats().cache_capacity > capacity, "the next change gives it back");
}

#[test]
fn an_explicit_cache_does_not_break_the_budget() {
    let (_dir, db) = open(&many_blocks().cache_bytes(4 << 20));
    let stats = db.stats();
    let rest = (4 << 20) - 3 * MEMTABLE_BYTES - stats.buffer_bytes;
    assert!(stats.cache_capacity <= rest as u64, "{stats:?}");
    assert!(stats.cache_capacity > rest as u64 - (64 << 10), "{stats:?}");
    let (_dir, db) = open(&many_blocks().cache_bytes(100_000));
    assert!(db.stats().cache_capacity <= 100_000);
}

/// The bytes that a cold scan of `limit` entries reads from tables, and what came out.
fn read_by(limit: usize, is_reverse: bool) -> (usize, u64) {
    let sim = Sim::new(1, Options::default());
    let env = sim.boot();
    let read = Arc::new(AtomicUsize::new(0));
    let counter = read.clone();
    sim.on_op(move |event| {
        if event.kind == OpKind::Read && matches!(event.phase, Phase::Submitted) {
            counter.fetch_add(event.len, Ordering::Relaxed);
        }
    });
    sim.run(async {
        // Around the page cache: every block that is needed is a read.
        let options = DBOptions::new()
            .env(env)
            .direct_io(true)
            .memory_budget(32 << 20)
            .compression(Compression::None);
        let db = options.open("/db").await.unwrap();
        for i in 0..10_000u64 {
            db.put(format!("{i:08}"), noise(i, 200)).await.unwrap();
        }
        db.compact_range(..).await.unwrap();
        let before = read.load(Ordering::Relaxed);
        let scan = if is_reverse { db.iter().rev() } else { db.iter() };
        let count = read_all(scan.limit(limit)).await;
        let bytes = read.load(Ordering::Relaxed) - before;
        db.close().await.unwrap();
        (bytes, count)
    })
    .unwrap()
}

#[test]
fn a_limited_scan_reads_little_more_than_it_returns() {
    for is_reverse in [false, true] {
        for limit in [20, 100, 200, 400] {
            let (bytes, count) = read_by(limit, is_reverse);
            assert_eq!(count, limit as u64);
            let entries = limit * 220;
            assert!(bytes >= entries, "{bytes} bytes for {limit} entries");
            let most = 2 * entries + (24 << 10);
            assert!(bytes <= most, "{bytes} bytes for {limit} entries");
        }
        let (bytes, count) = read_by(usize::MAX, is_reverse);
        assert_eq!(count, 10_000);
        assert!(bytes < 10_000 * 220 * 5 / 4, "{bytes}");
    }
}
