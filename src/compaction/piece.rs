//! A piece of a merge as one source: its inputs, bounded and counted; and where its tables end.
//!
//! Invariants:
//! 1. It ends with the last entry whose user key is not behind the end of the piece; all versions
//!    of a user key are in one piece.
//! 2. It counts the entries of each table, so that a table that does not hold what the manifest
//!    promises is found before it goes, and so that it is known how many entries of a table that
//!    reaches beyond the piece have been met.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;
use crate::iter::merge::Merge;
use crate::iter::{Direction, Entry, Position, Source};
use crate::key::{KeyBuf, Trailer};
use crate::sstable::{BlockSource, Run, RunIter, Table, TableMeta, Trim};
use crate::version::{RunId, Version};

use super::Choice;

/// The keys that the merge `choice` must not write a table across, in no order.
///
/// A merge that was left between two pieces leaves an old run with the newest entries up to where
/// it had come, and its own behind that. A later merge may have that run among its inputs and not
/// the newer ones, or the other way round: a table across that place would be both newer and older
/// than a run that overlaps it. In all other trees there are no such keys.
pub(super) fn cuts(version: &Version, choice: &Choice) -> Vec<KeyBuf> {
    let is_input = |run: &Run| choice.inputs.iter().any(|(_, id)| *id == run.id);
    let inputs = || version.runs().filter(|run| is_input(run));
    let metas = || inputs().flat_map(|run| &run.tables).map(|table| table.meta());
    let seqno_min = metas().map(|meta| meta.seqno_min).min().unwrap_or(0);
    let seqno_max = metas().map(|meta| meta.seqno_max).max().unwrap_or(0);
    let mut cuts = Vec::new();
    for run in version.runs().filter(|run| !is_input(run)) {
        let is_newer = run.id > choice.output_run;
        for (at, table) in run.tables.iter().enumerate() {
            let meta = table.meta();
            if is_newer && meta.seqno_min <= seqno_max {
                let first = if at == 0 { run.smallest() } else { &meta.smallest };
                cuts.push(KeyBuf::from_slice(first));
            } else if !is_newer && meta.seqno_max >= seqno_min {
                let mut behind = KeyBuf::from_slice(&meta.largest);
                behind.push(0);
                cuts.push(behind);
                // What is older may be written anew meanwhile, up to where these begin.
                cuts.extend(inputs().map(|run| KeyBuf::from_slice(run.smallest())));
            }
        }
    }
    if planted!(TableAcrossMerges) { Vec::new() } else { cuts }
}

/// See the invariants of the module.
pub(super) struct Piece<'a> {
    merge: Merge,
    upto: Option<&'a KeyBuf>,
    tallies: Vec<Tally>,
}

/// The entries met of one input.
struct Tally {
    run: Arc<Run>,
    /// The table that they come from now.
    at: usize,
    met: Vec<u64>,
}

impl Tally {
    fn count(&mut self, key: &[u8]) {
        let is_over = |table: &Arc<Table>| table.meta().largest.as_slice() < key;
        while self.at + 1 < self.met.len() && self.run.tables.get(self.at).is_some_and(is_over) {
            self.at += 1;
        }
        if let Some(met) = self.met.get_mut(self.at) {
            *met += 1;
        }
    }

    /// The tables with the entries that were met and those that should be.
    fn tables(&self) -> impl Iterator<Item = (&Arc<TableMeta>, u64, u64)> {
        let trims = self.run.trim.iter().map(|trim| trim.entries).chain(std::iter::repeat(0));
        self.run.tables.iter().zip(&self.met).zip(trims).map(|((table, met), trimmed)| {
            let meta = table.meta();
            (meta, *met, meta.entries.saturating_sub(trimmed))
        })
    }
}

impl<'a> Piece<'a> {
    /// The entries of `runs`, newest first, up to the user key `upto`. Each run is read so many
    /// bytes at a time.
    pub(super) fn new(runs: Vec<Arc<Run>>, bytes: usize, upto: Option<&'a KeyBuf>) -> Piece<'a> {
        let scan = |run: &Arc<Run>| -> Box<dyn Source> {
            let blocks = BlockSource::ReadAhead { bytes };
            Box::new(RunIter::new(Arc::clone(run), Direction::Forward, blocks))
        };
        let merge = Merge::new(runs.iter().map(scan).collect(), Direction::Forward);
        let tally = |run: Arc<Run>| Tally { at: 0, met: vec![0; run.tables.len()], run };
        Piece { merge, upto, tallies: runs.into_iter().map(tally).collect() }
    }

    fn is_behind(&self, key: &[u8]) -> bool {
        self.upto.is_some_and(|upto| key > upto.as_slice())
    }

    /// The first table that does not hold what it should, with what it holds and what it should.
    pub(super) fn miscounted(&self) -> Option<(&Arc<TableMeta>, u64, u64)> {
        self.tallies.iter().flat_map(Tally::tables).find(|(meta, met, promised)| {
            // What reaches beyond the piece has entries on both sides of its end.
            let is_right = match self.is_behind(&meta.largest) {
                true if meta.entries == *promised => (1..*promised).contains(met),
                true => met < promised,
                false => met == promised,
            };
            !is_right
        })
    }

    /// Where the runs begin that reach beyond the piece within a table.
    pub(super) fn trims(&self) -> Vec<(RunId, Trim)> {
        let Some(upto) = self.upto else { return Vec::new() };
        // The shortest key behind the end.
        let mut from = upto.clone();
        from.push(0);
        let trim = |tally: &Tally| -> Option<(RunId, Trim)> {
            if tally.run.trim.as_ref().is_some_and(|trim| trim.from >= from) {
                // It begins behind the piece already: a merge was left between two pieces.
                return None;
            }
            let last = tally.tables().last().filter(|(meta, ..)| self.is_behind(&meta.largest));
            let (meta, met, promised) = last?;
            let entries = meta.entries - promised + met + u64::from(planted!(TrimTooMuch));
            Some((tally.run.id, Trim { from: from.clone(), entries }))
        };
        self.tallies.iter().filter_map(trim).collect()
    }
}

#[async_trait]
impl Source for Piece<'_> {
    fn position(&self) -> Position {
        match self.merge.position() {
            Position::At if self.is_behind(self.merge.entry().key) => Position::End,
            position => position,
        }
    }

    fn entry(&self) -> Entry<'_> {
        self.merge.entry()
    }

    fn value(&self) -> Bytes {
        self.merge.value()
    }

    fn advance(&mut self) {
        let key = self.merge.entry().key;
        if let Some(tally) = self.tallies.get_mut(self.merge.at()) {
            tally.count(key);
        }
        self.merge.advance();
    }

    fn seek(&mut self, target: Option<(&[u8], Trailer)>) {
        self.merge.seek(target);
    }

    async fn load(&mut self) -> Result<()> {
        self.merge.load().await
    }
}
