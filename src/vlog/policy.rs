//! Which files of the value log to rewrite, and when. Pure.
//!
//! What a file has alive is known exactly: what tables refer to. What tables refer to may be hidden
//! by newer entries that no merge has met yet; how much is only estimated, from what merges drop.
//! Everything on disk beyond what is alive, hidden or not, is within
//! `(max_space_amplification - 1)` times what is alive, or something is rewritten or merged.
//!
//! Victims are chosen by cost and benefit after LFS (Rosenblum and Ousterhout, 1992): what is freed
//! times its age over what is read and written. The age is the square root of the file's rank by
//! creation, a rewrite counting as one: in simulations of uniform and zipfian overwrites that wrote
//! a tenth less than the age of the youngest value. Rewritten values have files of their own, and
//! what has survived once is not mixed again with what never has: so cold values leave the company
//! of hot ones.
//!
//! Invariants:
//! 1. A file without a living body is always dropped, and costs nothing.
//! 2. From a little before there is as much garbage as is allowed there is a victim, while any file
//!    has garbage worth a rewrite.

use crate::filename::FileNumber;

/// A file with less garbage than one part in so many is not worth rewriting.
const WORTH_SHARE: u64 = 16;
/// The least share of the allowance that garbage has, whatever else is on the disk: without it
/// collection would rewrite everything over and over.
const GARBAGE_SHARE: u64 = 4;
/// What the estimates may be wrong by, as a share of what is alive.
const MARGIN_SHARE: u64 = 32;
/// Rewriting begins when this share of the allowed garbage is still missing: what it does in no
/// hurry is done by the time that it must hurry.
const EARLY_SHARE: u64 = 16;
/// The part of the allowance that hidden bodies may take at most before everything is merged.
const HIDDEN_SHARE: u64 = 2;

/// A file of the value log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileView {
    pub(crate) number: FileNumber,
    pub(crate) bytes: u64,
    /// The bytes that tables refer to.
    pub(crate) live: u64,
    /// The bytes that say where its bodies stand: a rewrite would not free them.
    pub(crate) lists: u64,
    /// It holds what a rewrite found alive.
    pub(crate) is_rewritten: bool,
}

impl FileView {
    pub(crate) fn garbage(&self) -> u64 {
        self.bytes.saturating_sub(self.live + self.lists)
    }
}

/// What the value log and all that belongs to it take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Accounts {
    /// The bytes that tables refer to.
    pub(crate) in_tables: u64,
    /// The bytes that memtables refer to.
    pub(crate) in_memtables: u64,
    /// What newer entries in tables hide: an estimate.
    pub(crate) hidden: u64,
    /// What the pointers themselves take in tables, and the lists of rewritten files.
    pub(crate) pointers: u64,
    /// What the segments that commits enter take beyond what memtables refer to, and what a rewrite
    /// takes until its victims are gone.
    pub(crate) unfilled: u64,
}

impl Accounts {
    /// The bytes that a reader of today can get, as far as tables tell: memtables may have nothing
    /// but new versions of it.
    pub(crate) fn live(&self) -> u64 {
        self.in_tables.saturating_sub(self.hidden)
    }

    /// What may be on the disk beyond what is alive.
    #[expect(clippy::cast_possible_truncation, reason = "a size times at most 99")]
    #[expect(clippy::cast_sign_loss, reason = "the option is above 1")]
    fn allowance(&self, max_amplification: f64) -> u64 {
        (self.live() as f64 * (max_amplification - 1.0)) as u64
    }

    /// How much garbage the files may hold.
    pub(crate) fn bounds(&self, max_amplification: f64) -> Bounds {
        let allowance = self.allowance(max_amplification);
        let margin = self.live() / MARGIN_SHARE;
        let others = self.hidden + self.in_memtables + self.pointers + self.unfilled + margin;
        let allowed = allowance.saturating_sub(others).max(allowance / GARBAGE_SHARE);
        Bounds { begin: allowed - allowed / EARLY_SHARE, allowed, full: allowed + margin }
    }

    /// Whether so much is hidden that a merge of everything pays: it makes garbage of it.
    ///
    /// Merging at a hidden share s of what is alive costs t/s of what is written meanwhile, where t
    /// is the size of the tree over what is alive; the space that s takes costs collection about
    /// 4s. The sum is smallest at half the root of t.
    #[expect(clippy::cast_possible_truncation, reason = "below the mean of two sizes")]
    #[expect(clippy::cast_sign_loss, reason = "sizes are positive")]
    pub(crate) fn hides_too_much(&self, max_amplification: f64, tree_bytes: u64) -> bool {
        let best = (tree_bytes as f64 * self.live() as f64).sqrt() / 2.0;
        self.hidden > (best as u64).min(self.allowance(max_amplification) / HIDDEN_SHARE)
    }
}

/// How much garbage the files may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Rewriting begins.
    pub(crate) begin: u64,
    /// Rewriting does nothing but hurry.
    pub(crate) allowed: u64,
    /// Nothing more may be written.
    pub(crate) full: u64,
}

impl Bounds {
    /// How much of its time rewriting may leave to others: all that it likes at 1, none at 0.
    pub(crate) fn leisure(&self, garbage: u64) -> f64 {
        let left = self.allowed.saturating_sub(garbage.max(self.begin));
        left as f64 / (self.allowed - self.begin).max(1) as f64
    }
}

/// What to do about the value log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Pick {
    /// Files without a living body.
    pub(crate) dead: Vec<FileNumber>,
    /// Files to rewrite into one.
    pub(crate) victims: Vec<FileNumber>,
}

/// Chooses among `files`, which may hold `allowed` bytes of garbage; a rewrite writes about
/// `file_bytes`.
pub(crate) fn pick(files: &[FileView], allowed: u64, file_bytes: u64) -> Pick {
    let little = |f: &FileView| if planted!(CollectReferred) { f.bytes / 8 } else { 0 };
    let (dead, mut files): (Vec<FileView>, Vec<FileView>) =
        files.iter().partition(|file| file.live <= little(file));
    let dead: Vec<FileNumber> = dead.iter().map(|file| file.number).collect();
    let garbage: u64 = files.iter().map(FileView::garbage).sum();
    let Some(mut excess) = garbage.checked_sub(allowed).filter(|excess| *excess > 0) else {
        return Pick { dead, victims: Vec::new() };
    };
    // A file number is an age: rewritten files draw theirs when they are written.
    files.sort_by_key(|file| std::cmp::Reverse(file.number));
    let mut scored: Vec<(f64, FileView)> = (1u32..)
        .zip(&files)
        .filter(|(_, file)| file.garbage() >= (file.bytes / WORTH_SHARE).max(1))
        .map(|(rank, file)| (score(file, rank), *file))
        .collect();
    scored.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.number.cmp(&y.number)));
    let mut victims = Vec::new();
    let mut output = 0;
    let is_rewritten = scored.first().is_some_and(|(_, file)| file.is_rewritten);
    for (_, file) in scored.into_iter().filter(|(_, file)| file.is_rewritten == is_rewritten) {
        // A whole file of output, unless the excess is gone sooner and half a file is written.
        let is_enough = excess == 0 && output >= file_bytes / 2;
        if !victims.is_empty() && (is_enough || output + file.live > file_bytes) {
            break;
        }
        victims.push(file.number);
        output += file.live;
        excess = excess.saturating_sub(file.garbage());
    }
    Pick { dead, victims }
}

/// Benefit over cost: the share that is freed times the age of the file of this rank, over what is
/// read and written.
fn score(file: &FileView, rank: u32) -> f64 {
    let used = file.live as f64 / file.bytes as f64;
    (1.0 - used).max(0.0) * f64::from(rank).sqrt() / (1.0 + used)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: FileNumber, bytes: u64, live: u64) -> FileView {
        FileView { number, bytes, live, lists: 0, is_rewritten: false }
    }

    #[test]
    fn nothing_is_rewritten_within_the_allowance() {
        let files = [file(1, 100, 60), file(2, 100, 0), file(3, 100, 100)];
        let pick = pick(&files, 40, 100);
        assert_eq!(pick, Pick { dead: vec![2], victims: vec![] });
    }

    #[test]
    fn age_and_garbage_decide() {
        let files = [file(1, 100, 60), file(2, 100, 60), file(3, 100, 90), file(4, 100, 5)];
        assert_eq!(pick(&files[..3], 0, 50).victims, [1], "the older of equals");
        assert_eq!(pick(&files, 0, 50).victims, [4], "what is nearly empty, before all");
        assert_eq!(pick(&files, 0, 130).victims, [4, 1, 2]);
        assert_eq!(pick(&[file(3, 100, 96)], 0, 100).victims, [0; 0], "not worth it");
    }

    #[test]
    fn what_has_survived_stays_among_its_kind() {
        let survivor = |number, live| FileView { is_rewritten: true, ..file(number, 100, live) };
        let files = [survivor(1, 20), file(2, 100, 30), survivor(3, 20), file(4, 100, 1)];
        assert_eq!(pick(&files, 0, 100).victims, [1, 3]);
        assert_eq!(pick(&files[1..], 0, 100).victims, [4, 2]);
    }

    #[test]
    fn what_a_rewrite_does_not_free_is_no_reason_for_one() {
        let full = FileView { lists: 60, ..file(1, 100, 40) };
        assert_eq!(pick(&[full], 0, 100), Pick::default());
        assert_eq!(pick(&[FileView { live: 30, ..full }], 0, 100).victims, [1]);
    }

    #[test]
    fn small_files_are_joined() {
        let files: Vec<FileView> = (1..=10).map(|number| file(number, 20, 10)).collect();
        assert_eq!(pick(&files, 95, 60).victims.len(), 3, "half a file of output");
        assert_eq!(pick(&files, 0, 60).victims.len(), 6, "a whole one");
    }

    #[test]
    fn the_nearer_the_bound_the_greater_the_hurry() {
        let bounds = Bounds { begin: 300, allowed: 320, full: 350 };
        let leisure: Vec<f64> = [0, 300, 305, 320, 400].map(|g| bounds.leisure(g)).to_vec();
        assert_eq!(leisure, [1.0, 1.0, 0.75, 0.0, 0.0]);
        assert_eq!(Bounds { begin: 0, allowed: 0, full: 0 }.leisure(0), 0.0, "nothing is allowed");
    }

    #[test]
    fn hidden_bodies_and_pointers_take_from_the_allowance() {
        let (in_tables, in_memtables, hidden) = (1060, 40, 60);
        let (pointers, unfilled) = (30, 20);
        let accounts = Accounts { in_tables, in_memtables, hidden, pointers, unfilled };
        assert_eq!(accounts.live(), 1000);
        assert_eq!(accounts.bounds(1.5), Bounds { begin: 300, allowed: 319, full: 350 });
        assert_eq!(Accounts { pointers: 500, ..accounts }.bounds(1.5).allowed, 125);
        assert!(!accounts.hides_too_much(1.5, 15));
        assert!(accounts.hides_too_much(1.5, 14));
        assert!(accounts.hides_too_much(1.11, 100), "hidden bodies leave room for garbage");
    }
}
