//! Merging step by step: in pieces, above each other, paused, called off, for deletions, slowly.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::FutureExt;
use seerdb::{CompactionLimits, DB, DBOptions, DailyWindow, Durability, ErrorKind};
use seerdb_io::Env;
use seerdb_io::sim::{Cut, Disk, Options, Sim};

use super::disk;
use super::life::bounded;
use super::look::{same, scan};
use super::regressions::small;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

const KEYS: u32 = 400;

fn options() -> DBOptions {
    small()
        .memtable_bytes(8 << 10)
        .wal_segment_bytes(64 << 10)
        .table_bytes(1 << 10)
        .runs_per_level(3)
        .compression(seerdb::Compression::None)
        .durability(Durability::Written)
}

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn key(number: u32) -> Vec<u8> {
    format!("key {number:04}").into_bytes()
}

async fn put(db: &DB, model: &mut Model, number: u32, round: u8) {
    let value = vec![round; 40];
    db.put(key(number), value.clone()).await.unwrap();
    model.insert(key(number), value);
}

async fn delete(db: &DB, model: &mut Model, number: u32) {
    db.delete(key(number)).await.unwrap();
    model.remove(&key(number));
}

/// All of it in both directions, and key by key.
async fn check(db: &DB, model: &Model, what: &str) {
    let mut expected: Vec<_> = model.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    same(what, &expected, &scan(db.iter()).await.unwrap());
    expected.reverse();
    same(&format!("{what}, in reverse"), &expected, &scan(db.iter().rev()).await.unwrap());
    for number in 0..KEYS {
        let found = db.get(key(number)).await.unwrap();
        let expected = model.get(&key(number)).map(Vec::as_slice);
        assert!(found.as_deref() == expected, "{what}: get of {number}: {found:?}");
    }
}

/// Everything in one run, and a newer run that overwrites and deletes across all of it.
async fn two_runs(db: &DB) -> Model {
    let mut model = Model::new();
    for number in 0..KEYS {
        put(db, &mut model, number, 1).await;
    }
    db.compact_range(..).await.unwrap();
    for number in (0..KEYS).filter(|number| number % 2 == 0) {
        match number % 10 {
            0 => delete(db, &mut model, number).await,
            _ => put(db, &mut model, number, 2).await,
        }
    }
    db.flush().await.unwrap();
    db.wait_for_compaction().await.unwrap();
    model
}

fn tombstones(db: &DB) -> u64 {
    let report = db.explain_compaction();
    report.levels.iter().flat_map(|level| &level.runs).map(|run| run.tombstones).sum()
}

/// Slows merges down: a table takes milliseconds.
fn slow(db: &DB) {
    let limits = CompactionLimits::default().bytes_per_second(1 << 20);
    db.set_compaction_limits(limits).unwrap();
}

/// What is on the disk opens, is right, and stays so when it is merged.
fn survives(disk: Disk, options: &DBOptions, model: &Model, what: &str) {
    let sim = Sim::with_disk(2, Options::default(), disk);
    let env = sim.boot();
    sim.run(async {
        let db = options.clone().env(env.clone()).open("/db").await.unwrap();
        check(&db, model, what).await;
        db.verify().await.unwrap();
        bounded(&env, "merging", db.compact_range(..)).await.unwrap();
        check(&db, model, &format!("{what}, merged")).await;
        db.close().await.unwrap();
    })
    .unwrap();
}

#[test]
fn between_two_pieces_the_tree_is_one_like_any_other() {
    for (seed, threshold) in [(1, None), (2, Some(1))] {
        let sim = Sim::new(seed, Options::default());
        let env = sim.boot();
        let options = options().value_threshold(threshold);
        let images = Rc::new(RefCell::new(Vec::new()));
        let model = sim.run(async {
            let db = options.clone().env(env.clone()).open("/db").await.unwrap();
            let model = two_runs(&db).await;
            slow(&db);
            let tables = disk::tables(&sim.disk());
            let mut merging = Box::pin(db.compact_range(..));
            let mut steps = 0;
            while (&mut merging).now_or_never().is_none() {
                env.clock().sleep(millis(1)).await;
                let pause = db.pause_compaction();
                assert!(disk::tables(&sim.disk()) <= tables + 20, "it holds what it has merged");
                check(&db, &model, "in a merge").await;
                drop(pause);
                if steps % 4 == 0 {
                    images.borrow_mut().push(sim.crash_clone(Cut::Mixed, steps));
                }
                steps += 1;
                assert!(steps < 500, "O7: it does not end");
            }
            assert!(steps > 8, "{steps} steps are few");
            check(&db, &model, "merged").await;
            db.close().await.unwrap();
            model
        });
        let model = model.unwrap();
        for (at, image) in images.take().into_iter().enumerate() {
            survives(image, &options, &model, &format!("threshold {threshold:?}, image {at}"));
        }
    }
}

/// Begins a merge of everything that takes long, and merges of newer runs above it meanwhile.
async fn stack(env: &Env, db: &DB, model: &mut Model) {
    slow(db);
    let mut deep = Box::pin(db.compact_range(..));
    while db.compaction_progress().is_none() {
        assert!((&mut deep).now_or_never().is_none(), "nothing is to be merged");
        env.clock().sleep(millis(1)).await;
    }
    let merges = db.stats().compactions;
    // As many runs as call for merges while somebody waits for the deep one.
    for round in 0..28 {
        for number in (round..KEYS).step_by(28) {
            match round % 2 {
                0 => delete(db, model, number).await,
                _ => put(db, model, number, 3).await,
            }
        }
        db.flush().await.unwrap();
    }
    db.set_compaction_limits(CompactionLimits::default()).unwrap();
    let mut steps = 0;
    while (&mut deep).now_or_never().is_none() {
        check(db, model, "with merges above each other").await;
        env.clock().sleep(millis(1)).await;
        steps += 1;
        assert!(steps < 500, "O7: the deep merge does not end");
    }
    assert!(db.stats().compactions > merges + 1, "no merge above the deep one");
    bounded(env, "merging", db.wait_for_compaction()).await.unwrap();
    check(db, model, "when all is merged").await;
}

#[test]
fn newer_runs_are_merged_above_a_long_merge() {
    for seed in 0..6 {
        let sim = Sim::new(seed, Options::default());
        let env = sim.boot();
        let options = options();
        let model = sim.run(async {
            let db = options.clone().env(env.clone()).open("/db").await.unwrap();
            let mut model = two_runs(&db).await;
            stack(&env, &db, &mut model).await;
            db.close().await.unwrap();
            model
        });
        survives(sim.disk(), &options, &model.unwrap(), "after stacked merges");
    }
}

/// A merge of everything that has met some of its entries.
async fn begin_long<'a>(
    env: &Env,
    db: &'a DB,
) -> std::pin::Pin<Box<dyn Future<Output = seerdb::Result<()>> + 'a>> {
    slow(db);
    let mut merging = Box::pin(db.compact_range(..));
    while db.compaction_progress().is_none_or(|progress| progress.entries == 0) {
        assert!((&mut merging).now_or_never().is_none(), "it was over at once");
        env.clock().sleep(millis(1)).await;
    }
    merging
}

#[test]
fn a_pause_holds_a_merge_up_and_its_end_lets_it_go_on() {
    let sim = Sim::new(3, Options::default());
    let env = sim.boot();
    sim.run(async {
        let db = options().env(env.clone()).open("/db").await.unwrap();
        let model = two_runs(&db).await;
        let merging = begin_long(&env, &db).await;
        let (one, other) = (db.pause_compaction(), db.pause_compaction());
        // Longer than any step of a merge.
        env.clock().sleep(millis(1000)).await;
        let held = db.compaction_progress().unwrap();
        assert!(held.is_paused && held.entries < held.entries_total, "{held:?}");
        drop(one);
        env.clock().sleep(millis(5000)).await;
        assert_eq!(db.compaction_progress(), Some(held), "it goes on");
        check(&db, &model, "in a pause").await;
        drop(other);
        bounded(&env, "a merge behind a pause", merging).await.unwrap();
        check(&db, &model, "behind a pause").await;
        db.close().await.unwrap();
    })
    .unwrap();
}

#[test]
fn in_a_pause_flushes_go_on_and_no_merge_begins() {
    let sim = Sim::new(4, Options::default());
    let env = sim.boot();
    sim.run(async {
        let db = options().env(env.clone()).open("/db").await.unwrap();
        let mut model = two_runs(&db).await;
        let (pause, merges) = (db.pause_compaction(), db.stats().compactions);
        for round in 0..40 {
            put(&db, &mut model, round, 4).await;
            bounded(&env, "a flush in a pause", db.flush()).await.unwrap();
        }
        env.clock().sleep(millis(5000)).await;
        let progress = db.compaction_progress();
        assert_eq!((progress, db.stats().compactions), (None, merges), "a merge began");
        assert!(db.stats().levels[0].runs >= 40);
        check(&db, &model, "in a pause").await;
        drop(pause);
        bounded(&env, "merging", db.wait_for_compaction()).await.unwrap();
        assert!(db.stats().levels[0].runs <= 3);
        check(&db, &model, "behind a pause").await;
        db.close().await.unwrap();
    })
    .unwrap();
}

#[test]
fn who_asked_for_a_merge_is_told_that_it_was_called_off() {
    for pauses in [false, true] {
        let sim = Sim::new(5, Options::default());
        let env = sim.boot();
        sim.run(async {
            let db = options().env(env.clone()).open("/db").await.unwrap();
            let model = two_runs(&db).await;
            let merging = begin_long(&env, &db).await;
            let pause = pauses.then(|| db.pause_compaction());
            if pauses {
                env.clock().sleep(millis(1000)).await;
            }
            let merges = db.stats().compactions;
            db.cancel_compaction();
            let told = bounded(&env, "a merge that was called off", merging).await;
            assert_eq!(told.unwrap_err().kind(), ErrorKind::Cancelled);
            assert_eq!(db.stats().compactions, merges, "it went on to its end");
            check(&db, &model, "called off").await;
            drop(pause);
            bounded(&env, "merging", db.wait_for_compaction()).await.unwrap();
            bounded(&env, "another merge", db.compact_range(..)).await.unwrap();
            assert_eq!(tombstones(&db), 0);
            check(&db, &model, "merged after all").await;
            db.close().await.unwrap();
        })
        .unwrap();
    }
}

/// Merging stopped, and with it writing, whenever the database was opened: behind a merge that was
/// called off halfway, one of its older inputs alone wrote a table that was newer than its run.
#[test]
fn what_was_called_off_halfway_is_merged_in_parts() {
    let options = options().memtable_bytes(128 << 10).size_ratio(8).runs_last_level(7);
    for tenths in 1..9 {
        let sim = Sim::new(tenths, Options::default());
        let env = sim.boot();
        let model = sim.run(call_off_halfway(&env, &options, tenths)).unwrap();
        survives(sim.disk(), &options, &model, "merged in part");
    }
}

async fn call_off_halfway(env: &Env, options: &DBOptions, tenths: u64) -> Model {
    let db = options.clone().env(env.clone()).open("/db").await.unwrap();
    let mut model = two_runs(&db).await;
    // What is merged keeps the deletions, and so is merged again.
    let snapshot = db.snapshot();
    for number in (0..KEYS).step_by(3) {
        delete(&db, &mut model, number).await;
    }
    db.flush().await.unwrap();
    // The newest is what is merged first. It is large: without it, pieces end at other keys.
    for number in (1..KEYS).step_by(3).rev() {
        let value = vec![7; 100];
        db.put(key(number), value.clone()).await.unwrap();
        model.insert(key(number), value);
    }
    db.flush().await.unwrap();
    let merging = begin_long(env, &db).await;
    while let Some(progress) = db.compaction_progress() {
        if progress.entries * 10 > progress.entries_total * tenths {
            break;
        }
        env.clock().sleep(millis(1)).await;
    }
    db.cancel_compaction();
    assert_eq!(merging.await.unwrap_err().kind(), ErrorKind::Cancelled);
    check(&db, &model, "called off").await;
    drop(snapshot);
    // Now the deletions call for a merge, of what is older than the last run that came.
    bounded(env, "merging", db.wait_for_compaction()).await.unwrap();
    check(&db, &model, "merged in part").await;
    db.close().await.unwrap();
    model
}

#[test]
fn a_rate_holds_but_off_peak() {
    // Such a disk is no limit.
    let sim = Sim::new(6, Options { latency_us: (1, 4), ..Options::default() });
    let env = sim.boot();
    sim.run(async {
        let db = options().env(env.clone()).open("/db").await.unwrap();
        let model = two_runs(&db).await;
        let rate = CompactionLimits::default().bytes_per_second(1 << 20);
        let always = DailyWindow::new(Duration::ZERO, millis(86_400_000));
        let mut times = Vec::new();
        for limits in [rate, rate.off_peak(always), CompactionLimits::default()] {
            db.set_compaction_limits(limits).unwrap();
            let (began, bytes) = (sim.now(), db.stats().compacted_bytes);
            bounded(&env, "a slow merge", db.compact_range(..)).await.unwrap();
            let bytes = db.stats().compacted_bytes - bytes;
            times.push((sim.now() - began).as_secs_f64() / bytes as f64 * f64::from(1 << 20));
        }
        // Some of a file is no entry.
        assert!(times[0] > 0.3, "seconds for a mebibyte: {times:?}");
        assert!(times[1] < times[0] / 2.0 && times[2] < times[0] / 2.0, "{times:?}");
        check(&db, &model, "at a rate").await;
        db.close().await.unwrap();
    })
    .unwrap();
}

#[test]
fn what_was_deleted_leaves_the_disk_in_time() {
    let age = millis(32_000);
    let sim = Sim::new(7, Options::default());
    let env = sim.boot();
    sim.run(async {
        let options = options().tombstone_age(age);
        let db = options.env(env.clone()).open("/db").await.unwrap();
        let mut model = two_runs(&db).await;
        bounded(&env, "merging", db.compact_range(..)).await.unwrap();
        // The first comes with a look at the clock, the second too soon for another one.
        for number in [11, 13] {
            delete(&db, &mut model, number).await;
            db.flush().await.unwrap();
            env.clock().sleep(millis(100)).await;
        }
        assert_eq!(tombstones(&db), 2);
        env.clock().sleep(age * 9 / 8).await;
        bounded(&env, "merging", db.wait_for_compaction()).await.unwrap();
        assert_eq!(tombstones(&db), 0, "after {age:?}");
        // A snapshot holds them back, and nothing but its end lets them go.
        let (snapshot, before) = (db.snapshot(), model.clone());
        delete(&db, &mut model, 15).await;
        db.flush().await.unwrap();
        env.clock().sleep(age * 2).await;
        bounded(&env, "merging", db.wait_for_compaction()).await.unwrap();
        assert_eq!(tombstones(&db), 1);
        let found = scan(snapshot.iter()).await.unwrap();
        assert!(found.into_iter().eq(before), "the snapshot has changed");
        drop(snapshot);
        env.clock().sleep(millis(1000)).await;
        assert_eq!(tombstones(&db), 0, "the snapshot is gone");
        check(&db, &model, "without tombstones").await;
        db.close().await.unwrap();
    })
    .unwrap();
}

#[test]
fn a_range_full_of_deletions_is_merged_when_no_snapshot_needs_it() {
    let sim = Sim::new(8, Options::default());
    let env = sim.boot();
    sim.run(async {
        let db = options().env(env.clone()).open("/db").await.unwrap();
        let mut model = two_runs(&db).await;
        bounded(&env, "merging", db.compact_range(..)).await.unwrap();
        let (snapshot, before) = (db.snapshot(), model.clone());
        for number in 100..200 {
            delete(&db, &mut model, number).await;
        }
        let merges = db.stats().compactions;
        db.flush().await.unwrap();
        env.clock().sleep(millis(1000)).await;
        assert!(db.stats().compactions <= merges + 2, "O7: the same is merged again and again");
        bounded(&env, "merging", db.wait_for_compaction()).await.unwrap();
        assert!(tombstones(&db) > 0, "the snapshot needs what they hide");
        assert!(scan(snapshot.iter()).await.unwrap().into_iter().eq(before));
        drop(snapshot);
        bounded(&env, "merging", db.wait_for_compaction()).await.unwrap();
        assert_eq!(tombstones(&db), 0);
        check(&db, &model, "without tombstones").await;
        db.close().await.unwrap();
    })
    .unwrap();
}

#[test]
fn writers_go_on_while_flushes_slow_down_for_merges() {
    let sim = Sim::new(9, Options::default());
    let env = sim.boot();
    sim.run(async {
        let options = options().memtable_bytes(64 << 10).table_bytes(4 << 10);
        let options = options.durability(Durability::Buffered).wal_segment_bytes(1 << 20);
        let db = options.env(env.clone()).open("/db").await.unwrap();
        let mut model = two_runs(&db).await;
        let pause = db.pause_compaction();
        for round in 0..20 {
            put(&db, &mut model, round, 5).await;
            db.flush().await.unwrap();
        }
        // Merges are behind: every flush of these is slow.
        for round in 0..30 {
            for number in 0..KEYS {
                bounded(&env, "a write", put(&db, &mut model, number, round)).await;
            }
        }
        // It takes nearly all the memory that there is for writes.
        let large = vec![9; 120_000];
        bounded(&env, "a large write", db.put(key(7), large.clone()).into_future()).await.unwrap();
        model.insert(key(7), large);
        assert!(db.stats().stalled_writes > 0, "nobody had to wait");
        drop(pause);
        bounded(&env, "merging", db.wait_for_compaction()).await.unwrap();
        check(&db, &model, "behind slow flushes").await;
        db.close().await.unwrap();
    })
    .unwrap();
}

/// Values are collected while a merge is held up between two pieces.
#[test]
fn values_outlive_a_merge_that_is_held_up() {
    let sim = Sim::new(10, Options::default());
    let env = sim.boot();
    let options =
        options().value_threshold(1).value_segment_bytes(16 << 10).max_space_amplification(1.1);
    let model = sim.run(async {
        let db = options.clone().env(env.clone()).open("/db").await.unwrap();
        let mut model = two_runs(&db).await;
        let mut rewrites = 0;
        for round in 6..12 {
            for number in (0..KEYS).filter(|number| number % 3 == u32::from(round) % 3) {
                put(&db, &mut model, number, round).await;
            }
            let merging = begin_long(&env, &db).await;
            for _ in 0..6 {
                env.clock().sleep(millis(5)).await;
                let (pause, before) = (db.pause_compaction(), db.stats().value_log.rewrites);
                env.clock().sleep(millis(2000)).await;
                rewrites += db.stats().value_log.rewrites - before;
                check(&db, &model, "held up").await;
                drop(pause);
            }
            bounded(&env, "a merge", merging).await.unwrap();
        }
        assert!(rewrites > 0, "nothing was collected in the midst of a merge");
        check(&db, &model, "merged").await;
        db.verify().await.unwrap();
        model
    });
    sim.kill();
    survives(sim.disk(), &options, &model.unwrap(), "values");
}
