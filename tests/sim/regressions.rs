//! Bugs that histories have found, each with the smallest machine that shows it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use seerdb::{DBOptions, Durability};
use seerdb_io::sim::errno::EIO;
use seerdb_io::sim::{Cut, Disk, OpKind, Options, Phase, Sim};

use super::life::bounded;

fn small() -> DBOptions {
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
