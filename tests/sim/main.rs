//! The engine on a simulated machine: power cuts, kills and reopening, by the hundred.
//!
//! Every seed is one machine with a few lives. In each life clients write keys of their own with
//! all durabilities; the life ends at a random operation, also while the database is being opened.
//! The next life must find every write that was acknowledged as durable, and a prefix of the
//! commit order. `SEERDB_SIM_SEED` repeats one seed, `SEERDB_SIM_SEEDS` sets how many are tried.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_types,
    reason = "tests look at the engine from outside, and a panic is how they fail"
)]

mod actions;
mod book;
mod errors;
mod exhaustive;
mod history;
mod look;
mod planted;
mod script;
mod scripts;

use history::{Machine, Rules};

/// The seeds to try: one from the environment, or this many.
fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    match number("SEERDB_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEERDB_SIM_SEEDS").unwrap_or(count),
    }
}

#[test]
fn what_is_acknowledged_survives() {
    let start = std::time::Instant::now();
    let (mut cycles, mut writes, mut count) = (0, 0, 0);
    for seed in seeds(300) {
        let mut machine = Machine::new(seed, Rules::default());
        machine.play(4);
        cycles += machine.lives;
        writes += machine.writes;
        count += 1;
    }
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    eprintln!(
        "{count} seeds, {cycles} lives, {writes} writes: {:.0} lives per minute",
        f64::from(cycles) / minutes
    );
}

#[test]
fn the_same_seed_is_the_same_history() {
    let mut merges = 0;
    for seed in seeds(20) {
        let run = || {
            let mut machine = Machine::new(seed, Rules { large: true });
            machine.play(2);
            (machine.trace_hash(), machine.merges)
        };
        let (first, second) = (run(), run());
        assert_eq!(first, second, "seed {seed}");
        merges += first.1;
    }
    assert!(merges > 20 || std::env::var_os("SEERDB_SIM_SEED").is_some(), "{merges} merges");
}
