//! What kind of history a seed is: its class, its options, its faults.

use std::time::Duration;

use seerdb::{Compression, DBOptions, Durability};
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
        .table_bytes(pick(chance, &[1 << 10, 4 << 10, 16 << 10]))
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
    options
        .value_threshold(threshold)
        .value_segment_bytes(segment)
        .max_space_amplification(amplification)
        .direct_io(chance.one_in(3))
}
