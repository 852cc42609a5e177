//! Values that stay in the log: that nobody can tell, whatever becomes of their files.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::TryStreamExt;
use seerdb::{Compression, DB, DBOptions, Durability, RangeStream, Snapshot};

use crate::common::{collect, moment, noise, open, place, plain, reopen, run, tiny};
use crate::host;

const THRESHOLD: usize = 100;
const DURABILITIES: [Durability; 3] =
    [Durability::Buffered, Durability::Written, Durability::Synced];

type Model = BTreeMap<String, Bytes>;

/// Small segments: a hundred writes fill some of them.
fn small() -> DBOptions {
    tiny().value_threshold(THRESHOLD).value_segment_bytes(16 << 10)
}

/// A value of the key `i` in round `round`: one in three is above the threshold, some of these can
/// be compressed.
fn value(i: u64, round: u64) -> Bytes {
    let seed = round * 10_000 + i;
    match seed % 6 {
        0 => noise(seed, 700),
        3 => Bytes::from(format!("{seed}, ").repeat(100)),
        4 => Bytes::new(),
        _ => noise(seed, 30),
    }
}

fn key(i: u64) -> String {
    format!("{i:05}")
}

/// Puts, batches of both kinds of values, and deletes.
fn write_round(db: &DB, model: &mut Model, keys: u64, round: u64) {
    for first in (0..keys).step_by(5) {
        let put = value(first, round);
        run(db.put(key(first), put.clone())).unwrap();
        model.insert(key(first), put);
        let mut batch = db.batch();
        for i in first + 1..(first + 4).min(keys) {
            batch.put(key(i), value(i, round));
            model.insert(key(i), value(i, round));
        }
        let gone = key(first + 4 * (round % 2));
        batch.delete(&gone);
        model.remove(&gone);
        run(batch.commit()).unwrap();
    }
}

/// What a stream has, as a model of strings.
fn content(stream: RangeStream) -> Vec<(String, Bytes)> {
    let text = |key: Bytes| String::from_utf8(key.to_vec()).unwrap();
    collect(stream).into_iter().map(|(key, value)| (text(key), value)).collect()
}

fn pairs<'a>(entries: impl Iterator<Item = (&'a String, &'a Bytes)>) -> Vec<(String, Bytes)> {
    entries.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Reads everything every way.
#[track_caller]
fn check(db: &DB, model: &Model) {
    assert_eq!(content(db.iter()), pairs(model.iter()));
    assert_eq!(content(db.iter().rev()), pairs(model.iter().rev()));
    assert_eq!(content(db.iter().limit(7)), pairs(model.iter().take(7)));
    assert_eq!(content(db.iter().rev().limit(7)), pairs(model.iter().rev().take(7)));
    let some = model.iter().filter(|(key, _)| key.starts_with("0001"));
    assert_eq!(content(db.prefix("0001")), pairs(some));
    check_keys(db, model);
    for (key, value) in model {
        assert_eq!(run(db.get(key)).unwrap().as_ref(), Some(value), "{key}");
    }
    let asked: Vec<String> = (0..60).map(|i| key(i * 7 % 60)).collect();
    let found = run(db.get_many(&asked)).unwrap();
    let expected: Vec<Option<Bytes>> = asked.iter().map(|key| model.get(key).cloned()).collect();
    assert_eq!(found, expected);
    run(db.verify()).unwrap();
}

#[track_caller]
fn check_keys(db: &DB, model: &Model) {
    let keys: Vec<Bytes> = run(db.iter().keys().try_collect()).unwrap();
    assert!(keys.iter().eq(model.keys()));
    let sizes: Vec<(Bytes, usize)> = run(db.iter().rev().keys().sizes().try_collect()).unwrap();
    let expected = model.iter().rev().map(|(key, value)| (key.clone().into(), value.len()));
    assert!(sizes.into_iter().eq(expected));
}

#[track_caller]
fn check_snapshot(snapshot: &Snapshot, model: &Model) {
    assert_eq!(content(snapshot.iter()), pairs(model.iter()));
    for (key, value) in model.iter().step_by(3) {
        assert_eq!(run(snapshot.get(key)).unwrap().as_ref(), Some(value), "{key}");
    }
}

/// Waits until `is_so`, or complains that it never comes to `what`.
#[track_caller]
fn wait_until(db: &DB, what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if is_so() {
            return;
        }
        run(moment());
    }
    panic!("not {what}: {:?}", db.stats());
}

/// Waits until nothing changes any more.
fn settle(db: &DB) {
    let mut before = None;
    while before != Some(db.stats()) {
        before = Some(db.stats());
        for _ in 0..100 {
            run(moment());
        }
    }
}

/// The sizes of the files of the value log, by number.
fn files(path: &Path) -> BTreeMap<u64, u64> {
    let number = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    let sized = |path: PathBuf| Some((number(&path), host::len(&path)?));
    host::files(path, "", ".vlog").into_iter().filter_map(sized).collect()
}

#[test]
fn values_of_both_kinds_are_read_as_they_were_written() {
    for durability in DURABILITIES {
        for compression in [Compression::Lz4, Compression::None] {
            let (_dir, path) = place();
            let options = small().durability(durability).compression(compression);
            let mut model = Model::new();
            for round in 0..4 {
                let db = reopen(&options, &path);
                check(&db, &model);
                write_round(&db, &mut model, 150, round);
                check(&db, &model);
                run(db.flush()).unwrap();
                check(&db, &model);
                if round == 2 {
                    run(db.compact_range(..)).unwrap();
                    check(&db, &model);
                }
                if round % 2 == 0 {
                    run(db.close()).unwrap();
                }
            }
            check(&reopen(&options, &path), &model);
        }
    }
}

#[test]
fn values_of_every_size_come_back() {
    let sizes = [0, 1, 99, 100, 101, 4056, 4096, 16 << 10, 300 << 10, 1 << 20, 20 << 20];
    for durability in DURABILITIES {
        for threshold in [1, 100, 1 << 20] {
            let (_dir, path) = place();
            let options = plain().durability(durability).value_segment_bytes(16 << 10);
            let options = options.value_threshold(threshold);
            let db = run(options.open(&path)).unwrap();
            for (i, size) in (0..).zip(sizes) {
                run(db.put(key(i), noise(i, size))).unwrap();
            }
            let is_there = |db: &DB| {
                for (i, size) in (0..).zip(sizes) {
                    let found = run(db.get(key(i))).unwrap().unwrap();
                    assert!(found == noise(i, size), "{size} bytes, from {threshold} on");
                }
                let found = collect(db.iter());
                assert!(found.iter().map(|(_, value)| value.len()).eq(sizes));
            };
            is_there(&db);
            run(db.flush()).unwrap();
            is_there(&db);
            run(db.close()).unwrap();
            let db = run(options.open(&path)).unwrap();
            is_there(&db);
            run(db.verify()).unwrap();
        }
    }
}

#[test]
#[ignore = "run as a child by a_killed_process_loses_no_value_that_was_acknowledged"]
fn child_writes_values_until_it_is_killed() {
    let Some((path, durability)) = host::parent_said() else { return };
    let durability = match durability.as_str() {
        "synced" => Durability::Synced,
        "written" => Durability::Written,
        _ => Durability::Buffered,
    };
    let db = run(small().durability(durability).open(path)).unwrap();
    let before = collect(db.iter()).len() as u64;
    let mut out = std::io::stdout().lock();
    for i in before.. {
        run(db.put(key(i), value(i, 0))).unwrap();
        // Values that collection finds in its way.
        run(db.put(key(i / 2), value(i / 2, 0))).unwrap();
        writeln!(out, "acked {i}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_process_loses_no_value_that_was_acknowledged() {
    for (durability, kills) in [("synced", 4), ("written", 4), ("buffered", 3)] {
        let (_dir, path) = place();
        let mut before = 0u64;
        for kill in 0..kills {
            let test = "values::child_writes_values_until_it_is_killed";
            let mut child = host::child(test, &path, durability);
            let acked = host::kill_when_acked(&mut child, before + 40 + 110 * kill);
            let db = run(small().open(&path)).unwrap();
            let found = collect(db.iter()).len() as u64;
            check(&db, &(0..found).map(|i| (key(i), value(i, 0))).collect());
            assert!(found >= before, "what one life found, the next one has");
            if durability != "buffered" {
                assert!(found > acked, "{durability}: {found} keys, {acked} was acknowledged");
            }
            run(db.close()).unwrap();
            before = found;
        }
    }
}

#[test]
fn a_database_goes_where_its_directory_goes() {
    let (dir, path) = place();
    let [copy, moved] = ["copy", "moved"].map(|name| dir.path().join(name));
    let mut model = Model::new();
    let db = run(small().open(&path)).unwrap();
    for round in 0..3 {
        write_round(&db, &mut model, 100, round);
    }
    run(db.flush()).unwrap();
    run(db.compact_range(..)).unwrap();
    settle(&db);
    host::copy_dir(&path, &copy);
    check(&run(small().open(&copy)).unwrap(), &model);
    run(db.close()).unwrap();
    assert!(host::command("mv", &[path.to_str().unwrap(), moved.to_str().unwrap()]));
    let db = run(small().open(&moved)).unwrap();
    check(&db, &model);
    write_round(&db, &mut model, 100, 3);
    check(&db, &model);
}

#[test]
fn values_that_can_be_compressed_take_less_space() {
    let mut taken = Vec::new();
    for compression in [Compression::None, Compression::Lz4] {
        let (_dir, path) = place();
        // Each synced commit alone would take a unit of the disk, however small it is.
        let options = small().durability(Durability::Written).compression(compression);
        let db = run(options.open(&path)).unwrap();
        let text = |i: u64| Bytes::from(format!("{i} times the same; ").repeat(150));
        for i in 0..300 {
            run(db.put(key(i), text(i))).unwrap();
        }
        check(&db, &(0..300).map(|i| (key(i), text(i))).collect());
        run(db.close()).unwrap();
        taken.push(files(&path).values().sum::<u64>());
    }
    assert!(taken[0] > 300 * 2500, "{taken:?}");
    assert!(taken[1] < taken[0] / 4, "{taken:?}");
}

#[test]
fn keys_and_sizes_need_no_value() {
    let (_dir, path) = place();
    let options = small().cache_bytes(0);
    let mut model = Model::new();
    let db = run(options.open(&path)).unwrap();
    write_round(&db, &mut model, 100, 1);
    run(db.close()).unwrap();
    let db = run(options.open(&path)).unwrap();
    check(&db, &model);
    settle(&db);
    // The files that the database has open.
    for file in host::files(&path, "", ".vlog") {
        host::write(&file, &vec![0xA5; host::read(&file).len()]);
    }
    check_keys(&db, &model);
    let mut lost = 0;
    for (key, value) in &model {
        match run(db.get(key)) {
            Ok(found) => assert_eq!(found.as_ref(), Some(value)),
            Err(error) => {
                assert!(error.is_corruption() && value.len() >= THRESHOLD, "{error}");
                lost += 1;
            }
        }
    }
    assert_eq!(lost, model.values().filter(|value| value.len() >= THRESHOLD).count());
    assert!(lost > 20);
}

#[test]
fn snapshots_keep_their_values_whatever_comes_after() {
    for durability in DURABILITIES {
        let (_dir, path) = place();
        let options = small().durability(durability).max_space_amplification(1.1);
        let db = run(options.open(&path)).unwrap();
        let mut model = Model::new();
        write_round(&db, &mut model, 200, 0);
        let (snapshot, then) = (db.snapshot(), model.clone());
        for round in 1..8 {
            write_round(&db, &mut model, 200, round);
            check_snapshot(&snapshot, &then);
            run(db.flush()).unwrap();
            check_snapshot(&snapshot, &then);
            if round % 3 == 0 {
                run(db.compact_range(..)).unwrap();
                check_snapshot(&snapshot, &then);
            }
            check(&db, &model);
        }
        run(db.compact_range(..)).unwrap();
        let held = db.stats().value_log.live_bytes();
        check_snapshot(&snapshot, &then);
        drop(snapshot);
        run(db.compact_range(..)).unwrap();
        wait_until(&db, "given back", || db.stats().value_log.live_bytes() < held);
        check(&db, &model);
    }
}

#[test]
fn a_stream_pins_the_files_that_it_began_with() {
    let (_dir, path) = place();
    let db = run(small().max_space_amplification(1.1).open(&path)).unwrap();
    let mut model = Model::new();
    write_round(&db, &mut model, 300, 0);
    run(db.flush()).unwrap();
    run(db.compact_range(..)).unwrap();
    let mut stream = db.iter();
    let first = run(stream.try_next()).unwrap().unwrap();
    let then = model.clone();
    for round in 1..6 {
        write_round(&db, &mut model, 300, round);
        run(db.flush()).unwrap();
        run(db.compact_range(..)).unwrap();
    }
    drop(db.snapshot());
    wait_until(&db, "pinned", || db.stats().value_log.pinned_bytes > 0);
    let rest = collect(stream);
    let found: Vec<(Bytes, Bytes)> = std::iter::once(first).chain(rest).collect();
    assert!(found.into_iter().eq(then.into_iter().map(|(key, value)| (key.into(), value))));
    wait_until(&db, "given back", || db.stats().value_log.pinned_bytes == 0);
    check(&db, &model);
    wait_until(&db, "removed", || files(&path).len() <= db.stats().value_log.files.len() + 4);
}

#[test]
fn the_threshold_may_change_and_go() {
    let (_dir, path) = place();
    let mut model = Model::new();
    let thresholds = [Some(100), Some(1), None, Some(600), Some(1 << 30), None, Some(100)];
    for (round, threshold) in (0..).zip(thresholds) {
        let db = run(small().value_threshold(threshold).open(&path)).unwrap();
        check(&db, &model);
        write_round(&db, &mut model, 60 + 20 * (round % 3), round);
        check(&db, &model);
        run(db.close()).unwrap();
    }
    // Without separation the last value leaves the log sooner or later.
    let db = run(small().value_threshold(None).open(&path)).unwrap();
    check(&db, &model);
    for key in model.keys().cloned().collect::<Vec<_>>() {
        run(db.put(&key, "inline")).unwrap();
        model.insert(key, "inline".into());
    }
    run(db.compact_range(..)).unwrap();
    wait_until(&db, "empty", || files(&path).is_empty());
    assert!(db.stats().value_log.files.is_empty());
    check(&db, &model);
}

#[test]
fn space_stays_within_its_bound() {
    for durability in [Durability::Written, Durability::Synced] {
        let (_dir, path) = place();
        let options = small().durability(durability).max_space_amplification(1.5);
        let db = run(options.open(&path)).unwrap();
        let (keys, bytes) = (100, 2000);
        let live = keys * bytes as u64;
        for round in 0..60 {
            for i in 0..keys {
                // Some keys are rewritten rarely.
                if round % (1 + i % 7) == 0 {
                    run(db.put(key(i), noise(round * keys + i, bytes))).unwrap();
                }
            }
            if round % 10 == 9 {
                run(db.flush()).unwrap();
                let taken: u64 = files(&path).values().sum();
                assert!(taken < 4 * live, "{taken} bytes in round {round}: {:?}", db.stats());
            }
        }
        run(db.flush()).unwrap();
        wait_until(&db, "within its bound", || {
            let log = db.stats().value_log;
            log.bytes() + log.open_bytes < live * 17 / 10
        });
        let log = db.stats().value_log;
        assert_eq!(log.live_bytes() + log.garbage_bytes(), log.bytes());
        assert!(log.rewrites > 0 && log.rewritten_bytes > 0, "{log:?}");
        let on_disk = files(&path);
        for file in &log.files {
            assert_eq!(on_disk.get(&file.number), Some(&file.bytes), "{log:?}");
        }
        for i in 0..keys {
            let round = (0..60).rev().find(|round| round % (1 + i % 7) == 0).unwrap();
            assert_eq!(run(db.get(key(i))).unwrap().unwrap(), noise(round * keys + i, bytes));
        }
        run(db.verify()).unwrap();
        run(db.close()).unwrap();
    }
}

#[test]
fn collection_comes_to_rest() {
    // Of values so small, what says where they are is a large part of a file.
    let options = small().value_threshold(1).max_space_amplification(1.1);
    let (_dir, db) = open(&options.durability(Durability::Written));
    for i in 0..2000 {
        run(db.put(key(i % 300), "v")).unwrap();
    }
    run(db.compact_range(..)).unwrap();
    wait_until(&db, "collected", || db.stats().value_log.rewrites > 0);
    let mut quiet = 0;
    for _ in 0..200 {
        let before = db.stats().value_log.rewrites;
        run(async {
            for _ in 0..50 {
                moment().await;
            }
        });
        quiet = if db.stats().value_log.rewrites == before { quiet + 1 } else { 0 };
        if quiet == 5 {
            return;
        }
    }
    panic!("still busy: {:?}", db.stats().value_log);
}

#[test]
fn deleted_values_give_their_space_back() {
    let (_dir, db) = open(&small());
    for i in 0..200 {
        run(db.put(key(i), noise(i, 1000))).unwrap();
    }
    run(db.flush()).unwrap();
    assert!(db.stats().value_log.bytes() > 100_000);
    for i in 0..200 {
        run(db.delete(key(i))).unwrap();
    }
    run(db.compact_range(..)).unwrap();
    wait_until(&db, "given back", || db.stats().value_log.bytes() == 0);
    assert!(collect(db.iter()).is_empty());
}

/// A value counts against the memory for unflushed data until it is with the kernel.
#[test]
fn the_credits_of_values_are_held_until_they_are_written() {
    for durability in DURABILITIES {
        let (_dir, db) = open(&small().durability(durability).memtable_bytes(64 << 10));
        // Together six times what may be unflushed or unwritten.
        let writes = (0..100).map(|i| db.put(key(i), noise(i, 8 << 10)).into_future());
        run(futures::future::try_join_all(writes)).unwrap();
        assert!(db.stats().stalled_writes > 0, "{durability:?}: nobody had to wait");
        let large = noise(1000, 1 << 20);
        run(db.put("larger than all credits", large.clone())).unwrap();
        run(db.flush()).unwrap();
        assert_eq!(db.pressure().level, 0.0, "{durability:?}: credits were lost");
        assert_eq!(run(db.get("larger than all credits")).unwrap(), Some(large));
        for i in 0..100 {
            assert_eq!(run(db.get(key(i))).unwrap(), Some(noise(i, 8 << 10)));
        }
        run(db.close()).unwrap();
    }
}
