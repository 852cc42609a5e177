//! The tests of the tests: every bug of `src/planted.rs` must be found (tier T14).
//!
//! This runs in a build with `--cfg seerdb_planted` alone. Each bug gets processes of its own: this
//! very program, with the tests that may find it, one after the other until one fails.

use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// The most CPU time that one finder may take for one bug.
const SECONDS_MAX: f64 = 60.0;
/// Ticks of a second in `/proc`; the same on all Linux systems.
const TICKS: f64 = 100.0;

/// The tests that may find a bug, quick ones first.
const FINDERS: [(&str, &str); 7] = [
    ("actions", "actions::"),
    ("regressions", "regressions::"),
    ("merging", "merging::"),
    ("values", "histories::values_in_the_log_keep_the_contract"),
    ("crash points", "exhaustive::every_crash_point_of_every_script"),
    ("error loops", "errors::every_operation_of_every_script_fails"),
    ("histories", "histories::histories_keep_the_contract"),
];

/// All bugs, as their declaration lists them.
fn bugs() -> Vec<&'static str> {
    let source = include_str!("../../src/planted.rs");
    let (_, list) = source.split_once("\nbugs! {\n").unwrap();
    let (list, _) = list.split_once("\n}\n").unwrap();
    let names = list.lines().filter_map(|line| line.trim().strip_suffix(','));
    names.filter(|name| name.chars().all(char::is_alphanumeric)).collect()
}

/// The CPU time of a child so far, in seconds.
fn cpu_seconds(child: &Child) -> Option<f64> {
    #[expect(clippy::disallowed_methods, reason = "the CPU time of a process stands in /proc")]
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / TICKS)
}

/// Whether the finder fails with the bug, and after how many CPU seconds it had ended.
fn runs_into(bug: &str, finder: &str) -> (bool, f64) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([finder, "--test-threads=1"])
        .env("SEERDB_PLANT", bug)
        .env("SEERDB_SIM_THREADS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut spent, start) = (0.0, Instant::now());
    loop {
        spent = cpu_seconds(&child).unwrap_or(spent);
        if let Some(status) = child.try_wait().unwrap() {
            return (!status.success(), spent);
        }
        if spent > SECONDS_MAX || start.elapsed() > Duration::from_secs(300) {
            child.kill().unwrap();
            child.wait().unwrap();
            return (false, spent);
        }
        #[expect(clippy::disallowed_methods, reason = "this waits for processes, not for a Sim")]
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Who found the bug, and the CPU seconds that it took.
fn hunt(bug: &str) -> (Option<&'static str>, f64) {
    let mut total = 0.0;
    for (name, finder) in FINDERS {
        let (found, spent) = runs_into(bug, finder);
        total += spent;
        if found {
            return (Some(name), total);
        }
    }
    (None, total)
}

#[test]
fn every_planted_bug_is_found() {
    if !cfg!(seerdb_planted) {
        eprintln!("no bugs are planted: build with RUSTFLAGS=\"--cfg seerdb_planted\"");
        return;
    }
    let only = std::env::var("SEERDB_PLANT_ONLY").unwrap_or_default();
    let bugs: Vec<&str> = bugs().into_iter().filter(|bug| bug.contains(&only)).collect();
    assert!(bugs.len() >= 30 || !only.is_empty(), "only {} bugs", bugs.len());
    let (next, missed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let (finder, seconds) = hunt(bug);
                    eprintln!("{bug:<26} {seconds:6.1} s  {}", finder.unwrap_or("NOT FOUND"));
                    if finder.is_none() {
                        missed.lock().unwrap().push(*bug);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().unwrap();
    assert!(missed.is_empty(), "{} bugs went unnoticed: {missed:?}", missed.len());
}
