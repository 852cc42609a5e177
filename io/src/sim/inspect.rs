//! Looking at a disk from outside, and planting damage: what oracles and damage tests need.
//!
//! Invariants:
//! 1. Nothing here is an operation: it has no number, no trace and no fault.
//! 2. What is planted is durable at once, and seen at once.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::disk::{Change, Disk, Ino, NameChange, Node, ROOT};
use super::errno::{EISDIR, error};
use super::image::Image;
use super::trace::hash_bytes;

impl Disk {
    /// An empty disk.
    pub fn new() -> Disk {
        Disk::default()
    }

    /// A disk with these files, all durable, and the directories that they need.
    ///
    /// # Errors
    ///
    /// When a name is a file and a directory at once.
    pub fn from_files<P, B>(files: impl IntoIterator<Item = (P, B)>) -> io::Result<Disk>
    where
        P: AsRef<Path>,
        B: AsRef<[u8]>,
    {
        let mut disk = Disk::new();
        for (path, bytes) in files {
            disk.write_file(path, bytes.as_ref())?;
        }
        Ok(disk)
    }

    /// All files with their visible bytes.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        self.walk(ROOT, Path::new("/"), true, &mut |path, file| {
            found.insert(path, file.0.to_vec());
        });
        found
    }

    /// The names of all files that a process sees now.
    pub fn names(&self) -> Vec<PathBuf> {
        let mut names = Vec::new();
        self.walk(ROOT, Path::new("/"), true, &mut |path, _| names.push(path));
        names
    }

    /// The names of all files that are durable by themselves and by every directory above.
    pub fn durable_names(&self) -> Vec<PathBuf> {
        let mut names = Vec::new();
        self.walk(ROOT, Path::new("/"), false, &mut |path, _| names.push(path));
        names
    }

    /// A hash of all names and visible bytes: disks that differ in it differ for a process.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = 0u64;
        self.walk(ROOT, Path::new("/"), true, &mut |path, (visible, _)| {
            let name = hash_bytes(path.as_os_str().as_encoded_bytes());
            for word in [name, visible.fingerprint()] {
                hash = (hash.rotate_left(27) ^ word).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
            }
        });
        hash
    }

    fn walk(
        &self,
        at: Ino,
        path: &Path,
        visible: bool,
        each: &mut dyn FnMut(PathBuf, (&Image, &Image)),
    ) {
        let Some(dir) = self.dir(at) else { return };
        let names = if visible { &dir.visible } else { &dir.durable };
        for (name, ino) in names {
            match self.nodes.get(ino).map(|node| &**node) {
                Some(Node::File(file)) => each(path.join(name), (&file.visible, &file.durable)),
                Some(Node::Dir(_)) => self.walk(*ino, &path.join(name), visible, each),
                None => {}
            }
        }
    }

    /// The bytes that a process reads now; none when there is no such file.
    pub fn visible_bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let ino = self.find(path.as_ref()).ok()?;
        Some(self.file(ino)?.visible.to_vec())
    }

    /// The durable bytes of the file that has this name now, whether or not its name is durable.
    pub fn durable_bytes(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let ino = self.find(path.as_ref()).ok()?;
        Some(self.file(ino)?.durable.to_vec())
    }

    /// Whether the bytes of `range` that a process reads now would survive every power cut: no
    /// pending change overlaps them, and they are the durable ones. The name is not looked at.
    pub fn is_durable(&self, path: impl AsRef<Path>, range: Range<u64>) -> bool {
        let file = self.find(path.as_ref()).ok().and_then(|ino| self.file(ino));
        let Some(file) = file else { return false };
        let overlaps = file.pending.iter().any(|pending| match &pending.change {
            Change::Write { offset, data } => {
                *offset < range.end && range.start < offset + data.len() as u64
            }
            Change::SetLen(len) => *len < range.end,
            Change::Grow(_) => false,
        });
        let is_long = file.durable.len() >= range.end && file.visible.len() >= range.end;
        !overlaps && is_long && file.durable.bytes(range.clone()) == file.visible.bytes(range)
    }

    /// Whether the name, as it is seen now, would survive every power cut, as a name of the same
    /// file, with every directory above.
    pub fn is_name_durable(&self, path: impl AsRef<Path>) -> bool {
        let mut at = ROOT;
        for component in path.as_ref().components() {
            let std::path::Component::Normal(name) = component else { continue };
            let Some(dir) = self.dir(at) else { return false };
            let changes = dir.pending.iter().any(|pending| match &pending.change {
                NameChange::Link { name: changed, .. } | NameChange::Unlink { name: changed } => {
                    changed == name
                }
                NameChange::Rename { from, to, .. } => from == name || to == name,
            });
            let Some(ino) = dir.visible.get(name) else { return false };
            if changes || dir.durable.get(name) != Some(ino) {
                return false;
            }
            at = *ino;
        }
        true
    }

    /// Whether nothing is pending: a power cut would change nothing.
    pub fn is_settled(&self) -> bool {
        self.nodes.values().all(|node| match &**node {
            Node::File(file) => file.pending.is_empty() && file.visible == file.durable,
            Node::Dir(dir) => dir.pending.is_empty(),
        })
    }

    /// Plants a whole file, creating the directories that it needs.
    ///
    /// # Errors
    ///
    /// When the name is a directory, or a part of it a file.
    pub fn write_file(&mut self, path: impl AsRef<Path>, bytes: &[u8]) -> io::Result<()> {
        let path = path.as_ref();
        let parents: Vec<&Path> = path.ancestors().skip(1).collect();
        for parent in parents.into_iter().rev() {
            if self.find(parent).is_err() {
                self.plant_node(parent, Node::Dir(super::disk::DirNode::default()))?;
            }
        }
        if self.find(path).is_err() {
            self.plant_node(path, Node::File(super::disk::FileNode::default()))?;
        }
        let ino = self.find(path)?;
        let file = self.file_mut(ino).ok_or_else(|| error(EISDIR))?;
        file.latent.clear();
        file.settle(Image::from_bytes(bytes));
        Ok(())
    }

    fn plant_node(&mut self, path: &Path, node: Node) -> io::Result<()> {
        let ino = self.create(path, 0, node)?;
        let (dir, name) = self.place(path)?;
        if let Some(dir) = self.dir_mut(dir) {
            dir.pending.retain(|pending| {
                !matches!(&pending.change, NameChange::Link { ino: planted, .. } if *planted == ino)
            });
            dir.durable.insert(name, ino);
        }
        Ok(())
    }

    /// Plants bytes into a file, growing it where needed.
    ///
    /// # Errors
    ///
    /// When there is no such file.
    pub fn write_bytes(
        &mut self,
        path: impl AsRef<Path>,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.plant(path.as_ref(), &Change::Write { offset, data: bytes.into() })
    }

    /// Cuts or extends a file, behind everybody's back.
    ///
    /// # Errors
    ///
    /// When there is no such file.
    pub fn truncate(&mut self, path: impl AsRef<Path>, len: u64) -> io::Result<()> {
        self.plant(path.as_ref(), &Change::SetLen(len))
    }

    fn plant(&mut self, path: &Path, change: &Change) -> io::Result<()> {
        let ino = self.find(path)?;
        self.file_mut(ino).ok_or_else(|| error(EISDIR))?.plant(change);
        Ok(())
    }

    /// Removes a file for good.
    ///
    /// # Errors
    ///
    /// When there is no such file.
    pub fn remove(&mut self, path: impl AsRef<Path>) -> io::Result<()> {
        let ino = self.find(path.as_ref())?;
        self.file(ino).ok_or_else(|| error(EISDIR))?;
        let (dir, name) = self.place(path.as_ref())?;
        if let Some(dir) = self.dir_mut(dir) {
            dir.visible.remove(&name);
            dir.durable.remove(&name);
            dir.pending.retain(|pending| match &pending.change {
                NameChange::Link { ino: named, .. } | NameChange::Rename { ino: named, .. } => {
                    *named != ino
                }
                NameChange::Unlink { name: gone } => *gone != name,
            });
        }
        Ok(())
    }
}
