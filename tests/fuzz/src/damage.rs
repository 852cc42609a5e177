//! The input as a list of damages to the files of a database.

use std::collections::BTreeMap;

use crate::seal;

/// The content of a directory by file name.
pub type Files = BTreeMap<String, Vec<u8>>;

const SECTOR: usize = 512;
/// More damages than this make no database that is still worth a look.
const DAMAGES_MAX: usize = 24;

/// Reads numbers from the input; zeros behind its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte()) << 16 | usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.byte()).collect()
    }
}

/// Damages `files`, a database whose last sibling in time is `other`, as `script` says; what is
/// left of the script says nothing.
pub fn apply(script: &[u8], files: &mut Files, other: &Files) {
    let mut script = Script(script);
    let mends = script.byte() & 1 == 1;
    for _ in 0..DAMAGES_MAX {
        if script.0.is_empty() || files.is_empty() {
            break;
        }
        let how = script.byte();
        let names: Vec<String> = files.keys().cloned().collect();
        let name = names[usize::from(script.byte()) % names.len()].clone();
        damage(how, &mut script, files, &name, &names, other);
    }
    if mends {
        seal::mend(files);
    }
}

/// A place in the part of the file that holds something, or shortly behind it.
fn place(script: &mut Script<'_>, bytes: &[u8]) -> usize {
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    script.number() % (used + 8).min(bytes.len()).max(1)
}

fn damage(
    how: u8,
    script: &mut Script<'_>,
    files: &mut Files,
    name: &str,
    names: &[String],
    other: &Files,
) {
    let another = |script: &mut Script<'_>| names[usize::from(script.byte()) % names.len()].clone();
    let Some(bytes) = files.get_mut(name) else { return };
    let at = place(script, bytes);
    let sector = at / SECTOR * SECTOR..bytes.len().min((at / SECTOR + 1) * SECTOR);
    match how % 16 {
        0 => bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= 1 << (how >> 5)),
        1..=4 => {
            let new = script.bytes(1 << (how % 16 - 1));
            bytes.iter_mut().skip(at).zip(new).for_each(|(slot, byte)| *slot = byte);
        }
        5 => bytes[sector].fill(script.byte()),
        6 => {
            let from = place(script, bytes) / SECTOR * SECTOR;
            let len = sector.len().min(bytes.len() - from);
            bytes.copy_within(from..from + len, sector.start);
        }
        7 => bytes.truncate(at),
        8 => {
            files.remove(name);
        }
        9 => bytes.clear(),
        10 => {
            let source = files[&another(script)].clone();
            files.insert(name.into(), source);
        }
        11 => {
            let new = script.bytes(16);
            bytes.extend(new);
        }
        12 => {
            let source = other.get(name).cloned().unwrap_or_default();
            files.insert(name.into(), source);
        }
        13 => {
            let second = another(script);
            let (a, b) = (files[name].clone(), files[&second].clone());
            files.insert(name.into(), b);
            files.insert(second, a);
        }
        14 => {
            // A number one more or one less than it was is where limits are.
            let step = if how & 0x80 == 0 { 1 } else { u8::MAX };
            bytes.get_mut(at).into_iter().for_each(|byte| *byte = byte.wrapping_add(step));
        }
        _ => {
            let new = script.bytes(4);
            bytes.splice(at..at, new);
        }
    }
}
