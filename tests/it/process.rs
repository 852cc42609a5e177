//! Limits that a process, a mount or a kernel sets: typed errors, no damage, and recovery.

use std::path::Path;
use std::process::Command;

use futures::StreamExt;
use rustix::process::{Resource, Rlimit, setrlimit};
use seerdb::{Backend, DB, DBOptions, Durability, ErrorKind};

use crate::common::{collect, env, kind, noise, place, plain, reopen, run, tiny};
use crate::host::{self, Mount};

fn put(db: &DB, i: u64) -> seerdb::Result<u64> {
    run(db.put(format!("{i:05}"), noise(i, 100)))
}

fn check(db: &DB, count: u64) {
    assert!(collect(db.iter()).len() as u64 >= count);
    for i in 0..count {
        assert_eq!(run(db.get(format!("{i:05}"))).unwrap().unwrap(), noise(i, 100), "{i}");
    }
    run(db.verify()).unwrap();
}

/// Runs an ignored test in a process that ignores the signal of too large files.
fn alone(test: &str, path: &Path, extra: &str) {
    alone_with(test, path, extra, &[]);
}

/// The same with more variables in its environment.
fn alone_with(test: &str, path: &Path, extra: &str, variables: &[(&str, &str)]) {
    let program = std::env::current_exe().unwrap();
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(program)
        .args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("SEERDB_IT_PATH", path)
        .env("SEERDB_IT_EXTRA", extra)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "run as a child by too_few_descriptors_are_an_error_and_do_no_harm"]
fn child_has_few_descriptors() {
    let Some((path, _)) = host::parent_said() else { return };
    let limit = |few| Rlimit { current: Some(few), maximum: Some(1024) };
    // Those of the environment and of the test are open already; these are what an open may use.
    assert!(!env().is_forked());
    let open = host::names(Path::new("/proc/self/fd")).len() as u64;
    let (mut failed, mut acked) = (0, 0);
    for few in open - 1..open + 20 {
        setrlimit(Resource::Nofile, limit(few)).unwrap();
        match run(tiny().open(&path)) {
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Io, "{error}");
                failed += 1;
            }
            Ok(db) => {
                for _ in 0..100 {
                    match put(&db, acked) {
                        Ok(_) => acked += 1,
                        Err(error) => {
                            let kinds = [ErrorKind::Io, ErrorKind::FailStop];
                            let kinds = [kinds, [ErrorKind::Indeterminate, ErrorKind::NoSpace]];
                            assert!(kinds.concat().contains(&error.kind()), "{error}");
                            failed += 1;
                            break;
                        }
                    }
                }
                drop(run(db.close()));
            }
        }
    }
    setrlimit(Resource::Nofile, limit(1024)).unwrap();
    assert!(failed > 0 && acked > 0, "{failed} failed, {acked} acknowledged");
    check(&reopen(&tiny(), &path), acked);
}

#[test]
fn too_few_descriptors_are_an_error_and_do_no_harm() {
    let (_dir, path) = place();
    alone("process::child_has_few_descriptors", &path, "");
}

#[test]
#[ignore = "run as a child by a_limit_of_file_sizes_is_no_space_and_does_no_harm"]
fn child_has_a_file_size_limit() {
    let Some((path, durability)) = host::parent_said() else { return };
    let durability = match durability.as_str() {
        "synced" => Durability::Synced,
        _ => Durability::Written,
    };
    let options = tiny().durability(durability).table_bytes(1 << 20).memtable_bytes(64 << 10);
    let limit = |bytes| Rlimit { current: bytes, maximum: None };
    let db = run(options.open(&path)).unwrap();
    let mut acked = 0;
    while acked < 50 {
        put(&db, acked).unwrap();
        acked += 1;
    }
    setrlimit(Resource::Fsize, limit(Some(8 << 10))).unwrap();
    let error = loop {
        match put(&db, acked) {
            Ok(_) => acked += 1,
            Err(error) => break error,
        }
        assert!(acked < 100_000, "nothing reaches the limit");
    };
    let kinds = [ErrorKind::NoSpace, ErrorKind::Indeterminate, ErrorKind::FailStop, ErrorKind::Io];
    assert!(kinds.contains(&error.kind()), "{error}");
    for i in 0..acked {
        assert_eq!(run(db.get(format!("{i:05}"))).unwrap().unwrap(), noise(i, 100));
    }
    setrlimit(Resource::Fsize, limit(None)).unwrap();
    drop(run(db.close()));
    drop(db);
    check(&reopen(&options, &path), acked);
}

#[test]
fn a_limit_of_file_sizes_is_no_space_and_does_no_harm() {
    for durability in ["synced", "written"] {
        let (_dir, path) = place();
        alone("process::child_has_a_file_size_limit", &path, durability);
    }
}

#[test]
#[ignore = "run as a child by a_backend_that_does_not_exist_is_not_supported"]
fn child_is_told_of_no_backend() {
    let Some((path, _)) = host::parent_said() else { return };
    let error = run(DBOptions::new().open(&path)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotSupported, "{error}");
    assert!(error.to_string().contains("SEERDB_IO is 'floppy', not one of"), "{error}");
    assert!(!path.exists(), "nothing was made");
    let asked_for = DBOptions::new().io_backend(Backend::Portable);
    run(asked_for.open(&path)).expect("an option goes before the environment");
}

#[test]
fn a_backend_that_does_not_exist_is_not_supported() {
    let (_dir, path) = place();
    let variables = [("SEERDB_IO", "floppy")];
    alone_with("process::child_is_told_of_no_backend", &path, "", &variables);
}

#[test]
fn a_directory_is_open_once_through_a_bind_mount_too() {
    let (dir, path) = place();
    let db = run(tiny().open(&path)).unwrap();
    let other = dir.path().join("other");
    host::create_dir(&other);
    let names = [path.to_str().unwrap(), other.to_str().unwrap()];
    if !host::command("mount", &["--bind", names[0], names[1]]) {
        println!("skipped: this process may not mount a file system");
        return;
    }
    let found = run(tiny().open(&other));
    host::command("umount", &["-l", names[1]]);
    assert_eq!(kind(found), ErrorKind::Locked);
    put(&db, 0).unwrap();
}

/// A file system in memory that knows no direct transfers.
#[test]
fn a_file_system_without_direct_transfers_will_do() {
    let Some(mount) = Mount::of("ramfs", "mode=700") else {
        println!("skipped: this process may not mount a file system");
        return;
    };
    let path = mount.path().join("db");
    for open in 1..=2 {
        let db = run(tiny().open(&path)).unwrap();
        for i in 100 * (open - 1)..100 * open {
            put(&db, i).unwrap();
        }
        check(&db, 100 * open);
        run(db.close()).unwrap();
    }
}

/// Every pin is one entry of a map, however many readers it has.
#[test]
fn a_million_snapshots_cost_memory_and_nothing_else() {
    let count = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
    let (_dir, path) = place();
    let db = run(plain().durability(Durability::Buffered).open(path)).unwrap();
    let mut snapshots = Vec::new();
    for i in 0..count {
        if i % 10 == 0 {
            run(db.put("k", i.to_string())).unwrap();
        }
        snapshots.push(db.snapshot());
    }
    assert_eq!(db.stats().snapshots, count);
    run(db.flush()).unwrap();
    run(db.compact_range(..)).unwrap();
    for (i, snapshot) in snapshots.iter().enumerate().step_by(997) {
        assert_eq!(run(snapshot.get("k")).unwrap().unwrap(), (i / 10 * 10).to_string());
        assert_eq!(run(snapshot.iter().count()), 1);
    }
    drop(snapshots);
    assert_eq!(db.stats().snapshots, 0);
    run(db.close()).unwrap();
}
