//! Faults of whole files: cut short, missing, empty, replaced by another, swapped.

use std::path::Path;

use crate::golden::{self, Golden};
use crate::runner::{Fault, run};
use crate::single::{kind, kind_in, of_kinds};
use crate::support::{files, put, trials};

fn fault(name: &str, fault: &str, golden: &Golden, what: String) -> Fault {
    let log = golden.name.split(',').next().unwrap();
    let kind = kind_in(&golden.dir, name);
    Fault { row: format!("{kind:9} {fault:18} ({log})"), what: format!("{name}: {what}") }
}

/// Every file of every golden database, by the number of the trial.
fn nth_file(trial: usize, goldens: &[Golden]) -> Option<(&Golden, String)> {
    let golden = &goldens[trial % goldens.len()];
    let names = files(&golden.dir);
    names.get(trial / goldens.len()).map(|name| (golden, name.clone()))
}

/// Enough trials to visit every file of every golden database.
fn visits(goldens: &[Golden]) -> usize {
    goldens.iter().map(|golden| files(&golden.dir).len()).max().unwrap() * goldens.len()
}

#[test]
fn a_file_cut_short_is_never_a_silent_loss() {
    run("a file cut short", trials(8), golden::all(), |_, rng, golden, dir| {
        let drawn = *rng.pick(&["CURRENT", "MANIFEST", "WAL", "SST", "VALUES", "REWRITTEN"]);
        let names = of_kinds(dir, &[drawn]);
        if names.is_empty() {
            return None;
        }
        let name = rng.pick(&names).clone();
        let bytes = std::fs::read(dir.join(&name)).unwrap();
        // A manifest is allocated ahead: cut where it holds something, mostly.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let end = if rng.chance(80) { used } else { bytes.len() };
        let len = if rng.chance(10) { 0 } else { rng.below(end) };
        put(dir, &name, &bytes[..len]);
        Some(fault(&name, "cut short", golden, format!("{len} of {}", bytes.len())))
    });
}

#[test]
fn a_missing_file_is_never_a_silent_loss() {
    let goldens = golden::all();
    run("a file missing", visits(goldens), goldens, |trial, _, golden, dir| {
        let (_, name) = nth_file(trial, goldens)?;
        std::fs::remove_file(dir.join(&name)).unwrap();
        Some(fault(&name, "missing", golden, String::new()))
    });
}

#[test]
fn a_file_of_another_database_is_never_taken() {
    let goldens = golden::all();
    let title = "a file replaced by that of another database";
    run(title, visits(goldens), goldens, |trial, _, golden, dir| {
        let (_, name) = nth_file(trial, goldens)?;
        if !replace(&golden.other, &name, dir) {
            return None;
        }
        Some(fault(&name, "of another db", golden, String::new()))
    });
}

/// Puts the file `name` of `from` into `dir`; `false` when it is missing or the same.
fn replace(from: &Path, name: &str, dir: &Path) -> bool {
    let Ok(bytes) = std::fs::read(from.join(name)) else { return false };
    let differs = bytes != std::fs::read(dir.join(name)).unwrap();
    if differs {
        put(dir, name, &bytes);
    }
    differs
}

#[test]
fn an_older_copy_of_a_file_is_never_a_silent_loss() {
    let goldens = golden::all();
    let title = "a file replaced by an older copy of itself";
    run(title, 2 * visits(goldens), goldens, |trial, _, golden, dir| {
        let (_, name) = nth_file(trial % visits(goldens), goldens)?;
        let older = trial / visits(goldens);
        if is_last_log(golden, &golden.older[older], &name)
            || !replace(&golden.older[older], &name, dir)
        {
            return None;
        }
        let row = ["long older copy", "recent older copy"][older];
        Some(fault(&name, row, golden, String::new()))
    });
}

/// Whether nothing in the database can know that `name` was longer than in `older`: it is the
/// segment that its stream ends in. In the older copy the last segment was prepared, the one
/// before it active; each one made since says that one more of them was closed.
fn is_last_log(golden: &Golden, older: &Path, name: &str) -> bool {
    let logs = |dir: &Path| -> Vec<String> {
        of_kinds(dir, &[kind_in(dir, name)]).into_iter().rev().collect()
    };
    if !["WAL", "VALUES"].contains(&kind_in(&golden.dir, name)) {
        return false;
    }
    let then = logs(older);
    let made_since = logs(&golden.dir).iter().filter(|log| !then.contains(log)).count();
    then.iter().position(|log| log == name).is_some_and(|from_last| made_since + from_last < 2)
}

#[test]
fn two_swapped_files_are_never_a_silent_loss() {
    let goldens = golden::all();
    run("two files swapped", trials(16), goldens, |_, rng, golden, dir| {
        let drawn = *rng.pick(&["WAL", "SST", "VALUES"]);
        // A segment for a rewritten file is a swap too.
        let names: Vec<String> = files(dir).into_iter().filter(|n| kind(n) == drawn).collect();
        if names.is_empty() {
            return None;
        }
        let (a, b) = (rng.pick(&names), rng.pick(&names));
        if a == b {
            return None;
        }
        let between = dir.join("between");
        for (from, to) in [(a, &"between".into()), (b, a), (&"between".into(), b)] {
            std::fs::rename(dir.join(from), dir.join(to)).unwrap();
        }
        assert!(!between.exists());
        Some(fault(a, "swapped", golden, format!("with {b}")))
    });
}

#[test]
fn a_file_that_is_a_copy_of_another_is_never_taken() {
    let goldens = golden::all();
    run("a file replaced by another one", trials(16), goldens, |_, rng, golden, dir| {
        let names = files(dir);
        let (name, from) = (rng.pick(&names), rng.pick(&names));
        if name == from {
            return None;
        }
        put(dir, name, &std::fs::read(dir.join(from)).unwrap());
        Some(fault(name, "of another name", golden, format!("as {from}")))
    });
}
