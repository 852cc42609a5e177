//! K follows the workload in virtual time, and nothing ticks while nothing is done.

use std::time::Duration;

use seerdb::{DB, DBOptions, Durability};
use seerdb_io::Env;
use seerdb_io::sim::{Options, Outcome, Sim};

use super::life::bounded;

const KEYS: u32 = 3000;

fn options() -> DBOptions {
    DBOptions::new()
        .memory_budget(1 << 20)
        .memtable_bytes(16 << 10)
        .wal_segment_bytes(64 << 10)
        .durability(Durability::Buffered)
}

fn key(number: u32) -> String {
    format!("key {:05}", number.wrapping_mul(7919) % KEYS)
}

async fn put(db: &DB, round: u32) {
    for number in 0..KEYS / 2 {
        db.put(key(number + round * (KEYS / 2)), [b'v'; 40]).await.unwrap();
    }
}

async fn scan(db: &DB, round: u32) {
    for number in 0..600 {
        let mut some = db.range(key(number + round)..).limit(3);
        while some.try_next().await.unwrap().is_some() {}
        drop(some);
        assert_eq!(db.get(format!("absent {number}")).await.unwrap(), None);
    }
}

/// Writes, reads, and writes again, two minutes each; K at the end of each.
async fn phases(env: &Env, db: &DB) -> Vec<usize> {
    let mut seen = Vec::new();
    for is_write in [true, false, true] {
        for round in 0..24 {
            if is_write {
                put(db, round).await
            } else {
                scan(db, round).await
            }
            env.clock().sleep(Duration::from_secs(5)).await;
        }
        let report = db.explain_compaction();
        seen.push(report.runs_per_level);
        bounded(env, "merging", db.wait_for_compaction()).await.unwrap();
        let runs = db.stats().levels.iter().map(|level| level.runs).max().unwrap();
        assert!(runs <= report.runs_per_level, "{runs} runs in a level\n{report}");
    }
    seen
}

#[test]
fn k_goes_down_for_reads_and_up_for_writes() {
    let hashes: Vec<u64> = (0..2)
        .map(|_| {
            let sim = Sim::new(7, Options::default());
            let env = sim.boot();
            let db = sim.run(async {
                let db = options().env(env.clone()).open("/db").await.unwrap();
                let report = db.explain_compaction();
                assert_eq!(report.runs_per_level, 3);
                assert!(report.runs_choice.as_ref().unwrap().workload.is_none());
                assert!(report.to_string().contains("K follows the workload"), "{report}");
                assert_eq!(phases(&env, &db).await, [3, 1, 3]);
                let report = db.explain_compaction();
                let choice = report.runs_choice.as_ref().unwrap();
                assert_eq!(choice.switches, 2, "{report}");
                assert_eq!(choice.last_switch.unwrap().from, 1, "{report}");
                assert!(choice.last_switch.unwrap().cost_ratio < 0.85, "{report}");
                assert_eq!(choice.costs.len(), 3, "{report}");
                assert!(choice.costs[0].nanos > choice.costs[2].nanos, "{report}");
                let workload = choice.workload.unwrap();
                assert!(workload.puts > 0.9 && workload.short_scans < 0.1, "{report}");
                assert!(report.to_string().contains("K was 1 until"), "{report}");
                db
            });
            let Outcome::Done(db) = db else { panic!("{db:?}") };
            // Nothing is left to happen: neither now nor ever.
            let idle = sim.run(std::future::pending::<()>());
            assert!(matches!(idle, Outcome::Stuck(_)), "{idle:?}");
            // A single read starts no endless ticking either.
            let read = sim.run(async { scan(&db, 0).await });
            assert!(matches!(read, Outcome::Done(())), "{read:?}");
            let idle = sim.run(std::future::pending::<()>());
            assert!(matches!(idle, Outcome::Stuck(_)), "{idle:?}");
            sim.run(async { db.close().await.unwrap() }).unwrap();
            sim.trace_hash()
        })
        .collect();
    assert_eq!(hashes[0], hashes[1], "one seed, one history");
}

#[test]
fn a_fixed_k_stays() {
    for runs in 1..=3 {
        let sim = Sim::new(8, Options::default());
        let env = sim.boot();
        sim.run(async {
            let options = options().runs_per_level(runs);
            let db = options.env(env.clone()).open("/db").await.unwrap();
            assert_eq!(phases(&env, &db).await, [runs; 3]);
            let report = db.explain_compaction();
            assert_eq!(report.runs_choice, None);
            assert!(report.to_string().contains("K is fixed"), "{report}");
            db.close().await.unwrap();
        })
        .unwrap();
    }
}
