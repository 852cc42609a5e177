//! Random histories of the engine on a simulated machine: many clients, power cuts, kills, faults.
//!
//! Every seed is one history. The environment says which and how many:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `SEERDB_SIM_SEED` | the first seed | 0 |
//! | `SEERDB_SIM_HISTORIES` | how many | a few hundred; 1 with a seed |
//! | `SEERDB_SIM_SECONDS` | go on for this time instead | |
//! | `SEERDB_SIM_THREADS` | threads | one for each core |
//! | `SEERDB_SIM_CLASS` | this class only, see `plan.rs` | all |
//! | `SEERDB_SIM_VALUES` | values stay in the log in every life | in three of five |
//! | `SEERDB_SIM_TRACE` | print all file operations of a failing history | |

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::history::{Report, play};

/// What must happen now and then, or the histories are too tame.
const SOMETIMES: [&str; 32] = [
    "opens with a value log",
    "values rewritten",
    "value files dropped as dead",
    "value files kept for readers",
    "recoveries that copied values",
    "reads of values that no file has",
    "reads of rewritten values",
    "values read side by side",
    "snapshots read across a rewrite",
    "no orphaned values after a while",
    "flushes",
    "merges",
    "stalled writes",
    "recoveries cut",
    "kills",
    "power cuts",
    "closed",
    "acks found on the disk",
    "acknowledged commits lost in a cut",
    "commits nobody was told of",
    "commits indeterminate",
    "commits refused",
    "commits dropped",
    "snapshots read across a merge",
    "writes after a full disk",
    "no orphans after a while",
    "damage refused",
    "damage survived",
    "damage told by an open",
    "the sync fails",
    "the write fails",
    "the read fails once",
];
const SOMETIMES_ERRORS: [&str; 6] = [
    "NoSpace of Write",
    "FailStop of Write",
    "Indeterminate of Write",
    "Io of Read",
    "Corruption of Read",
    "Closed of Write",
];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

/// Plays histories on all threads until there are no more, or one has failed.
fn play_all(
    first: u64,
    count: u64,
    time: Option<Duration>,
    threads: usize,
    values: bool,
) -> (Report, f64) {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let total = Mutex::new(Report::default());
    let failed = Mutex::new(Vec::new());
    let start = Instant::now();
    let work = || {
        let mut sum = Report::default();
        while !stop.load(Ordering::Relaxed) && time.is_none_or(|time| start.elapsed() < time) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if time.is_none() && seed >= first + count {
                break;
            }
            match catch_unwind(AssertUnwindSafe(|| play(seed, values))) {
                Ok(report) => sum.add(&report),
                Err(_) => {
                    failed.lock().unwrap().push(seed);
                    let keeps_on = std::env::var_os("SEERDB_SIM_KEEP_ON").is_some();
                    stop.store(!keeps_on, Ordering::Relaxed);
                    tell(seed, values);
                }
            }
        }
        total.lock().unwrap().add(&sum);
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "histories failed: {failed:?}; see above how to repeat them");
    (total.into_inner().unwrap(), start.elapsed().as_secs_f64() / 60.0)
}

fn tell(seed: u64, values: bool) {
    let values = if values { "SEERDB_SIM_VALUES=1 " } else { "" };
    let class = std::env::var("SEERDB_SIM_CLASS").map(|class| format!("SEERDB_SIM_CLASS={class} "));
    eprintln!(
        "history {seed} failed; repeat it with:\n  {}{values}SEERDB_SIM_SEED={seed} \
         cargo test --test sim --all-features -- histories",
        class.unwrap_or_default()
    );
}

#[test]
fn histories_keep_the_contract() {
    let seed = number("SEERDB_SIM_SEED");
    let count = number("SEERDB_SIM_HISTORIES").unwrap_or(if seed.is_some() { 1 } else { 400 });
    let time = number("SEERDB_SIM_SECONDS").map(Duration::from_secs);
    let cores = || std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let threads = usize::try_from(number("SEERDB_SIM_THREADS").unwrap_or_else(cores)).unwrap();
    let values = std::env::var_os("SEERDB_SIM_VALUES").is_some();
    let (report, minutes) = play_all(seed.unwrap_or(0), count, time, threads, values);
    eprintln!(
        "{} histories, {} lives, {} crashes, {} operations: {:.0} histories and {:.0} crashes a \
         minute on {threads} threads",
        report.histories,
        report.lives,
        report.crashes,
        report.operations,
        report.histories as f64 / minutes,
        report.crashes as f64 / minutes,
    );
    for (what, count) in report.probes.iter() {
        eprintln!("{count:>10} {what}");
    }
    for (what, count) in report.errors.iter() {
        eprintln!("{count:>10} errors: {what}");
    }
    if report.histories >= 2_000 && std::env::var_os("SEERDB_SIM_CLASS").is_none() {
        let tame = SOMETIMES.iter().filter(|what| report.probes.get(*what).copied() < Some(1));
        let errors = SOMETIMES_ERRORS.iter().filter(|what| !report.errors.contains_key(**what));
        let never: Vec<_> = tame.chain(errors).collect();
        assert!(never.is_empty(), "in {} histories never: {never:?}", report.histories);
    }
}

/// So that bugs of the value log are found soon.
#[test]
fn values_in_the_log_keep_the_contract() {
    play_all(1_000_000, 800, None, 1, true);
}

#[test]
fn the_same_seed_is_the_same_history() {
    let first = number("SEERDB_SIM_SEED").unwrap_or(0);
    for seed in first..first + 20 {
        let (one, other) = (play(seed, false), play(seed, false));
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!(one.probes, other.probes, "seed {seed}");
    }
}
