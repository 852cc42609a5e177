//! Opening: what is found again, what is refused, and who may open.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use seerdb::{DB, Durability, ErrorKind};

use crate::common::{collect, keys, kind, moment, noise, place, plain, reopen, run, tiny};
use crate::host::{self, Mount};

fn fill(db: &DB, count: u64) {
    for i in 0..count {
        run(db.put(format!("{i:05}"), noise(i, 80))).unwrap();
    }
}

#[track_caller]
fn check(db: &DB, count: u64) {
    let found = collect(db.iter());
    assert_eq!(found.len() as u64, count);
    for (i, (key, value)) in (0..count).zip(found) {
        assert_eq!((key, value), (format!("{i:05}").into(), noise(i, 80)));
    }
}

/// A closed database of so many keys, some in tables and some in the log.
fn closed(path: &Path, count: u64) {
    let db = run(tiny().open(path)).unwrap();
    fill(&db, count);
    run(db.close()).unwrap();
}

#[test]
fn a_closed_database_opens_with_everything_in_it() {
    let (_dir, path) = place();
    for count in [0, 1, 10, 500] {
        let db = run(tiny().open(&path)).unwrap();
        fill(&db, count);
        run(db.delete("00000")).unwrap();
        run(db.close()).unwrap();
        let db = run(tiny().open(&path)).unwrap();
        assert_eq!(run(db.get("00000")).unwrap(), None);
        run(db.put("00000", noise(0, 80))).unwrap();
        check(&db, count.max(1));
        run(db.close()).unwrap();
    }
}

#[test]
fn a_dropped_database_opens_with_everything_in_it() {
    for durability in [Durability::Buffered, Durability::Written, Durability::Synced] {
        let (_dir, path) = place();
        let options = tiny().durability(durability);
        for _ in 0..3 {
            let db = reopen(&options, &path);
            fill(&db, 200);
            drop(db);
        }
        check(&reopen(&options, &path), 200);
    }
}

#[test]
fn seqnos_go_on_after_a_reopen() {
    let (_dir, path) = place();
    for open in 0..4u64 {
        let db = run(tiny().open(&path)).unwrap();
        assert_eq!(run(db.put("k", "v")).unwrap(), open + 1);
        if open % 2 == 0 {
            run(db.flush()).unwrap();
        }
        run(db.close()).unwrap();
    }
}

#[test]
fn a_directory_is_open_once_in_a_process() {
    let (dir, path) = place();
    let db = run(tiny().open(&path)).unwrap();
    assert_eq!(kind(run(tiny().open(&path))), ErrorKind::Locked);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(kind(run(tiny().open(&link))), ErrorKind::Locked);
    let roundabout = dir.path().join("db/../link/.");
    assert_eq!(kind(run(tiny().open(&roundabout))), ErrorKind::Locked);
    fill(&db, 10);
    run(db.close()).unwrap();
    let db = run(tiny().open(&link)).unwrap();
    assert_eq!(kind(run(plain().open(&path))), ErrorKind::Locked);
    check(&db, 10);
}

#[test]
#[ignore = "run as a child by a_directory_is_open_in_one_process"]
fn child_holds_the_directory() {
    let Some((path, _)) = host::parent_said() else { return };
    let db = run(tiny().open(path)).unwrap();
    run(db.put("child", "was here")).unwrap();
    println!("ready");
    // Until the parent is done.
    let mut end = String::new();
    std::io::stdin().read_to_string(&mut end).unwrap();
    run(db.close()).unwrap();
}

#[test]
fn a_directory_is_open_in_one_process() {
    let (_dir, path) = place();
    let mut child = host::child("recovery::child_holds_the_directory", &path, "");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("ready")), "the child failed");
    assert_eq!(kind(run(tiny().open(&path))), ErrorKind::Locked);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    let db = run(tiny().open(&path)).unwrap();
    assert_eq!(keys(db.iter()), ["child"]);
}

#[test]
#[ignore = "run as a child by a_killed_process_loses_nothing_that_was_acknowledged"]
fn child_writes_until_it_is_killed() {
    let Some((path, durability)) = host::parent_said() else { return };
    let durability = match durability.as_str() {
        "synced" => Durability::Synced,
        "written" => Durability::Written,
        _ => Durability::Buffered,
    };
    let db = run(tiny().durability(durability).open(path)).unwrap();
    let mut out = std::io::stdout().lock();
    for i in 0u64.. {
        run(db.put(format!("{i:05}"), noise(i, 80))).unwrap();
        writeln!(out, "acked {i}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    for (durability, kills) in [("synced", 4), ("written", 4), ("buffered", 2)] {
        for kill in 0..kills {
            let (_dir, path) = place();
            let test = "recovery::child_writes_until_it_is_killed";
            let mut child = host::child(test, &path, durability);
            let acked = host::kill_when_acked(&mut child, 50 + 170 * kill);
            let db = run(tiny().open(&path)).unwrap();
            let found = collect(db.iter()).len() as u64;
            check(&db, found);
            if durability != "buffered" {
                assert!(found > acked, "{durability}: {found} keys, {acked} was acknowledged");
            }
        }
    }
}

#[test]
fn a_half_created_database_opens_as_new() {
    // Every prefix of a creation: the lock, the first manifest, the next CURRENT.
    let left_overs: [&[(&str, &[u8])]; 5] = [
        &[],
        &[("LOCK", b"")],
        &[("LOCK", b""), ("MANIFEST-000001", b"")],
        &[("LOCK", b""), ("MANIFEST-000001", &[0; 5000])],
        &[("LOCK", b""), ("MANIFEST-000001", b"torn"), ("CURRENT.tmp", b"00")],
    ];
    for files in left_overs {
        let (_dir, path) = place();
        host::create_dir(&path);
        for (name, bytes) in files {
            host::write(&path.join(name), bytes);
        }
        let db = run(tiny().open(&path)).unwrap();
        assert!(collect(db.iter()).is_empty());
        fill(&db, 20);
        run(db.close()).unwrap();
        check(&run(tiny().open(&path)).unwrap(), 20);
    }
}

#[test]
fn a_creation_that_is_dropped_midway_starts_over() {
    for polls in 0..60 {
        let (_dir, path) = place();
        {
            let mut future = Box::pin(opening(tiny().error_if_exists(true), path.clone()));
            let (waker, parked) = crate::runtime::parker();
            let mut cx = std::task::Context::from_waker(&waker);
            let mut done = None;
            for _ in 0..polls {
                if let std::task::Poll::Ready(opened) = future.as_mut().poll(&mut cx) {
                    done = Some(opened.unwrap());
                    break;
                }
                parked();
            }
            if let Some(db) = done {
                run(db.close()).unwrap();
                return;
            }
        }
        let db = reopen(&tiny(), &path);
        fill(&db, 3);
        run(db.close()).unwrap();
        check(&run(tiny().open(&path)).unwrap(), 3);
    }
    panic!("an open takes more than sixty polls");
}

/// An open as a future that owns what it needs.
async fn opening(options: seerdb::DBOptions, path: PathBuf) -> seerdb::Result<DB> {
    options.open(path).await
}

#[test]
fn foreign_files_are_left_alone() {
    let (_dir, path) = place();
    closed(&path, 100);
    let foreign = ["notes.txt", "1.sst", "000001.sst.bak", "+00007.wal", "MANIFEST-x", ".nfs0001"];
    for name in foreign {
        host::write(&path.join(name), name.as_bytes());
    }
    host::create_dir(&path.join("subdirectory"));
    for _ in 0..2 {
        let db = run(tiny().open(&path)).unwrap();
        check(&db, 100);
        run(db.flush()).unwrap();
        run(db.close()).unwrap();
    }
    for name in foreign {
        assert_eq!(host::read(&path.join(name)), name.as_bytes());
    }
    assert!(host::names(&path).contains(&"subdirectory".to_string()));
}

#[test]
fn files_of_ours_that_nothing_refers_to_are_removed() {
    let (_dir, path) = place();
    closed(&path, 100);
    let orphans = ["900001.sst", "900002.wal", "MANIFEST-900003", "CURRENT.tmp"];
    for name in orphans {
        host::write(&path.join(name), b"left by a crash");
    }
    let db = run(tiny().open(&path)).unwrap();
    check(&db, 100);
    run(db.close()).unwrap();
    let names = host::names(&path);
    for name in orphans {
        assert!(!names.contains(&name.to_string()), "{name} is still there");
    }
}

/// Makes a header say that it is of a newer version, with a checksum that fits.
fn make_newer(bytes: &mut [u8], version_at: usize, crc_at: usize, covered: &[(usize, usize)]) {
    let version = &mut bytes[version_at..version_at + 4];
    let newer = u32::from_le_bytes(version.try_into().unwrap()) + 1;
    version.copy_from_slice(&newer.to_le_bytes());
    let crc =
        covered.iter().fold(0, |crc, (from, to)| crc32c::crc32c_append(crc, &bytes[*from..*to]));
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_newer_format_is_not_supported_and_nothing_is_changed() {
    type Patch = fn(&mut [u8]);
    let patches: [(&str, &str, Patch); 3] = [
        ("MANIFEST-", "", |bytes| make_newer(bytes, 8, 4092, &[(0, 4092)])),
        ("", ".wal", |bytes| make_newer(bytes, 8, 40, &[(0, 40)])),
        ("", ".sst", |bytes| {
            let at = bytes.len() - 72;
            make_newer(&mut bytes[at..], 56, 60, &[(0, 60), (64, 72)]);
        }),
    ];
    for (start, end, patch) in patches {
        let (_dir, path) = place();
        closed(&path, 200);
        let file = host::files(&path, start, end).pop().expect("there is such a file");
        let old = host::read(&file);
        let mut new = old.clone();
        patch(&mut new);
        host::write(&file, &new);
        let error = run(tiny().open(&path)).expect_err("the format is newer");
        assert_eq!(error.kind(), ErrorKind::NotSupported, "{start}*{end}: {error}");
        host::write(&file, &old);
        check(&run(tiny().open(&path)).unwrap(), 200);
    }
}

#[test]
fn a_missing_file_is_corruption_that_names_it() {
    for (start, end) in [("CURRENT", ""), ("MANIFEST-", ""), ("", ".sst"), ("", ".wal")] {
        let (dir, path) = place();
        closed(&path, 200);
        for file in host::files(&path, start, end) {
            let copy = dir.path().join("copy");
            host::copy_dir(&path, &copy);
            let name = file.file_name().unwrap();
            let bytes = host::read(&file);
            host::remove(&copy.join(name));
            match run(tiny().open(&copy)) {
                Err(error) => {
                    assert!(error.is_corruption(), "{error}");
                    let (found, _) = error.location().expect("corruption names a file");
                    assert_eq!(found.file_name().unwrap(), name, "{error}");
                    host::write(&copy.join(name), &bytes);
                    check(&run(tiny().open(&copy)).unwrap(), 200);
                }
                // Retired and kept to be used again: nothing was in it.
                Ok(db) => {
                    assert_eq!(end, ".wal", "{name:?} was not missed");
                    check(&db, 200);
                }
            }
            host::remove_dir(&copy);
        }
    }
}

/// A copy that is older than the last group looks like a shorter log to the log itself.
#[test]
fn an_older_copy_of_the_last_segment_of_a_closed_database_is_corruption() {
    for dropped in [false, true] {
        for durability in [Durability::Synced, Durability::Written] {
            let (_dir, path) = place();
            let options = plain().durability(durability);
            let db = run(options.open(&path)).unwrap();
            let seqno = run(db.put("old", "old")).unwrap();
            run(db.wait_durable(seqno)).unwrap();
            let active = host::files(&path, "", ".wal").remove(0);
            let older = host::read(&active);
            run(db.put("new", "new")).unwrap();
            if dropped {
                drop(db);
                // An open that is refused because the database exists changes nothing.
                let refused = options.clone().error_if_exists(true);
                while kind(run(refused.open(&path))) == ErrorKind::Locked {
                    run(moment());
                }
            } else {
                run(db.close()).unwrap();
            }
            host::write(&active, &older);
            let error = run(options.open(&path)).unwrap_err();
            assert!(error.is_corruption(), "{error}");
            assert_eq!(error.location().unwrap().0, active);
        }
    }
}

#[test]
fn paths_that_cannot_be_a_database_are_refused() {
    let (dir, path) = place();
    host::write(&path, b"a file");
    assert_eq!(kind(run(tiny().open(&path))), ErrorKind::Io);
    assert_eq!(host::read(&path), b"a file");
    assert_eq!(kind(run(tiny().open(path.join("below a file")))), ErrorKind::Io);
    let missing = dir.path().join("missing/db");
    assert_eq!(kind(run(tiny().open(&missing))), ErrorKind::Io);
    let too_long = dir.path().join("x".repeat(5000));
    assert_eq!(kind(run(tiny().open(&too_long))), ErrorKind::Io);
    assert!(run(tiny().open("")).is_err());
    let with_nul = dir.path().join("nul\0inside");
    assert!(run(tiny().open(&with_nul)).is_err());
    assert_eq!(host::names(dir.path()), ["db"]);
}

#[test]
fn a_path_need_not_be_text() {
    use std::os::unix::ffi::OsStrExt;
    let (dir, _) = place();
    let path = dir.path().join(std::ffi::OsStr::from_bytes(b"db \xff\xfe"));
    closed(&path, 50);
    check(&run(tiny().open(&path)).unwrap(), 50);
}

#[test]
fn a_read_only_directory_is_an_error_and_loses_nothing() {
    let Some(mount) = Mount::tmpfs("size=8m") else {
        println!("skipped: this process may not mount a file system");
        return;
    };
    let path = mount.path().join("db");
    closed(&path, 100);
    assert!(mount.remount("ro"), "mounting was granted");
    for open in [&path, &mount.path().join("new")] {
        let error = run(tiny().open(open)).expect_err("nothing can be written");
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    }
    assert!(mount.remount("rw"), "mounting was granted");
    check(&run(tiny().open(&path)).unwrap(), 100);
}

#[test]
fn a_directory_that_is_removed_while_open_does_not_break_the_process() {
    let (_dir, path) = place();
    let db = run(tiny().open(&path)).unwrap();
    fill(&db, 100);
    host::remove_dir(&path);
    // Whatever each call comes to, it comes to an end.
    for i in 0..300u64 {
        if run(db.put(format!("{i:05}"), noise(i, 80))).is_err() {
            break;
        }
    }
    for i in 0..100u64 {
        drop(run(db.get(format!("{i:05}"))));
    }
    drop(run(db.close()));
    let db = run(tiny().open(&path)).unwrap();
    assert!(collect(db.iter()).is_empty());
}
