//! Lives: how they end, what a dead process can still do (nothing), futures dropped at every stage.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use seerdb_io::sim::{Cut, LifeEnd, Moment, Options, Outcome, Sim, Stuck, errno};
use seerdb_io::{File, Lane};

use crate::{NEW, OLD, buf, durable_file, machine, outcomes};

/// Tries to change the disk when it is dropped.
struct Avenger(File, Arc<AtomicUsize>);

impl Drop for Avenger {
    fn drop(&mut self) {
        assert!(self.0.write_cached(b"revenge", 0).is_err());
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn what_destructors_do_after_the_end_has_no_effect() {
    for end in [LifeEnd::Kill, LifeEnd::PowerCut(Some(Cut::AllKept))] {
        let (sim, env) = machine(1, Options::default());
        let dropped = Arc::new(AtomicUsize::new(0));
        let clock = env.clock().clone();
        let outcome = sim.run(async {
            for lane in [Lane::Log, Lane::Flush, Lane::Compaction] {
                let file = durable_file(&env, &format!("/{lane:?}"), b"ok").await;
                let avenger = Avenger(file, Arc::clone(&dropped));
                drop(env.spawner().spawn(lane, "avenger", async move {
                    let _avenger = avenger;
                    std::future::pending::<()>().await;
                }));
            }
            let file = durable_file(&env, "/main", b"ok").await;
            let _avenger = Avenger(file, Arc::clone(&dropped));
            clock.sleep(Duration::from_millis(1)).await;
            match end {
                LifeEnd::Kill => sim.kill(),
                LifeEnd::PowerCut(cut) => sim.power_cut(cut),
            }
            clock.sleep(Duration::from_millis(1)).await;
            unreachable!("nobody survives the end of a life");
        });
        assert!(matches!(outcome, Outcome::Cut(ended) if ended == end));
        drop(outcome);
        assert_eq!(dropped.load(Ordering::Relaxed), 4);
        assert!(sim.disk().files().values().all(|bytes| bytes == b"ok"));
        assert!(sim.open_files() == 0 && sim.tasks().is_empty() && sim.in_flight() == 0);
    }
}

#[test]
fn handles_of_a_dead_process_are_refused() {
    let (sim, env) = machine(2, Options::default());
    let (file, lock) = sim
        .run(async {
            let lock = env.fs().lock("/LOCK").await.unwrap();
            assert!(env.fs().lock("/LOCK").await.unwrap().is_none());
            (durable_file(&env, "/f", b"x").await, lock)
        })
        .unwrap();
    sim.kill();
    let new = sim.boot();
    sim.run(async {
        let held = new.fs().lock("/LOCK").await.unwrap().expect("the lock died with its process");
        drop(lock);
        assert!(new.fs().lock("/LOCK").await.unwrap().is_none(), "not the dead one's to release");
        assert!(file.write_at(buf(b"y"), 0).await.0.is_err());
        assert!(file.write_cached(b"y", 0).is_err() && file.try_read_at(&mut [0], 0).is_none());
        assert!(file.sync_data().await.is_err() && env.fs().remove_file("/f").await.is_err());
        assert!(env.spawner().spawn(Lane::Log, "late", async {}).await.is_err());
        assert_eq!(env.in_flight(), 0);
        env.clone().shutdown().await;
        drop(held);
    })
    .unwrap();
    assert_eq!(sim.disk().visible_bytes("/f").unwrap(), b"x");
    assert_eq!((sim.locks_held(), sim.open_files()), (0, 0));
}

#[test]
fn a_script_cuts_before_or_in_the_middle() {
    for moment in [Moment::Before, Moment::Middle] {
        let states = outcomes(60, |seed| {
            let (sim, env) = machine(seed, Options::default());
            sim.cut_at_op(1, moment, LifeEnd::PowerCut(Some(Cut::AllKept)));
            let outcome = sim.run(env.fs().open("/f", NEW));
            assert!(matches!(outcome, Outcome::Cut(_)));
            sim.disk().names().len()
        });
        assert_eq!(states.len(), if moment == Moment::Before { 1 } else { 2 });
    }
}

#[test]
fn a_cut_in_a_synchronous_call_ends_the_life_as_well() {
    let (sim, env) = machine(3, Options::default());
    let file = sim.run(durable_file(&env, "/f", b"x")).unwrap();
    sim.cut_at_op(sim.ops_submitted() + 1, Moment::Before, LifeEnd::Kill);
    let outcome = sim.run(async {
        assert!(file.write_cached(b"y", 0).is_err());
        file.sync_data().await.unwrap();
    });
    assert!(outcome.unless_cut().is_none());
    assert_eq!(sim.disk().visible_bytes("/f").unwrap(), b"x");
}

/// Every operation of a script, dropped after any number of polls: nothing leaks, nothing hangs.
#[test]
fn futures_are_dropped_at_every_stage() {
    for polls in 0..4 {
        for seed in 0..20 {
            let (sim, env) = machine(seed, Options::default());
            sim.run(async {
                let file = durable_file(&env, "/f", &[1; 4096]).await;
                let fs = env.fs();
                macro_rules! drop_after {
                    ($($op:expr),* $(,)?) => {$({
                        let mut op = $op;
                        for _ in 0..polls {
                            if futures::poll!(&mut op).is_ready() {
                                break;
                            }
                            env.clock().sleep(Duration::from_micros(60)).await;
                        }
                    })*};
                }
                drop_after!(
                    file.read_at(buf(&[0; 4096]), 0),
                    file.write_at(buf(&[1; 4096]), 0),
                    file.write_at_durable(buf(&[1; 4096]), 0),
                    file.sync_data(),
                    file.allocate(4096),
                    file.set_len(4096),
                    file.len(),
                    fs.open("/f", OLD),
                    fs.open("/g", NEW),
                    fs.create_dir("/d"),
                    fs.lock("/LOCK"),
                    fs.rename("/g", "/h"),
                    fs.remove_file("/h"),
                    fs.list_dir("/"),
                    fs.sync_dir("/"),
                );
                env.clock().sleep(Duration::from_secs(1)).await;
                assert_eq!(env.in_flight(), 0);
                assert!(fs.lock("/LOCK").await.unwrap().is_some(), "given back");
            })
            .unwrap();
            assert_eq!((sim.in_flight(), sim.open_files(), sim.locks_held()), (0, 0, 0));
            assert_eq!(sim.disk().visible_bytes("/f").unwrap(), [1; 4096]);
        }
    }
}

#[test]
fn who_waits_for_nothing_is_stuck_and_named() {
    let (sim, env) = machine(4, Options::default());
    sim.spawn("idle client", std::future::pending::<()>());
    drop(env.spawner().spawn(Lane::Flush, "idle task", std::future::pending::<()>()));
    let outcome = sim.run(env.clock().sleep(Duration::MAX));
    let Outcome::Stuck(Stuck { waiting, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(waiting, ["idle client", "idle task"]);
    assert_eq!(sim.tasks(), waiting);
    sim.run(async {}).unwrap();
}

#[test]
fn a_run_has_a_limit() {
    let (sim, env) = machine(5, Options { steps_max: 1000, ..Options::default() });
    let outcome = sim.run(async {
        loop {
            env.clock().sleep(Duration::from_secs(1)).await;
        }
    });
    assert!(matches!(outcome, Outcome::<()>::Exhausted(1000)));
}

#[test]
fn panics_go_where_the_contract_says() {
    let (sim, env) = machine(6, Options::default());
    let panicked = sim.run(async {
        let task = env.spawner().spawn(Lane::Log, "test", async { panic!("of a lane") });
        let e: Result<(), _> = task.await;
        e.unwrap_err().0
    });
    assert_eq!(panicked.unwrap(), "of a lane");
    for client in [false, true] {
        let sim = Sim::new(7, Options::default());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let task = sim.spawn("client", async move { assert!(!client, "of a client") });
            sim.run(async {
                task.await.unwrap();
                panic!("of the main future")
            })
        }));
        assert!(result.is_err());
        sim.run(async {}).unwrap();
    }
}

#[test]
fn a_hostile_world_shuts_down_in_the_end() {
    let (sim, env) = machine(8, Options::default());
    sim.run(async {
        let file = durable_file(&env, "/f", b"x").await;
        sim.fail_op(sim.ops_submitted() + 1, errno::EIO, true);
        assert!(file.sync_data().await.is_err());
        drop(env.spawner().spawn(Lane::Log, "endless", std::future::pending::<()>()));
        env.shutdown().await;
        assert!(sim.tasks().is_empty());
    })
    .unwrap();
}
