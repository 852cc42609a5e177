//! Options: what is refused, what may change between two opens, and shared environments.

use std::time::Duration;

use seerdb::{Backend, Compression, DBOptions, Durability, Env, EnvOptions, ErrorKind};

use crate::common::{collect, kind, noise, place, plain, run, tiny};
use crate::host;

#[test]
fn options_out_of_range_or_in_contradiction_are_refused_by_name() {
    let cases: [(&str, DBOptions); 36] = [
        ("memory_budget", plain().memory_budget(0)),
        ("memtable_bytes", plain().memtable_bytes(0)),
        ("memtable_bytes", plain().memtable_bytes(usize::MAX)),
        ("memtable_bytes", plain().memory_budget(1 << 20).memtable_bytes(1 << 20)),
        ("cache_bytes", plain().cache_bytes(usize::MAX)),
        ("wal_segment_bytes", plain().wal_segment_bytes(0)),
        ("wal_segment_bytes", plain().wal_segment_bytes(usize::MAX)),
        ("wal_segment_bytes", plain().wal_segment_bytes(20_000)),
        ("buffered_delay", plain().buffered_delay(Duration::MAX)),
        ("block_bytes", plain().block_bytes(0)),
        ("block_bytes", plain().block_bytes(usize::MAX)),
        ("table_bytes", plain().table_bytes(0)),
        ("filter_bits_per_key", plain().filter_bits_per_key(-1.0)),
        ("filter_bits_per_key", plain().filter_bits_per_key(f64::NAN)),
        ("filter_bits_per_key", plain().filter_bits_per_key(f64::INFINITY)),
        ("size_ratio", plain().size_ratio(0)),
        ("size_ratio", plain().size_ratio(1)),
        ("size_ratio", plain().size_ratio(usize::MAX)),
        ("runs_per_level", plain().runs_per_level(0)),
        ("runs_per_level", plain().size_ratio(4).runs_per_level(4)),
        ("runs_per_level", plain().size_ratio(2).runs_per_level(Some(2))),
        ("runs_per_level", plain().size_ratio(4).runs_per_level(usize::MAX)),
        ("size_ratio", plain().size_ratio(1).runs_per_level(None)),
        ("runs_last_level", plain().runs_last_level(0)),
        ("runs_last_level", plain().size_ratio(2).runs_per_level(1).runs_last_level(2)),
        ("value_threshold", plain().value_threshold(0)),
        ("value_threshold", plain().value_threshold((1 << 30) + 1)),
        ("value_segment_bytes", plain().value_segment_bytes(0)),
        ("value_segment_bytes", plain().value_segment_bytes(usize::MAX)),
        ("value_segment_bytes", plain().value_segment_bytes(20_000)),
        ("max_space_amplification", plain().max_space_amplification(1.0)),
        ("max_space_amplification", plain().max_space_amplification(101.0)),
        ("max_space_amplification", plain().max_space_amplification(f64::NAN)),
        ("max_space_amplification", plain().max_space_amplification(f64::INFINITY)),
        ("create_if_missing", plain().create_if_missing(false).error_if_exists(true)),
        ("memory_budget", plain().memory_budget((1 << 20) - 1).memtable_bytes(1024)),
    ];
    let (dir, path) = place();
    for (name, options) in cases {
        let error = run(options.open(&path)).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(name), "{error} does not name {name}");
    }
    assert!(host::names(dir.path()).is_empty(), "refused options touch nothing");
}

#[test]
fn the_smallest_and_the_oddest_options_work() {
    let smallest = plain()
        .memory_budget(1 << 20)
        .memtable_bytes(1024)
        .cache_bytes(0)
        .wal_segment_bytes(16 << 10)
        .block_bytes(64)
        .table_bytes(1024)
        .filter_bits_per_key(0.0)
        .buffered_delay(Duration::ZERO)
        .compression(Compression::None)
        .size_ratio(2)
        .runs_per_level(1)
        .runs_last_level(1);
    let odd = smallest.clone().size_ratio(64).runs_per_level(63).runs_last_level(63);
    let odd = odd.filter_bits_per_key(64.0).block_bytes(32 << 10).durability(Durability::Buffered);
    let odd = odd.buffered_delay(Duration::from_secs(3600)).table_bytes(usize::MAX);
    let huge = plain().memory_budget(usize::MAX).filter_bits_per_key(0.001);
    for options in [smallest, odd, huge] {
        let (_dir, path) = place();
        for open in 0..2u64 {
            let db = run(options.open(&path)).unwrap();
            for i in 0..150u64 {
                run(db.put(format!("{open}{i:03}"), noise(i, 40))).unwrap();
            }
            assert_eq!(collect(db.iter()).len() as u64, 150 * (open + 1));
            for i in 0..150u64 {
                let found = run(db.get(format!("{open}{i:03}"))).unwrap();
                assert_eq!(found.unwrap(), noise(i, 40));
            }
            run(db.close()).unwrap();
        }
    }
}

#[test]
fn a_database_is_created_or_not_as_asked() {
    let (_dir, path) = place();
    let existing = plain().create_if_missing(false);
    assert!(run(existing.open(&path)).is_err(), "the directory is missing");
    host::create_dir(&path);
    assert_eq!(kind(run(existing.open(&path))), ErrorKind::InvalidArgument);
    assert!(host::names(&path).is_empty(), "nothing was created");
    run(run(plain().error_if_exists(true).open(&path)).unwrap().close()).unwrap();
    let error = run(plain().error_if_exists(true).open(&path)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    run(run(existing.open(&path)).unwrap().close()).unwrap();
}

#[test]
fn every_option_may_change_between_two_opens() {
    let (_dir, path) = place();
    let portable = Env::new(&EnvOptions { backend: Backend::Portable }).unwrap();
    let changed = [
        tiny(),
        tiny().durability(Durability::Written).compression(Compression::None),
        tiny().block_bytes(4096).table_bytes(64 << 10).wal_segment_bytes(1 << 20),
        tiny().durability(Durability::Buffered).size_ratio(6).runs_per_level(5).runs_last_level(3),
        tiny().memtable_bytes(32 << 10).filter_bits_per_key(0.0).cache_bytes(0),
        plain(),
        tiny().value_threshold(40).value_segment_bytes(16 << 10),
        tiny().value_threshold(51).max_space_amplification(1.1),
        tiny().value_threshold(1).durability(Durability::Written).compression(Compression::None),
        tiny().env(portable.clone()),
        tiny().env(portable).durability(Durability::Written),
        tiny().direct_io(true).value_threshold(45).cache_bytes(0),
        tiny().direct_io(true).value_threshold(45).durability(Durability::Written),
        tiny(),
    ];
    for (open, options) in changed.iter().enumerate() {
        let db = run(options.open(&path)).unwrap();
        for before in 0..open {
            for i in 0..100 {
                let found = run(db.get(format!("{i:03}/{before}"))).unwrap();
                assert_eq!(found.unwrap(), noise(before as u64, 50), "{before} in open {open}");
            }
        }
        for i in 0..100 {
            run(db.put(format!("{i:03}/{open}"), noise(open as u64, 50))).unwrap();
        }
        assert_eq!(collect(db.iter()).len(), 100 * (open + 1));
        assert_eq!(collect(db.iter().rev()).len(), 100 * (open + 1));
        run(db.close()).unwrap();
    }
}

#[test]
fn options_serve_any_number_of_databases_in_one_environment() {
    let options = tiny();
    let (dir, _) = place();
    let dbs: Vec<_> =
        (0..8).map(|i| run(options.open(dir.path().join(i.to_string()))).unwrap()).collect();
    for round in 0..50u64 {
        for (i, db) in (0u64..).zip(&dbs) {
            run(db.put(format!("{round:03}"), noise(i, 100))).unwrap();
        }
    }
    for (i, db) in (0u64..).zip(&dbs) {
        let found = collect(db.iter());
        assert_eq!(found.len(), 50);
        assert!(found.iter().all(|(_, value)| *value == noise(i, 100)));
    }
    for db in &dbs {
        run(db.close()).unwrap();
    }
}
