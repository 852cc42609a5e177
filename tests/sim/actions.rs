//! What the engine does when something goes wrong, line by line of the contract's table of actions.
//!
//! A script is played once to learn its operations, and again with one of them failing; the
//! operations of that second run show what the engine did. A full disk is in `tests/it/limits.rs`,
//! half-created databases and foreign or missing files in `tests/it/recovery.rs`, newer formats
//! there as well; stalls are part of every script's tolerant runs.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use seerdb::{Compression, DBOptions, ErrorKind};
use seerdb_io::sim::errno::{EIO, EMFILE, ENOSPC};
use seerdb_io::sim::{Disk, OpKind, Options, Phase, Sim};

use crate::book::Book;
use crate::disk;
use crate::look;
use crate::regressions::small;
use crate::script::Step::{Burst, Check, Flush, Idle, Put};
use crate::script::{BUFFERED, Player, SYNCED, Script, WRITTEN, Watch, key};
use crate::scripts;

/// An operation as it was submitted.
#[derive(Debug, Clone)]
struct Seen {
    number: u64,
    kind: OpKind,
    path: String,
}

impl Seen {
    fn is_sync(&self) -> bool {
        matches!(self.kind, OpKind::Sync | OpKind::WriteDurable)
    }
}

fn named(name: &str) -> Script {
    scripts::all().into_iter().find(|script| script.name == name).unwrap()
}

/// Plays a script, with one operation failing once if one is named; what was submitted, the book
/// and the machine.
fn play(script: &Script, fault: Option<(u64, i32)>, tolerant: bool) -> (Vec<Seen>, Book, Sim) {
    let sim = Sim::new(3, Options::default());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    sim.on_op(move |event| {
        if event.phase == Phase::Submitted {
            let path = event.path.to_string_lossy().into_owned();
            let (number, kind) = (event.number, event.kind);
            kept.lock().unwrap().push(Seen { number, kind, path });
        }
    });
    if let Some((op, errno)) = fault {
        sim.fail_op(op, errno, false);
    }
    let book = Arc::new(Mutex::new(Book::new()));
    let shared = Arc::clone(&book);
    Player { script, sim: &sim, book: shared, tolerant, once: false, closes: false }.play();
    sim.on_op(|_| ());
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let book = std::mem::replace(&mut *book.lock().unwrap(), Book::new());
    (seen, book, sim)
}

/// The operations behind the end of the first open that are as wanted.
fn targets(script: &Script, wanted: impl Fn(&Seen) -> bool) -> Vec<Seen> {
    let (seen, ..) = play(script, None, false);
    let renamed = seen.iter().position(|op| op.kind == OpKind::Rename).unwrap();
    // The open goes on with its first segment and one edit.
    let found: Vec<Seen> = seen.into_iter().skip(renamed + 25).filter(wanted).collect();
    assert!(!found.is_empty(), "{}: nothing to fail", script.name);
    found
}

#[test]
fn a_failed_sync_is_never_repeated_on_its_file() {
    for name in ["rotation, synced", "rotation, written", "merges", "tiny memtables"] {
        let script = named(name);
        for target in targets(&script, Seen::is_sync) {
            let (seen, ..) = play(&script, Some((target.number, EIO)), true);
            let again = seen
                .iter()
                .find(|op| op.number > target.number && op.path == target.path && op.is_sync());
            // A group that was in flight beside it had been submitted before.
            assert!(again.is_none(), "{name}: {target:?} failed, then {again:?}");
        }
    }
}

#[test]
fn nothing_is_deleted_after_a_failed_manifest() {
    for name in ["merges", "tiny memtables", "segments used again"] {
        let script = named(name);
        let is_target = |op: &Seen| {
            let is_append = matches!(op.kind, OpKind::Sync | OpKind::Write);
            is_append && op.path.contains("/MANIFEST-")
        };
        for target in targets(&script, is_target) {
            let (seen, ..) = play(&script, Some((target.number, EIO)), true);
            let behind = |op: &&Seen| op.number > target.number + 1;
            let removed = seen.iter().filter(behind).find(|op| op.kind == OpKind::Remove);
            assert!(removed.is_none(), "{name}: {target:?} failed, then {removed:?}");
            let appended = seen.iter().filter(behind).find(|op| is_target(op));
            assert!(appended.is_none(), "{name}: {target:?} failed, then {appended:?}");
        }
    }
}

#[test]
fn the_output_of_a_failed_job_gets_another_number() {
    let script = named("merges");
    let is_target = |op: &Seen| op.kind == OpKind::Sync && op.path.ends_with(".sst");
    for target in targets(&script, is_target) {
        let (seen, ..) = play(&script, Some((target.number, EIO)), true);
        let behind = seen.iter().filter(|op| op.number > target.number && op.path == target.path);
        let kinds: Vec<OpKind> = behind.map(|op| op.kind).collect();
        assert!(kinds.iter().all(|kind| *kind == OpKind::Remove), "{target:?}: {kinds:?}");
    }
}

#[test]
fn a_read_that_fails_once_is_repeated_and_heals() {
    for name in ["merges", "compact with snapshot", "flushes"] {
        let script = named(name);
        let is_read = |op: &Seen| op.kind == OpKind::Read && op.path.ends_with(".sst");
        for target in targets(&script, is_read) {
            // Strict: nobody is told.
            drop(play(&script, Some((target.number, EIO)), false));
        }
    }
}

#[test]
fn a_segment_that_failed_ahead_of_its_use_is_tried_again() {
    // A commit was refused with the error of an attempt that was over for long.
    let mut steps = vec![Put(1, 10, SYNCED), Idle(20)];
    steps.extend((1..9).map(|key| Put(key, 3000, SYNCED)));
    let script = Script { steps, ..named("rotation, synced") };
    let (seen, ..) = play(&script, None, false);
    let is_open = |op: &&Seen| op.kind == OpKind::Open && op.path.ends_with(".wal");
    let second = seen.iter().filter(is_open).nth(1).unwrap();
    drop(play(&script, Some((second.number, EMFILE)), false));
}

#[test]
fn behind_a_group_that_failed_nothing_is_durable() {
    // The durable seqno jumped over the hole, and the next open called the loss damage.
    let burst: Vec<_> = (1..9).map(|key| (key, 3000, SYNCED)).collect();
    let script = Script { steps: vec![Burst(burst), Flush, Idle(50)], ..named("rotation, synced") };
    let is_group = |op: &Seen| op.kind == OpKind::WriteDurable && op.path.ends_with(".wal");
    let (seen, ..) = play(&script, None, false);
    for target in seen.into_iter().filter(is_group) {
        let (_, book, sim) = play(&script, Some((target.number, EIO)), true);
        sim.power_cut(seerdb_io::sim::Cut::NoneKept);
        reopen(&script, &book, &sim);
    }
}

fn reopen(script: &Script, book: &Book, sim: &Sim) {
    let options = script.options.clone().env(sim.boot());
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap();
        let found = look::scan(db.iter()).await.unwrap().into_iter().collect();
        let _ = crate::book::locate(book.states(), book.bounds(false), &found, script.name);
    });
    outcome.unwrap();
}

#[test]
fn recovery_writes_a_fresh_manifest_above_every_number_that_is_there() {
    let script = named("flushes");
    let (_, book, sim) = play(&script, None, false);
    sim.kill();
    let before: Vec<_> = sim.disk().names();
    sim.edit_disk(|disk| disk.write_file("/db/000900.sst", b"of an earlier life")).unwrap();
    reopen(&script, &book, &sim);
    let fresh = sim.disk().names().into_iter().filter(|name| !before.contains(name));
    for name in fresh.map(|name| name.to_string_lossy().into_owned()) {
        let digits: String = name.chars().filter(char::is_ascii_digit).collect();
        assert!(digits.parse::<u64>().unwrap() > 900, "{name}");
    }
    assert!(sim.disk().visible_bytes("/db/MANIFEST-000901").is_some());
}

#[test]
fn a_panic_in_the_background_stops_writing_and_wakes_all_who_wait() {
    let sim = Sim::new(5, Options::default());
    let options = named("tiny memtables, buffered").options.env(sim.boot());
    sim.on_op(|event| {
        let is_table = event.path.to_string_lossy().ends_with(".sst");
        assert!(!is_table || event.kind != OpKind::Open, "planted: a flush panics");
    });
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap();
        db.put(b"before", b"1").durability(WRITTEN).await.unwrap();
        let writes = (0..50u8).map(|i| db.put([i], vec![i; 400]).into_future());
        let results = futures::future::join_all(writes).await;
        let kinds = results.iter().filter_map(|result| result.as_ref().err()).map(|e| e.kind());
        assert!(kinds.clone().count() > 0, "nobody had to wait");
        let typed = [ErrorKind::FailStop, ErrorKind::Indeterminate];
        assert!(kinds.clone().all(|kind| typed.contains(&kind)), "{:?}", kinds.collect::<Vec<_>>());
        assert_eq!(db.put(b"later", b"1").await.unwrap_err().kind(), ErrorKind::FailStop);
        assert_eq!(db.flush().await.unwrap_err().kind(), ErrorKind::FailStop);
        assert_eq!(db.compact_range(..).await.unwrap_err().kind(), ErrorKind::FailStop);
        assert_eq!(db.get(b"before").await.unwrap().as_deref(), Some(b"1".as_slice()));
        assert_eq!(db.close().await.unwrap_err().kind(), ErrorKind::FailStop);
    });
    outcome.unwrap();
}

/// Keys with values of their own, in one flushed table each.
fn tables_on_disk(options: &DBOptions) -> Sim {
    let sim = Sim::new(7, Options::default());
    let options = options.clone().env(sim.boot());
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap();
        for number in 1..30 {
            db.put(key(number), vec![number; 150]).await.unwrap();
        }
        db.flush().await.unwrap();
        db.close().await.unwrap();
    });
    outcome.unwrap();
    sim.kill();
    sim
}

#[test]
fn damage_in_a_table_costs_its_keys_alone_and_stops_merges() {
    let options = named("flushes").options.memtable_bytes(64 << 10).runs_per_level(3);
    let sim = tables_on_disk(&options);
    let is_table = |path: &std::path::PathBuf| path.extension().is_some_and(|e| e == "sst");
    let table = sim.disk().names().into_iter().find(is_table).unwrap();
    let byte = sim.disk().visible_bytes(&table).unwrap()[60];
    sim.edit_disk(|disk| disk.write_bytes(&table, 60, &[byte ^ 4])).unwrap();
    let options = options.env(sim.boot());
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap();
        let mut lost = 0;
        for number in 1..30 {
            match db.get(key(number)).await {
                Ok(value) => assert!(value.unwrap() == vec![number; 150]),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Corruption);
                    assert_eq!(error.location().unwrap().0, table);
                    lost += 1;
                }
            }
        }
        assert!((1..5).contains(&lost), "{lost} keys lost");
        db.put(b"new", b"1").await.unwrap();
        assert!(db.compact_range(..).await.unwrap_err().is_corruption());
        assert!(db.verify().await.unwrap_err().is_corruption());
        assert!(db.compact_range(..).await.unwrap_err().is_corruption());
        assert_eq!(db.get(b"new").await.unwrap().as_deref(), Some(b"1".as_slice()));
        db.close().await.unwrap();
    });
    outcome.unwrap();
    assert!(sim.disk().visible_bytes(&table).is_some(), "the damaged table was dropped");
}

/// Opens a damaged disk: every answer is right, or an error of the right kind.
fn survive(script: &Script, book: &Book, disk: Disk, what: &str) {
    let sim = Sim::with_disk(1, Options { latency_us: (1, 10), ..Options::default() }, disk);
    let options = script.options.clone().env(sim.boot());
    let state = Arc::clone(book.states().last().unwrap());
    let kinds = [ErrorKind::Corruption, ErrorKind::NotSupported];
    let outcome = sim.run(async {
        let db = match options.open("/db").await {
            Ok(db) => db,
            Err(error) => {
                assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
                return;
            }
        };
        if let Err(error) = look::plainly(&db, &state, what).await {
            assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
        }
        drop(db);
    });
    outcome.unwrap();
}

#[test]
fn damage_anywhere_is_told_and_never_a_silent_loss() {
    let names = ["many small segments", "rotation, written", "merges", "batches, synced"];
    for (name, closes) in names.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let mut script = named(name);
        // Time for a mark that says what is durable.
        script.steps.extend([Put(1, 10, SYNCED), Idle(50), Check]);
        assert_eq!(script.watch, Watch::All);
        let sim = Sim::new(9, Options::default());
        let book = Arc::new(Mutex::new(Book::new()));
        let shared = Arc::clone(&book);
        Player { script: &script, sim: &sim, book: shared, tolerant: false, once: false, closes }
            .play();
        sim.kill();
        let book = std::mem::replace(&mut *book.lock().unwrap(), Book::new());
        for (path, bytes) in sim.disk().files() {
            let what = format!("{name}: {}", path.display());
            if path.ends_with("LOCK") {
                continue;
            }
            let damaged = |edit: &dyn Fn(&mut Disk)| {
                let mut disk = sim.disk();
                edit(&mut disk);
                disk
            };
            let gone = damaged(&|disk| disk.remove(&path).unwrap());
            survive(&script, &book, gone, &format!("{what} is gone"));
            for (number, sector) in bytes.chunks(512).enumerate() {
                if sector.iter().all(|byte| *byte == 0) {
                    continue;
                }
                let at = number as u64 * 512;
                if closes && path.extension().is_some_and(|e| e == "wal") {
                    // As an older copy of the segment: the manifest alone knows better.
                    let rest = vec![0; bytes.len() - number * 512];
                    let older = damaged(&|disk| disk.write_bytes(&path, at, &rest).unwrap());
                    survive(&script, &book, older, &format!("{what}: zeros from {at} on"));
                }
                let zeros = vec![0; sector.len()];
                let zeroed = damaged(&|disk| disk.write_bytes(&path, at, &zeros).unwrap());
                survive(&script, &book, zeroed, &format!("{what}: zeros at {at}"));
                let bit = sector.iter().rposition(|byte| *byte != 0).unwrap() / 2;
                let flipped = [sector[bit] ^ 16];
                let offset = at + bit as u64;
                let flipped = damaged(&|disk| disk.write_bytes(&path, offset, &flipped).unwrap());
                survive(&script, &book, flipped, &format!("{what}: a bit at {offset}"));
            }
        }
    }
}

#[test]
fn many_reads_that_wait_for_the_disk_find_their_places() {
    let disk = tables_on_disk(&named("flushes").options.memtable_bytes(64 << 10)).disk();
    let machine = Options { cached_reads: Some(0), ..Options::default() };
    let sim = Sim::with_disk(1, machine, disk);
    let options = named("flushes").options.env(sim.boot());
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap();
        let found = db.get_many((1..30).map(key)).await.unwrap();
        let right = (1..30u8).zip(&found).all(|(n, v)| v.as_deref() == Some(&[n; 150][..]));
        assert!(right, "the results are mixed up");
    });
    outcome.unwrap();
}

#[test]
fn a_writer_that_waits_for_memory_is_told_when_the_manifest_fails() {
    // It waited for ever: the flushes had ended, and nobody turned it away.
    for name in ["tiny memtables", "tiny memtables, buffered"] {
        let script = Script {
            steps: vec![Burst((1..30).map(|key| (key, 400, BUFFERED)).collect())],
            ..named(name)
        };
        let is_sync = |op: &Seen| op.kind == OpKind::Sync && op.path.contains("/MANIFEST-");
        for target in targets(&script, is_sync) {
            drop(play(&script, Some((target.number, EIO)), true));
        }
    }
}

#[test]
fn a_close_removes_what_merges_retired_and_nothing_is_removed_behind_it() {
    for seed in 0..40 {
        let sim = Sim::new(seed, Options::default());
        let env = sim.boot();
        let options = DBOptions::default().env(env.clone());
        let outcome = sim.run(async {
            let db = options.open("/db").await.unwrap();
            for round in 0..4u8 {
                db.put(key(round), [round; 100]).await.unwrap();
                db.flush().await.unwrap();
            }
            db.compact_range(..).await.unwrap();
            db.close().await.unwrap();
            let (names, ops) = (sim.disk().names(), sim.ops_submitted());
            let tables = names.iter().filter(|name| name.extension().is_some_and(|e| e == "sst"));
            assert_eq!(tables.count(), 1, "seed {seed}: {names:?}");
            env.clock().sleep(Duration::from_secs(60)).await;
            assert_eq!((sim.disk().names(), sim.ops_submitted()), (names, ops), "seed {seed}");
        });
        outcome.unwrap();
    }
}

#[test]
fn a_manifest_is_removed_when_its_successor_is_named_for_good() {
    let sim = Sim::new(5, Options::default());
    let removed = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&removed);
    sim.on_op(move |event| {
        let is_manifest = event.path.to_string_lossy().contains("/MANIFEST-");
        if is_manifest && event.kind == OpKind::Remove && event.phase == Phase::Submitted {
            kept.lock().unwrap().push(event.disk().is_name_durable("/db/CURRENT"));
        }
    });
    let options = small().env(sim.boot());
    sim.run(async {
        for _ in 0..3 {
            let db = options.open("/db").await.unwrap();
            // Each flush adds some units to the manifest, until it is replaced.
            for round in 0..=255u8 {
                db.put(key(round % 8), [round; 100]).await.unwrap();
                db.flush().await.unwrap();
            }
            db.close().await.unwrap();
        }
    })
    .unwrap();
    let removed = removed.lock().unwrap();
    assert!(removed.len() >= 5, "{removed:?}");
    assert!(removed.iter().all(|is_durable| *is_durable), "{removed:?}");
}

/// The operations on files that a rewrite wrote, in a clean run, and the sync of their name.
fn rewrites(script: &Script) -> Vec<Seen> {
    let (seen, _, sim) = play(script, None, false);
    let rewritten = disk::rewritten_files(&sim.disk());
    let is_rewritten = |op: &Seen| {
        let number = disk::value_file(op.path.as_ref());
        number.is_some_and(|number| rewritten.contains(&number))
    };
    let first = seen.iter().find(|op| is_rewritten(op)).expect("a file is rewritten").clone();
    let synced = seen.iter().rposition(|op| op.path == first.path && op.kind == OpKind::Sync);
    let named = seen[synced.unwrap()..].iter().find(|op| op.kind == OpKind::SyncDir).cloned();
    let changes = [OpKind::Open, OpKind::Resize, OpKind::Write, OpKind::Sync];
    let upto = named.as_ref().unwrap().number;
    let of_file = seen
        .into_iter()
        .filter(|op| op.path == first.path && op.number < upto && changes.contains(&op.kind));
    of_file.chain(named).collect()
}

#[test]
fn a_rewrite_that_fails_changes_nothing_and_is_repeated() {
    for name in ["values collected", "values collected, written"] {
        let script = named(name);
        let targets = rewrites(&script);
        for kind in [OpKind::Open, OpKind::Write, OpKind::Sync, OpKind::SyncDir] {
            assert!(targets.iter().any(|op| op.kind == kind), "{name}: {kind:?} of a rewrite");
        }
        let path = targets[0].path.clone();
        for (target, errno) in targets.iter().flat_map(|op| [(op, EIO), (op, ENOSPC)]) {
            // Strict: nobody is told.
            let (seen, _, sim) = play(&script, Some((target.number, errno)), false);
            let what = format!("{name}: {target:?} failed with {errno}");
            let behind = seen.iter().filter(|op| op.number > target.number && op.path == path);
            let again: Vec<_> = behind.filter(|op| op.kind != OpKind::Remove).collect();
            assert!(again.iter().all(|op| op.kind == OpKind::Write), "{what}: {again:?}");
            let disk = sim.disk();
            let found = disk::value_files(&disk);
            assert_eq!(disk::values_named(&disk).as_ref(), Some(&found), "{what}: space is lost");
            assert!(disk.visible_bytes(&path).is_none(), "{what}: {path} is there");
            let rewritten = disk::rewritten_files(&disk);
            assert!(!rewritten.is_empty(), "{what}: it was not repeated");
        }
    }
}

#[test]
fn a_full_disk_stops_rewrites_and_nothing_else() {
    let sim = Sim::new(7, Options::default());
    let env = sim.boot();
    let options = small()
        .compression(Compression::None)
        .value_threshold(100)
        .value_segment_bytes(256 << 10)
        .wal_segment_bytes(256 << 10)
        .max_space_amplification(1.1)
        .env(env.clone());
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap();
        for number in 0..48 {
            db.put([number], vec![number; 20_000]).await.unwrap();
        }
        db.flush().await.unwrap();
        env.clock().sleep(Duration::from_secs(1)).await;
        // Enough for tables, but not for what lives in a segment.
        sim.set_capacity(Some(sim.disk().used() + (36 << 10)));
        let mut batch = db.batch();
        for number in (0..48).filter(|number| number % 3 != 0) {
            batch.delete([number]);
        }
        batch.commit().await.unwrap();
        // While a rewrite tries, it takes what space there is.
        let mut tries = 0;
        while let Err(error) = db.compact_range(..).await {
            assert!(error.kind() == ErrorKind::NoSpace && tries < 100, "{error}, {tries} tries");
            tries += 1;
            env.clock().sleep(Duration::from_millis(100)).await;
        }
        env.clock().sleep(Duration::from_secs(60)).await;
        let stats = db.stats().value_log;
        assert_eq!(stats.rewrites, 0, "there was room for one");
        assert!(stats.garbage_bytes() > stats.live_bytes(), "{stats:?}");
        for number in 0..48 {
            let value = db.get([number]).await.unwrap();
            assert_eq!(value.is_some(), number % 3 == 0);
        }
        db.put("small", "value").await.unwrap();
        let disk = sim.disk();
        let there = disk::value_files(&disk);
        assert_eq!(disk::values_named(&disk), Some(there), "failed rewrites left files");
        sim.set_capacity(None);
        env.clock().sleep(Duration::from_secs(60)).await;
        let stats = db.stats().value_log;
        assert!(stats.rewrites > 0 && stats.garbage_bytes() < stats.live_bytes(), "{stats:?}");
        db.verify().await.unwrap();
        db.close().await.unwrap();
    });
    outcome.unwrap();
}

#[test]
fn damage_in_a_value_costs_its_key_alone_and_stops_its_rewrite() {
    let options = named("values collected").options.max_space_amplification(10.0);
    let sim = Sim::new(7, Options::default());
    let fill = options.clone().env(sim.boot());
    let outcome = sim.run(async {
        let db = fill.open("/db").await.unwrap();
        for number in 1..12 {
            db.put(key(number), vec![number; 2000]).await.unwrap();
        }
        db.flush().await.unwrap();
        db.close().await.unwrap();
    });
    outcome.unwrap();
    sim.kill();
    let disk = sim.disk();
    let holds = |name: &std::path::PathBuf| {
        let bytes = disk.visible_bytes(name).unwrap();
        Some((name.clone(), memchr::memmem::find(&bytes, &[3; 2000])?))
    };
    let (damaged, at) = disk.names().iter().find_map(holds).unwrap();
    sim.edit_disk(|disk| disk.write_bytes(&damaged, at as u64 + 900, &[4])).unwrap();
    let env = sim.boot();
    let options = options.max_space_amplification(1.1).env(env.clone());
    let outcome = sim.run(async {
        let db = options.open("/db").await.unwrap();
        for number in (1..12).filter(|number| number % 4 != 3) {
            db.put(key(number), vec![number; 1000]).await.unwrap();
        }
        db.compact_range(..).await.unwrap();
        env.clock().sleep(Duration::from_secs(1)).await;
        for number in 1..12 {
            match db.get(key(number)).await {
                Ok(value) => {
                    let len = if number % 4 == 3 { 2000 } else { 1000 };
                    assert!(value.unwrap() == vec![number; len] && number != 3);
                }
                Err(error) => {
                    assert_eq!((number, error.kind()), (3, ErrorKind::Corruption));
                    assert_eq!(error.location().unwrap().0, damaged);
                }
            }
        }
        let error = db.verify().await.unwrap_err();
        let (file, offset) = error.location().unwrap();
        assert!(error.is_corruption() && file == damaged, "{error}");
        // The offset is that of the body: its key and its value.
        let body = at as u64 - 40..at as u64 + 1;
        assert!(body.contains(&offset), "{error}: the value stands at {at}");
        db.close().await.unwrap();
    });
    outcome.unwrap();
    let kept = sim.disk().visible_bytes(&damaged).unwrap();
    assert_eq!((kept[at + 899], kept[at + 900]), (3, 4), "the damage is gone without a trace");
}
