//! The other direction: the tail of a log that was never durable is torn in every way that a power
//! cut can tear it, and nothing of that is damage. The database opens, with a prefix of the
//! commits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use futures::StreamExt;
use seerdb::{DB, DBOptions, Durability};

use crate::check::{Outcome, examine, within_deadline};
use crate::golden::{self, Golden, Model, settle};
use crate::runner::{Fault, run_with};
use crate::single::SECTOR;
use crate::support::{Rng, copy_dir, number, put, scratch, trials};

const UNIT: usize = 4096;
/// The commits that are durable before the tail begins.
const COMMITS: usize = 30;

/// A database with commits that are not durable at the end of its log.
struct Tail {
    golden: Golden,
    /// The same database when all of it was durable and said so.
    durable: Golden,
    /// The model after each of those commits, beginning with none of them.
    states: Vec<Model>,
    /// Parts of files that a power cut may lose, in the order in which they were written: file,
    /// offset, and the bytes that stood there before.
    parts: Vec<(String, usize, Vec<u8>)>,
    /// Whether the parts may be lost in any combination, and not only from one on.
    any_order: bool,
}

fn all() -> &'static [Tail] {
    static ALL: OnceLock<Vec<Tail>> = OnceLock::new();
    ALL.get_or_init(|| {
        let cached = golden::options(Durability::Written);
        let grouped = golden::options(Durability::Synced);
        // Nothing is rewritten: what a rewrite has written is durable.
        let [both, both_grouped] =
            [&cached, &grouped].map(|o| golden::separating(o).max_space_amplification(90.0));
        vec![
            make("cached, one segment", cached.clone().wal_segment_bytes(64 << 10), 40, 1),
            make("cached, many segments", cached, 60, 1),
            make("cached, two streams", both, 130, 1),
            make("grouped, a small group", grouped.clone(), 1, 12),
            make("grouped, a large group", grouped, 1, 70),
            make("grouped, values", both_grouped.value_segment_bytes(64 << 10), 1, 30),
        ]
    })
}

/// `commits` batches of `ops` puts each, behind a history that is durable and marked.
fn make(name: &'static str, options: DBOptions, commits: usize, ops: usize) -> Tail {
    let options = options.memtable_bytes(48 << 10);
    let scratch = scratch();
    let [live, before, dir] = ["live", "before", "dir"].map(|name| scratch.path().join(name));
    let grouped = name.starts_with("grouped");
    let states = futures::executor::block_on(async {
        let db = options.open(&live).await.unwrap();
        let mut rng = Rng(11);
        let mut states = vec![Model::new()];
        for _ in 0..COMMITS {
            commit(&db, &mut rng, &mut states, 2, Durability::Synced).await;
        }
        settle(&db).await;
        copy_dir(&live, &before);
        let mut states = states.split_off(states.len() - 1);
        for _ in 0..commits {
            let loose = if rng.chance(50) { Durability::Written } else { Durability::Buffered };
            let durability = if grouped { Durability::Synced } else { loose };
            commit(&db, &mut rng, &mut states, ops, durability).await;
        }
        settle(&db).await;
        copy_dir(&live, &dir);
        db.close().await.unwrap();
        states
    });
    let parts = parts(&before, &dir, grouped);
    assert!(parts.len() > 3, "{name}: {} parts", parts.len());
    let in_values = parts.iter().filter(|(file, ..)| file.ends_with(".vlog")).count();
    let separates = name.ends_with("two streams") || name.ends_with("values");
    assert_eq!(in_values > 3, separates, "{name}: {in_values} parts of the value log");
    let model = states.last().unwrap().clone();
    let first = states.first().unwrap().clone();
    let durable = Golden::new(name, before, options.clone(), first, None);
    let golden = Golden::new(name, dir, options, model, Some(scratch));
    Tail { golden, durable, states, parts, any_order: !grouped }
}

async fn commit(
    db: &DB,
    rng: &mut Rng,
    states: &mut Vec<Model>,
    ops: usize,
    durability: Durability,
) {
    let mut model = states.last().unwrap().clone();
    let mut batch = db.batch();
    for _ in 0..ops {
        let key = format!("key-{:03}", rng.below(100)).into_bytes();
        if rng.chance(15) {
            batch.delete(&key);
            model.insert(key, None);
        } else {
            let len = 10 + rng.below(200);
            let value = rng.bytes(len);
            batch.put(&key, value.clone());
            model.insert(key, Some(value));
        }
    }
    batch.commit().durability(durability).await.unwrap();
    states.push(model);
}

/// The segments of both streams, those of the WAL last: a group's mark stands there.
fn logs(dir: &Path) -> Vec<String> {
    let (wal, mut logs): (Vec<_>, Vec<_>) =
        crate::support::files(dir).into_iter().partition(|name| name.ends_with(".wal"));
    logs.retain(|name| name.ends_with(".vlog"));
    logs.extend(wal);
    logs
}

/// What differs in the logs of `before` and `after`, by sectors.
fn parts(before: &Path, after: &Path, grouped: bool) -> Vec<(String, usize, Vec<u8>)> {
    let mut parts = Vec::new();
    for name in logs(after) {
        let new = std::fs::read(after.join(&name)).unwrap();
        let mut old = std::fs::read(before.join(&name)).unwrap_or_default();
        if old.is_empty() {
            // A segment made since: its header is durable.
            old = new[..UNIT].to_vec();
            old.resize(new.len(), 0);
        }
        for start in (0..new.len()).step_by(SECTOR) {
            let sector = start..start + SECTOR;
            if let Some(first) = sector.clone().find(|at| new[*at] != old[*at]) {
                parts.push((name.clone(), first, old[first..sector.end].to_vec()));
            }
        }
    }
    if grouped {
        // The mark comes when the group is durable: it goes first, always.
        let (name, at, _) = parts.last().unwrap().clone();
        assert!(at % UNIT == 0, "the mark of {name} is not at the start of a unit: {at}");
    }
    parts
}

/// Loses parts of the tail.
fn tear(rng: &mut Rng, tail: &Tail, dir: &Path) -> Fault {
    let parts = &tail.parts;
    // The mark of a group is never there without the group.
    let last = parts.len() - 1;
    let garbage = rng.chance(40);
    let (how, lost): (String, Vec<bool>) = if rng.chance(50) {
        let from = rng.below(parts.len());
        (format!("from part {from} on"), (0..parts.len()).map(|part| part >= from).collect())
    } else {
        let percent = 1 + rng.below(60);
        let mut lost: Vec<bool> = parts.iter().map(|_| rng.chance(percent)).collect();
        lost[last] |= !tail.any_order;
        (format!("{percent} % of the parts"), lost)
    };
    let mut files: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    for ((name, at, old), _) in parts.iter().zip(lost).filter(|(_, lost)| *lost) {
        let bytes = files.entry(name).or_insert_with(|| std::fs::read(dir.join(name)).unwrap());
        let lost = if garbage { rng.bytes(old.len()) } else { old.clone() };
        bytes[*at..*at + old.len()].copy_from_slice(&lost);
    }
    for (name, bytes) in files {
        put(dir, name, &bytes);
    }
    let row = if garbage { "garbage" } else { "as before" };
    Fault { row: format!("{}: {row}", tail.golden.name), what: how }
}

/// How many tails are torn, and how many records damaged: `SEERDB_DAMAGE_TAILS`.
fn tails() -> usize {
    usize::try_from(number("SEERDB_DAMAGE_TAILS", trials(1) as u64)).unwrap()
}

#[test]
fn a_torn_tail_is_no_damage() {
    let goldens: Vec<&Golden> = all().iter().map(|tail| &tail.golden).collect();
    let goldens_len = goldens.len();
    run_with("a torn tail", tails(), &goldens, |trial, rng, golden, dir| {
        let tail = &all()[trial % goldens.len()];
        let fault = tear(rng, tail, dir);
        let (options, dir) = (golden.options.clone(), dir.to_path_buf());
        let result = within_deadline(move || {
            let lives_on = (trial / goldens_len).is_multiple_of(4);
            futures::executor::block_on(examine_prefix(&options, &dir, &tail.states, lives_on))
        });
        Some((fault, result))
    });
}

/// The data records of all logs: file, offset, and length without padding.
fn records(dir: &Path) -> Vec<(String, usize, usize)> {
    let mut records = Vec::new();
    for name in logs(dir) {
        let bytes = std::fs::read(dir.join(&name)).unwrap();
        let mut at = UNIT;
        while at + 32 <= bytes.len() {
            let payload = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap());
            let len = 32 + usize::try_from(payload).unwrap();
            let padding = u16::from_le_bytes([bytes[at + 3], bytes[at + 4]]);
            match bytes[at..at + 3] {
                [0xED, 0x5E, kind] => {
                    if kind == 1 {
                        records.push((name.clone(), at, len));
                    }
                    at += len + usize::from(padding);
                }
                _ => at = (at + 1).next_multiple_of(UNIT),
            }
        }
    }
    records
}

/// Damages a record that was durable.
fn damage(rng: &mut Rng, (name, at, len): &(String, usize, usize), dir: &Path) -> Fault {
    let mut bytes = std::fs::read(dir.join(name)).unwrap();
    let first = at + rng.below(*len);
    let sector = first / SECTOR * SECTOR..(first / SECTOR + 1) * SECTOR;
    let how = match rng.below(4) {
        0 => {
            bytes[sector].fill(0);
            "a sector zeroed"
        }
        1 => {
            bytes[sector].copy_from_slice(&rng.bytes(SECTOR));
            "a sector of garbage"
        }
        2 => {
            bytes[*at..at + len].fill(0);
            "all zeroed"
        }
        _ => {
            bytes[first] ^= 1 << rng.below(8);
            "a bit flipped"
        }
    };
    put(dir, name, &bytes);
    Fault { row: how.into(), what: format!("{name}, the record at {at}, byte {first}") }
}

#[test]
fn a_damaged_durable_record_is_no_torn_tail() {
    let durable: Vec<&Golden> = all().iter().map(|tail| &tail.durable).collect();
    let records: Vec<_> = durable.iter().map(|golden| records(&golden.dir)).collect();
    assert!(records.iter().all(|records| records.len() == COMMITS), "{records:?}");
    let table =
        run_with("a durable record damaged", tails(), &durable, |trial, rng, golden, dir| {
            let record = rng.pick(&records[trial % durable.len()]);
            let fault = damage(rng, record, dir);
            Some((fault, examine(&golden.options, dir, &golden.model)))
        });
    assert_eq!(table.count(Outcome::Refused), tails(), "a damaged record passed");
}

/// Opens and finds one of `states`; with `lives_on` writes, and finds it all again.
async fn examine_prefix(
    options: &DBOptions,
    dir: &PathBuf,
    states: &[Model],
    lives_on: bool,
) -> Result<Outcome, String> {
    let text = |what: &str, error: seerdb::Error| format!("{what}: {error:?}");
    let db = options.open(dir).await.map_err(|error| text("FALSE ALARM", error))?;
    let found = content(&db).await?;
    if !states.iter().any(|state| live(state) == found) {
        return Err("the state is no prefix".into());
    }
    if lives_on {
        db.put("key-after", "after").await.map_err(|error| text("put", error))?;
    }
    db.close().await.map_err(|error| text("close", error))?;
    if !lives_on {
        return Ok(Outcome::Harmless);
    }
    let db = options.open(dir).await.map_err(|error| text("reopen", error))?;
    let mut again = content(&db).await?;
    let after = again.remove(b"key-after".as_slice());
    if after.as_deref() != Some(b"after") || again != found {
        return Err("another state after reopening".into());
    }
    db.close().await.map_err(|error| text("close again", error))?;
    Ok(Outcome::Harmless)
}

async fn content(db: &DB) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, String> {
    let items: Vec<_> = db.iter().collect().await;
    let mut found = BTreeMap::new();
    for item in items {
        let (key, value) = item.map_err(|error| format!("scan: {error:?}"))?;
        let got = db.get(&key).await.map_err(|error| format!("get: {error:?}"))?;
        if got.as_deref() != Some(&value[..]) {
            return Err("get and scan differ".into());
        }
        found.insert(key.to_vec(), value.to_vec());
    }
    Ok(found)
}

fn live(model: &Model) -> BTreeMap<Vec<u8>, Vec<u8>> {
    model.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect()
}
