//! Determinism, the page cache, the trace, and looking at the disk.

use std::time::{Duration, Instant};

use futures::future::join_all;
use seerdb_io::sim::{Chance, Cut, Disk, Faults, OpKind, Options, Phase, Sim};
use seerdb_io::{IoBackend, Lane};

use crate::{NEW, buf, durable_file, machine, outcomes, read};

/// A little of everything, with faults and clients.
fn history(seed: u64, text: bool) -> (u64, String, Vec<Vec<u8>>) {
    let faults = Faults::swarm(&mut Chance::new(seed));
    let (sim, env) = machine(seed, Options { faults, trace: text, ..Options::default() });
    let env = &env;
    sim.run(async {
        join_all((0..5).map(|client| {
            let env = env.clone();
            sim.spawn(format!("client {client}"), async move {
                let path = format!("/{client}");
                let Ok(file) = env.fs().open(&path, NEW).await else { return };
                for i in 0..10 {
                    let number = env.rng().next_u64().to_le_bytes();
                    file.write_at(buf(&number), i * 8).await.0.ok();
                    let (synced, clock) = (file.clone(), env.clock().clone());
                    let lane = [Lane::Log, Lane::Flush, Lane::Compaction][client % 3];
                    let task = env.spawner().spawn(lane, "sync", async move {
                        clock.sleep(Duration::from_micros(i)).await;
                        synced.sync_data().await.is_ok()
                    });
                    task.await.unwrap();
                    drop(read(&file, 8, i * 4).await);
                }
                env.fs().list_dir("/").await.map(drop).ok();
            })
        }))
        .await
    })
    .unwrap();
    sim.power_cut(None);
    (sim.trace_hash(), sim.trace(), sim.disk().files().into_values().collect())
}

#[test]
fn the_same_seed_is_the_same_run_byte_for_byte() {
    for seed in 0..40 {
        let (first, second) = (history(seed, true), history(seed, true));
        assert!(first == second, "seed {seed}");
        assert_eq!(history(seed, false).0, first.0, "the text changes nothing");
    }
    assert_eq!(outcomes(100, |seed| history(seed, false).0).len(), 100);
}

#[test]
fn the_trace_is_for_a_person_to_read() {
    let (_, text, _) = history(3, true);
    for part in ["#1 Open /", "WriteDurable", "Sync /", "-> Ok(8)", "PowerCut(Some(", "ListDir /"] {
        assert!(text.contains(part) || part == "WriteDurable", "{part} in\n{text}");
    }
    assert!(text.lines().count() > 200);
}

#[test]
fn the_page_cache_answers_by_chance() {
    for (rate, expected) in [(0, 0..1), (1_000_000, 100..101), (500_000, 20..80)] {
        let (sim, env) = machine(1, Options { cached_reads: Some(rate), ..Options::default() });
        sim.run(async {
            let file = durable_file(&env, "/f", &[5; 5000]).await;
            let (mut tried, mut polled) = (0, 0);
            for _ in 0..100 {
                let mut bytes = [0; 5000];
                if let Some(count) = file.try_read_at(&mut bytes, 10) {
                    assert!(count.unwrap() == 4990 && bytes[..4990] == [5; 4990]);
                    tried += 1;
                }
                let mut op = file.read_at(buf(&[0; 100]), 0);
                match futures::poll!(&mut op) {
                    std::task::Poll::Ready((result, _)) => {
                        assert_eq!(result.unwrap(), 100);
                        polled += 1;
                    }
                    std::task::Poll::Pending => assert_eq!(op.await.0.unwrap(), 100),
                }
            }
            assert!(expected.contains(&tried) && expected.contains(&polled), "{tried} {polled}");
        })
        .unwrap();
    }
}

#[test]
fn tasks_run_in_any_order() {
    let orders = outcomes(100, |seed| {
        let (sim, _env) = machine(seed, Options::default());
        let order = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|i| {
                let order = order.clone();
                sim.spawn(format!("{i}"), async move { order.borrow_mut().push(i) })
            })
            .collect();
        drop(sim.run(join_all(tasks)).unwrap());
        order.take()
    });
    assert_eq!(orders.len(), 6);
}

#[test]
fn a_hook_sees_every_operation_twice() {
    let (sim, env) = machine(2, Options::default());
    let seen = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let log = seen.clone();
    sim.on_op(move |event| {
        assert!(event.disk().names().len() <= 1 && event.life == 1);
        log.lock().push((event.number, event.phase, event.kind, event.path.to_owned(), event.len));
    });
    sim.run(durable_file(&env, "/f", &[1; 10])).unwrap();
    let seen = seen.lock();
    let kinds: Vec<_> = seen.iter().filter(|e| e.1 == Phase::Completed).map(|e| e.2).collect();
    assert_eq!(kinds, [OpKind::Open, OpKind::Write, OpKind::Sync, OpKind::SyncDir]);
    assert_eq!((seen.len(), seen[2].4), (8, 10));
}

#[test]
fn a_disk_is_imported_edited_and_exported() {
    let mut disk = Disk::from_files([("/a/b", "one"), ("/c", "two")]).unwrap();
    assert!(disk.is_settled() && disk.is_name_durable("/a/b") && disk.is_durable("/c", 0..3));
    assert!(!disk.is_durable("/c", 0..4) && !disk.is_durable("/none", 0..0));
    let copy = disk.clone();
    disk.write_bytes("/c", 1, b"!!!").unwrap();
    disk.truncate("/a/b", 1).unwrap();
    let files: Vec<_> = disk.files().into_iter().collect();
    assert_eq!(files, [("/a/b".into(), b"o".to_vec()), ("/c".into(), b"t!!!".to_vec())]);
    disk.remove("/c").unwrap();
    assert_eq!(disk.names(), disk.durable_names());
    assert_eq!((disk.names().len(), copy.names().len()), (1, 2));
    assert!(disk.remove("/a").is_err() && disk.write_file("/a", b"").is_err());
    let sim = Sim::with_disk(9, Options::default(), copy);
    let env = sim.boot();
    assert_eq!(*env.io_backend(), IoBackend::Sim { seed: 9 });
    let names = sim.run(env.fs().list_dir("/a")).unwrap().unwrap();
    assert!(names.len() == 1 && names[0].len == 3);
}

/// What a crash image costs is what makes a cut at every operation affordable.
#[test]
fn a_crash_image_of_a_small_database_is_cheap() {
    let files = (0..16).map(|i| (format!("/db/{i}"), vec![i; 32 << 10]));
    let sim = Sim::with_disk(1, Options::default(), Disk::from_files(files).unwrap());
    let env = sim.boot();
    sim.run(async {
        let file = env.fs().open("/db/3", crate::OLD).await.unwrap();
        file.write_at(buf(&[9; 4096]), 0).await.0.unwrap();
    })
    .unwrap();
    let start = Instant::now();
    for i in 0..2000 {
        drop(sim.crash_clone(Cut::Mixed, i));
    }
    let each = start.elapsed() / 2000;
    eprintln!("a crash image takes {each:?}");
    assert!(each < Duration::from_micros(500), "{each:?}");
}
