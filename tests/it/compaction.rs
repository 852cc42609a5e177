//! Merges under way: what they take, what may happen beside them, and who may say how they go.

use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use seerdb::{CompactionLimits, DB, DBOptions, DailyWindow, ErrorKind};

use crate::common::{collect, kind, moment, noise, open, place, plain, run};

const KEYS: u64 = 8000;
const SLOW: u64 = 1 << 20;

/// A few tables for each memtable, so that a merge of all has pieces.
fn small() -> DBOptions {
    plain()
        .memory_budget(16 << 20)
        .memtable_bytes(256 << 10)
        .table_bytes(64 << 10)
        .durability(seerdb::Durability::Buffered)
}

fn key(i: u64) -> String {
    format!("{i:06}")
}

/// Puts every key once, and each tenth once more.
fn fill(db: &DB) {
    for i in (0..KEYS).chain((0..KEYS).step_by(10)) {
        run(db.put(key(i * 7919 % KEYS), noise(i, 1000))).unwrap();
    }
    run(db.flush()).unwrap();
    run(db.wait_for_compaction()).unwrap();
}

fn check(db: &DB) {
    let found = collect(db.iter());
    assert_eq!(found.len() as u64, KEYS);
    assert!(found.iter().zip(0..).all(|((k, v), i)| k == key(i).as_bytes() && v.len() == 1000));
    run(db.verify()).unwrap();
}

fn limits() -> CompactionLimits {
    CompactionLimits::default()
}

fn tombstones(db: &DB) -> u64 {
    let levels = db.explain_compaction().levels;
    levels.iter().flat_map(|level| &level.runs).map(|run| run.tombstones).sum()
}

/// The blocks of the tables in `dir`, in bytes.
#[expect(clippy::disallowed_methods, reason = "the space is the file system's to tell")]
fn table_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let tables = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "sst"));
    // A file may go between the listing and the look.
    tables.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

/// Lets a merge of everything begin, and returns when it is at work.
fn begin_merge(db: &DB) -> impl Future<Output = seerdb::Result<()>> + use<> {
    let shared = db.clone();
    let mut merge = Box::pin(async move { shared.compact_range(..).await });
    while db.compaction_progress().is_none_or(|progress| progress.entries == 0) {
        assert!((&mut merge).now_or_never().is_none(), "it ends before it is seen");
        run(moment());
    }
    merge
}

#[test]
fn a_long_merge_needs_the_space_of_a_piece_not_of_a_copy() {
    let (_dir, path) = place();
    let db = run(small().open(&path)).unwrap();
    fill(&db);
    let before = table_bytes(&path);
    assert!(before > 7 << 20, "{before} bytes");
    db.set_compaction_limits(limits().bytes_per_second(16 << 20)).unwrap();
    let mut merge = Box::pin(begin_merge(&db));
    let mut peak = 0;
    while (&mut merge).now_or_never().is_none() {
        peak = peak.max(table_bytes(&path));
        run(moment());
    }
    assert!(peak < before + before / 4, "{peak} bytes for {before}");
    assert_eq!(db.stats().levels.iter().map(|level| level.runs).sum::<usize>(), 1);
    check(&db);
    run(db.close()).unwrap();
}

#[test]
fn newer_runs_are_merged_while_a_long_merge_goes_on() {
    let (_dir, db) = open(&small());
    fill(&db);
    db.set_compaction_limits(limits().bytes_per_second(SLOW)).unwrap();
    let mut merge = Box::pin(begin_merge(&db));
    let before = db.stats().compactions;
    for round in 0..40 {
        for i in 0..200 {
            run(db.put(key(i * 7919 % KEYS), noise(round, 1000))).unwrap();
        }
        run(db.flush()).unwrap();
        assert!((&mut merge).now_or_never().is_none(), "the merge was to be a long one");
    }
    let stats = db.stats();
    assert!(stats.compactions > before, "no other merge ended meanwhile");
    assert!(stats.levels[0].runs < 24, "{} runs in level 0", stats.levels[0].runs);
    db.set_compaction_limits(limits()).unwrap();
    run(merge).unwrap();
    run(db.wait_for_compaction()).unwrap();
    check(&db);
    run(db.close()).unwrap();
}

#[test]
fn a_compaction_that_is_called_off_leaves_a_sound_tree() {
    let (_dir, db) = open(&small());
    fill(&db);
    // One that waits for its turn, and one that is at work.
    let pause = db.pause_compaction();
    let mut waiting = Box::pin(db.compact_range(..));
    assert!((&mut waiting).now_or_never().is_none());
    while (&mut waiting).now_or_never().is_none() {
        db.cancel_compaction();
        run(moment());
    }
    drop((waiting, pause));
    db.set_compaction_limits(limits().bytes_per_second(SLOW)).unwrap();
    let merge = begin_merge(&db);
    db.cancel_compaction();
    assert_eq!(kind(run(merge)), ErrorKind::Cancelled);
    check(&db);
    // What is due is not called off.
    db.cancel_compaction();
    db.set_compaction_limits(limits()).unwrap();
    run(db.wait_for_compaction()).unwrap();
    run(db.compact_range(..)).unwrap();
    assert_eq!(db.stats().levels.iter().map(|level| level.runs).sum::<usize>(), 1);
    check(&db);
    run(db.close()).unwrap();
}

#[test]
fn a_close_in_the_middle_of_a_merge_loses_nothing() {
    let (_dir, path) = place();
    for _ in 0..3 {
        let db = run(small().open(&path)).unwrap();
        if collect(db.iter().limit(1)).is_empty() {
            fill(&db);
        }
        db.set_compaction_limits(limits().bytes_per_second(4 * SLOW)).unwrap();
        let merge = begin_merge(&db);
        // Into its second piece or further.
        for _ in 0..400 {
            run(moment());
        }
        run(db.close()).unwrap();
        assert_eq!(kind(run(merge)), ErrorKind::Closed);
    }
    let db = run(small().open(&path)).unwrap();
    check(&db);
    run(db.compact_range(..)).unwrap();
    check(&db);
    run(db.close()).unwrap();
}

#[test]
fn limits_out_of_range_are_refused_and_change_nothing() {
    let good = limits().bytes_per_second(SLOW).latency_target(Duration::from_millis(1));
    let (_dir, db) = open(&small().compaction_limits(good));
    let day = Duration::from_secs(86_400);
    for bad in [
        good.bytes_per_second(0),
        good.latency_target(Duration::ZERO),
        good.off_peak(DailyWindow::new(day, day + Duration::from_secs(1))),
    ] {
        assert_eq!(kind(db.set_compaction_limits(bad)), ErrorKind::InvalidArgument);
        assert_eq!(db.compaction_limits(), good);
        let (_other, path) = place();
        let refused = run(small().compaction_limits(bad).open(path));
        assert_eq!(kind(refused), ErrorKind::InvalidArgument);
    }
    run(db.close()).unwrap();
}

/// A queue: what was put and deleted in order shall not stay in the way of scans.
#[test]
fn a_queue_leaves_no_tombstones_behind() {
    let (_dir, db) = open(&small().memtable_bytes(64 << 10));
    run(db.put("zzz", "lives")).unwrap();
    for i in 0..4000 {
        run(db.put(key(i), noise(i, 100))).unwrap();
    }
    run(db.flush()).unwrap();
    let snapshot = db.snapshot();
    for i in 0..4000 {
        run(db.delete(key(i))).unwrap();
    }
    run(db.flush()).unwrap();
    run(db.wait_for_compaction()).unwrap();
    assert!(tombstones(&db) >= 4000, "the snapshot needs what they hide");
    assert_eq!(collect(snapshot.iter()).len(), 4001);
    drop(snapshot);
    run(db.put("zzz", "on")).unwrap();
    run(db.flush()).unwrap();
    run(db.wait_for_compaction()).unwrap();
    assert_eq!(tombstones(&db), 0, "{}", db.explain_compaction());
    assert_eq!(collect(db.iter()).len(), 1);
    run(db.close()).unwrap();
}

#[test]
fn deletions_leave_the_disk_when_they_are_old() {
    for age in [None, Some(Duration::from_secs(1))] {
        let (_dir, db) = open(&small().tombstone_age(age));
        fill(&db);
        run(db.compact_range(..)).unwrap();
        run(db.delete(key(KEYS / 2))).unwrap();
        run(db.delete(key(KEYS + 1))).unwrap();
        run(db.flush()).unwrap();
        assert_eq!(tombstones(&db), 2);
        for _ in 0..if age.is_some() { 20_000 } else { 2000 } {
            if tombstones(&db) == 0 {
                break;
            }
            run(moment());
        }
        assert_eq!(tombstones(&db), if age.is_some() { 0 } else { 2 });
        assert_eq!(collect(db.iter()).len() as u64, KEYS - 1);
        run(db.close()).unwrap();
    }
}
