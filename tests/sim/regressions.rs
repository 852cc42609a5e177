//! Bugs that histories have found, each with the smallest machine that shows it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use seerdb::{DBOptions, Durability};
use seerdb_io::Env;
use seerdb_io::sim::errno::EIO;
use seerdb_io::sim::{
    Cut, Disk, Faults, FilePredicate, LifeEnd, Moment, OpKind, Options, Outcome, Phase, Sim,
};

use super::life::bounded;

pub(crate) fn small() -> DBOptions {
    DBOptions::new()
        .memory_budget(1 << 20)
        .memtable_bytes(1 << 10)
        .wal_segment_bytes(16 << 10)
        .cache_bytes(64 << 10)
}

/// A healthy database did not open any more: the file of the manifest ended behind its last edit,
/// because a power cut had kept the edit and not the growth of the file before it.
#[test]
fn a_manifest_that_grows_survives_a_power_cut() {
    let sim = Sim::new(1, Options::default());
    let images: Arc<Mutex<Vec<Disk>>> = Arc::default();
    let kept = Arc::clone(&images);
    sim.on_op(move |event| {
        let is_manifest = event.path.to_string_lossy().contains("MANIFEST");
        let writes = event.kind == OpKind::Write && event.phase == Phase::Completed;
        if is_manifest && writes && (220_000..280_000).contains(&event.offset) {
            let cuts = (0..6).map(|seed| event.crash_clone(Cut::Mixed, seed));
            kept.lock().extend(cuts);
        }
    });
    let env = sim.boot();
    sim.run(async {
        let db = small().env(env.clone()).open("/db").await.unwrap();
        for round in 0..30_u32 {
            db.put("key", round.to_le_bytes()).await.unwrap();
            db.flush().await.unwrap();
        }
        db.close().await.unwrap();
    })
    .unwrap();
    let images = std::mem::take(&mut *images.lock());
    assert!(images.len() > 30, "the manifest has grown beyond its first extent");
    for disk in images {
        let sim = Sim::with_disk(2, Options::default(), disk);
        let env = sim.boot();
        let opened = sim.run(async { small().env(env.clone()).open("/db").await.map(drop) });
        opened.unwrap().unwrap();
    }
}

/// Writers that waited for memory, and callers of `flush`, waited for ever once writing had
/// stopped: nobody told them.
#[test]
fn nobody_waits_for_a_database_that_has_stopped_writing() {
    for op in 1..260 {
        let sim = Sim::new(op, Options::default());
        sim.fail_op(op, EIO, false);
        let env = sim.boot();
        let outcome = sim.run(async {
            let Ok(db) = small().env(env.clone()).open("/db").await else { return };
            let mut clients = Vec::new();
            for id in 0..6 {
                let db = db.clone();
                clients.push(sim.spawn("client", async move {
                    for _ in 0..8 {
                        let put = db.put([id], [id; 400]).durability(Durability::Buffered);
                        put.await.ok();
                    }
                    db.flush().await.ok();
                }));
            }
            for client in clients {
                bounded(&env, "a client", client).await.unwrap();
            }
            env.clock().sleep(Duration::from_millis(1)).await;
        });
        outcome.unwrap();
    }
}

/// A directory was refused as one that had lost its CURRENT: a killed process had left the rename
/// in the page cache, and the next one went on from it. Where a disk keeps any subset of names, a
/// power cut then left what was made later, and not CURRENT.
#[test]
fn names_that_a_killed_process_left_survive_a_power_cut() {
    for seed in 0..500 {
        let sim = Sim::new(seed, Options { hostile: true, ..Options::default() });
        for end in [LifeEnd::Kill, LifeEnd::PowerCut(None)] {
            let env = sim.boot();
            let at = sim.ops_submitted() + 14 + seed % 12;
            sim.cut_at_op(at, Moment::Middle, end);
            let open = async { small().env(env.clone()).open("/db").await.map(drop) };
            assert!(matches!(sim.run(open), Outcome::Cut(_)));
        }
        let env = sim.boot();
        let opened = sim.run(async { small().env(env.clone()).open("/db").await.map(drop) });
        opened.unwrap().unwrap();
    }
}

/// With two groups on their way to the disk, the first failed and the second did not: then both
/// counted as durable. `wait_durable` lied, and the manifest called a commit durable that was not
/// there, so that the database did not open any more.
#[test]
fn a_group_behind_a_failed_one_is_not_durable() {
    for seed in 0..150 {
        let sim = Sim::new(seed, Options::default());
        let told = sim.run(writes_in_a_row(sim.boot(), &sim)).unwrap();
        sim.kill();
        let env = sim.boot();
        let opened = sim.run(async { small().env(env.clone()).open("/db").await });
        let db = opened.unwrap().unwrap();
        assert!(db.stats().visible_seqno >= told, "seed {seed}");
    }
}

/// Writes that follow each other so closely that two groups are in flight; the seqno that was
/// called durable.
async fn writes_in_a_row(env: Env, sim: &Sim) -> u64 {
    let options = small().memtable_bytes(256 << 10).wal_segment_bytes(1 << 20);
    let db = options.env(env.clone()).open("/db").await.unwrap();
    let logs = |path: &Path| path.extension().is_some_and(|extension| extension == "wal");
    let files: FilePredicate = Arc::new(logs);
    sim.set_faults(Faults { write_error: 100_000, files: Some(files), ..Faults::none() });
    let clients = (0..6).map(|id| {
        let (db, env) = (db.clone(), env.clone());
        sim.spawn("client", async move {
            for round in 0..8 {
                db.put([id], [round; 3000]).await.ok();
                let micros = 30 * u64::from(id + 1) * u64::from(round % 3 + 1);
                env.clock().sleep(Duration::from_micros(micros)).await;
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    sim.stop_faults();
    db.close().await.ok();
    db.durable_seqno()
}

/// A healthy database did not open any more: a segment that an earlier recovery had dropped behind
/// a gap came back, because its removal was not durable, and began with a seqno that had been given
/// out again meanwhile.
#[test]
fn a_dropped_segment_that_comes_back_proves_nothing() {
    let sim = Sim::new(1, Options::default());
    let options = small().memtable_bytes(256 << 10).durability(Durability::Written);
    let wals = |sim: &Sim| {
        let mut names = sim.disk().names();
        names.retain(|name| name.extension().is_some_and(|e| e == "wal"));
        names.sort();
        names
    };
    let env = sim.boot();
    let last = sim.run(async {
        let db = options.clone().env(env.clone()).open("/db").await.unwrap();
        let mut last = 0;
        for n in 0..60_u8 {
            last = db.put([n], [n; 400]).await.unwrap();
        }
        last
    });
    let last = last.unwrap();
    sim.kill();
    drop(env);
    let (first, second) = (wals(&sim)[0].clone(), wals(&sim)[1].clone());
    let bytes = sim.disk().visible_bytes(&first).unwrap();
    let end = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    let come_back = sim.disk().visible_bytes(&second).unwrap();
    // The last record of the first segment was never synced: a power cut may take it.
    sim.edit_disk(|disk| disk.write_bytes(&first, end as u64 - 100, &[0; 101])).unwrap();
    let env = sim.boot();
    let again = sim.run(async {
        let db = options.clone().env(env.clone()).open("/db").await.unwrap();
        db.put("again", "again").durability(Durability::Synced).await.unwrap()
    });
    assert!(again.unwrap() < last, "the seqno of a dropped commit is given out again");
    sim.kill();
    drop(env);
    sim.edit_disk(|disk| disk.write_file(&second, &come_back)).unwrap();
    let env = sim.boot();
    let found = sim.run(async {
        let db = options.clone().env(env.clone()).open("/db").await.unwrap();
        db.get("again").await.unwrap()
    });
    assert_eq!(found.unwrap().as_deref(), Some(b"again".as_slice()));
}

/// A file of the value log was rewritten for ever: the list of its bodies counted as garbage, and
/// every rewrite wrote it again.
#[test]
fn a_rewritten_file_is_not_rewritten_for_its_list() {
    let sim = Sim::new(1, Options::default());
    let options = small().value_threshold(1).max_space_amplification(1.1);
    for _ in 0..2 {
        let env = sim.boot();
        let outcome = sim.run(async {
            let db = options.clone().env(env.clone()).open("/db").await.unwrap();
            for n in 0..20_u8 {
                db.put([n], [n; 10]).await.unwrap();
            }
            db.flush().await.unwrap();
            env.clock().sleep(Duration::from_secs(10)).await;
            let rewrites = db.stats().value_log.rewrites;
            assert!(rewrites < 5, "{rewrites} rewrites of a few bytes");
            db.close().await.unwrap();
        });
        outcome.unwrap();
        sim.kill();
    }
}
