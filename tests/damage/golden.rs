//! Golden databases: everything in them is durable and proven so; the trials damage copies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use futures::future::join_all;
use seerdb::{Compression, DB, DBOptions, Durability};
use tempfile::TempDir;

use crate::single::kind_in;
use crate::support::{Rng, copy_dir, env, files, pause, scratch};

/// What every key that was ever written must read as; `None`: deleted.
pub(crate) type Model = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

const KEYS: usize = 160;
const COMMITS: usize = 400;
const UNFLUSHED: usize = 60;

/// A database at rest.
pub(crate) struct Golden {
    pub(crate) name: &'static str,
    pub(crate) dir: PathBuf,
    /// The same database earlier in its life: long before, and shortly before.
    pub(crate) older: [PathBuf; 2],
    /// A database with the same history of keys and sizes, but other values.
    pub(crate) other: PathBuf,
    pub(crate) options: DBOptions,
    pub(crate) model: Model,
    _scratch: Option<TempDir>,
}

impl Golden {
    /// A database that was made elsewhere, perhaps in `scratch`; its older and other copies are
    /// itself.
    pub(crate) fn new(
        name: &'static str,
        dir: PathBuf,
        options: DBOptions,
        model: Model,
        scratch: Option<TempDir>,
    ) -> Golden {
        let older = [dir.clone(), dir.clone()];
        Golden { name, older, other: dir.clone(), dir, options, model, _scratch: scratch }
    }
}

/// How a golden database is made.
struct Recipe {
    name: &'static str,
    default: Durability,
    compression: Compression,
    closed: bool,
    /// Whether larger values stay in the log, and the log is collected.
    separates: bool,
}

const RECIPES: [Recipe; 6] = [
    Recipe {
        name: "grouped, LZ4, closed",
        default: Durability::Synced,
        compression: Compression::Lz4,
        closed: true,
        separates: false,
    },
    Recipe {
        name: "grouped, plain, killed",
        default: Durability::Synced,
        compression: Compression::None,
        closed: false,
        separates: false,
    },
    Recipe {
        name: "cached, LZ4, killed",
        default: Durability::Written,
        compression: Compression::Lz4,
        closed: false,
        separates: false,
    },
    Recipe {
        name: "cached, plain, closed",
        default: Durability::Written,
        compression: Compression::None,
        closed: true,
        separates: false,
    },
    Recipe {
        name: "grouped values, plain, closed",
        default: Durability::Synced,
        compression: Compression::None,
        closed: true,
        separates: true,
    },
    Recipe {
        name: "cached values, LZ4, killed",
        default: Durability::Written,
        compression: Compression::Lz4,
        closed: false,
        separates: true,
    },
];

/// Small everything, so that a short history has many files.
pub(crate) fn options(default: Durability) -> DBOptions {
    // A page-cached log packs its records; a direct one spends a unit on each group.
    let segment = if default == Durability::Synced { 64 << 10 } else { 16 << 10 };
    DBOptions::default()
        .env(env().clone())
        .durability(default)
        .memory_budget(8 << 20)
        .memtable_bytes(32 << 10)
        .wal_segment_bytes(segment)
        .block_bytes(512)
        .table_bytes(6 << 10)
        .size_ratio(3)
        .runs_per_level(2)
}

/// The same with a value log of small segments, which is collected at every opportunity.
pub(crate) fn separating(options: &DBOptions) -> DBOptions {
    let options = options.clone().value_threshold(120).max_space_amplification(1.4);
    options.value_segment_bytes(16 << 10)
}

/// All golden databases, made once.
pub(crate) fn all() -> &'static [Golden] {
    static ALL: OnceLock<Vec<Golden>> = OnceLock::new();
    ALL.get_or_init(|| RECIPES.iter().map(make).collect())
}

fn make(recipe: &Recipe) -> Golden {
    let scratch = scratch();
    let path = |name: &str| scratch.path().join(name);
    let [dir, other] = ["golden", "other"].map(path);
    let older = ["older", "recent"].map(path);
    let options = options(recipe.default).compression(recipe.compression);
    let options = if recipe.separates { separating(&options) } else { options };
    let model = futures::executor::block_on(async {
        // What background work makes of the same history differs a little from run to run.
        for attempt in 0..5 {
            let live = path(&format!("live-{attempt}"));
            let copies = [&dir, &older[0], &older[1]].map(|path| path.with_extension("new"));
            let Some(model) = build(recipe, &options, &live, &copies, 1).await else {
                copies.iter().for_each(|copy| std::fs::remove_dir_all(copy).unwrap());
                continue;
            };
            for (copy, path) in copies.iter().zip([&dir, &older[0], &older[1]]) {
                std::fs::rename(copy, path).unwrap();
            }
            let aside = ["older", "recent"].map(|name| path(&format!("{name}-of-other")));
            let [older, recent] = aside;
            build(recipe, &options, &path("live"), &[other.clone(), older, recent], 2).await;
            return model;
        }
        panic!("{}: five databases without the shape that the trials need", recipe.name)
    });
    Golden { name: recipe.name, dir, older, other, options, model, _scratch: Some(scratch) }
}

/// Builds a database in `live` and copies it to three places: at its end, in the middle of its
/// life and shortly before its end. `None` when it lacks levels or log segments.
async fn build(
    recipe: &Recipe,
    options: &DBOptions,
    live: &Path,
    [dir, older, recent]: &[PathBuf; 3],
    values: u64,
) -> Option<Model> {
    let db = options.open(live).await.expect("a fresh database opens");
    let mut writer = Writer { db: &db, rng: Rng(7), values: Rng(values), model: Model::new() };
    for commit in 0..COMMITS {
        writer.commit().await;
        if commit == COMMITS * 2 / 3 {
            settle(&db).await;
            copy_dir(live, older);
        }
    }
    // Until a run stands beside those that were merged.
    for _ in 0..6 {
        db.flush().await.expect("a flush");
        settle(&db).await;
        if levels(&db) >= 2 {
            break;
        }
        for _ in 0..40 {
            writer.commit().await;
        }
    }
    for commit in 0..UNFLUSHED {
        if commit == UNFLUSHED / 2 {
            settle(&db).await;
            copy_dir(live, recent);
        }
        writer.commit().await;
    }
    let model = writer.model;
    settle(&db).await;
    let levels = levels(&db);
    if recipe.closed {
        db.close().await.expect("a clean close");
        copy_dir(live, dir);
    } else {
        copy_dir(live, dir);
        db.close().await.expect("a clean close");
    }
    let count = |kind: &str| files(dir).iter().filter(|name| kind_in(dir, name) == kind).count();
    let has_values = !recipe.separates || count("VALUES") >= 2 && count("REWRITTEN") >= 1;
    let wals = if recipe.separates { 1 } else { 4 };
    (levels >= 2 && count("WAL") >= wals && has_values).then_some(model)
}

/// The number of levels that have tables.
fn levels(db: &DB) -> usize {
    db.stats().levels.iter().filter(|level| level.tables > 0).count()
}

/// Waits until background work rests and the idle log has its mark.
pub(crate) async fn settle(db: &DB) {
    let mut before = None;
    loop {
        pause(60).await;
        let stats = db.stats();
        let rewrites = stats.value_log.rewrites;
        let now = (stats.flushes, stats.compactions, stats.memtables, stats.log_groups, rewrites);
        if before == Some(now) && stats.memtables == 1 {
            return;
        }
        before = Some(now);
    }
}

struct Writer<'a> {
    db: &'a DB,
    rng: Rng,
    values: Rng,
    model: Model,
}

impl Writer<'_> {
    fn key(&mut self) -> Vec<u8> {
        format!("key-{:04}", self.rng.below(KEYS)).into_bytes()
    }

    /// Half of the values can be compressed.
    fn value(&mut self) -> Vec<u8> {
        let len = 20 + self.rng.below(200);
        if self.rng.chance(50) {
            return self.values.bytes(len);
        }
        let word = format!("{:016x}-", self.values.next());
        word.bytes().cycle().take(len).collect()
    }

    async fn commit(&mut self) {
        match self.rng.below(100) {
            0..55 => self.puts(1).await,
            55..70 => self.puts(4).await,
            70..85 => {
                let key = self.key();
                self.db.delete(&key).durability(Durability::Synced).await.expect("a delete");
                self.model.insert(key, None);
            }
            _ => self.batch().await,
        }
    }

    /// Puts of different keys at the same time: they share groups.
    async fn puts(&mut self, count: usize) {
        let puts: BTreeMap<_, _> = (0..count).map(|_| (self.key(), self.value())).collect();
        let writes = puts.iter().map(|(key, value)| {
            self.db.put(key, value.clone()).durability(Durability::Synced).into_future()
        });
        for written in join_all(writes).await {
            written.expect("a put");
        }
        self.model.extend(puts.into_iter().map(|(key, value)| (key, Some(value))));
    }

    async fn batch(&mut self) {
        let mut batch = self.db.batch();
        for _ in 0..1 + self.rng.below(5) {
            let key = self.key();
            if self.rng.chance(25) {
                batch.delete(&key);
                self.model.insert(key, None);
            } else {
                let value = self.value();
                batch.put(&key, value.clone());
                self.model.insert(key, Some(value));
            }
        }
        batch.commit().durability(Durability::Synced).await.expect("a batch");
    }
}
