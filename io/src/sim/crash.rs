//! What a power cut leaves: the rules C1 to C4 for everything that is pending.
//!
//! Invariants:
//! 1. What is durable stays, unless a pending change covers it or the disk is hostile (C2).
//! 2. C4: every file and every directory is resolved by itself: nothing orders one after another.
//! 3. Afterwards nothing is pending: what is seen is what is durable.

use super::chance::Chance;
use super::disk::{Change, Disk, FileNode, Ino, NameChange, Node};
use super::image::{Image, PAGE, index};

/// What a power cut does with what is pending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Everything had reached the device by chance.
    AllKept,
    /// Nothing had: exactly the durable state is left.
    NoneKept,
    /// Every sector, file size and directory entry for itself, by seed.
    Mixed,
}

impl Cut {
    /// Drawn as the fault model says: 10 % all kept, 10 % none, 80 % mixed.
    pub fn draw(chance: &mut Chance) -> Cut {
        match chance.below(10) {
            0 => Cut::AllKept,
            1 => Cut::NoneKept,
            _ => Cut::Mixed,
        }
    }
}

/// How this disk behaves at a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CrashRules {
    /// C1: bytes that are written as a unit, 512 or 4096.
    pub sector: usize,
    /// C2, C4: breaks bytes beside a pending write, and keeps any subset of names.
    pub hostile: bool,
    /// C3: what a file has grown by and nobody wrote may be old garbage instead of zeros.
    pub stale: bool,
}

impl Disk {
    /// The disk as it is after the power fails now: the same seed, the same damage.
    pub fn crash(&self, cut: Cut, rules: CrashRules, seed: u64) -> Disk {
        let mut disk = self.clone();
        resolve(&mut disk, cut, rules, &mut Chance::new(seed));
        disk
    }
}

/// Resolves everything that is pending.
pub(super) fn resolve(disk: &mut Disk, cut: Cut, rules: CrashRules, chance: &mut Chance) {
    let all: Vec<Ino> = disk.nodes.keys().copied().collect();
    let mut linked = Vec::new();
    for ino in all {
        let settled = match disk.nodes.get(&ino).map(|node| &**node) {
            Some(Node::File(file)) => file.pending.is_empty() && file.visible == file.durable,
            Some(Node::Dir(dir)) => dir.pending.is_empty(),
            None => true,
        };
        if settled {
            continue;
        }
        if let Some(file) = disk.file_mut(ino) {
            let left = match cut {
                Cut::NoneKept => file.durable.clone(),
                Cut::AllKept => all_of(file),
                Cut::Mixed => mixed(file, rules, chance),
            };
            file.settle(left);
        } else {
            resolve_names(disk, ino, cut, rules, chance, &mut linked);
        }
    }
    // One journal entry holds both sides of a rename between directories: the old name stays
    // unless the new one has come.
    for (dir, name, ino, op) in lost_sources(disk, &linked) {
        if !linked.contains(&(op, true))
            && let Some(dir) = disk.dir_mut(dir)
        {
            dir.durable.insert(name, ino);
        }
    }
    for node in disk.nodes.values_mut() {
        if matches!(&**node, Node::Dir(dir) if !dir.pending.is_empty())
            && let Node::Dir(dir) = std::sync::Arc::make_mut(node)
        {
            dir.visible = dir.durable.clone();
            dir.pending.clear();
        }
    }
    disk.sweep(|_| false);
}

/// Names whose removal was kept while the operation also linked elsewhere.
fn lost_sources(disk: &Disk, linked: &[(u64, bool)]) -> Vec<(Ino, std::ffi::OsString, Ino, u64)> {
    let mut lost = Vec::new();
    for (at, node) in &disk.nodes {
        let Node::Dir(dir) = &**node else { continue };
        for pending in &dir.pending {
            let NameChange::Unlink { name } = &pending.change else { continue };
            if !dir.durable.contains_key(name)
                && linked.iter().any(|(op, _)| *op == pending.op)
                && let Some(ino) = target_of(disk, pending.op)
            {
                lost.push((*at, name.clone(), ino, pending.op));
            }
        }
    }
    lost
}

/// The node that the operation `op` links.
fn target_of(disk: &Disk, op: u64) -> Option<Ino> {
    let dirs = disk.nodes.keys().filter_map(|ino| disk.dir(*ino));
    dirs.flat_map(|dir| &dir.pending).find_map(|pending| match &pending.change {
        NameChange::Link { ino, .. } if pending.op == op => Some(*ino),
        _ => None,
    })
}

/// C4: an ordinary disk keeps a prefix of the changes of each directory, a hostile one any subset.
/// A rename at the end of the prefix may leave both names. Notes which links were kept.
fn resolve_names(
    disk: &mut Disk,
    ino: Ino,
    cut: Cut,
    rules: CrashRules,
    chance: &mut Chance,
    linked: &mut Vec<(u64, bool)>,
) {
    let Some(dir) = disk.dir_mut(ino) else { return };
    let count = dir.pending.len();
    let prefix = match cut {
        Cut::AllKept => count,
        Cut::NoneKept => 0,
        Cut::Mixed => chance.index(count + 1),
    };
    let subset = cut == Cut::Mixed && rules.hostile;
    for (i, pending) in dir.pending.iter().enumerate() {
        let kept = if subset { chance.one_in(2) } else { i < prefix };
        if let NameChange::Link { .. } = &pending.change {
            linked.push((pending.op, kept));
        }
        if kept {
            pending.change.apply(&mut dir.durable);
        } else if let NameChange::Rename { to, ino, .. } = &pending.change
            && cut == Cut::Mixed
            && (subset || i == prefix)
            && chance.one_in(4)
        {
            dir.durable.insert(to.clone(), *ino);
        }
    }
}

fn all_of(file: &FileNode) -> Image {
    let mut image = file.durable.clone();
    for pending in &file.pending {
        pending.change.apply(&mut image);
    }
    image
}

/// C1, C3: sectors and size for themselves.
fn mixed(file: &FileNode, rules: CrashRules, chance: &mut Chance) -> Image {
    let mut image = file.durable.clone();
    let full = all_of(file).len();
    let mut sizes = vec![image.len(), full];
    if rules.stale && full > image.len() && chance.one_in(2) {
        let start = image.len();
        let mut garbage = vec![0; index(full - start)];
        chance.fill(&mut garbage);
        image.write(&garbage, start);
    }
    // Where a file has been cut, its end is only then uncertain if the cut was kept.
    let mut style = Style::draw(chance);
    for pending in &file.pending {
        match &pending.change {
            Change::SetLen(len) => {
                if chance.one_in(2) {
                    image.set_len(*len);
                }
                sizes.push(*len);
            }
            Change::Grow(len) => sizes.push(*len),
            Change::Write { offset, data } => {
                sizes.push(offset + data.len() as u64);
                style.resolve(&mut image, *offset, data, rules, chance);
            }
        }
    }
    let (low, high) = (file.durable.len().min(full), sizes.iter().copied().max().unwrap_or(full));
    let size = match chance.below(4) {
        0 => full,
        1 => chance.pick(&sizes).copied().unwrap_or(full),
        2 => chance.between(low, high).next_multiple_of(PAGE as u64),
        _ => image.len(),
    };
    image.set_len(size.clamp(low, high));
    image
}

/// How the sectors of one file fare at one cut.
struct Style {
    /// Of a hundred sectors, how many are written.
    new: u64,
    /// Of a hundred, how many are damaged rather than old or new.
    damaged: u64,
    /// Whether neighbours share their fate, as in an erase block.
    runs: bool,
    last: Option<Fate>,
}

#[derive(Clone, Copy)]
enum Fate {
    Old,
    New,
    Zeros,
    Garbage,
    ShornHead,
    ShornTail,
}

impl Style {
    fn draw(chance: &mut Chance) -> Style {
        let new = [10, 50, 50, 90, 97];
        Style {
            new: chance.pick(&new).copied().unwrap_or(50),
            damaged: if chance.one_in(2) { 0 } else { 30 },
            runs: chance.one_in(2),
            last: None,
        }
    }

    fn fate(&mut self, chance: &mut Chance) -> Fate {
        if let Some(last) = self.last.filter(|_| self.runs && !chance.one_in(4)) {
            return last;
        }
        let fate = if chance.below(100) < self.damaged {
            let all = [Fate::Zeros, Fate::Zeros, Fate::Garbage, Fate::ShornHead, Fate::ShornTail];
            chance.pick(&all).copied().unwrap_or(Fate::Zeros)
        } else if chance.below(100) < self.new {
            Fate::New
        } else {
            Fate::Old
        };
        self.last = Some(fate);
        fate
    }

    /// C1: every sector of the write is old, new, zeros, garbage or shorn. C2: bytes outside of
    /// the write keep their value, unless the disk is hostile.
    fn resolve(
        &mut self,
        image: &mut Image,
        offset: u64,
        data: &[u8],
        rules: CrashRules,
        chance: &mut Chance,
    ) {
        let sector = rules.sector.max(1);
        let head = (sector - index(offset) % sector).min(data.len());
        let (first, rest) = data.split_at_checked(head).unwrap_or((data, &[]));
        let mut at = offset;
        for part in std::iter::once(first).chain(rest.chunks(sector)) {
            match self.fate(chance) {
                Fate::Old => {}
                Fate::New => image.write(part, at),
                Fate::Zeros => image.write(&vec![0; part.len()], at),
                Fate::Garbage => {
                    let mut garbage = vec![0; part.len()];
                    chance.fill(&mut garbage);
                    image.write(&garbage, at);
                }
                Fate::ShornHead => {
                    let (head, _) = part.split_at(chance.index(part.len()));
                    image.write(head, at);
                }
                Fate::ShornTail => {
                    let (head, tail) = part.split_at(chance.index(part.len()));
                    image.write(tail, at + head.len() as u64);
                }
            }
            at += part.len() as u64;
        }
        if rules.hostile && chance.one_in(20) {
            self.break_neighbours(image, offset, data.len(), chance);
        }
    }

    /// C2, hostile: a page that was being written is lost as a whole.
    fn break_neighbours(&self, image: &mut Image, offset: u64, len: usize, chance: &mut Chance) {
        let page = PAGE as u64;
        let pages = (offset + len as u64).div_ceil(page) - offset / page;
        let start = (offset / page + chance.below(pages)) * page;
        let end = (start + page).min(image.len());
        let mut lost = vec![0; index(end.saturating_sub(start))];
        if chance.one_in(2) {
            chance.fill(&mut lost);
        }
        image.write(&lost, start);
    }
}
