//! Runs trials on two threads and tells what came of them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::check::{Outcome, examine};
use crate::golden::Golden;
use crate::support::{Rng, digest, link_dir, scratch, seed};

/// What was done to a copy.
pub(crate) struct Fault {
    /// The row of the table.
    pub(crate) row: String,
    /// Enough to find it again.
    pub(crate) what: String,
}

/// Links, damages and examines `trials` times; panics with all violations.
///
/// `damage` gets the number of the trial, a generator seeded by it, the golden database and the
/// directory of links to its files; `None` when there is nothing to damage.
pub(crate) fn run(
    title: &str,
    trials: usize,
    goldens: &[Golden],
    damage: impl Fn(usize, &mut Rng, &Golden, &std::path::Path) -> Option<Fault> + Sync,
) -> Table {
    let goldens: Vec<&Golden> = goldens.iter().collect();
    run_with(title, trials, &goldens, |trial, rng, golden, dir| {
        let fault = damage(trial, rng, golden, dir)?;
        let result = examine(&golden.options, dir, &golden.model);
        Some((fault, result))
    })
}

/// The counts of a run.
pub(crate) struct Table {
    pub(crate) rows: BTreeMap<String, BTreeMap<Outcome, usize>>,
}

impl Table {
    /// How often `outcome` came.
    pub(crate) fn count(&self, outcome: Outcome) -> usize {
        self.rows.values().filter_map(|row| row.get(&outcome)).sum()
    }

    /// How many trials have a row that begins with `prefix`.
    pub(crate) fn total(&self, prefix: &str) -> usize {
        let rows = self.rows.iter().filter(|(row, _)| row.starts_with(prefix));
        rows.flat_map(|(_, counts)| counts.values()).sum()
    }
}

/// As [`run`], with an examination of the caller's own.
pub(crate) fn run_with(
    title: &str,
    trials: usize,
    goldens: &[&Golden],
    trial: impl Fn(usize, &mut Rng, &Golden, &std::path::Path) -> Option<Judged> + Sync,
) -> Table {
    let scratch = scratch();
    let before: Vec<u64> = goldens.iter().map(|golden| digest(&golden.dir)).collect();
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(BTreeMap::<String, BTreeMap<Outcome, usize>>::new());
    let violations = Mutex::new(Vec::new());
    let seed = seed();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    if number >= trials {
                        return;
                    }
                    let golden = goldens[number % goldens.len()];
                    let dir = scratch.path().join(format!("trial-{number}"));
                    link_dir(&golden.dir, &dir);
                    let mut rng = Rng(seed ^ (number as u64).wrapping_mul(0xA24B_AED4_963E_E407));
                    if let Some((fault, result)) = trial(number, &mut rng, golden, &dir) {
                        match result {
                            Ok(outcome) => {
                                let mut rows = rows.lock().unwrap();
                                *rows.entry(fault.row).or_default().entry(outcome).or_default() +=
                                    1;
                            }
                            Err(why) => violations.lock().unwrap().push(format!(
                                "trial {number} ({}), {}: {}: {why}",
                                golden.name, fault.row, fault.what
                            )),
                        }
                    }
                    std::fs::remove_dir_all(&dir).unwrap();
                }
            });
        }
    });
    let table = Table { rows: rows.into_inner().unwrap() };
    print(title, &table, started.elapsed());
    let after: Vec<u64> = goldens.iter().map(|golden| digest(&golden.dir)).collect();
    assert_eq!(after, before, "{title}: a file of an earlier life was written to");
    let violations = violations.into_inner().unwrap();
    assert!(violations.is_empty(), "{title}: {} of {trials}:\n{}", violations.len(), {
        violations.join("\n")
    });
    table
}

/// A fault and what came of it.
pub(crate) type Judged = (Fault, Result<Outcome, String>);

fn print(title: &str, table: &Table, took: Duration) {
    use Outcome::{Harmless, ReadError, Refused};
    let mut text = format!(
        "\n{title}, {:.1} s\n{:44} {:>9} {:>9} {:>10}\n",
        took.as_secs_f64(),
        "file and fault",
        "harmless",
        "refused",
        "read error"
    );
    for (row, counts) in &table.rows {
        let [harmless, refused, error] = [Harmless, Refused, ReadError]
            .map(|outcome| counts.get(&outcome).copied().unwrap_or(0));
        text.push_str(&format!("{row:44} {harmless:>9} {refused:>9} {error:>10}\n"));
    }
    eprintln!("{text}");
}
