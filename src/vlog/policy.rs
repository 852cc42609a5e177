//! Which files of the value log to rewrite, and when. Pure.
//!
//! What a file has alive is known exactly: what tables refer to. What tables refer to may be hidden
//! by newer entries that no merge has met yet; how much is only estimated, from what merges drop.
//! Everything on disk beyond what is alive, hidden or not, is within
//! `(max_space_amplification - 1)` times what is alive, or something is rewritten or merged.
//!
//! Victims are chosen by cost and benefit as in LFS (Rosenblum and Ousterhout, 1992): what is freed
//! times its age over what is read and written. Rewritten values have files of their own, so that
//! cold values leave the company of hot ones.
//!
//! Invariants:
//! 1. A file without a living body is always dropped, and costs nothing.
//! 2. While there is more garbage than is allowed, and any file has garbage worth a rewrite, there
//!    is a victim.

use crate::filename::FileNumber;

/// A file with less garbage than one part in so many is not worth rewriting.
const WORTH_SHARE: u64 = 16;
/// The least share of the allowance that garbage has, whatever else is on the disk: without it
/// collection would rewrite everything over and over.
const GARBAGE_SHARE: u64 = 4;
/// The share of the allowance that hidden bodies may take before everything is merged.
const HIDDEN_SHARE: u64 = 5;

/// A file of the value log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileView {
    pub(crate) number: FileNumber,
    pub(crate) bytes: u64,
    /// The bytes that tables refer to.
    pub(crate) live: u64,
    /// The bytes that say where its bodies stand: a rewrite would not free them.
    pub(crate) lists: u64,
    /// The youngest segment in it.
    pub(crate) youngest: FileNumber,
}

impl FileView {
    pub(crate) fn garbage(&self) -> u64 {
        self.bytes.saturating_sub(self.live + self.lists)
    }
}

/// What the value log and all that belongs to it take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Accounts {
    /// The bytes that tables and memtables refer to.
    pub(crate) referred: u64,
    /// Of these, what newer entries hide in tables: an estimate.
    pub(crate) hidden: u64,
    /// Of these, what entries of memtables hide: an estimate.
    pub(crate) hidden_by_memtables: u64,
    /// What the pointers themselves take in tables, and the lists of rewritten files.
    pub(crate) pointers: u64,
    /// What the segments that commits enter take beyond what memtables refer to.
    pub(crate) unfilled: u64,
}

impl Accounts {
    /// The bytes that a reader of today can get.
    pub(crate) fn live(&self) -> u64 {
        self.referred.saturating_sub(self.hidden + self.hidden_by_memtables)
    }

    /// What may be on the disk beyond what is alive.
    #[expect(clippy::cast_possible_truncation, reason = "a size times at most 99")]
    #[expect(clippy::cast_sign_loss, reason = "the option is above 1")]
    fn allowance(&self, max_amplification: f64) -> u64 {
        (self.live() as f64 * (max_amplification - 1.0)) as u64
    }

    /// How much garbage the files may hold.
    pub(crate) fn garbage_allowed(&self, max_amplification: f64) -> u64 {
        let allowance = self.allowance(max_amplification);
        let hidden = self.hidden + self.hidden_by_memtables;
        let others = hidden + self.pointers + self.unfilled;
        allowance.saturating_sub(others).max(allowance / GARBAGE_SHARE)
    }

    /// Whether so much is hidden that a merge of everything pays: it makes garbage of it.
    pub(crate) fn hides_too_much(&self, max_amplification: f64, tree_bytes: u64) -> bool {
        let share = self.allowance(max_amplification) / HIDDEN_SHARE;
        self.hidden > share.max(tree_bytes)
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
    files.sort_by_key(|file| std::cmp::Reverse(file.youngest));
    let mut scored: Vec<(f64, FileView)> = (1u32..)
        .zip(&files)
        .filter(|(_, file)| file.garbage() >= (file.bytes / WORTH_SHARE).max(1))
        .map(|(age, file)| (score(file, age), *file))
        .collect();
    scored.sort_by(|(a, x), (b, y)| b.total_cmp(a).then(x.number.cmp(&y.number)));
    let mut victims = Vec::new();
    let mut output = 0;
    for (_, file) in scored {
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

/// Benefit over cost: the share that is freed times the age, over what is read and written.
fn score(file: &FileView, age: u32) -> f64 {
    let used = file.live as f64 / file.bytes as f64;
    (1.0 - used).max(0.0) * f64::from(age) / (1.0 + used)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: FileNumber, bytes: u64, live: u64) -> FileView {
        FileView { number, bytes, live, lists: 0, youngest: number }
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
        assert_eq!(pick(&files, 0, 50).victims, [1], "the older of equals");
        assert_eq!(pick(&files, 0, 130).victims, [1, 4, 2], "and what is nearly empty");
        assert_eq!(pick(&[file(3, 100, 90), file(4, 100, 5)], 0, 1).victims, [4]);
        assert_eq!(pick(&[file(3, 100, 96)], 0, 100).victims, [0; 0], "not worth it");
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
    fn hidden_bodies_and_pointers_take_from_the_allowance() {
        let (hidden, hidden_by_memtables) = (60, 40);
        let (referred, pointers, unfilled) = (1100, 30, 20);
        let accounts = Accounts { referred, hidden, hidden_by_memtables, pointers, unfilled };
        assert_eq!(accounts.live(), 1000);
        assert_eq!(accounts.garbage_allowed(1.5), 350);
        assert_eq!(Accounts { pointers: 500, ..accounts }.garbage_allowed(1.5), 125);
        assert!(!accounts.hides_too_much(1.5, 0));
        assert!(Accounts { hidden: 101, referred: 1141, ..accounts }.hides_too_much(1.5, 0));
        assert!(!Accounts { hidden: 101, referred: 1141, ..accounts }.hides_too_much(1.5, 102));
    }
}
