//! Single faults: a bit, a sector.

use std::path::Path;

use crate::check::Outcome;
use crate::golden::{self, Golden};
use crate::runner::{Fault, Table, run};
use crate::support::{Rng, files, put, trials};

pub(crate) const SECTOR: usize = 512;

/// The type of a file by its name.
pub(crate) fn kind(name: &str) -> &'static str {
    match name {
        _ if name.starts_with("CURRENT") => "CURRENT",
        _ if name.starts_with("MANIFEST") => "MANIFEST",
        "LOCK" => "LOCK",
        _ if name.ends_with(".wal") => "WAL",
        _ if name.ends_with(".vlog") => "VALUES",
        _ => "SST",
    }
}

/// The same for a file of `dir`, which tells rewritten files of the value log from its segments.
pub(crate) fn kind_in(dir: &Path, name: &str) -> &'static str {
    match kind(name) {
        "VALUES" => {
            let bytes = std::fs::read(dir.join(name)).unwrap_or_default();
            if bytes.starts_with(b"seerlog\0") { "VALUES" } else { "REWRITTEN" }
        }
        kind => kind,
    }
}

/// The types of files, each of which every test damages equally often where there are such files.
const KINDS: [&str; 7] = ["CURRENT", "MANIFEST", "WAL", "SST", "LOCK", "VALUES", "REWRITTEN"];

/// The files of `dir` that are of one of these types.
pub(crate) fn of_kinds(dir: &Path, kinds: &[&str]) -> Vec<String> {
    files(dir).into_iter().filter(|name| kinds.contains(&kind_in(dir, name))).collect()
}

/// A file of the type whose turn it is in trial `trial` of each golden database.
fn draw_file(trial: usize, rng: &mut Rng, dir: &Path) -> Option<String> {
    let whose_turn = KINDS[trial / golden::all().len() % KINDS.len()];
    if whose_turn == "LOCK" {
        return Some("LOCK".into());
    }
    let names = of_kinds(dir, &[whose_turn]);
    (!names.is_empty()).then(|| rng.pick(&names).clone())
}

/// A sector of `bytes`, in four of five cases one that holds something.
fn draw_sector(rng: &mut Rng, bytes: &[u8]) -> usize {
    let sectors = bytes.len().div_ceil(SECTOR);
    let used: Vec<usize> = (0..sectors)
        .filter(|sector| sector_of(bytes, *sector).iter().any(|byte| *byte != 0))
        .collect();
    if !used.is_empty() && rng.chance(80) { *rng.pick(&used) } else { rng.below(sectors) }
}

fn sector_of(bytes: &[u8], sector: usize) -> &[u8] {
    &bytes[sector * SECTOR..bytes.len().min((sector + 1) * SECTOR)]
}

/// The sector with the last mark of a log, which begins it.
fn last_mark(bytes: &[u8]) -> Option<&[u8]> {
    bytes.chunks(SECTOR).rfind(|sector| sector.starts_with(&[0xED, 0x5E, 2]))
}

/// What happens to a sector.
#[derive(Clone, Copy)]
enum How {
    BitOrZeros,
    Garbage,
    Swap,
}

fn damage(how: How, name: &str, rng: &mut Rng, golden: &Golden, dir: &Path) -> Option<Fault> {
    // LOCK is empty: whatever stands in it matters to nobody.
    let bytes = std::fs::read(dir.join(name)).unwrap_or_default();
    let mut bytes = if bytes.is_empty() { rng.bytes(2 * SECTOR) } else { bytes };
    let sector = draw_sector(rng, &bytes);
    let start = sector * SECTOR;
    let len = sector_of(&bytes, sector).len();
    let (fault, offset) = match how {
        How::Garbage => {
            bytes[start..start + len].copy_from_slice(&rng.bytes(len));
            ("sector of garbage", start)
        }
        How::Swap => {
            let other = draw_sector(rng, &bytes);
            let other = other * SECTOR..bytes.len().min((other + 1) * SECTOR);
            // That takes the newest group together with the mark that proves it: two faults.
            let takes_mark = |sector: &[u8]| last_mark(&bytes).is_some_and(|mark| mark == sector);
            if other.len() != len
                || bytes[other.clone()] == bytes[start..start + len]
                || takes_mark(&bytes[other.clone()])
                || takes_mark(&bytes[start..start + len])
            {
                return None;
            }
            let (a, b) = (bytes[other.clone()].to_vec(), bytes[start..start + len].to_vec());
            bytes[start..start + len].copy_from_slice(&a);
            bytes[other].copy_from_slice(&b);
            ("sectors swapped", start)
        }
        How::BitOrZeros if rng.chance(60) => {
            let at = start + rng.below(len);
            bytes[at] ^= 1 << rng.below(8);
            ("bit flipped", at)
        }
        How::BitOrZeros => {
            bytes[start..start + len].fill(0);
            ("sector zeroed", start)
        }
    };
    put(dir, name, &bytes);
    let what = format!("{name} at {offset} of {}", bytes.len());
    let log = golden.name.split(',').next().unwrap();
    let kind = kind_in(&golden.dir, name);
    Some(Fault { row: format!("{kind:9} {fault:18} ({log})"), what })
}

fn damages(title: &str, share: usize, how: How) -> Table {
    run(title, trials(share), golden::all(), |trial, rng, golden, dir| {
        damage(how, &draw_file(trial, rng, dir)?, rng, golden, dir)
    })
}

#[test]
fn one_bit_or_one_sector_is_never_a_silent_loss() {
    let table = damages("one bit flipped or one sector zeroed", 2, How::BitOrZeros);
    // Two databases of six have a value log.
    let least = (trials(2) / KINDS.len() / 3).saturating_sub(6);
    for kind in KINDS {
        assert!(table.total(kind) >= least, "too few trials of {kind}");
    }
    for outcome in [Outcome::Harmless, Outcome::Refused, Outcome::ReadError] {
        assert!(table.count(outcome) > 0, "no trial was {outcome:?}");
    }
}

#[test]
fn a_sector_of_garbage_is_never_a_silent_loss() {
    damages("one sector replaced by random bytes", 8, How::Garbage);
}

#[test]
fn two_swapped_sectors_are_never_a_silent_loss() {
    damages("two sectors of a file swapped", 8, How::Swap);
}
