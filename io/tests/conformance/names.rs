//! Directories, names and locks.

use std::os::unix::fs::PermissionsExt;

use seerdb_io::{Class, Operation};

use crate::{Bed, block_on, creator, reader};

crate::for_each_backend!(
    directories_are_made_once,
    names_change_and_vanish,
    a_lock_is_exclusive;
    not_simulated:
    only_the_owner_may_read => "a simulated disk has no permission bits",
);

fn directories_are_made_once(bed: &Bed) {
    let fs = bed.env.fs();
    block_on(fs.create_dir(bed.path("d"))).unwrap();
    block_on(fs.create_dir(bed.path("d"))).unwrap();
    let e = block_on(fs.create_dir(bed.path("missing/d"))).unwrap_err();
    assert!(e.is_not_found() && e.operation() == Operation::CreateDir);
    bed.open("f", creator(Class::Foreground)).unwrap();
    let e = block_on(fs.create_dir(bed.path("f"))).unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::AlreadyExists);
}

fn names_change_and_vanish(bed: &Bed) {
    let fs = bed.env.fs();
    for name in ["a", "b", "c"] {
        let file = bed.open(name, creator(Class::Foreground)).unwrap();
        file.write_cached(name.repeat(3).as_bytes(), 0).unwrap();
    }
    block_on(fs.create_dir(bed.path("d"))).unwrap();
    block_on(fs.rename(bed.path("a"), bed.path("b"))).unwrap();
    block_on(fs.remove_file(bed.path("c"))).unwrap();
    block_on(fs.sync_dir(bed.dir.path())).unwrap();
    let mut entries = block_on(fs.list_dir(bed.dir.path())).unwrap();
    entries.sort_by(|x, y| x.name.cmp(&y.name));
    assert_eq!(entries.len(), 2);
    assert!(entries[0].name == "b" && entries[0].is_file && entries[0].len == 3);
    assert!(entries[1].name == "d" && !entries[1].is_file);
    let file = bed.open("b", reader(Class::Foreground)).unwrap();
    assert_eq!(crate::read(&file, 10, 0), b"aaa");
    for (e, operation) in [
        (block_on(fs.rename(bed.path("a"), bed.path("x"))), Operation::Rename),
        (block_on(fs.remove_file(bed.path("a"))), Operation::Remove),
        (block_on(fs.sync_dir(bed.path("a"))), Operation::SyncDir),
        (block_on(fs.list_dir(bed.path("a"))).map(drop), Operation::ListDir),
    ] {
        let e = e.unwrap_err();
        assert!(e.is_not_found() && e.operation() == operation, "{e}");
    }
}

fn a_lock_is_exclusive(bed: &Bed) {
    let fs = bed.env.fs();
    let held = block_on(fs.lock(bed.path("LOCK"))).unwrap().expect("it is free");
    assert!(block_on(fs.lock(bed.path("LOCK"))).unwrap().is_none());
    drop(held);
    assert!(block_on(fs.lock(bed.path("LOCK"))).unwrap().is_some());
    assert!(block_on(fs.lock(bed.path("missing/LOCK"))).err().unwrap().is_not_found());
}

fn only_the_owner_may_read(bed: &Bed) {
    let fs = bed.env.fs();
    block_on(fs.create_dir(bed.path("d"))).unwrap();
    bed.open("f", creator(Class::Foreground)).unwrap();
    drop(block_on(fs.lock(bed.path("LOCK"))).unwrap());
    for (name, mode) in [("d", 0o700), ("f", 0o600), ("LOCK", 0o600)] {
        let found = std::fs::metadata(bed.path(name)).unwrap().permissions().mode();
        assert_eq!(found & 0o777, mode, "{name}");
    }
}
