//! S1 to S3 and C1 to C6: what a sync promises, and what a power cut leaves.

use seerdb_io::AlignedBuf;
use seerdb_io::sim::{Cut, LifeEnd, Moment, Options, Sim};

use crate::{NEW, OLD, buf, durable_file, machine, outcomes, read};

fn after(sim: &Sim, cut: impl Into<Option<Cut>>, path: &str) -> Option<Vec<u8>> {
    sim.power_cut(cut);
    sim.disk().visible_bytes(path)
}

#[test]
fn s1_reads_see_what_is_pending_and_closing_never_syncs() {
    let (sim, env) = machine(1, Options::default());
    sim.run(async {
        let file = durable_file(&env, "/f", b"old").await;
        file.write_cached(b"new", 0).unwrap();
        assert_eq!(read(&file, 3, 0).await.unwrap(), b"new");
        drop(file);
        env.fs().open("/g", NEW).await.unwrap();
        assert_eq!(env.fs().list_dir("/").await.unwrap().len(), 2);
    })
    .unwrap();
    assert!(!sim.disk().is_durable("/f", 0..3) && sim.disk().is_durable("/f", 3..3));
    assert!(!sim.disk().is_name_durable("/g") && sim.disk().is_name_durable("/f"));
    assert_eq!(sim.disk().durable_names().len(), 1);
    sim.kill();
    assert_eq!(sim.disk().visible_bytes("/f").unwrap(), b"new");
    assert_eq!(sim.disk().names().len(), 2, "a kill keeps");
    assert_eq!(after(&sim, Cut::NoneKept, "/f").unwrap(), b"old");
    assert_eq!(sim.disk().names().len(), 1, "a cut forgets");
    assert!(sim.disk().is_settled());
}

#[test]
fn s2_a_sync_covers_data_and_length_but_no_name() {
    let (sim, env) = machine(2, Options::default());
    sim.run(async {
        let file = env.fs().open("/f", NEW).await.unwrap();
        file.write_at(buf(&[7; 5000]), 100).await.0.unwrap();
        file.sync_data().await.unwrap();
    })
    .unwrap();
    assert!(sim.disk().is_durable("/f", 0..5100));
    assert_eq!(sim.disk().durable_bytes("/f").unwrap().len(), 5100);
    assert_eq!(after(&sim, Cut::NoneKept, "/f"), None, "the name was not synced");
}

/// A write that had not completed when the sync was submitted is not covered, whatever comes first.
#[test]
fn s2_a_sync_does_not_cover_writes_in_flight() {
    let kept = outcomes(60, |seed| {
        let (sim, env) = machine(seed, Options::default());
        sim.run(async {
            let file = durable_file(&env, "/f", &[1; 4096]).await;
            let mut write = file.write_at(buf(&[2; 4096]), 0);
            assert!(futures::poll!(&mut write).is_pending());
            file.sync_data().await.unwrap();
            write.await.0.unwrap();
        })
        .unwrap();
        assert!(!sim.disk().is_durable("/f", 0..4096), "seed {seed}");
        after(&sim, None, "/f").unwrap()[0]
    });
    assert!(kept.contains(&1) && kept.contains(&2), "{kept:?}");
}

#[test]
fn s2_a_durable_write_is_durable_for_its_own_range() {
    for seed in 0..60 {
        let (sim, env) = machine(seed, Options::default());
        sim.run(async {
            let file = durable_file(&env, "/f", &[]).await;
            file.write_at(buf(&[1; 8192]), 0).await.0.unwrap();
            file.write_at_durable(buf(&[2; 4096]), 4096).await.0.unwrap();
        })
        .unwrap();
        assert!(sim.disk().is_durable("/f", 4096..8192) && !sim.disk().is_durable("/f", 0..1));
        assert_eq!(after(&sim, None, "/f").unwrap()[4096..], [2; 4096], "seed {seed}");
    }
}

#[test]
fn s3_a_sync_of_the_directory_keeps_names_and_no_data() {
    let lens = outcomes(60, |seed| {
        let (sim, env) = machine(seed, Options::default());
        sim.run(async {
            let file = env.fs().open("/f", NEW).await.unwrap();
            file.write_at(buf(&[7; 100]), 0).await.0.unwrap();
            env.fs().sync_dir("/").await.unwrap();
        })
        .unwrap();
        after(&sim, None, "/f").unwrap().len()
    });
    assert!(lens.contains(&0) && lens.contains(&100), "{lens:?}");
}

fn classify(old: u8, new: u8, sector: &[u8]) -> &'static str {
    match sector {
        s if s.iter().all(|b| *b == old) => "old",
        s if s.iter().all(|b| *b == new) => "new",
        s if s.iter().all(|b| *b == 0) => "zeros",
        s if s.iter().all(|b| [old, new].contains(b)) => "shorn",
        _ => "garbage",
    }
}

#[test]
fn c1_every_sector_has_every_fate() {
    for sector in [512, 4096] {
        let mut fates = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let (sim, env) = machine(seed, Options { sector: Some(sector), ..Options::default() });
            sim.run(async {
                let file = durable_file(&env, "/f", &[1; 16384]).await;
                file.write_at(buf(&[2; 16384]), 0).await.0.unwrap();
            })
            .unwrap();
            let left = after(&sim, Cut::Mixed, "/f").unwrap();
            fates.extend(left.chunks(sector).map(|s| classify(1, 2, s)));
        }
        assert_eq!(
            fates.into_iter().collect::<Vec<_>>(),
            ["garbage", "new", "old", "shorn", "zeros"]
        );
    }
    let drawn = outcomes(20, |seed| Sim::new(seed, Options::default()).crash_rules().sector);
    assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [512, 4096]);
}

#[test]
fn c2_bytes_beside_a_write_stay_unless_the_disk_is_hostile() {
    for hostile in [false, true] {
        let intact = outcomes(300, |seed| {
            let (sim, env) = machine(seed, Options { hostile, ..Options::default() });
            sim.run(async {
                let file = durable_file(&env, "/f", &[1; 8192]).await;
                file.write_at(buf(&[2; 1000]), 100).await.0.unwrap();
            })
            .unwrap();
            let left = after(&sim, Cut::Mixed, "/f").unwrap();
            assert_eq!(left[4096..], [1; 4096], "the next page is not touched");
            left[..100] == [1; 100] && left[1100..4096] == [1; 2996]
        });
        assert!(intact.contains(&true) && intact.contains(&false) == hostile);
    }
}

#[test]
fn c3_the_size_is_drawn_apart_from_the_data() {
    let mut garbage = false;
    let lens = outcomes(400, |seed| {
        let (sim, env) = machine(seed, Options::default());
        sim.run(async {
            let file = durable_file(&env, "/f", &[1; 100]).await;
            file.write_at(buf(&[2; 8000]), 4096).await.0.unwrap();
        })
        .unwrap();
        let left = after(&sim, Cut::Mixed, "/f").unwrap();
        assert_eq!(left[..100], [1; 100]);
        left.len()
    });
    assert!(lens.iter().all(|len| (100..=12096).contains(len)), "{lens:?}");
    for len in [100, 4096, 8192, 12096] {
        assert!(lens.contains(&len), "{len} in {lens:?}");
    }
    for seed in 0..100 {
        let (sim, env) = machine(seed, Options::default());
        sim.run(async {
            let file = durable_file(&env, "/f", &[1; 100]).await;
            file.allocate(8192).await.unwrap();
        })
        .unwrap();
        let left = after(&sim, Cut::Mixed, "/f").unwrap();
        garbage |= left[100..].iter().any(|b| *b != 0);
    }
    assert!(garbage, "growth is never stale");
}

#[test]
fn c4_names_come_and_go_as_a_prefix() {
    for hostile in [false, true] {
        let states = outcomes(300, |seed| {
            let (sim, env) = machine(seed, Options { hostile, ..Options::default() });
            sim.run(async {
                durable_file(&env, "/old", b"old").await;
                for name in ["/a", "/b"] {
                    env.fs().open(name, NEW).await.unwrap();
                }
                env.fs().remove_file("/old").await.unwrap();
            })
            .unwrap();
            sim.power_cut(Cut::Mixed);
            ["/a", "/b", "/old"].map(|name| sim.disk().visible_bytes(name).is_some())
        });
        let prefixes =
            [[false, false, true], [true, false, true], [true, true, true], [true, true, false]];
        assert!(prefixes.iter().all(|p| states.contains(p)), "{states:?}");
        assert_eq!(states.len() > prefixes.len(), hostile, "{states:?}");
    }
}

#[test]
fn c4_a_rename_leaves_the_old_target_or_the_new_and_perhaps_both_names() {
    let states = outcomes(300, |seed| {
        let (sim, env) = machine(seed, Options::default());
        sim.run(async {
            durable_file(&env, "/from", b"new").await;
            durable_file(&env, "/to", b"old").await;
            env.fs().rename("/from", "/to").await.unwrap();
        })
        .unwrap();
        sim.power_cut(Cut::Mixed);
        let target = sim.disk().visible_bytes("/to").expect("one of them is there");
        (target == b"new", sim.disk().visible_bytes("/from").is_some())
    });
    let states: Vec<_> = states.into_iter().collect();
    assert_eq!(states, [(false, true), (true, false), (true, true)]);
}

#[test]
fn c4_a_rename_between_directories_never_loses_the_file() {
    let states = outcomes(300, |seed| {
        let (sim, env) = machine(seed, Options::default());
        sim.run(async {
            env.fs().create_dir("/d").await.unwrap();
            durable_file(&env, "/from", b"x").await;
            env.fs().rename("/from", "/d/to").await.unwrap();
            if seed % 2 == 1 {
                env.fs().sync_dir("/").await.unwrap();
            }
        })
        .unwrap();
        sim.power_cut(None);
        let disk = sim.disk();
        let names = [disk.visible_bytes("/from").is_some(), disk.visible_bytes("/d/to").is_some()];
        assert!(names.contains(&true), "seed {seed}");
        names
    });
    assert!(states.contains(&[true, false]) && states.contains(&[false, true]), "{states:?}");
}

#[test]
fn c5_what_is_in_flight_happens_or_not_or_in_part() {
    let fates = outcomes(300, |seed| {
        let (sim, env) = machine(seed, Options::default());
        sim.run(durable_file(&env, "/f", &[1; 8192])).unwrap();
        sim.cut_at_op(sim.ops_submitted() + 2, Moment::Middle, LifeEnd::PowerCut(None));
        let outcome = sim.run(async {
            let file = env.fs().open("/f", OLD).await.unwrap();
            file.write_at(buf(&[2; 8192]), 0).await.0.unwrap();
            unreachable!("the life ends in the middle of the write");
        });
        outcome.unless_cut();
        classify(1, 2, &sim.disk().visible_bytes("/f").unwrap())
    });
    for fate in ["old", "new", "shorn"] {
        assert!(fates.contains(fate), "{fate} in {fates:?}");
    }
}

#[test]
fn c6_the_recovery_can_be_cut_again() {
    let (sim, env) = machine(5, Options::default());
    sim.run(durable_file(&env, "/f", b"x")).unwrap();
    for _ in 0..6 {
        sim.power_cut(None);
        let env = sim.boot();
        sim.cut_at_op(sim.ops_submitted() + 2, Moment::Before, LifeEnd::PowerCut(None));
        let outcome = sim.run(async {
            let file = env.fs().open("/f", OLD).await.unwrap();
            file.write_at_durable(AlignedBuf::zeroed(4096), 4096).await.0.unwrap();
        });
        assert!(outcome.unless_cut().is_none());
        assert_eq!(sim.disk().visible_bytes("/f").unwrap(), b"x");
    }
}

#[test]
fn all_kept_keeps_all() {
    let (sim, env) = machine(6, Options::default());
    sim.run(async {
        let file = env.fs().open("/f", NEW).await.unwrap();
        file.write_at(buf(&[3; 10_000]), 50).await.0.unwrap();
        file.set_len(9000).await.unwrap();
    })
    .unwrap();
    let seen = sim.disk().visible_bytes("/f");
    assert_eq!(after(&sim, Cut::AllKept, "/f"), seen);
}

#[test]
fn a_crash_image_disturbs_nothing_and_is_what_the_cut_would_leave() {
    let (sim, env) = machine(7, Options::default());
    let images = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let kept = images.clone();
    sim.on_op(move |event| kept.lock().push(event.crash_clone(Cut::Mixed, event.number)));
    sim.run(async {
        let file = durable_file(&env, "/f", &[1; 8192]).await;
        file.write_at(buf(&[2; 8192]), 0).await.0.unwrap();
    })
    .unwrap();
    let hash = sim.trace_hash();
    let image = sim.crash_clone(Cut::Mixed, 3);
    assert_eq!(image.files(), sim.crash_clone(Cut::Mixed, 3).files());
    assert_eq!(sim.disk().visible_bytes("/f").unwrap(), [2; 8192]);
    assert_eq!(sim.trace_hash(), hash);
    let images = std::mem::take(&mut *images.lock());
    assert_eq!(images.len(), 10, "five operations, submitted and completed");
    assert!(images[0].names().is_empty());
    for image in images {
        let sim = Sim::with_disk(1, Options::default(), image);
        let env = sim.boot();
        sim.run(env.fs().list_dir("/")).unwrap().unwrap();
    }
}
