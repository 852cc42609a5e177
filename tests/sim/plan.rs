//! What kind of history a seed is: its class, its options, its faults.

use std::time::Duration;

use seerdb::{CompactionLimits, Compression, DBOptions, DailyWindow, Durability};
use seerdb_io::sim::{Chance, Faults};

/// What may go wrong in a history, besides kills and power cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Nothing: any error is a failure.
    Plain,
    /// Nothing, on a disk that breaks what lies beside pending writes, and any subset of names.
    Hostile,
    /// K1: operations fail, honestly.
    Honest,
    /// The disk is full at times.
    Full,
    /// K2: the medium lies.
    Lying,
    /// Nothing while it runs; while it is off a file is damaged.
    Damaged,
}

const ALL: [Class; 6] =
    [Class::Plain, Class::Hostile, Class::Honest, Class::Full, Class::Lying, Class::Damaged];

impl Class {
    fn draw(chance: &mut Chance) -> Class {
        match chance.below(20) {
            0..8 => Class::Plain,
            8..10 => Class::Hostile,
            10..15 => Class::Honest,
            15..17 => Class::Full,
            17..19 => Class::Lying,
            _ => Class::Damaged,
        }
    }

    /// Whether nothing that a client does may fail.
    pub(crate) fn is_perfect(self) -> bool {
        matches!(self, Class::Plain | Class::Hostile | Class::Damaged)
    }
}

/// How a history goes.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) class: Class,
    pub(crate) lives: u64,
    pub(crate) clients: u32,
    /// The most operations of a client in a life.
    pub(crate) ops: u64,
    /// A life is cut within so many file operations.
    pub(crate) span: u64,
    /// Of a hundred writes, how many follow the durability of the database.
    pub(crate) plain_writes: u64,
    pub(crate) drops_futures: bool,
    pub(crate) faults: Faults,
}

/// The class to look at alone, from the environment.
fn class_wanted() -> Option<Class> {
    let wanted = std::env::var("SEERDB_SIM_CLASS").ok()?;
    let class = ALL.into_iter().find(|class| format!("{class:?}").eq_ignore_ascii_case(&wanted));
    Some(class.unwrap_or_else(|| panic!("SEERDB_SIM_CLASS is one of {ALL:?}")))
}

impl Plan {
    pub(crate) fn draw(chance: &mut Chance) -> Plan {
        let drawn = Class::draw(chance);
        let class = class_wanted().unwrap_or(drawn);
        let mut faults = match class {
            Class::Honest => Faults::swarm(chance),
            Class::Lying => Faults::swarm_lying(chance),
            _ => Faults::none(),
        };
        if class == Class::Lying && chance.one_in(2) {
            // The medium lies, and nothing else goes wrong.
            faults.write_error = 0;
            faults.sync_error = 0;
            faults.name_error = 0;
        }
        Plan {
            class,
            lives: chance.between(1, 4),
            clients: u32::try_from(chance.between(1, 8)).unwrap(),
            ops: *chance.pick(&[4, 10, 25, 60]).unwrap(),
            span: *chance.pick(&[100, 250, 600]).unwrap(),
            plain_writes: *chance.pick(&[0, 50, 100]).unwrap(),
            drops_futures: chance.one_in(2),
            faults,
        }
    }
}

/// From which length on values stay in the log, if any do.
pub(crate) fn draw_threshold(chance: &mut Chance) -> Option<usize> {
    *chance.pick(&[None, None, Some(1), Some(60), Some(300)]).unwrap()
}

/// Options so small that flushes, rotations and merges happen within a hundred operations.
pub(crate) fn draw_options(chance: &mut Chance) -> DBOptions {
    let pick = |chance: &mut Chance, all: &[usize]| *chance.pick(all).unwrap();
    let durability = [Durability::Synced, Durability::Written, Durability::Buffered];
    let ratio = pick(chance, &[2, 3, 4, 6]);
    let runs = |chance: &mut Chance| chance.index(ratio - 1) + 1;
    // What an adaptive tree begins with.
    let adaptive = 3.min(ratio - 1);
    let compression = if chance.one_in(2) { Compression::Lz4 } else { Compression::None };
    let options = DBOptions::new()
        .memory_budget(1 << 20)
        .memtable_bytes(pick(chance, &[1 << 10, 2 << 10, 4 << 10, 32 << 10]))
        .wal_segment_bytes(pick(chance, &[16 << 10, 16 << 10, 32 << 10, 64 << 10]))
        .block_bytes(pick(chance, &[64, 256, 1024, 4096]))
        .table_bytes(pick(chance, &[1 << 10, 1 << 10, 4 << 10, 16 << 10]))
        .cache_bytes(pick(chance, &[0, 8 << 10, 256 << 10]))
        .filter_bits_per_key([0.0, 4.0, 10.0][chance.index(3)])
        .durability(*chance.pick(&durability).unwrap())
        .buffered_delay(Duration::from_micros([0, 300, 10_000][chance.index(3)]))
        .compression(compression)
        .size_ratio(ratio)
        .runs_per_level(Some(runs(chance)).filter(|&runs| runs != adaptive))
        .runs_last_level(runs(chance));
    let threshold = draw_threshold(chance);
    let segment = pick(chance, &[16 << 10, 32 << 10]);
    let amplification = [1.1, 1.1, 1.5, 3.0][chance.index(4)];
    let age = *chance.pick(&[None, None, Some(1), Some(3), Some(60)]).unwrap();
    let limits = if chance.one_in(4) { draw_limits(chance) } else { CompactionLimits::default() };
    options
        .tombstone_age(age.map(Duration::from_secs))
        .compaction_limits(limits)
        .value_threshold(threshold)
        .value_segment_bytes(segment)
        .max_space_amplification(amplification)
        .direct_io(chance.one_in(3))
}

/// Limits that can be felt by trees as small as these, each of them or not.
pub(crate) fn draw_limits(chance: &mut Chance) -> CompactionLimits {
    let rate = *chance.pick(&[None, Some(1 << 20), Some(3 << 20)]).unwrap();
    let micros = *chance.pick(&[None, Some(10), Some(100), Some(5_000)]).unwrap();
    let hours = |chance: &mut Chance| Duration::from_secs(3600 * chance.below(25));
    let window = chance.one_in(3).then(|| DailyWindow::new(hours(chance), hours(chance)));
    CompactionLimits::default()
        .bytes_per_second(rate)
        .latency_target(micros.map(Duration::from_micros))
        .off_peak(window)
}

/// Limits that are none.
pub(crate) fn draw_absurd_limits(chance: &mut Chance) -> CompactionLimits {
    let limits = draw_limits(chance);
    match chance.below(3) {
        0 => limits.bytes_per_second(chance.below(1 << 20)),
        1 => limits.latency_target(Duration::from_nanos(chance.below(10_000))),
        _ => {
            let late = Duration::from_secs(86_401 + chance.below(100_000));
            limits.off_peak(DailyWindow::new(Duration::ZERO, late))
        }
    }
}

/// Options of which one contradicts another, or is out of its range.
pub(crate) fn draw_contradiction(chance: &mut Chance, options: DBOptions) -> DBOptions {
    let ratio = usize::try_from(chance.between(2, 64)).unwrap();
    let beyond = ratio + chance.index(5);
    match chance.below(6) {
        0 => options.size_ratio(ratio).runs_per_level(beyond).runs_last_level(1),
        1 => options.size_ratio(ratio).runs_per_level(None).runs_last_level(beyond),
        2 => options.size_ratio(chance.index(2)).runs_per_level(None).runs_last_level(1),
        3 => options.size_ratio(65 + chance.index(100)).runs_per_level(1).runs_last_level(1),
        4 => options.tombstone_age(Duration::from_millis(chance.below(1000))),
        _ => options.compaction_limits(draw_absurd_limits(chance)),
    }
}
