//! The state of a simulated disk: what a process sees, what is durable, and what lies between.
//!
//! Invariants:
//! 1. S1: the visible content of a file is its durable content with every pending change applied,
//!    except where a failed sync (R5), a phantom or a misdirected write (R6) has parted them.
//! 2. The pending changes of a file or directory are in the order in which they became visible.
//! 3. Every node that a directory names, visibly, durably or in a pending change, exists.
//! 4. A copy of a disk shares all nodes; the first change of a node copies its list of pages.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use super::errno::{EEXIST, EISDIR, ENOENT, ENOTDIR, error};
use super::image::Image;

/// The number of a file or directory, never used twice.
pub(super) type Ino = u64;

/// The root directory.
pub(super) const ROOT: Ino = 1;

/// A change of a file that is not durable yet.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Write {
        offset: u64,
        data: Arc<[u8]>,
    },
    SetLen(u64),
    /// Extends the file, but never cuts it.
    Grow(u64),
}

impl Change {
    pub(super) fn apply(&self, image: &mut Image) {
        match self {
            Change::Write { offset, data } => image.write(data, *offset),
            Change::SetLen(len) => image.set_len(*len),
            Change::Grow(len) => image.grow(*len),
        }
    }
}

/// A change of a directory that is not durable yet.
#[derive(Debug, Clone)]
pub(super) enum NameChange {
    Link { name: OsString, ino: Ino },
    Unlink { name: OsString },
    Rename { from: OsString, to: OsString, ino: Ino },
}

impl NameChange {
    pub(super) fn apply(&self, names: &mut BTreeMap<OsString, Ino>) {
        match self {
            NameChange::Link { name, ino } => drop(names.insert(name.clone(), *ino)),
            NameChange::Unlink { name } => drop(names.remove(name)),
            NameChange::Rename { from, to, ino } => {
                names.remove(from);
                names.insert(to.clone(), *ino);
            }
        }
    }
}

/// A pending change: whose it is, and when that operation had completed.
#[derive(Debug, Clone)]
pub(super) struct Pending<C> {
    pub(super) op: u64,
    /// The count of submissions and completions at its completion; none while it is in flight.
    pub(super) completed: Option<u64>,
    pub(super) change: C,
}

impl<C> Pending<C> {
    /// S2, S3: whether a sync that was submitted at `stamp` covers it.
    fn is_covered(&self, stamp: u64) -> bool {
        self.completed.is_some_and(|completed| completed < stamp)
    }
}

/// A file.
#[derive(Debug, Clone, Default)]
pub(super) struct FileNode {
    pub(super) visible: Image,
    pub(super) durable: Image,
    pub(super) pending: Vec<Pending<Change>>,
    /// The number of failed syncs; every open file reports each of them once (R5).
    pub(super) failures: u64,
    /// Pages that cannot be read until they are rewritten (R1).
    pub(super) latent: BTreeSet<u64>,
}

/// A directory.
#[derive(Debug, Clone, Default)]
pub(super) struct DirNode {
    pub(super) visible: BTreeMap<OsString, Ino>,
    pub(super) durable: BTreeMap<OsString, Ino>,
    pub(super) pending: Vec<Pending<NameChange>>,
}

/// A file or a directory.
#[derive(Debug, Clone)]
pub(super) enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// The whole disk: files and directories, as seen and as durable, and what is pending.
///
/// A clone shares everything with its original until one of them changes.
#[derive(Debug, Clone)]
pub struct Disk {
    pub(super) nodes: BTreeMap<Ino, Arc<Node>>,
    next: Ino,
}

impl Default for Disk {
    fn default() -> Self {
        let root = Arc::new(Node::Dir(DirNode::default()));
        Disk { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1 }
    }
}

impl FileNode {
    /// Makes a change visible; it is pending from now on.
    pub(super) fn change(&mut self, op: u64, change: Change) {
        if let Change::Write { offset, data } = &change {
            self.heal(*offset, data.len());
        }
        change.apply(&mut self.visible);
        self.pending.push(Pending { op, completed: None, change });
    }

    /// R1: what is written anew can be read again.
    fn heal(&mut self, offset: u64, len: usize) {
        let page = super::image::PAGE as u64;
        let (first, last) = (offset.div_ceil(page), (offset + len as u64) / page);
        if !self.latent.is_empty() {
            self.latent.retain(|bad| !(first..last).contains(bad));
        }
    }

    pub(super) fn complete(&mut self, op: u64, stamp: u64) {
        for pending in self.pending.iter_mut().rev().filter(|p| p.op == op) {
            pending.completed = Some(stamp);
        }
    }

    /// S2: makes durable what had completed before the sync was submitted, at `stamp`.
    pub(super) fn sync(&mut self, stamp: u64) {
        let durable = &mut self.durable;
        self.pending.retain(|pending| {
            let covered = pending.is_covered(stamp);
            if covered {
                pending.change.apply(durable);
            }
            !covered
        });
    }

    /// The changes that a sync submitted at `stamp` covers; they are no longer pending.
    pub(super) fn take_covered(&mut self, stamp: u64) -> Vec<Pending<Change>> {
        let (covered, rest) =
            std::mem::take(&mut self.pending).into_iter().partition(|p| p.is_covered(stamp));
        self.pending = rest;
        covered
    }

    /// S2 for the range of one durable write: its own change becomes durable, the length with it.
    /// What was pending below it is superseded.
    pub(super) fn sync_write(&mut self, op: u64) {
        let mut older: Vec<Pending<Change>> = Vec::new();
        let mut pending = std::mem::take(&mut self.pending).into_iter();
        for next in pending.by_ref() {
            if next.op == op {
                next.change.apply(&mut self.durable);
                if let Change::Write { offset, data } = &next.change {
                    let end = offset + data.len() as u64;
                    older = older.into_iter().flat_map(|p| clip(p, *offset, end)).collect();
                }
                break;
            }
            match next.change {
                // The length that a durable write ends in is durable with it.
                Change::SetLen(len) => {
                    self.durable.set_len(len);
                    older = older.into_iter().flat_map(|p| clip(p, len, u64::MAX)).collect();
                }
                Change::Grow(len) => self.durable.grow(len),
                Change::Write { .. } => older.push(next),
            }
        }
        older.extend(pending);
        self.pending = older;
    }

    /// Plants the same content for readers and on the device.
    pub(super) fn plant(&mut self, change: &Change) {
        change.apply(&mut self.visible);
        change.apply(&mut self.durable);
    }

    /// The state after a power cut or an import: nothing is pending.
    pub(super) fn settle(&mut self, durable: Image) {
        self.visible = durable.clone();
        self.durable = durable;
        self.pending.clear();
        self.failures = 0;
    }
}

/// What remains of a pending change outside of `start..end`.
fn clip(pending: Pending<Change>, start: u64, end: u64) -> Vec<Pending<Change>> {
    let Change::Write { offset, data } = &pending.change else { return vec![pending] };
    let (offset, data_end) = (*offset, offset + data.len() as u64);
    if end <= offset || data_end <= start {
        return vec![pending];
    }
    let mut rest = Vec::new();
    let mut keep = |from: u64, to: u64| {
        let range = super::image::index(from - offset)..super::image::index(to - offset);
        if let Some(part) = data.get(range).filter(|part| !part.is_empty()) {
            let change = Change::Write { offset: from, data: part.into() };
            rest.push(Pending { op: pending.op, completed: pending.completed, change });
        }
    };
    if offset < start {
        keep(offset, start);
    }
    if end < data_end {
        keep(end, data_end);
    }
    rest
}

impl DirNode {
    pub(super) fn change(&mut self, op: u64, change: NameChange) {
        change.apply(&mut self.visible);
        self.pending.push(Pending { op, completed: None, change });
    }

    pub(super) fn complete(&mut self, op: u64, stamp: u64) {
        for pending in self.pending.iter_mut().rev().filter(|p| p.op == op) {
            pending.completed = Some(stamp);
        }
    }

    /// S3: makes the entries durable that were there before the sync was submitted, at `stamp`,
    /// and the operations that they belong to.
    pub(super) fn sync(&mut self, covers: impl Fn(&Pending<NameChange>) -> bool) -> Vec<u64> {
        let durable = &mut self.durable;
        let mut done = Vec::new();
        self.pending.retain(|pending| {
            let covered = covers(pending);
            if covered {
                pending.change.apply(durable);
                done.push(pending.op);
            }
            !covered
        });
        done
    }
}

impl Disk {
    pub(super) fn file(&self, ino: Ino) -> Option<&FileNode> {
        match self.nodes.get(&ino).map(|node| &**node) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    pub(super) fn file_mut(&mut self, ino: Ino) -> Option<&mut FileNode> {
        match self.nodes.get_mut(&ino).map(Arc::make_mut) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    pub(super) fn dir(&self, ino: Ino) -> Option<&DirNode> {
        match self.nodes.get(&ino).map(|node| &**node) {
            Some(Node::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    pub(super) fn dir_mut(&mut self, ino: Ino) -> Option<&mut DirNode> {
        match self.nodes.get_mut(&ino).map(Arc::make_mut) {
            Some(Node::Dir(dir)) => Some(dir),
            _ => None,
        }
    }

    /// The directories of a path and its last name; none for the root.
    fn split(path: &Path) -> (Vec<OsString>, Option<OsString>) {
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name.to_os_string()),
                Component::ParentDir => drop(names.pop()),
                Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
            }
        }
        let last = names.pop();
        (names, last)
    }

    /// The directory that `path` lies in, and its name there.
    pub(super) fn place(&self, path: &Path) -> io::Result<(Ino, OsString)> {
        let (names, last) = Disk::split(path);
        let mut at = ROOT;
        for name in names {
            let dir = self.dir(at).ok_or_else(|| error(ENOTDIR))?;
            at = *dir.visible.get(&name).ok_or_else(|| error(ENOENT))?;
        }
        if self.dir(at).is_none() {
            return Err(error(ENOTDIR));
        }
        Ok((at, last.ok_or_else(|| error(EEXIST))?))
    }

    /// The node that `path` names.
    pub(super) fn find(&self, path: &Path) -> io::Result<Ino> {
        if Disk::split(path).1.is_none() {
            return Ok(ROOT);
        }
        let (dir, name) = self.place(path)?;
        let dir = self.dir(dir).ok_or_else(|| error(ENOTDIR))?;
        dir.visible.get(&name).copied().ok_or_else(|| error(ENOENT))
    }

    /// Creates a node under a name that is free.
    pub(super) fn create(&mut self, path: &Path, op: u64, node: Node) -> io::Result<Ino> {
        let (dir, name) = self.place(path)?;
        let ino = self.next;
        let dir = self.dir_mut(dir).ok_or_else(|| error(ENOTDIR))?;
        if dir.visible.contains_key(&name) {
            return Err(error(EEXIST));
        }
        dir.change(op, NameChange::Link { name, ino });
        self.next += 1;
        self.nodes.insert(ino, Arc::new(node));
        Ok(ino)
    }

    /// Removes the name of a file.
    pub(super) fn unlink(&mut self, path: &Path, op: u64) -> io::Result<()> {
        let ino = self.find(path)?;
        self.file(ino).ok_or_else(|| error(EISDIR))?;
        let (dir, name) = self.place(path)?;
        let dir = self.dir_mut(dir).ok_or_else(|| error(ENOTDIR))?;
        dir.change(op, NameChange::Unlink { name });
        Ok(())
    }

    /// Renames a file, replacing a file of the new name.
    pub(super) fn rename(&mut self, from: &Path, to: &Path, op: u64) -> io::Result<()> {
        let ino = self.find(from)?;
        self.file(ino).ok_or_else(|| error(EISDIR))?;
        let (from_dir, from) = self.place(from)?;
        let (to_dir, to) = self.place(to)?;
        let target = self.dir(to_dir).ok_or_else(|| error(ENOTDIR))?;
        if let Some(old) = target.visible.get(&to) {
            self.file(*old).ok_or_else(|| error(EISDIR))?;
            if *old == ino {
                return Ok(());
            }
        }
        if from_dir == to_dir {
            let dir = self.dir_mut(from_dir).ok_or_else(|| error(ENOTDIR))?;
            dir.change(op, NameChange::Rename { from, to, ino });
            return Ok(());
        }
        let target = self.dir_mut(to_dir).ok_or_else(|| error(ENOTDIR))?;
        target.change(op, NameChange::Link { name: to, ino });
        let source = self.dir_mut(from_dir).ok_or_else(|| error(ENOTDIR))?;
        source.change(op, NameChange::Unlink { name: from });
        Ok(())
    }

    /// S3 for the directory `ino`. A rename from one directory to another is one entry of the
    /// journal: the sync of one side makes the other durable, up to that rename.
    pub(super) fn sync_dir(&mut self, ino: Ino, stamp: u64) {
        let Some(dir) = self.dir_mut(ino) else { return };
        let done = dir.sync(|pending| pending.is_covered(stamp));
        let Some(last) = done.iter().max().copied() else { return };
        let others: Vec<Ino> = self
            .nodes
            .keys()
            .copied()
            .filter(|other| *other != ino)
            .filter(|other| {
                let pending = self.dir(*other).map(|dir| dir.pending.as_slice());
                pending.unwrap_or_default().iter().any(|p| done.contains(&p.op))
            })
            .collect();
        for other in others {
            if let Some(dir) = self.dir_mut(other) {
                dir.sync(|pending| pending.op <= last && pending.is_covered(stamp));
            }
        }
    }

    /// S1: after the death of a process, whatever it did has completed; the page cache stays.
    pub(super) fn complete_all(&mut self, stamp: u64) {
        for node in self.nodes.values_mut() {
            match &**node {
                Node::File(file) if file.pending.is_empty() => continue,
                Node::Dir(dir) if dir.pending.is_empty() => continue,
                _ => {}
            }
            match Arc::make_mut(node) {
                Node::File(file) => {
                    file.pending.iter_mut().for_each(|p| p.completed = p.completed.or(Some(stamp)));
                }
                Node::Dir(dir) => {
                    dir.pending.iter_mut().for_each(|p| p.completed = p.completed.or(Some(stamp)));
                }
            }
        }
    }

    /// Forgets what no directory names any more and nobody has open.
    pub(super) fn sweep(&mut self, is_open: impl Fn(Ino) -> bool) {
        let mut named = BTreeSet::from([ROOT]);
        for node in self.nodes.values() {
            let Node::Dir(dir) = &**node else { continue };
            named.extend(dir.visible.values().chain(dir.durable.values()));
            named.extend(dir.pending.iter().filter_map(|pending| match &pending.change {
                NameChange::Link { ino, .. } | NameChange::Rename { ino, .. } => Some(*ino),
                NameChange::Unlink { .. } => None,
            }));
        }
        self.nodes.retain(|ino, _| named.contains(ino) || is_open(*ino));
    }

    /// The bytes that the files take, removed ones that are open too: the length of each, in whole
    /// pages.
    pub fn used(&self) -> u64 {
        let page = super::image::PAGE as u64;
        let files = self.nodes.keys().filter_map(|ino| self.file(*ino));
        files.map(|file| file.visible.len().div_ceil(page) * page).sum()
    }
}
