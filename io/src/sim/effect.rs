//! What every operation does to the disk, with what goes wrong.
//!
//! Invariants:
//! 1. An operation refused here has changed nothing, but for the prefix of a failing write (R4).
//! 2. Nothing here is durable yet: only [`complete`] of a sync or of a durable write makes it so.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Waker;

use super::chance::Chance;
use super::crash::CrashRules;
use super::disk::{Change, DirNode, Disk, FileNode, Ino, Node};
use super::errno::{EBADF, EFBIG, EIO, EISDIR, ENOSPC, ENOTDIR, error};
use super::faults::{Flip, Verdict};
use super::image::{PAGE, index};
use super::trace::OpKind;
use crate::buf::AlignedBuf;
use crate::fs::{DirEntry, OpenOptions};

/// The largest file; a larger one would not fit into the memory of the machine that simulates.
const FILE_MAX: u64 = 1 << 34;

/// An open file.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileRef {
    /// The number of the open file, never used twice.
    pub(super) id: u64,
    pub(super) ino: Ino,
    pub(super) writable: bool,
    pub(super) direct: bool,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) enum Action {
    Open(OpenOptions),
    Read(FileRef),
    Write(FileRef, OpKind),
    Sync(FileRef),
    SetLen(FileRef, u64),
    Allocate(FileRef, u64),
    Len(FileRef),
    CreateDir,
    Rename(PathBuf),
    Remove,
    ListDir,
    SyncDir,
    Lock,
}

impl Action {
    pub(super) fn kind(&self) -> OpKind {
        match self {
            Action::Open(_) => OpKind::Open,
            Action::Read(_) => OpKind::Read,
            Action::Write(_, kind) => *kind,
            Action::Sync(_) => OpKind::Sync,
            Action::SetLen(..) | Action::Allocate(..) => OpKind::Resize,
            Action::Len(_) => OpKind::Inspect,
            Action::CreateDir => OpKind::CreateDir,
            Action::Rename(_) => OpKind::Rename,
            Action::Remove => OpKind::Remove,
            Action::ListDir => OpKind::ListDir,
            Action::SyncDir => OpKind::SyncDir,
            Action::Lock => OpKind::Lock,
        }
    }

    /// The number that belongs to the action, for the trace.
    pub(super) fn operand(&self) -> u64 {
        match self {
            Action::SetLen(_, len) | Action::Allocate(_, len) => *len,
            _ => 0,
        }
    }
}

/// What an operation gives.
#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Count(usize),
    Len(u64),
    /// The file, not yet counted as open, and whether it bypasses the page cache.
    Node(Ino, bool),
    Opened(FileRef),
    Entries(Vec<DirEntry>),
    Locked(Option<Ino>),
}

/// An operation in flight.
pub(super) struct Slot {
    pub(super) env: u64,
    pub(super) action: Action,
    pub(super) path: Arc<Path>,
    pub(super) offset: u64,
    pub(super) buf: AlignedBuf,
    /// The count of submissions and completions at its submission: what a sync covers.
    pub(super) stamp: u64,
    pub(super) verdict: Verdict,
    /// Set when its effect is visible.
    pub(super) outcome: Option<io::Result<Answer>>,
    pub(super) done: bool,
    /// Nobody waits any more.
    pub(super) abandoned: bool,
    pub(super) waker: Option<Waker>,
}

/// Makes the effect of an operation visible; `capacity` is the size of the disk.
pub(super) fn act(
    disk: &mut Disk,
    op: u64,
    slot: &Slot,
    capacity: Option<u64>,
) -> io::Result<Answer> {
    let path = &slot.path;
    if let Some(errno) = slot.verdict.errno
        && !slot.action.kind().is_write()
        && !slot.action.kind().is_sync()
    {
        return Err(error(errno));
    }
    match &slot.action {
        Action::Open(options) => open(disk, path, op, *options),
        Action::Write(file, _) => write(disk, op, slot, *file, capacity),
        Action::SetLen(file, len) => {
            let node = resizable(disk, *file, *len)?;
            node.change(op, Change::SetLen(*len));
            Ok(Answer::Done)
        }
        Action::Allocate(file, len) => {
            let used = capacity.map(|capacity| (capacity, disk.used()));
            let node = resizable(disk, *file, *len)?;
            let more = len.saturating_sub(node.visible.len());
            if used.is_some_and(|(capacity, used)| used + more > capacity) {
                return Err(error(ENOSPC));
            }
            if *len > 0 {
                node.change(op, Change::Grow(*len));
            }
            Ok(Answer::Done)
        }
        Action::Len(file) => Ok(Answer::Len(disk.file(file.ino).map_or(0, |f| f.visible.len()))),
        Action::CreateDir => match disk.create(path, op, Node::Dir(DirNode::default())) {
            Err(_) if disk.find(path).is_ok_and(|ino| disk.dir(ino).is_some()) => Ok(Answer::Done),
            created => created.map(|_| Answer::Done),
        },
        Action::Rename(to) => disk.rename(path, to, op).map(|()| Answer::Done),
        Action::Remove => disk.unlink(path, op).map(|()| Answer::Done),
        Action::ListDir => list(disk, path),
        Action::SyncDir => disk.find(path).map(|_| Answer::Done),
        Action::Lock => {
            let options = OpenOptions { write: true, ..OpenOptions::default() };
            let found = match disk.find(path) {
                Err(_) => open(disk, path, op, OpenOptions { create_new: true, ..options }),
                Ok(_) => open(disk, path, op, options),
            };
            match found? {
                Answer::Node(ino, _) => Ok(Answer::Locked(Some(ino))),
                other => Ok(other),
            }
        }
        Action::Read(_) | Action::Sync(_) => Ok(Answer::Done),
    }
}

fn open(disk: &mut Disk, path: &Path, op: u64, options: OpenOptions) -> io::Result<Answer> {
    if options.create_new {
        let ino = disk.create(path, op, Node::File(FileNode::default()))?;
        return Ok(Answer::Node(ino, options.direct));
    }
    let ino = disk.find(path)?;
    if disk.dir(ino).is_some() {
        return if options.write { Err(error(EISDIR)) } else { Ok(Answer::Node(ino, false)) };
    }
    Ok(Answer::Node(ino, options.direct))
}

fn resizable(disk: &mut Disk, file: FileRef, len: u64) -> io::Result<&mut FileNode> {
    if !file.writable {
        return Err(error(EBADF));
    }
    if len > FILE_MAX {
        return Err(error(EFBIG));
    }
    disk.file_mut(file.ino).ok_or_else(|| error(EISDIR))
}

fn list(disk: &Disk, path: &Path) -> io::Result<Answer> {
    let dir = disk.dir(disk.find(path)?).ok_or_else(|| error(ENOTDIR))?;
    let entries = dir.visible.iter().map(|(name, ino)| {
        let file = disk.file(*ino);
        let len = file.map_or(PAGE as u64, |file| file.visible.len());
        DirEntry { name: name.clone(), is_file: file.is_some(), len }
    });
    Ok(Answer::Entries(entries.collect()))
}

/// Writes what there is room for. R4: a failing write leaves any prefix of its sectors.
fn write(
    disk: &mut Disk,
    op: u64,
    slot: &Slot,
    file: FileRef,
    capacity: Option<u64>,
) -> io::Result<Answer> {
    if !file.writable {
        return Err(error(EBADF));
    }
    let end = slot.offset + slot.buf.len() as u64;
    if end > FILE_MAX {
        return Err(error(EFBIG));
    }
    let mut len = slot.buf.len();
    let mut failure = slot.verdict.errno;
    if let Some(keep) = slot.verdict.keep {
        let sectors = slot.buf.len() as u64 / 512 + 1;
        len = index(keep % sectors) * 512;
    }
    let visible = disk.file(file.ino).ok_or_else(|| error(EBADF))?.visible.len();
    if let Some(capacity) = capacity
        && end > visible
    {
        let (page, used) = (PAGE as u64, disk.used());
        let owned = visible.div_ceil(page) * page;
        let limit = owned + capacity.saturating_sub(used) / page * page;
        if end > limit {
            len = len.min(index(limit.saturating_sub(slot.offset)));
            failure = Some(ENOSPC);
        }
    }
    let (ino, offset) = match slot.verdict.misdirected {
        Some(r) => elsewhere(disk, file.ino, &slot.path, slot.offset, r),
        None => (file.ino, slot.offset),
    };
    if let Some(data) = slot.buf.get(..len).filter(|data| !data.is_empty())
        && let Some(node) = disk.file_mut(ino)
    {
        if !slot.verdict.phantom {
            node.change(op, Change::Write { offset, data: data.into() });
        } else if !file.direct {
            // R6: the page cache has it, until the end of the life.
            node.visible.write(data, offset);
        }
    }
    match failure {
        Some(errno) => Err(error(errno)),
        None => Ok(Answer::Count(slot.buf.len())),
    }
}

/// R6: another page of the file, or the same place in another file of its type.
fn elsewhere(disk: &Disk, ino: Ino, path: &Path, offset: u64, r: u64) -> (Ino, u64) {
    let page = PAGE as u64;
    let pages = disk.file(ino).map_or(0, |file| file.visible.len()) / page + 1;
    let others: Vec<Ino> = disk
        .names()
        .iter()
        .filter(|name| name.extension() == path.extension())
        .filter_map(|name| disk.find(name).ok())
        .filter(|other| *other != ino)
        .collect();
    match others.get(index(r >> 1) % others.len().max(1)) {
        Some(other) if r & 1 == 1 => (*other, offset),
        _ => (ino, (r >> 1) % pages * page + offset % page),
    }
}

/// Reads into the buffer; R1, R2 and R6 for reads.
pub(super) fn read(
    disk: &mut Disk,
    file: FileRef,
    buf: &mut AlignedBuf,
    offset: u64,
    verdict: &Verdict,
) -> io::Result<Answer> {
    if let Some(errno) = verdict.errno {
        return Err(error(errno));
    }
    let page = PAGE as u64;
    if verdict.latent
        && let Some(node) = disk.file_mut(file.ino)
    {
        node.latent.insert(offset / page);
    }
    let node = disk.file(file.ino).ok_or_else(|| error(EISDIR))?;
    let end = (offset + buf.len() as u64).min(node.visible.len());
    if node.latent.iter().any(|bad| offset < (bad + 1) * page && bad * page < end) {
        return Err(error(EIO));
    }
    let offset = match verdict.misdirected {
        Some(r) => (r % (node.visible.len() / page + 1)) * page,
        None => offset,
    };
    if let Some((Flip::Media, r)) = verdict.flip
        && end > offset
        && let Some(node) = disk.file_mut(file.ino)
    {
        let (at, bit) = (offset + (r >> 3) % (end - offset), r.to_le_bytes()[0] & 7);
        node.visible.flip(at, bit);
        node.durable.flip(at, bit);
    }
    let node = disk.file(file.ino).ok_or_else(|| error(EISDIR))?;
    let count = node.visible.read(buf, offset);
    if let Some((Flip::InFlight, r)) = verdict.flip
        && count > 0
        && let Some(byte) = buf.get_mut(index(r >> 3) % count)
    {
        *byte ^= 1 << (r & 7);
    }
    Ok(Answer::Count(count))
}

/// The durable part of an operation that has come to its end at `stamp`; S2, S3, R5.
pub(super) fn complete(
    disk: &mut Disk,
    op: u64,
    slot: &mut Slot,
    stamp: u64,
    chance: &mut Chance,
    rules: CrashRules,
) {
    let failed = matches!(slot.outcome, Some(Err(_)));
    match &slot.action {
        Action::Write(file, kind) => {
            let misdirected = slot.verdict.misdirected.is_some();
            let all: Vec<Ino> =
                if misdirected { disk.nodes.keys().copied().collect() } else { vec![file.ino] };
            for ino in all {
                if let Some(node) = disk.file_mut(ino) {
                    node.complete(op, stamp);
                    if *kind == OpKind::WriteDurable && !failed {
                        node.sync_write(op);
                    }
                }
            }
        }
        Action::SetLen(file, _) | Action::Allocate(file, _) => {
            if let Some(node) = disk.file_mut(file.ino) {
                node.complete(op, stamp);
            }
        }
        Action::Sync(file) => {
            let Some(node) = disk.file_mut(file.ino) else { return };
            match slot.verdict.errno {
                Some(errno) => {
                    fail_sync(node, slot.stamp, chance, rules);
                    slot.outcome = Some(Err(error(errno)));
                }
                None => node.sync(slot.stamp),
            }
        }
        Action::SyncDir => match slot.verdict.errno {
            Some(errno) => slot.outcome = Some(Err(error(errno))),
            None => {
                if let Ok(ino) = disk.find(&slot.path) {
                    disk.sync_dir(ino, slot.stamp);
                }
            }
        },
        Action::Read(_) | Action::Len(_) | Action::ListDir => {}
        Action::Open(_) | Action::CreateDir | Action::Rename(_) | Action::Remove | Action::Lock => {
            let changed: Vec<Ino> = disk
                .nodes
                .iter()
                .filter(|(_, node)| {
                    matches!(&***node, Node::Dir(dir) if dir.pending.iter().any(|p| p.op == op))
                })
                .map(|(ino, _)| *ino)
                .collect();
            for ino in changed {
                if let Some(dir) = disk.dir_mut(ino) {
                    dir.complete(op, stamp);
                }
            }
        }
    }
}

/// R5: any subset of the sectors is durable, the pages are clean, and hold new or old content.
fn fail_sync(file: &mut FileNode, stamp: u64, chance: &mut Chance, rules: CrashRules) {
    let lost = file.take_covered(stamp);
    let keeps_new = chance.one_in(2);
    for pending in &lost {
        let Change::Write { offset, data } = &pending.change else {
            if chance.one_in(2) {
                pending.change.apply(&mut file.durable);
            }
            continue;
        };
        let mut at = *offset;
        for part in data.chunks(rules.sector.max(1)) {
            if chance.one_in(2) {
                file.durable.write(part, at);
            }
            at += part.len() as u64;
        }
        if !keeps_new {
            let mut old = vec![0; data.len()];
            file.durable.read(&mut old, *offset);
            file.visible.write(&old, *offset);
        }
    }
    for pending in &file.pending {
        pending.change.apply(&mut file.visible);
    }
    file.failures += 1;
}

#[cfg(test)]
mod tests {
    use super::super::errno::EEXIST;
    use super::*;

    #[test]
    fn a_name_is_created_once() {
        let mut disk = Disk::new();
        let options = OpenOptions { create_new: true, ..OpenOptions::default() };
        assert!(open(&mut disk, Path::new("/a"), 1, options).is_ok());
        let again = open(&mut disk, Path::new("/a"), 2, options).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(EEXIST));
    }
}
