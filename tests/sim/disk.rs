//! Oracles that look at the disk alone and share no code with the engine: what is acknowledged as
//! durable stands in durable bytes, and what is durable refers to nothing that is not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use seerdb_io::sim::{Disk, OpEvent, OpKind, Phase};

use super::context::Context;
use super::referred::{self, Reference};
use super::world::Seqno;

/// Where the database lives.
pub(crate) const DIR: &str = "/db";
/// What a segment of the log begins with.
const HEADER_BYTES: u64 = 44;

/// The state that a manifest tells of, as far as the oracles need it.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    pub(crate) tables: BTreeMap<u64, Table>,
    /// The log segments, and whether they are of the value log.
    pub(crate) segments: BTreeMap<u64, bool>,
    /// The files of the value log that are in no log any more.
    pub(crate) values: BTreeMap<u64, Values>,
    pub(crate) flushed: Seqno,
}

/// A table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table {
    pub(crate) len: u64,
    pub(crate) references: Vec<Reference>,
}

/// A file of the value log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Values {
    /// All of it when it is rewritten. A segment may have a tail that nobody needs, so that only
    /// its header must be there, and what tables refer to.
    pub(crate) len: u64,
    pub(crate) is_rewritten: bool,
    pub(crate) segments: Vec<u64>,
}

pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap()))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    pub(crate) fn varint(&mut self) -> Option<u64> {
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

    pub(crate) fn slice(&mut self) -> Option<&'a [u8]> {
        let len = self.varint()?;
        self.take(usize::try_from(len).ok()?)
    }
}

/// Reads a manifest up to its first record that is none. Magic, length and number must fit. The
/// checksums are left to the engine; so an edit counts when a later record says that it was
/// durable: before, a power cut may have torn it. Of a process that lives the last one counts too.
fn read_manifest(bytes: &[u8], takes_last: bool) -> Option<Manifest> {
    let word = |at: usize, len: usize| {
        let mut word = [0; 8];
        word[..len].copy_from_slice(bytes.get(at..at + len)?);
        Some(u64::from_le_bytes(word))
    };
    let mut manifest = Manifest::default();
    let (mut at, mut expected) = (4096, 1);
    let mut unproven = None;
    while word(at, 2) == Some(0x5EED) {
        let (kind, payload) = (word(at + 2, 1)?, usize::try_from(word(at + 12, 4)?).unwrap());
        let (padding, number) = (usize::try_from(word(at + 3, 2)?).unwrap(), word(at + 5, 7)? + 1);
        if number != expected || !(2..=3).contains(&kind) {
            break;
        }
        let lag = word(at + 20, 4)?;
        if lag == 0
            && let Some(payload) = unproven.take()
        {
            apply(&mut manifest, payload)?;
        }
        if kind == 3 {
            unproven = Some(bytes.get(at + 32..at + 32 + payload)?);
            expected += 1;
        }
        at += 32 + payload + padding;
    }
    if takes_last && let Some(payload) = unproven {
        apply(&mut manifest, payload)?;
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
                let number = table.u64()?;
                let references = referred::read_references(&mut table)?;
                manifest.tables.insert(number, Table { len, references });
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
                let number = bytes.varint()?;
                bytes.u64()?;
                manifest.segments.insert(number, bytes.take(1)? == [1]);
            }
            5 => {
                manifest.segments.remove(&bytes.varint()?);
            }
            6 => manifest.flushed = bytes.varint()?,
            7..=9 => {
                bytes.varint()?;
            }
            10 => {
                let (number, len) = (bytes.varint()?, bytes.varint()?);
                let is_rewritten = bytes.take(1)? == [1];
                let values = if is_rewritten {
                    bytes.take(4)?;
                    let count = bytes.varint()?;
                    let segments = (0..count).map(|_| bytes.varint()).collect::<Option<_>>()?;
                    Values { len, is_rewritten, segments }
                } else {
                    bytes.u64()?;
                    Values { len: HEADER_BYTES, is_rewritten, segments: vec![number] }
                };
                manifest.values.insert(number, values);
            }
            11 => {
                manifest.values.remove(&bytes.varint()?);
            }
            12 => {
                bytes.varint()?;
                bytes.varint()?;
                bytes.slice()?;
            }
            _ => return None,
        }
    }
    Some(())
}

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

fn ends_with(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}

pub(crate) fn is_log(path: &Path) -> bool {
    ends_with(path, "wal") || ends_with(path, "vlog")
}

/// The manifest that CURRENT names, as a power cut would leave it.
fn durable_manifest(disk: &Disk) -> Option<(PathBuf, Manifest)> {
    if !disk.is_name_durable(path("CURRENT")) {
        return None;
    }
    let path = manifest_path(&disk.durable_bytes(path("CURRENT"))?)?;
    let bytes = disk.durable_bytes(&path)?;
    Some((path, read_manifest(&bytes, false)?))
}

fn manifest_path(current: &[u8]) -> Option<PathBuf> {
    let number = std::str::from_utf8(current.get(..16)?).ok()?;
    let number = u64::from_str_radix(number, 16).ok()?;
    Some(path(&format!("MANIFEST-{number:06}")))
}

/// The files of the value log that the manifest of a living process names, ascending.
pub(crate) fn values_named(disk: &Disk) -> Option<Vec<u64>> {
    let path = manifest_path(&disk.visible_bytes(path("CURRENT"))?)?;
    let manifest = read_manifest(&disk.visible_bytes(&path)?, true)?;
    let in_log = manifest.segments.iter().filter(|(_, is_values)| **is_values);
    let named: BTreeSet<u64> =
        in_log.map(|(number, _)| number).chain(manifest.values.keys()).copied().collect();
    Some(named.into_iter().collect())
}

/// Whether a file that a process sees has these bytes anywhere.
pub(crate) fn holds(disk: &Disk, bytes: &[u8]) -> bool {
    let all = disk.names().into_iter().filter_map(|name| disk.visible_bytes(name));
    all.into_iter().any(|file| memchr::memmem::find(&file, bytes).is_some())
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
    names.retain(|name| is_log(name) && disk.is_name_durable(name));
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

/// What was seen of the disk.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// What is wrong with what is durable, if anything.
    pub(crate) wrong: Option<String>,
    pub(crate) probes: BTreeMap<&'static str, u64>,
}

pub(crate) type Finding = Arc<Mutex<Told>>;

/// Watches every sync and every change of names: the durable manifest must refer to durable files
/// only, and CURRENT to a durable manifest.
pub(crate) fn watch(context: &Context) -> Finding {
    let finding = Finding::default();
    let told = Arc::clone(&finding);
    let mut seen = Seen::default();
    context.sim.on_op(move |event| {
        let mut told = told.lock();
        if event.kind == OpKind::Read {
            seen.read(event, &mut told);
        } else if told.wrong.is_none() {
            told.wrong = look(event, &mut seen);
        }
    });
    finding
}

/// What the watcher remembers.
#[derive(Default)]
struct Seen {
    /// The files of the manifest whose references were looked at last.
    tables: BTreeMap<u64, Table>,
    values: BTreeMap<u64, Values>,
    /// Reads of values in flight, of one life.
    reads: BTreeSet<u64>,
    life: u64,
}

impl Seen {
    /// Counts what is worth knowing about reads.
    fn read(&mut self, event: &OpEvent<'_>, told: &mut Told) {
        let Some(number) = value_file(event.path) else { return };
        if std::mem::replace(&mut self.life, event.life) != event.life {
            self.reads.clear();
        }
        if event.phase == Phase::Completed {
            self.reads.remove(&event.number);
            return;
        }
        self.reads.insert(event.number);
        let file = self.values.get(&number).filter(|file| file.is_rewritten);
        // Where it lists its bodies, an open reads it.
        let is_body = file.is_some_and(|file| event.offset < file.len / 2);
        *told.probes.entry("reads of rewritten values").or_default() += u64::from(is_body);
        let is_beside = u64::from(self.reads.len() > 1);
        *told.probes.entry("values read side by side").or_default() += is_beside;
    }
}

fn look(event: &OpEvent<'_>, seen: &mut Seen) -> Option<String> {
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
    for (number, Table { len, .. }) in &manifest.tables {
        let table = path(&format!("{number:06}.sst"));
        if !disk.is_name_durable(&table) || !disk.is_durable(&table, 0..*len) {
            return Some(format!("O5: {table:?} is referred to, not durable, at {}", at()));
        }
    }
    for (number, Values { len, .. }) in &manifest.values {
        let values = path(&format!("{number:06}.vlog"));
        if !disk.is_name_durable(&values) || !disk.is_durable(&values, 0..*len) {
            return Some(format!("O5: {values:?} is referred to, not durable, at {}", at()));
        }
    }
    for (number, is_values) in &manifest.segments {
        let extension = if *is_values { "vlog" } else { "wal" };
        let log = path(&format!("{number:06}.{extension}"));
        if !disk.is_name_durable(&log) || !disk.is_durable(&log, 0..HEADER_BYTES) {
            return Some(format!("O5: {log:?} is referred to, not durable, at {}", at()));
        }
    }
    if seen.tables == manifest.tables && seen.values == manifest.values {
        return None;
    }
    let wrong = referred::look(disk, &manifest);
    (seen.tables, seen.values) = (manifest.tables, manifest.values);
    wrong.map(|what| format!("{what}, at {:?} of {name}, operation {}", event.kind, event.number))
}

/// Whether a process sees a segment of the value log.
pub(crate) fn has_values(disk: &Disk) -> bool {
    disk.names().iter().any(|name| ends_with(name, "vlog"))
}

/// The number of table files that a process sees.
pub(crate) fn tables(disk: &Disk) -> usize {
    disk.names().iter().filter(|name| ends_with(name, "sst")).count()
}

/// The number of a file of the value log.
pub(crate) fn value_file(name: &Path) -> Option<u64> {
    let stem = name.file_stem().filter(|_| ends_with(name, "vlog"))?;
    stem.to_str()?.parse().ok()
}

/// Those that a rewrite has completed.
pub(crate) fn rewritten_files(disk: &Disk) -> Vec<u64> {
    let is_rewritten = |number: &u64| {
        let bytes = disk.visible_bytes(path(&format!("{number:06}.vlog"))).unwrap_or_default();
        bytes.len() > 40 && bytes[bytes.len() - 40..].starts_with(b"seerval\0")
    };
    value_files(disk).into_iter().filter(is_rewritten).collect()
}

/// The files of the value log that a process sees, ascending.
pub(crate) fn value_files(disk: &Disk) -> Vec<u64> {
    let mut numbers: Vec<u64> =
        disk.names().iter().filter_map(|name| value_file(name.as_ref())).collect();
    numbers.sort_unstable();
    numbers
}
