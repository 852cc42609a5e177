//! Opens a damaged copy, reads everything every way, and judges what comes out.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Once, mpsc};
use std::time::Duration;

use seerdb::{DB, DBOptions, Durability, Error, ErrorKind};

use crate::golden::Model;

/// No trial takes a hundredth of this.
const DEADLINE: Duration = Duration::from_secs(60);

/// The allowed outcomes of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Every key reads right.
    Harmless,
    /// The open failed with a corruption that names file and offset.
    Refused,
    /// Some reads failed so; all others read right.
    ReadError,
}

/// Opens the database in `dir` and reads all of it. `Err` says what is wrong with the engine.
///
/// A database whose fault was harmless also lives on: a write, a close, another look.
pub(crate) fn examine(options: &DBOptions, dir: &Path, model: &Model) -> Result<Outcome, String> {
    let (options, dir, model) = (options.clone(), dir.to_path_buf(), model.clone());
    within_deadline(move || futures::executor::block_on(examine_async(&options, &dir, &model)))
}

/// Runs `trial` on a thread of its own, which must neither panic nor outlive the deadline; nor may
/// a task of the engine panic meanwhile.
pub(crate) fn within_deadline<T, F>(trial: F) -> Result<T, String>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, String> + Send + 'static,
{
    let before = panics();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(trial))
            .unwrap_or_else(|_| Err("PANIC on the caller's thread".into()));
        sender.send(result).ok();
    });
    let result = receiver
        .recv_timeout(DEADLINE)
        .unwrap_or_else(|_| Err(format!("HANG: no result after {DEADLINE:?}")));
    if panics() != before {
        return Err("PANIC".into());
    }
    result
}

/// How many panics there were in this process.
fn panics() -> usize {
    static HOOK: Once = Once::new();
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // A test that fails beside this one is no fault of the engine's.
            let is_test = info.location().is_some_and(|at| at.file().starts_with("tests/"));
            PANICS.fetch_add(usize::from(!is_test), Ordering::SeqCst);
            usual(info);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}

async fn examine_async(options: &DBOptions, dir: &Path, model: &Model) -> Result<Outcome, String> {
    let db = match options.open(dir).await {
        Ok(db) => db,
        Err(error) => {
            check_error("open", &error, dir)?;
            return Ok(Outcome::Refused);
        }
    };
    let mut outcome = read_all(&db, dir, model).await?;
    let mut model = model.clone();
    if outcome == Outcome::Harmless {
        let put = db.put("key-after", "after").durability(Durability::Synced).await;
        put.map_err(|error| format!("cannot write after a harmless fault: {error:?}"))?;
        model.insert(b"key-after".to_vec(), Some(b"after".to_vec()));
    }
    let closed = db.close().await;
    drop(db);
    if outcome == Outcome::Harmless {
        closed.map_err(|error| format!("cannot close after a harmless fault: {error:?}"))?;
        let db = options.open(dir).await;
        let db = db.map_err(|error| format!("cannot reopen: {error:?}"))?;
        let again = read_all(&db, dir, &model).await?;
        db.close().await.map_err(|error| format!("cannot close again: {error:?}"))?;
        outcome = outcome.max(again);
        if again != Outcome::Harmless {
            return Err(format!("harmless first, {again:?} after reopening"));
        }
    }
    Ok(outcome)
}

/// Every key by get, forward and in reverse.
pub(crate) async fn read_all(db: &DB, dir: &Path, model: &Model) -> Result<Outcome, String> {
    let mut outcome = Outcome::Harmless;
    for (key, expected) in model {
        match db.get(key).await {
            Ok(found) => compare("get", key, found.as_deref(), expected.as_deref())?,
            Err(error) => {
                check_error("get", &error, dir)?;
                outcome = Outcome::ReadError;
            }
        }
    }
    let live: BTreeMap<&[u8], &[u8]> =
        model.iter().filter_map(|(key, value)| Some((key.as_slice(), value.as_deref()?))).collect();
    let forward: Vec<_> = live.iter().map(|(key, value)| (*key, *value)).collect();
    let reverse: Vec<_> = forward.iter().rev().copied().collect();
    for (name, stream, expected) in
        [("scan", db.iter(), forward), ("reverse scan", db.iter().rev(), reverse)]
    {
        if !scan(name, stream, &expected, dir).await? {
            outcome = Outcome::ReadError;
        }
    }
    Ok(outcome)
}

/// Whether the stream came to its end; if not, what it gave out before must be right.
async fn scan(
    name: &str,
    mut stream: seerdb::RangeStream,
    expected: &[(&[u8], &[u8])],
    dir: &Path,
) -> Result<bool, String> {
    let mut expected = expected.iter();
    loop {
        match stream.try_next().await {
            Ok(Some((key, value))) => {
                let Some((right, right_value)) = expected.next() else {
                    return Err(format!("RESURRECTED: {name} has {} at its end", text(&key)));
                };
                if key != *right {
                    let (key, right) = (text(&key), text(right));
                    return Err(format!("LOST or RESURRECTED: {name}: {key} instead of {right}"));
                }
                compare(name, &key, Some(&value), Some(right_value))?;
            }
            Ok(None) => match expected.next() {
                None => return Ok(true),
                Some((key, _)) => {
                    return Err(format!("LOST: {name} ends before {}", text(key)));
                }
            },
            Err(error) => {
                check_error(name, &error, dir)?;
                return Ok(false);
            }
        }
    }
}

fn compare(
    name: &str,
    key: &[u8],
    found: Option<&[u8]>,
    expected: Option<&[u8]>,
) -> Result<(), String> {
    let verdict = match (found, expected) {
        (found, expected) if found == expected => return Ok(()),
        (None, _) => "LOST",
        (Some(_), None) => "RESURRECTED",
        (Some(_), Some(_)) => "WRONG VALUE",
    };
    Err(format!("{verdict}: {name} of {}", text(key)))
}

fn check_error(name: &str, error: &Error, dir: &Path) -> Result<(), String> {
    if error.kind() != ErrorKind::Corruption {
        return Err(format!("{name} failed with another kind: {error:?}"));
    }
    let Some((path, offset)) = error.location() else {
        return Err(format!("{name} failed without a location: {error:?}"));
    };
    // A file that is gone has no length; the error names it at offset 0.
    let len = std::fs::metadata(path).map_or(0, |found| found.len());
    if path.parent() != Some(dir) || offset > len {
        return Err(format!("{name} failed with a wrong location: {error:?}"));
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
