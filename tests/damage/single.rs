//! Single faults: a bit, a sector.

use std::path::Path;

use crate::check::Outcome;
use crate::golden::{self, Golden};
use crate::runner::{Fault, run};
use crate::support::{Rng, files, number};

pub(crate) const SECTOR: usize = 512;

/// The type of a file by its name.
pub(crate) fn kind(name: &str) -> &'static str {
    match name {
        _ if name.starts_with("CURRENT") => "CURRENT",
        _ if name.starts_with("MANIFEST") => "MANIFEST",
        _ if name.ends_with(".wal") => "WAL",
        _ => "SST",
    }
}

/// A file of a type drawn evenly from those in `dir`.
fn draw_file(rng: &mut Rng, dir: &Path) -> String {
    let kind_drawn = *rng.pick(&["CURRENT", "MANIFEST", "WAL", "SST"]);
    let names: Vec<String> =
        files(dir).into_iter().filter(|name| kind(name) == kind_drawn).collect();
    rng.pick(&names).clone()
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

fn damage(rng: &mut Rng, golden: &Golden, dir: &Path, garbage: bool) -> Fault {
    let name = draw_file(rng, dir);
    let mut bytes = std::fs::read(dir.join(&name)).unwrap();
    let sector = draw_sector(rng, &bytes);
    let start = sector * SECTOR;
    let len = sector_of(&bytes, sector).len();
    let (fault, offset) = if garbage {
        bytes[start..start + len].copy_from_slice(&rng.bytes(len));
        ("sector of garbage", start)
    } else if rng.chance(50) {
        let at = start + rng.below(len);
        bytes[at] ^= 1 << rng.below(8);
        ("bit flipped", at)
    } else {
        bytes[start..start + len].fill(0);
        ("sector zeroed", start)
    };
    std::fs::write(dir.join(&name), &bytes).unwrap();
    let what = format!("{name} at {offset} of {}", bytes.len());
    let log = golden.name.split(',').next().unwrap();
    Fault { row: format!("{:8} {fault:18} ({log})", kind(&name)), what }
}

#[test]
fn one_bit_or_one_sector_is_never_a_silent_loss() {
    let trials = usize::try_from(number("SEERDB_DAMAGE_TRIALS", 2_000)).unwrap();
    let title = "one bit flipped or one sector zeroed";
    let table = run(title, trials, golden::all(), |_, rng, golden, dir| {
        Some(damage(rng, golden, dir, false))
    });
    for kind in ["CURRENT", "MANIFEST", "WAL", "SST"] {
        assert!(table.total(kind) * 100 >= trials * 15, "too few trials of {kind}");
    }
    for outcome in [Outcome::Harmless, Outcome::Refused, Outcome::ReadError] {
        assert!(table.count(outcome) > 0, "no trial was {outcome:?}");
    }
}

#[test]
fn a_sector_of_garbage_is_never_a_silent_loss() {
    let trials = usize::try_from(number("SEERDB_DAMAGE_TRIALS", 2_000)).unwrap() / 4;
    run("one sector replaced by random bytes", trials, golden::all(), |_, rng, golden, dir| {
        Some(damage(rng, golden, dir, true))
    });
}
