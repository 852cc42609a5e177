//! Costs and choices as text tables.

use super::*;
use crate::compaction::policy::Shape;

fn shape(runs_upper: usize) -> Shape {
    Shape {
        size_ratio: 4,
        runs_upper,
        runs_last: 1,
        unit_bytes: 1 << 20,
        table_bytes: 1 << 20,
        filter_bits: 10.0,
    }
}

/// A tree of five levels, with candidates 1 to 3.
fn sight() -> Sight {
    let last_bytes = 600 << 20;
    assert_eq!(shape(3).level_for(1, last_bytes), 4);
    let costs: Vec<TreeCosts> = (1..=3).map(|k| shape(k).expected_costs(4, last_bytes)).collect();
    assert_eq!(costs[0].levels, 5);
    Sight { costs, turnover_bytes: shape(3).capacity(3) }
}

/// Adds `name=count` words; `bytes` are those of each put, `flushed` mebibytes.
fn count(totals: &mut Totals, text: &str) {
    let words: Vec<(&str, u64)> = text
        .split_whitespace()
        .map(|word| word.split_once('=').unwrap())
        .map(|(name, value)| (name, value.parse().unwrap()))
        .collect();
    let value = |wanted: &str| words.iter().find(|(name, _)| *name == wanted).map(|word| word.1);
    for (name, value) in &words {
        match *name {
            "bytes" => continue,
            "puts" => &mut totals.puts,
            "memory" => &mut totals.gets_memory,
            "found" => &mut totals.gets_found,
            "absent" => &mut totals.gets_absent,
            "short" => &mut totals.scans_short,
            "long" => &mut totals.scans_long,
            "flushed" => {
                totals.flushed_puts += 1000;
                totals.flushed_bytes += value << 20;
                continue;
            }
            "hits" => {
                totals.hits.nanos += value * 200;
                &mut totals.hits.count
            }
            "misses" => {
                totals.misses.nanos += value * 90_000;
                &mut totals.misses.count
            }
            other => panic!("what is {other}?"),
        }
        .add_assign(*value);
    }
    totals.put_bytes += value("puts").unwrap_or(0) * value("bytes").unwrap_or(0);
}

trait AddAssign {
    fn add_assign(&mut self, value: u64);
}

impl AddAssign for u64 {
    fn add_assign(&mut self, value: u64) {
        *self += value;
    }
}

/// LEARNED 6: leveling is for scans and absent keys, lazy leveling for puts, and what stands in
/// memory is for neither.
#[test]
fn costs_of_typical_mixes() {
    let cases = [
        // Operations of a window, then the nanoseconds of each K.
        ("puts=10000 bytes=116", "6037 4228 3474 0"),
        ("puts=10000 bytes=1040", "54126 37911 31143 0"),
        ("absent=10000", "633 878 1122 1"),
        ("found=10000 hits=10000", "624 793 962 1"),
        ("found=10000 misses=10000", "92406 92839 93268 0"),
        ("short=10000", "3500 4900 6300 1"),
        ("long=10000", "3500 4900 6300 1"),
        ("memory=10000", "0 0 0 0"),
        ("puts=5000 bytes=116 found=5000 hits=5000", "3331 2511 2218 0"),
        ("puts=9000 bytes=116 short=1000", "5783 4296 3756 0"),
        ("puts=5000 bytes=1040 short=5000", "28813 21405 18721 0"),
    ];
    for (operations, expected) in cases {
        let mut chooser = Chooser::new(3, Duration::ZERO);
        let mut totals = Totals::default();
        count(&mut totals, operations);
        let look = chooser.look(WINDOW, &totals, sight);
        assert_eq!(look, Look { switched: None, again_in: Some(WINDOW) });
        let explained = chooser.explain(WINDOW, &totals);
        let costs = explained.costs.iter().map(|cost| format!("{:.0}", cost.nanos));
        let found = format!("{} {}", costs.collect::<Vec<_>>().join(" "), explained.better_for);
        assert_eq!(found, expected, "{operations}");
    }
}

/// A script: each line the second and what was done since the line before, then what came of it:
/// K, for how many windows another was better, `held`, and when to look again.
fn play(runs: usize, script: &[(&str, &str)]) {
    let mut totals = Totals::default();
    let mut chooser = Chooser::new(runs, Duration::ZERO);
    let mut runs = runs;
    for (step, expected) in script {
        let (at, done) = step.split_once(':').unwrap();
        let now = Duration::from_secs(at.trim().parse().unwrap());
        count(&mut totals, done);
        let look = chooser.look(now, &totals, sight);
        runs = look.switched.unwrap_or(runs);
        let explained = chooser.explain(now, &totals);
        let mut found = format!("{runs} {}", explained.better_for);
        if explained.is_held {
            found += " held";
        }
        match look.again_in {
            Some(time) => found += &format!(" in {}", time.as_secs()),
            None => found += " asleep",
        }
        assert_eq!(found, *expected, "{step}");
    }
}

#[test]
fn a_switch_takes_three_windows_in_a_row() {
    play(
        3,
        &[
            ("4: short=5000", "3 0 in 6"),
            ("10: short=1000", "3 1 in 10"),
            ("20: short=5000", "3 2 in 10"),
            // A window that disagrees begins the count anew.
            ("30: puts=90000 bytes=1000", "3 0 in 10"),
            ("40: short=5000", "3 0 in 10"),
            ("50: short=5000", "3 1 in 10"),
            ("60: short=5000", "3 2 in 10"),
            // One of too little goes on, and does not break the row.
            ("70: short=10", "3 2 in 10"),
            ("80: short=5000", "1 0 held in 10"),
        ],
    );
}

#[test]
fn after_a_switch_k_is_held() {
    let down = [
        ("10: short=5000", "3 1 in 10"),
        ("20: short=5000", "3 2 in 10"),
        ("30: short=5000", "1 0 held in 10"),
    ];
    let after = |rest: &[(&'static str, &'static str)]| {
        let script: Vec<_> = down.iter().chain(rest).copied().collect();
        play(3, &script);
    };
    // The level above the last holds 256 MiB: flushed once over, K may change again.
    after(&[
        ("40: puts=90000 flushed=100", "1 1 held in 10"),
        ("50: puts=90000 flushed=100", "1 2 held in 10"),
        ("60: puts=90000 flushed=50", "1 3 held in 10"),
        ("70: puts=90000 flushed=6", "3 0 held in 10"),
    ]);
    // Without flushes a minute of windows will do; windows of little else count as well.
    after(&[
        ("40: puts=90000 bytes=1000", "1 1 held in 10"),
        ("50: puts=90000 bytes=1000", "1 2 held in 10"),
        ("60: puts=90000 bytes=1000", "1 3 held in 10"),
        ("70: puts=90000 bytes=1000", "1 4 held in 10"),
        ("80: puts=90000 bytes=1000", "1 5 held in 10"),
        ("90: puts=90000 bytes=1000", "3 0 held in 10"),
    ]);
}

/// The longest way for a phase of reads: K was turned up just before it began.
#[test]
fn a_phase_of_reads_settles_within_three_minutes() {
    let script = [
        ("10: puts=90000 flushed=1", "1 1 in 10"),
        ("20: puts=90000 flushed=1", "1 2 in 10"),
        ("30: puts=90000 flushed=1", "3 0 held in 10"),
        // The puts of a kilobyte are forgotten.
        ("40: absent=900000", "3 0 held in 10"),
        ("50: absent=900000", "3 0 held in 10"),
        ("60: absent=900000", "3 0 held in 10"),
        ("70: absent=900000", "3 1 held in 10"),
        ("80: absent=900000", "3 2 held in 10"),
        ("90: absent=900000", "1 0 held in 10"),
    ];
    play(1, &script);
}

#[test]
fn an_idle_database_is_not_looked_at() {
    play(
        3,
        &[
            ("0:", "3 0 asleep"),
            ("60:", "3 0 asleep"),
            ("100: found=9", "3 0 in 10"),
            // Nothing since: asleep, until something is done.
            ("110:", "3 0 asleep"),
            ("111: found=9", "3 0 in 9"),
            ("120: found=9000 hits=9", "3 1 in 10"),
            ("130:", "3 1 asleep"),
        ],
    );
}

#[test]
fn a_clock_that_jumps_switches_nothing() {
    play(
        3,
        &[
            // On: one window, however long.
            ("1000000000: short=5000", "3 1 in 10"),
            ("1000000001: short=5000", "3 1 in 9"),
            ("2000000000: short=5000", "3 2 in 10"),
            // Back: the window begins anew.
            ("5: short=5000", "3 2 in 10"),
            ("14: short=5000", "3 2 in 1"),
            ("15: short=5000", "1 0 held in 10"),
            // A leap is no minute without flushes.
            ("9000000000: puts=90000 bytes=1000", "1 1 held in 10"),
            ("9000000010: puts=90000 bytes=1000", "1 2 held in 10"),
            ("9000000020: puts=90000 bytes=1000", "1 3 held in 10"),
        ],
    );
}

#[test]
fn the_fewest_runs_leave_nothing_to_choose() {
    let mut chooser = Chooser::new(1, Duration::ZERO);
    let sight = || Sight { costs: vec![shape(1).expected_costs(4, 1 << 30)], turnover_bytes: 1 };
    let mut totals = Totals::default();
    for window in 1..20 {
        count(&mut totals, "puts=90000 bytes=1000 flushed=100");
        assert_eq!(chooser.look(WINDOW * window, &totals, sight).switched, None);
    }
}

#[test]
fn terms_are_defaults_until_enough_samples_exist() {
    let mut term = Term::new(120.0);
    let nanos = |count, each| Sample { count, nanos: count * each };
    assert_eq!(term.nanos(), 120.0);
    term.fold(nanos(5000, 40));
    assert_eq!(term.nanos(), 80.0);
    term.fold(nanos(5000, 40));
    assert_eq!(term.nanos(), 40.0);
    term.fold(nanos(10_000, 40));
    // From then on what is old counts half with every window.
    term.fold(nanos(10_000, 100));
    assert_eq!(term.nanos(), 70.0);
    term.fold(Sample { count: u64::MAX, nanos: u64::MAX });
    term.fold(Sample { count: u64::MAX, nanos: u64::MAX });
    assert!(term.nanos().is_finite());
}
