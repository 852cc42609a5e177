//! Really full disks: the disk is filled until the engine refuses, and emptied again.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use seerdb::{Backend, DB, DBOptions, Durability, ErrorKind};

use crate::disk::Disk;
use crate::script::options;

const MIB: u64 = 24;
const FILLER_BYTES: usize = 6 << 20;
/// Space comes back through retries with pauses: no run needs a tenth of this.
const PATIENCE: Duration = Duration::from_secs(30);

fn value(n: usize) -> Vec<u8> {
    // Nothing that compression could shrink.
    let word = |at: usize| crate::script::mix((n * 1024 + at) as u64).to_le_bytes();
    (0..256).flat_map(word).collect()
}

fn key(n: usize) -> String {
    format!("key-{n:06}")
}

/// Every acknowledged key reads right, and a scan finds exactly those.
async fn check(db: &DB, acked: usize, refused: &[usize]) {
    for n in (0..acked).filter(|n| !refused.contains(n)) {
        let found = db.get(key(n)).await.unwrap();
        assert_eq!(found.as_deref(), Some(&value(n)[..]), "{}", key(n));
    }
    let mut stream = db.iter();
    let mut count = 0;
    while let Some((found, _)) = stream.try_next().await.unwrap() {
        assert!(refused.iter().all(|n| key(*n).as_bytes() != &found[..]), "{found:?} was refused");
        count += 1;
    }
    assert_eq!(count, acked - refused.len());
}

async fn fill(options: &DBOptions, disk: &Path) -> usize {
    let (dir, filler) = (disk.join("db"), disk.join("filler"));
    std::fs::write(&filler, vec![7; FILLER_BYTES]).unwrap();
    let db = options.open(&dir).await.unwrap();
    let mut next = 0;
    let mut refused = Vec::new();
    let full = loop {
        match db.put(key(next), value(next)).await {
            Ok(_) => next += 1,
            Err(error) => break error,
        }
        assert!(next < 1 << 20, "the disk never fills");
    };
    assert_eq!(full.kind(), ErrorKind::NoSpace, "{full:?}");
    refused.push(next);
    next += 1;
    let acked = next - refused.len();
    check(&db, next, &refused).await;

    std::fs::remove_file(&filler).unwrap();
    let since = Instant::now();
    // Until a flush was repeated there is no memory, and a merge may fill the disk once more for
    // a moment: what is refused then is refused whole, as before.
    let mut more = 0;
    while more < 200 {
        match db.put(key(next), value(next)).await {
            Ok(_) => more += 1,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
                refused.push(next);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        next += 1;
        assert!(since.elapsed() < PATIENCE, "it does not resume, {more} after {acked} writes");
    }
    check(&db, next, &refused).await;
    // A merge may want more space for a moment than there is.
    while let Err(error) = db.flush().await {
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error:?}");
        assert!(since.elapsed() < PATIENCE, "it does not flush");
        std::thread::sleep(Duration::from_millis(20));
    }
    db.verify().await.unwrap();
    db.close().await.unwrap();
    drop(db);
    let db = options.open(&dir).await.unwrap();
    check(&db, next, &refused).await;
    db.verify().await.unwrap();
    db.close().await.unwrap();
    eprintln!(
        "full after {acked} writes, 200 more in {:.1} s, {} refused",
        since.elapsed().as_secs_f64(),
        refused.len()
    );
    acked
}

#[test]
fn a_full_disk_refuses_writes_and_takes_them_again() {
    for (backend, default) in [
        (Backend::Portable, Durability::Synced),
        (Backend::Auto, Durability::Synced),
        (Backend::Portable, Durability::Written),
        (Backend::Auto, Durability::Buffered),
    ] {
        let mut disk = match Disk::new(MIB) {
            Ok(disk) => disk,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        if let Err(why) = disk.mount("data=ordered") {
            return eprintln!("skipped: {why}");
        }
        eprintln!("{backend:?}, {default:?}");
        let options = options(default).io_backend(backend).memtable_bytes(256 << 10);
        let acked = block_on(fill(&options, &disk.path()));
        assert!(acked > 500, "only {acked} writes fit {MIB} MiB");
        disk.unmount().unwrap();
    }
}
