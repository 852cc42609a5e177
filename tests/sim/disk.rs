//! Oracles that look at the disk alone and share no code with the engine: what is acknowledged as
//! durable stands in durable bytes, and what is durable refers to nothing that is not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use seerdb_io::sim::{Disk, OpEvent, OpKind, Phase};

use super::context::Context;
use super::world::Seqno;

/// Where the database lives.
pub(crate) const DIR: &str = "/db";

/// The state that a manifest tells of, as far as the oracles need it.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    /// Number to length.
    pub(crate) tables: BTreeMap<u64, u64>,
    pub(crate) wals: BTreeMap<u64, u64>,
    pub(crate) flushed: Seqno,
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn slice(&mut self) -> Option<&'a [u8]> {
        let len = self.varint()?;
        self.take(usize::try_from(len).ok()?)
    }
}

/// Reads a manifest up to its first record that is none. Magic, length and number must fit. The
/// checksums are left to the engine; so an edit counts when a later record says that it was
/// durable: before, a power cut may have torn it.
pub(crate) fn read_manifest(bytes: &[u8]) -> Option<Manifest> {
    let word = |at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(bytes.get(at..at + len)?);
        Some(u64::from_le_bytes(word))
    };
    let mut manifest = Manifest::default();
    let (mut at, mut expected) = (4096, 1);
    let mut unproven = None;
    while word(at, 2) == Some(0x5EED) {
        let (kind, payload) = (word(at + 2, 1)?, usize::try_from(word(at + 4, 4)?).unwrap());
        let (span, number) = (usize::try_from(word(at + 8, 4)?).unwrap(), word(at + 16, 8)?);
        if number != expected || !(2..=3).contains(&kind) || span < 40 + payload {
            break;
        }
        if word(at + 24, 8)? + 1 == number
            && let Some(payload) = unproven.take()
        {
            apply(&mut manifest, payload)?;
        }
        if kind == 3 {
            unproven = Some(bytes.get(at + 40..at + 40 + payload)?);
            expected += 1;
        }
        at += span;
    }
    (expected > 1).then_some(manifest)
}

fn apply(manifest: &mut Manifest, payload: &[u8]) -> Option<()> {
    let mut bytes = Bytes(payload);
    while !bytes.0.is_empty() {
        match bytes.varint()? {
            1 => {
                bytes.take(1)?;
                bytes.varint()?;
                let mut table = Bytes(bytes.slice()?);
                let len = table.u64()?;
                table.take(4)?;
                manifest.tables.insert(table.u64()?, len);
            }
            2 => {
                manifest.tables.remove(&bytes.varint()?);
            }
            3 => {
                bytes.varint()?;
                bytes.take(1)?;
                bytes.varint()?;
            }
            4 => {
                let (number, salt) = (bytes.varint()?, bytes.u64()?);
                bytes.take(1)?;
                manifest.wals.insert(number, salt);
            }
            5 => {
                manifest.wals.remove(&bytes.varint()?);
            }
            6 => manifest.flushed = bytes.varint()?,
            7..=9 => {
                bytes.varint()?;
            }
            _ => return None,
        }
    }
    Some(())
}

fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn ends_with(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

/// The manifest that CURRENT names, as a power cut would leave it.
fn durable_manifest(disk: &Disk) -> Option<(PathBuf, Manifest)> {
    if !disk.is_name_durable(path("CURRENT")) {
        return None;
    }
    let line = disk.durable_bytes(path("CURRENT"))?;
    let number = std::str::from_utf8(line.get(..16)?).ok()?;
    let number = u64::from_str_radix(number, 16).ok()?;
    let path = path(&format!("MANIFEST-{number:06}"));
    let bytes = disk.durable_bytes(&path)?;
    Some((path, read_manifest(&bytes)?))
}

/// Every acknowledged commit up to `seqno` stands in the durable bytes of a log segment whose name
/// is durable, or the durable manifest says that it is in a table.
pub(crate) fn check_durable(context: &Context, seqno: Seqno) {
    let mut world = context.world();
    let mut open: Vec<usize> = Vec::new();
    for (index, commit) in world.commits.iter().enumerate() {
        if !commit.proved && commit.seqnos().is_some_and(|(_, last)| last <= seqno) {
            open.push(index);
        }
    }
    if open.is_empty() {
        return;
    }
    let disk = context.sim.disk();
    let mut names = disk.names();
    names.retain(|name| ends_with(name, "wal") && disk.is_name_durable(name));
    let logs: Vec<Vec<u8>> = names.iter().filter_map(|name| disk.durable_bytes(name)).collect();
    let mut flushed = None;
    for index in open {
        let commit = &world.commits[index];
        let last = commit.seqnos().map_or(0, |(_, last)| last);
        let mut tags = commit.ops.iter().filter_map(|(_, value)| value.map(|v| world.tag(v)));
        let in_log = tags.all(|tag| {
            let found = |log: &Vec<u8>| memchr::memmem::find(log, &tag).is_some();
            logs.iter().any(found)
        });
        if !in_log {
            let upto = *flushed.get_or_insert_with(|| {
                durable_manifest(&disk).map_or(0, |(_, manifest)| manifest.flushed)
            });
            assert!(
                last <= upto,
                "O4: {seqno} is acknowledged as durable, but {commit:?} is in no durable log of \
                 {names:?}, and the durable manifest has flushed {upto} only"
            );
        }
        world.commits[index].proved = true;
    }
    world.probe("acks found on the disk");
}

/// What is wrong with what is durable, if anything.
pub(crate) type Finding = Arc<Mutex<Option<String>>>;

/// Watches every sync and every change of names: the durable manifest must refer to durable files
/// only, and CURRENT to a durable manifest.
pub(crate) fn watch(context: &Context) -> Finding {
    let finding = Finding::default();
    let told = Arc::clone(&finding);
    context.sim.on_op(move |event| {
        let mut told = told.lock();
        if told.is_none() {
            *told = look(event);
        }
    });
    finding
}

fn look(event: &OpEvent<'_>) -> Option<String> {
    let name = event.path.file_name()?.to_str()?;
    let matters = match event.kind {
        OpKind::Sync => name.starts_with("MANIFEST"),
        OpKind::SyncDir | OpKind::Remove | OpKind::Rename => true,
        _ => false,
    };
    if event.phase != Phase::Completed || !matters {
        return None;
    }
    let disk = event.disk();
    let Some((manifest_path, manifest)) = durable_manifest(disk) else {
        let named = disk.is_name_durable(path("CURRENT"));
        return named.then(|| format!("O5: the durable CURRENT names no manifest: {name}"));
    };
    let at = || format!("{:?} of {name}, operation {}", event.kind, event.number);
    if !disk.is_name_durable(&manifest_path) {
        return Some(format!("O5: the name of {manifest_path:?} is not durable at {}", at()));
    }
    for (number, len) in &manifest.tables {
        let table = path(&format!("{number:06}.sst"));
        if !disk.is_name_durable(&table) || !disk.is_durable(&table, 0..*len) {
            return Some(format!("O5: {table:?} is referred to, not durable, at {}", at()));
        }
    }
    for number in manifest.wals.keys() {
        let wal = path(&format!("{number:06}.wal"));
        if !disk.is_name_durable(&wal) || !disk.is_durable(&wal, 0..44) {
            return Some(format!("O5: {wal:?} is referred to, not durable, at {}", at()));
        }
    }
    None
}

/// The number of table files that a process sees.
pub(crate) fn tables(disk: &Disk) -> usize {
    disk.names().iter().filter(|name| ends_with(name, "sst")).count()
}
