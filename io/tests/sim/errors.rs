//! R1 to R10: what goes wrong while the machine runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use seerdb_io::sim::{Chance, Cut, Faults, Options, errno};
use seerdb_io::{AlignedBuf, Error, Operation};

use crate::{NEW, buf, durable_file, faulty, machine, outcomes, read};

const ALWAYS: u32 = 1_000_000;
const OFTEN: u32 = 500_000;

#[test]
fn r1_a_transient_error_heals_and_a_latent_one_stays_until_the_rewrite() {
    let faults = Faults { read_transient: OFTEN, ..Faults::none() };
    let seen = outcomes(40, |seed| {
        let (sim, env) = faulty(seed, faults.clone());
        sim.run(async {
            let file = durable_file(&env, "/f", &[1; 8192]).await;
            let first = read(&file, 4096, 0).await;
            sim.stop_faults();
            assert_eq!(read(&file, 4096, 0).await.unwrap(), [1; 4096]);
            first.is_ok()
        })
        .unwrap()
    });
    assert_eq!(seen.len(), 2);
    let (sim, env) = faulty(1, Faults { read_latent: ALWAYS, ..Faults::none() });
    sim.run(async {
        let file = durable_file(&env, "/f", &[1; 8192]).await;
        assert_eq!(read(&file, 100, 0).await.unwrap_err().errno(), Some(errno::EIO));
        sim.stop_faults();
        assert_eq!(read(&file, 10, 50).await.unwrap_err().errno(), Some(errno::EIO));
        assert_eq!(read(&file, 10, 4096).await.unwrap(), [1; 10], "another page");
        file.write_at(buf(&[2; 4096]), 0).await.0.unwrap();
        assert_eq!(read(&file, 10, 0).await.unwrap(), [2; 10]);
    })
    .unwrap();
}

#[test]
fn r2_a_flip_on_the_medium_stays_and_one_in_flight_heals() {
    let flips = |bytes: &[u8]| bytes.iter().map(|b| b.count_ones()).sum::<u32>();
    for (media, expected) in [(ALWAYS, 1), (0, 0)] {
        let in_flight = ALWAYS - media;
        let faults = Faults { flip_media: media, flip_in_flight: in_flight, ..Faults::none() };
        let (sim, env) = faulty(3, faults);
        sim.run(async {
            let file = durable_file(&env, "/f", &[0; 5000]).await;
            assert_eq!(flips(&read(&file, 5000, 0).await.unwrap()), 1);
            sim.stop_faults();
            assert_eq!(flips(&read(&file, 5000, 0).await.unwrap()), expected);
        })
        .unwrap();
        assert!(sim.injected().iter().all(|f| f.rule == "R2" && !f.is_error));
        sim.power_cut(None);
        assert_eq!(flips(&sim.disk().visible_bytes("/f").unwrap()), expected);
    }
}

#[test]
fn r3_pieces_take_time_and_nothing_else() {
    let time = |faults| {
        let (sim, env) = faulty(4, faults);
        let start = sim.now();
        sim.run(async {
            let file = durable_file(&env, "/f", &[1; 5000]).await;
            assert_eq!(read(&file, 5000, 0).await.unwrap(), [1; 5000]);
        })
        .unwrap();
        (sim.now() - start, sim.injected().len())
    };
    let (plain, none) = time(Faults::none());
    let (slow, all) = time(Faults { short: ALWAYS, ..Faults::none() });
    assert!(slow > plain && none == 0 && all == 5);
}

#[test]
fn r4_a_failing_write_leaves_any_prefix_of_its_sectors() {
    let lens = outcomes(200, |seed| {
        let (sim, env) = faulty(seed, Faults { write_error: ALWAYS, ..Faults::none() });
        sim.run(async {
            let file = env.fs().open("/f", NEW).await.unwrap();
            let (result, back) = file.write_at(buf(&[1; 2048]), 0).await;
            assert!(result.is_err() && back.len() == 2048);
            let written = read(&file, 4096, 0).await.unwrap();
            assert!(written.iter().all(|b| *b == 1));
            written.len()
        })
        .unwrap()
    });
    assert_eq!(lens.into_iter().collect::<Vec<_>>(), [0, 512, 1024, 1536, 2048]);
}

#[test]
fn r4_a_full_disk_takes_what_fits() {
    let (sim, env) = machine(5, Options { capacity: Some(64 << 10), ..Options::default() });
    sim.run(async {
        let file = env.fs().open("/f", NEW).await.unwrap();
        let e = file.write_at(buf(&[1; 100_000]), 0).await.0.unwrap_err();
        assert!(e.is_no_space() && e.errno() == Some(errno::ENOSPC));
        assert_eq!(file.len().await.unwrap(), 64 << 10);
        assert!(file.write_cached(&[1], 64 << 10).unwrap_err().is_no_space());
        assert!(file.allocate(100_000).await.unwrap_err().is_no_space());
        file.write_at(buf(&[2; 4096]), 0).await.0.unwrap();
        file.set_len(0).await.unwrap();
        file.write_at(buf(&[1; 4096]), 0).await.0.unwrap();
        sim.set_capacity(None);
        file.write_at(buf(&[1; 100_000]), 0).await.0.unwrap();
    })
    .unwrap();
}

/// The pages are clean after the failure: the next sync succeeds and makes nothing durable.
#[test]
fn r5_a_failed_sync_is_reported_once_and_the_data_may_be_gone() {
    let seen = outcomes(200, |seed| {
        let (sim, env) = faulty(seed, Faults::none());
        let visible = sim
            .run(async {
                let file = durable_file(&env, "/f", &[1; 4096]).await;
                let other = env.fs().open("/f", crate::OLD).await.unwrap();
                file.write_at(buf(&[2; 4096]), 0).await.0.unwrap();
                sim.fail_op(sim.ops_submitted() + 1, errno::EIO, false);
                assert!(file.sync_data().await.is_err());
                file.sync_data().await.unwrap();
                assert!(other.sync_data().await.is_err(), "each open file reports it once");
                other.sync_data().await.unwrap();
                read(&file, 1, 0).await.unwrap()[0]
            })
            .unwrap();
        let durable = sim.disk().durable_bytes("/f").unwrap();
        sim.power_cut(Cut::AllKept);
        assert_eq!(sim.disk().visible_bytes("/f").unwrap(), durable, "nothing is pending");
        (visible, durable[0])
    });
    // Page content new or old, sector durable or not; what is durable is never hidden.
    let seen: Vec<_> = seen.into_iter().collect();
    assert_eq!(seen, [(1, 1), (2, 1), (2, 2)]);
}

#[test]
fn r5_a_sticky_failure_stays_for_the_life() {
    let (sim, env) = faulty(6, Faults::none());
    sim.run(async {
        let file = durable_file(&env, "/f", b"x").await;
        sim.fail_op(sim.ops_submitted() + 1, errno::ENOSPC, true);
        for _ in 0..3 {
            assert!(file.sync_data().await.unwrap_err().is_no_space());
        }
        file.write_at(buf(b"y"), 0).await.0.unwrap();
    })
    .unwrap();
    assert_eq!(sim.injected().len(), 3);
    let env = sim.boot();
    sim.run(async { env.fs().open("/f", crate::OLD).await.unwrap().sync_data().await.unwrap() })
        .unwrap();
}

/// Every kind of operation, made to fail, says which one it was and of which file.
#[test]
fn an_error_names_its_operation_and_its_file() {
    let (sim, env) = faulty(7, Faults::none());
    let fail = || sim.fail_op(sim.ops_submitted() + 1, errno::EIO, false);
    let told = |e: Error| {
        assert_eq!((e.errno(), e.path()), (Some(errno::EIO), Path::new("/f")), "{e}");
        e.operation()
    };
    let fs = env.fs();
    let outcome = sim.run(async {
        fail();
        assert_eq!(told(fs.open("/f", NEW).await.err().unwrap()), Operation::Open);
        let file = durable_file(&env, "/f", &[1; 4096]).await;
        fail();
        assert_eq!(told(read(&file, 10, 0).await.unwrap_err()), Operation::Read);
        fail();
        assert_eq!(told(file.write_at(buf(&[2]), 0).await.0.unwrap_err()), Operation::Write);
        fail();
        assert_eq!(told(file.sync_data().await.unwrap_err()), Operation::Sync);
        fail();
        assert_eq!(told(file.set_len(1).await.unwrap_err()), Operation::Resize);
        fail();
        assert_eq!(told(file.len().await.unwrap_err()), Operation::Inspect);
        fail();
        assert_eq!(told(fs.create_dir("/f").await.unwrap_err()), Operation::CreateDir);
        fail();
        assert_eq!(told(fs.list_dir("/f").await.err().unwrap()), Operation::ListDir);
        fail();
        assert_eq!(told(fs.sync_dir("/f").await.unwrap_err()), Operation::SyncDir);
        fail();
        assert_eq!(told(fs.rename("/f", "/g").await.unwrap_err()), Operation::Rename);
        fail();
        assert_eq!(told(fs.remove_file("/f").await.unwrap_err()), Operation::Remove);
        fail();
        assert_eq!(told(fs.lock("/f").await.err().unwrap()), Operation::Lock);
    });
    outcome.unwrap();
}

#[test]
fn r6_one_write_of_a_life_goes_elsewhere_or_nowhere() {
    let faults = Faults { write_misdirected: ALWAYS, ..Faults::none() };
    let places = outcomes(60, |seed| {
        let (sim, env) = faulty(seed, Faults::none());
        sim.run(async {
            durable_file(&env, "/a.sst", &[1; 16384]).await;
            durable_file(&env, "/b.sst", &[1; 16384]).await;
            durable_file(&env, "/c.log", &[1; 16384]).await;
            sim.set_faults(faults.clone());
            let file = env.fs().open("/a.sst", crate::OLD).await.unwrap();
            for _ in 0..3 {
                file.write_at(buf(&[2; 4096]), 4096).await.0.unwrap();
            }
        })
        .unwrap();
        let hit = |path: &str| sim.disk().visible_bytes(path).unwrap().contains(&2);
        assert!(!hit("/c.log") && hit("/a.sst"), "only one of three is misdirected");
        assert_eq!(sim.injected().len(), 1);
        hit("/b.sst")
    });
    assert_eq!(places.len(), 2);
    let (sim, env) = faulty(1, Faults::none());
    sim.run(async {
        let file = durable_file(&env, "/f", &[1; 4096]).await;
        sim.set_faults(Faults { write_phantom: ALWAYS, ..Faults::none() });
        file.write_at_durable(buf(&[2; 4096]), 0).await.0.unwrap();
        assert_eq!(read(&file, 1, 0).await.unwrap(), [2], "the page cache has it");
    })
    .unwrap();
    sim.power_cut(Cut::AllKept);
    assert_eq!(sim.disk().visible_bytes("/f").unwrap(), [1; 4096]);
    let wrong = outcomes(40, |seed| {
        let (sim, env) = faulty(seed, Faults { read_misdirected: ALWAYS, ..Faults::none() });
        sim.run(async {
            let file = durable_file(&env, "/f", &[[1; 4096], [2; 4096]].concat()).await;
            read(&file, 1, 0).await.unwrap() == [1]
        })
        .unwrap()
    });
    assert_eq!(wrong.len(), 2);
}

#[test]
fn r7_operations_complete_in_any_order_and_may_take_seconds() {
    let orders = outcomes(60, |seed| {
        let (sim, env) = faulty(seed, Faults::none());
        sim.run(async {
            let file = durable_file(&env, "/f", &[1; 8192]).await;
            let (first, second) = (read(&file, 1, 0), read(&file, 1, 4096));
            futures::pin_mut!(first, second);
            matches!(futures::future::select(first, second).await, futures::future::Either::Left(_))
        })
        .unwrap()
    });
    assert_eq!(orders.len(), 2);
    for faults in
        [Faults { slow: ALWAYS, ..Faults::none() }, Faults { stall: ALWAYS, ..Faults::none() }]
    {
        let slow = outcomes(60, |seed| {
            let (sim, env) = faulty(seed, faults.clone());
            sim.run(durable_file(&env, "/f", b"x")).unwrap();
            sim.now() > Duration::from_secs(12)
        });
        assert_eq!(slow.len(), 2);
    }
}

#[test]
fn r8_names_fail_without_effect_and_listings_come_in_any_order() {
    for seed in 0..40 {
        let (sim, env) = faulty(seed, Faults::none());
        sim.run(async {
            let file = durable_file(&env, "/f", b"x").await;
            sim.set_faults(Faults { name_error: ALWAYS, ..Faults::none() });
            let fs = env.fs();
            assert!(fs.open("/g", NEW).await.is_err() && fs.create_dir("/d").await.is_err());
            assert!(fs.rename("/f", "/h").await.is_err() && fs.remove_file("/f").await.is_err());
            assert!(fs.list_dir("/").await.is_err() && fs.lock("/LOCK").await.is_err());
            assert!(file.set_len(9).await.is_err() && file.allocate(9).await.is_err());
        })
        .unwrap();
        assert_eq!(sim.disk().files().into_values().collect::<Vec<_>>(), [b"x"]);
        assert!(sim.injected().iter().all(|f| f.rule == "R8" && f.is_error));
    }
    let orders = outcomes(40, |seed| {
        let (sim, env) = faulty(seed, Faults::none());
        let list = sim.run(async {
            for name in ["/a", "/b", "/c"] {
                env.fs().open(name, NEW).await.unwrap();
            }
            env.fs().list_dir("/").await.unwrap()
        });
        list.unwrap().into_iter().map(|entry| entry.name).collect::<Vec<_>>()
    });
    assert_eq!(orders.len(), 6);
}

#[test]
fn r9_the_clock_stalls_and_the_wall_clock_jumps_both_ways() {
    let (sim, env) = faulty(1, Faults { clock_stall: OFTEN, wall_jump: OFTEN, ..Faults::none() });
    let (mut stalled, mut moved, mut back, mut ahead) = (0, 0, 0, 0);
    sim.run(async {
        let clock = env.clock();
        let (mut now, mut wall) = (clock.now(), clock.unix_time());
        for _ in 0..100 {
            clock.sleep(Duration::from_secs(1)).await;
            let (later, later_wall) = (clock.now(), clock.unix_time());
            assert!(later >= now, "it never goes back");
            *(if later == now { &mut stalled } else { &mut moved }) += 1;
            back += usize::from(later_wall < wall);
            ahead += usize::from(later_wall > wall + Duration::from_secs(9));
            (now, wall) = (later, later_wall);
        }
    })
    .unwrap();
    assert!(
        [stalled, moved, back, ahead].iter().all(|n| *n > 5),
        "{stalled} {moved} {back} {ahead}"
    );
}

#[test]
fn r10_there_is_no_memory_for_an_absurd_transfer() {
    let (sim, env) = faulty(1, Faults { transfer_max: Some(1 << 20), ..Faults::none() });
    sim.run(async {
        let file = durable_file(&env, "/f", b"x").await;
        let e = read(&file, (1 << 20) + 1, 0).await.unwrap_err();
        assert_eq!(e.errno(), Some(errno::ENOMEM));
        assert_eq!(file.read_at(AlignedBuf::zeroed(1 << 20), 0).await.0.unwrap(), 1);
    })
    .unwrap();
}

#[test]
fn faults_strike_only_the_chosen_files() {
    let chosen: seerdb_io::sim::FilePredicate = Arc::new(|path| path.ends_with("bad"));
    let faults = Faults { write_error: ALWAYS, files: Some(chosen), ..Faults::none() };
    let (sim, env) = faulty(1, faults);
    sim.run(async {
        let good = env.fs().open("/good", NEW).await.unwrap();
        good.write_at(buf(b"x"), 0).await.0.unwrap();
        let bad = env.fs().open("/bad", NEW).await.unwrap();
        bad.write_at(buf(b"x"), 0).await.0.unwrap_err();
    })
    .unwrap();
    let faults = sim.injected();
    assert!(faults.len() == 1 && faults[0].path.ends_with("bad") && faults[0].op == 4);
}

#[test]
fn a_swarm_has_many_rates_at_zero() {
    let mut chance = Chance::new(1);
    let texts: Vec<String> =
        (0..100).map(|_| format!("{:?}", Faults::swarm(&mut chance))).collect();
    let zeros = texts.iter().map(|text| text.matches(": 0").count()).sum::<usize>() / 100;
    assert!((7..13).contains(&zeros), "{zeros} of 14 are zero on average");
    assert!(texts.iter().all(|text| text.contains("flip_media: 0,")), "an honest disk");
    let lying = Faults::swarm_lying(&mut chance);
    assert_eq!(format!("{lying:?}").matches(": ").count(), 14);
}
