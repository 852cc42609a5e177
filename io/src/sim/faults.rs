//! Errors while running: the rules R1 to R10, as rates and as scripts.
//!
//! Invariants:
//! 1. A rate of 0 draws no chance: switching one fault off does not shift the others of its seed
//!    by more than that fault itself did.
//! 2. R6: at most one misdirected or phantom operation in a life.
//! 3. Every injected fault is in the list of the trace.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::chance::Chance;
use super::errno::{EACCES, EDQUOT, EFBIG, EIO, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSPC, EROFS};
use super::trace::{Injected, OpKind};

/// Rates of faults, each per million operations that it may strike; all 0 by default.
#[derive(Clone, Default)]
pub struct Faults {
    /// R1: reads that fail once.
    pub read_transient: u32,
    /// R1: reads that find a page which cannot be read until it is rewritten.
    pub read_latent: u32,
    /// R2: reads that find a bit inverted on the medium, now and for ever.
    pub flip_media: u32,
    /// R2: reads that get a bit inverted on the way.
    pub flip_in_flight: u32,
    /// R3: transfers that come in several pieces; seen as time, and counted.
    pub short: u32,
    /// R4: writes that fail after any prefix of their sectors was written.
    pub write_error: u32,
    /// R5: syncs that fail.
    pub sync_error: u32,
    /// R5: of a million failing syncs, how many make all later syncs of that kind fail.
    pub sync_sticky: u32,
    /// R6: writes that go elsewhere, once in a life.
    pub write_misdirected: u32,
    /// R6: writes that are acknowledged and never reach the medium, once in a life.
    pub write_phantom: u32,
    /// R6: reads that return what is elsewhere, once in a life.
    pub read_misdirected: u32,
    /// R7: operations that take up to 10 s.
    pub slow: u32,
    /// R7: operations that stall the whole disk for up to 10 s.
    pub stall: u32,
    /// R8: opens, changes of names, listings and resizes that fail.
    pub name_error: u32,
    /// R9: readings of the monotonic clock that show no progress.
    pub clock_stall: u32,
    /// R9: readings of the wall clock before which it jumps.
    pub wall_jump: u32,
    /// R10: the largest buffer of one operation; beyond it there is no memory.
    pub transfer_max: Option<usize>,
    /// Which files faults may strike; all by default.
    pub files: Option<FilePredicate>,
}

/// Chooses files by name.
pub type FilePredicate = Arc<dyn Fn(&Path) -> bool + Send + Sync>;

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Faults");
        let mut copy = self.clone();
        for (name, rate) in copy.honest() {
            out.field(name, rate);
        }
        for (name, rate) in copy.lying() {
            out.field(name, rate);
        }
        out.finish_non_exhaustive()
    }
}

impl Faults {
    /// No faults.
    pub fn none() -> Faults {
        Faults::default()
    }

    /// The faults of a medium that lies (class K2).
    fn lying(&mut self) -> Vec<(&'static str, &mut u32)> {
        vec![
            ("read_latent", &mut self.read_latent),
            ("flip_media", &mut self.flip_media),
            ("write_misdirected", &mut self.write_misdirected),
            ("write_phantom", &mut self.write_phantom),
            ("read_misdirected", &mut self.read_misdirected),
        ]
    }

    /// The faults of an honest disk (class K1).
    fn honest(&mut self) -> Vec<(&'static str, &mut u32)> {
        vec![
            ("read_transient", &mut self.read_transient),
            ("short", &mut self.short),
            ("write_error", &mut self.write_error),
            ("sync_error", &mut self.sync_error),
            ("slow", &mut self.slow),
            ("stall", &mut self.stall),
            ("name_error", &mut self.name_error),
            ("clock_stall", &mut self.clock_stall),
            ("wall_jump", &mut self.wall_jump),
        ]
    }

    /// The rates of one machine of a swarm, with an honest disk (class K1): about half of them
    /// are exactly 0, the others from 1 in 10,000 to 1 in 20.
    pub fn swarm(chance: &mut Chance) -> Faults {
        let mut faults = Faults { sync_sticky: 500_000, ..Faults::default() };
        for (_, rate) in faults.honest() {
            *rate = draw(chance);
        }
        faults
    }

    /// As [`Faults::swarm`], with a medium that lies as well (class K2).
    pub fn swarm_lying(chance: &mut Chance) -> Faults {
        let mut faults = Faults::swarm(chance);
        for (_, rate) in faults.lying() {
            *rate = draw(chance);
        }
        faults
    }

    fn strikes(&self, path: &Path) -> bool {
        self.files.as_ref().is_none_or(|is_chosen| is_chosen(path))
    }
}

fn draw(chance: &mut Chance) -> u32 {
    let rates = [0, 0, 0, 0, 100, 1_000, 10_000, 50_000];
    chance.pick(&rates).copied().unwrap_or(0)
}

/// What shall go wrong with one operation.
#[derive(Debug, Clone, Default)]
pub(super) struct Verdict {
    /// The answer is this error.
    pub(super) errno: Option<i32>,
    /// R4: of a failing write, the bytes that are written all the same, by chance.
    pub(super) keep: Option<u64>,
    /// R1: the first page of the read goes bad.
    pub(super) latent: bool,
    /// R2: the bit to invert, on the medium or in the buffer.
    pub(super) flip: Option<(Flip, u64)>,
    /// R6: the operation goes elsewhere.
    pub(super) misdirected: Option<u64>,
    /// R6: the write never reaches the medium.
    pub(super) phantom: bool,
    /// R3: in this many pieces.
    pub(super) pieces: u64,
    /// R7: takes this many microseconds more.
    pub(super) slow_us: u64,
    /// R7: everything takes this many microseconds more.
    pub(super) stall_us: u64,
}

/// Where a bit is inverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flip {
    Media,
    InFlight,
}

/// Decides what goes wrong.
pub(super) struct Planner {
    pub(super) faults: Faults,
    chance: Chance,
    /// Operation number to error number, and whether it stays.
    scripted: BTreeMap<u64, (i32, bool)>,
    /// Kinds of operations that fail from now on.
    sticky: BTreeMap<OpKind, i32>,
    /// R6: whether this life has had its one.
    misdirected: bool,
}

/// What is being planned.
pub(super) struct Target<'a> {
    pub(super) op: u64,
    pub(super) kind: OpKind,
    pub(super) path: &'a Path,
    pub(super) len: usize,
}

impl Planner {
    pub(super) fn new(faults: Faults, chance: Chance) -> Planner {
        let (scripted, sticky) = (BTreeMap::new(), BTreeMap::new());
        Planner { faults, chance, scripted, sticky, misdirected: false }
    }

    /// A life begins: what belongs to a process is as new; the disk keeps what it has.
    pub(super) fn begin_life(&mut self) {
        self.misdirected = false;
        self.sticky.clear();
    }

    pub(super) fn script(&mut self, op: u64, errno: i32, sticky: bool) {
        self.scripted.insert(op, (errno, sticky));
    }

    pub(super) fn heal(&mut self) {
        self.faults = Faults { transfer_max: self.faults.transfer_max, ..Faults::none() };
        self.sticky.clear();
        self.scripted.clear();
    }

    /// R9: whether this reading of the monotonic clock stalls.
    pub(super) fn stalls_clock(&mut self) -> bool {
        self.chance.rate(self.faults.clock_stall)
    }

    /// R9: the jump of the wall clock before this reading, in seconds.
    pub(super) fn wall_jump(&mut self) -> i64 {
        if !self.chance.rate(self.faults.wall_jump) {
            return 0;
        }
        let size = self.chance.below(100_000).cast_signed();
        if self.chance.one_in(2) { size } else { -size }
    }

    pub(super) fn plan(
        &mut self,
        target: &Target<'_>,
        record: &mut dyn FnMut(Injected),
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let mut note = |rule: &'static str, what: &'static str, is_error: bool| {
            let (op, kind, path) = (target.op, target.kind, target.path.to_path_buf());
            record(Injected { op, rule, what, kind, path, is_error });
        };
        if let Some((errno, sticky)) = self.scripted.remove(&target.op) {
            if sticky {
                self.sticky.insert(target.kind, errno);
            }
            note("script", "scripted error", true);
            verdict.errno = Some(errno);
        } else if let Some(errno) = self.sticky.get(&target.kind) {
            note("script", "the error stays", true);
            verdict.errno = Some(*errno);
        } else if self.faults.transfer_max.is_some_and(|max| target.len > max) {
            note("R10", "no memory for such a size", true);
            verdict.errno = Some(ENOMEM);
        } else if self.faults.strikes(target.path) {
            self.by_rate(target.kind, &mut verdict, &mut note);
        }
        if verdict.errno.is_some() && target.kind.is_write() {
            verdict.keep = Some(self.chance.next_u64());
        }
        self.timing(&mut verdict, &mut note);
        verdict
    }

    fn by_rate(
        &mut self,
        kind: OpKind,
        verdict: &mut Verdict,
        note: &mut dyn FnMut(&'static str, &'static str, bool),
    ) {
        match kind {
            OpKind::Read => self.read(verdict, note),
            OpKind::Write | OpKind::WriteDurable | OpKind::WriteCached => {
                self.write(verdict, note);
            }
            OpKind::Sync | OpKind::SyncDir => {
                if self.chance.rate(self.faults.sync_error) {
                    note("R5", "the sync fails", true);
                    let errnos = [EIO, EIO, ENOSPC, EDQUOT];
                    let errno = self.chance.pick(&errnos).copied().unwrap_or(EIO);
                    verdict.errno = Some(errno);
                    if self.chance.rate(self.faults.sync_sticky) {
                        self.sticky.insert(kind, errno);
                    }
                }
            }
            _ => {
                if self.chance.rate(self.faults.name_error) {
                    note("R8", "an operation on names or lengths fails", true);
                    let errnos: &[i32] = match kind {
                        OpKind::Open | OpKind::Lock => &[EMFILE, ENFILE, EACCES, EIO, EROFS],
                        OpKind::Resize => &[ENOSPC, EDQUOT, EFBIG, EIO],
                        OpKind::ListDir => &[EMFILE, ENFILE, EIO, ENOENT],
                        OpKind::Inspect => &[EIO],
                        _ => &[EIO, EACCES, EROFS, ENOSPC],
                    };
                    verdict.errno = self.chance.pick(errnos).copied();
                }
            }
        }
    }

    fn read(
        &mut self,
        verdict: &mut Verdict,
        note: &mut dyn FnMut(&'static str, &'static str, bool),
    ) {
        if self.chance.rate(self.faults.read_transient) {
            note("R1", "the read fails once", true);
            verdict.errno = Some(EIO);
        } else if self.chance.rate(self.faults.read_latent) {
            note("R1", "a page cannot be read any more", true);
            verdict.latent = true;
        } else if self.chance.rate(self.faults.flip_media) {
            note("R2", "a bit is inverted on the medium", false);
            verdict.flip = Some((Flip::Media, self.chance.next_u64()));
        } else if self.chance.rate(self.faults.flip_in_flight) {
            note("R2", "a bit is inverted in flight", false);
            verdict.flip = Some((Flip::InFlight, self.chance.next_u64()));
        } else if !self.misdirected && self.chance.rate(self.faults.read_misdirected) {
            self.misdirected = true;
            note("R6", "the read is misdirected", false);
            verdict.misdirected = Some(self.chance.next_u64());
        }
    }

    fn write(
        &mut self,
        verdict: &mut Verdict,
        note: &mut dyn FnMut(&'static str, &'static str, bool),
    ) {
        if self.chance.rate(self.faults.write_error) {
            note("R4", "the write fails", true);
            let errnos = [EIO, ENOSPC, EDQUOT, EFBIG];
            verdict.errno = self.chance.pick(&errnos).copied();
        } else if !self.misdirected && self.chance.rate(self.faults.write_misdirected) {
            self.misdirected = true;
            note("R6", "the write is misdirected", false);
            verdict.misdirected = Some(self.chance.next_u64());
        } else if !self.misdirected && self.chance.rate(self.faults.write_phantom) {
            self.misdirected = true;
            note("R6", "the write never happens", false);
            verdict.phantom = true;
        }
    }

    fn timing(
        &mut self,
        verdict: &mut Verdict,
        note: &mut dyn FnMut(&'static str, &'static str, bool),
    ) {
        if self.chance.rate(self.faults.short) {
            note("R3", "the transfer comes in pieces", false);
            verdict.pieces = self.chance.between(1, 4);
        }
        if self.chance.rate(self.faults.slow) {
            note("R7", "the operation is slow", false);
            verdict.slow_us = 1 << self.chance.below(24);
        }
        if self.chance.rate(self.faults.stall) {
            note("R7", "the disk stalls", false);
            verdict.stall_us = 1 << self.chance.below(24);
        }
    }
}
