//! Small databases with files of every kind, and what is done to a damaged one.

use std::fs;
use std::path::Path;
use std::time::Duration;

use futures::executor::block_on;
use seerdb::{Compression, DB, DBOptions, Durability, Env, ErrorKind};
use tempfile::TempDir;

use crate::damage::{self, Files};
use crate::{env, scratch};

const KEYS: u32 = 30;
/// What the footer of a rewritten file begins with.
const MAGIC: &[u8] = b"seerval\0";

/// The databases that are damaged, each with itself earlier in its life.
pub struct Goldens {
    options: DBOptions,
    variants: Vec<(Files, Files)>,
    scratch: TempDir,
}

fn options(env: Env) -> DBOptions {
    DBOptions::default()
        .env(env)
        .memory_budget(4 << 20)
        .memtable_bytes(8 << 10)
        .wal_segment_bytes(16 << 10)
        .block_bytes(256)
        .table_bytes(2 << 10)
        .size_ratio(3)
        .runs_per_level(2)
        .value_segment_bytes(16 << 10)
        .max_space_amplification(1.4)
}

fn read(dir: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(dir).expect("the directory is there") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().into_string().expect("our names");
        // A table may go while the directory is read; the manifest is read too, and decides.
        let bytes = fs::read(entry.path()).unwrap_or_default();
        // A manifest is allocated ahead by 256 KiB of zeros, of which one unit has to stay.
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let cut = used.next_multiple_of(4096) + 4096;
        let len = if name.starts_with("MANIFEST") { cut } else { bytes.len() };
        files.insert(name, bytes.into_iter().take(len).collect());
    }
    files
}

async fn fill(db: &DB, from: u32, to: u32) {
    for n in from..to {
        let mut batch = db.batch();
        for part in 0..3 {
            // In a database with a value log, some are longer than its threshold.
            let repeats = if n % 4 == 0 { 10 } else { 1 };
            let value = format!("{n}-{}", "v".repeat(n as usize % 90 * repeats));
            batch.put(format!("key-{:03}", (n * 7 + part) % KEYS), value);
        }
        batch.delete(format!("key-{:03}", n % KEYS));
        batch.commit().await.expect("a commit");
        if n % 20 == 19 {
            db.flush().await.expect("a flush");
        }
    }
}

/// Whether a file of the value log was rewritten: it ends in a footer.
fn has_rewritten(files: &Files) -> bool {
    let is_it = |bytes: &[u8]| bytes.len() > 40 && bytes[bytes.len() - 40..].starts_with(MAGIC);
    files.iter().any(|(name, bytes)| name.ends_with(".vlog") && is_it(bytes))
}

/// Waits until background work rests: its files could not be read as of one moment.
fn settle(db: &DB) {
    let mut before = None;
    loop {
        std::thread::sleep(Duration::from_millis(50));
        let stats = db.stats();
        let rewrites = stats.value_log.rewrites;
        let now = (stats.flushes, stats.compactions, stats.memtables, stats.log_groups, rewrites);
        if before == Some(now) && stats.memtables == 1 {
            return;
        }
        before = Some(now);
    }
}

impl Goldens {
    /// Makes them: both kinds of log, with and without compression and a value log, closed and
    /// not.
    pub fn make() -> Goldens {
        let (options, scratch) = (options(env()), scratch());
        let mut variants = Vec::new();
        let kinds = [
            (Durability::Synced, Compression::Lz4, None),
            (Durability::Written, Compression::None, None),
            (Durability::Synced, Compression::None, Some(100)),
            (Durability::Written, Compression::Lz4, Some(60)),
        ];
        for (at, (durability, compression, threshold)) in kinds.into_iter().enumerate() {
            let options = options.clone().durability(durability).compression(compression);
            let options = options.value_threshold(threshold);
            let dir = scratch.path().join(format!("golden-{at}"));
            block_on(async {
                let db = options.open(&dir).await.expect("a fresh database opens");
                fill(&db, 0, 45).await;
                // A database at rest: its merges are done.
                db.compact_range(..).await.expect("a merge");
                fill(&db, 45, 65).await;
                settle(&db);
                let early = read(&dir);
                fill(&db, 65, 75).await;
                settle(&db);
                let late = read(&dir);
                db.close().await.expect("a close");
                let closed = read(&dir);
                assert!(threshold.is_none() || has_rewritten(&closed), "nothing was rewritten");
                variants.push((late.clone(), early));
                variants.push((closed, late));
            });
            fs::remove_dir_all(&dir).expect("it can be removed");
        }
        let goldens = Goldens { options, variants, scratch };
        for variant in 0..goldens.variants.len() {
            let files = goldens.variants[variant].0.clone();
            let opened = block_on(goldens.visit(&files));
            assert!(opened, "variant {variant} cannot be opened undamaged");
        }
        goldens
    }

    /// Damages a database and uses it. The first byte of the script says which.
    pub async fn trial(&self, script: &[u8]) {
        let Some((which, script)) = script.split_first() else { return };
        let (files, other) = &self.variants[usize::from(*which) % self.variants.len()];
        let mut files = files.clone();
        damage::apply(script, &mut files, other);
        self.visit(&files).await;
    }

    /// Whether the database of these files could be opened.
    async fn visit(&self, files: &Files) -> bool {
        let dir = self.scratch.path().join("trial");
        fs::create_dir(&dir).expect("the trial before is gone");
        for (name, bytes) in files {
            fs::write(dir.join(name), bytes).expect("there is room");
        }
        let opened = self.options.open(&dir).await;
        let is_open = opened.is_ok();
        match opened {
            Ok(db) => use_all(&db).await,
            Err(error) => {
                let kinds = [ErrorKind::Corruption, ErrorKind::NotSupported];
                assert!(kinds.contains(&error.kind()), "open: {error:?}");
            }
        }
        fs::remove_dir_all(&dir).expect("it can be removed");
        is_open
    }
}

/// Reads every way, writes, merges, and closes.
async fn use_all(db: &DB) {
    for mut stream in [db.iter(), db.iter().rev(), db.prefix("key-0")] {
        // However the entries are damaged, a scan ends.
        let mut count = 0;
        loop {
            match stream.try_next().await {
                Ok(Some(_)) => count += 1,
                Ok(None) => break,
                Err(error) => {
                    assert!(error.is_corruption(), "scan: {error:?}");
                    break;
                }
            }
            assert!(count < 1 << 20, "a scan does not end");
        }
    }
    for n in (0..KEYS).step_by(3) {
        if let Err(error) = db.get(format!("key-{n:03}")).await {
            assert!(error.is_corruption(), "get: {error:?}");
        }
    }
    if let Err(error) = db.verify().await {
        assert!(error.is_corruption(), "verify: {error:?}");
    }
    // A damaged table stops its merge; what it stops next is for the engine to say.
    let written = db.put("key-new", "new").durability(Durability::Synced).await;
    let flushed = db.flush().await;
    let merged = db.compact_range(..).await;
    if written.is_ok() {
        let found = db.get("key-new").await;
        assert!(found.is_ok_and(|value| value.as_deref() == Some(b"new")), "a write is lost");
    }
    for error in [written.err(), flushed.err(), merged.err(), db.close().await.err()] {
        let Some(error) = error else { continue };
        let kinds = [ErrorKind::Corruption, ErrorKind::FailStop, ErrorKind::InvalidArgument];
        assert!(kinds.contains(&error.kind()), "{error:?}");
    }
}
