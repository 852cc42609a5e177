//! The WAL segments of an open database: which exist, which may be used again, and the task that
//! prepares the next one.
//!
//! Invariants:
//! 1. A segment is named in the manifest before a record enters it, and leaves the manifest before
//!    its file is renamed or removed.
//! 2. The task prepares one segment ahead; a commit waits only when it is slower than the writers.

use std::sync::Arc;

use parking_lot::Mutex;
use seerdb_io::Env;

use super::Core;
use super::background::remove;
use crate::error::Result;
use crate::filename::{FileName, FileNumber};
use crate::log::format::Stream;
use crate::log::segment::{Plan, Segment, prepare};
use crate::options::{Durability, Settings};
use crate::version::edit::{VersionEdit, WalRef};

/// The first segment of an open, direct: small, so that opening does not wait for zeros.
const FIRST_DIRECT_BYTES: u64 = 4 << 20;
/// The first segment of an open, page-cached: reserving space costs no writing.
const FIRST_CACHED_BYTES: u64 = 16 << 20;
/// Each segment is this many times as long as the one before, up to `wal_segment_bytes`.
const GROWTH: u64 = 4;
/// Retired segments that are kept to be used again.
const SPARES_MAX: usize = 2;

/// The segments in use and those that wait to be used again.
pub(super) struct Segments {
    state: Mutex<State>,
    bytes_max: u64,
    direct: bool,
}

struct State {
    /// Named in the manifest, oldest first, with their lengths.
    live: Vec<(FileNumber, u64)>,
    /// Retired files of the full length.
    spares: Vec<FileNumber>,
    last_bytes: u64,
}

/// The edit that names a prepared segment in the manifest.
pub(super) fn naming(segment: &Segment) -> WalRef {
    WalRef { number: segment.id.number, salt: segment.id.salt, stream: Stream::Wal as u8 }
}

impl Segments {
    pub(super) fn new(settings: &Settings) -> Self {
        let bytes_max = settings.wal_segment_bytes as u64;
        let state = State { live: Vec::new(), spares: Vec::new(), last_bytes: 0 };
        let direct = settings.durability == Durability::Synced;
        Segments { state: Mutex::new(state), bytes_max, direct }
    }

    /// What to prepare next, at least `wanted` bytes long.
    pub(super) fn plan(&self, number: FileNumber, wanted: u64, dir: &std::path::Path) -> Plan {
        let mut state = self.state.lock();
        let grown = match state.last_bytes {
            0 if self.direct => FIRST_DIRECT_BYTES,
            0 => FIRST_CACHED_BYTES,
            last => last * GROWTH,
        };
        let bytes = grown.min(self.bytes_max).max(wanted);
        let spare = if bytes == self.bytes_max { state.spares.pop() } else { None };
        let recycled = spare.map(|number| FileName::Wal(number).in_dir(dir));
        Plan { number, bytes, direct: self.direct, recycled }
    }

    /// `segment` is named in the manifest.
    pub(super) fn add(&self, segment: &Segment) {
        let mut state = self.state.lock();
        state.live.push((segment.id.number, segment.bytes));
        state.last_bytes = segment.bytes;
    }

    /// The live segments below `first_live`.
    pub(super) fn below(&self, first_live: FileNumber) -> Vec<FileNumber> {
        let state = self.state.lock();
        state.live.iter().map(|(number, _)| *number).filter(|n| *n < first_live).collect()
    }

    /// The segments below `first_live` have left the manifest; returns those to remove.
    pub(super) fn retire(&self, first_live: FileNumber) -> Vec<FileNumber> {
        let mut state = self.state.lock();
        let (retired, live) = state.live.iter().partition(|(number, _)| *number < first_live);
        state.live = live;
        let retired: Vec<(FileNumber, u64)> = retired;
        let mut removed = Vec::new();
        for (number, bytes) in retired {
            if bytes == self.bytes_max && state.spares.len() < SPARES_MAX {
                state.spares.push(number);
            } else {
                removed.push(number);
            }
        }
        removed
    }
}

/// Prepares the first segment of an open.
pub(super) async fn first(
    env: &Env,
    dir: &std::path::Path,
    segments: &Segments,
    number: FileNumber,
) -> Result<Arc<Segment>> {
    let segment = Arc::new(prepare(env, dir, segments.plan(number, 0, dir)).await?);
    segments.add(&segment);
    Ok(segment)
}

/// Prepares segments ahead of their use until the database is closed.
pub(super) async fn run(core: Arc<Core>) {
    loop {
        let listener = core.pipeline.prepare_event.listen();
        if core.is_closed() || core.pipeline.failure().is_some() {
            return;
        }
        if let Some(wanted) = core.pipeline.segment_wanted() {
            let outcome = next(&core, wanted).await;
            let failed = outcome.as_ref().err().cloned();
            core.pipeline.segment_prepared(outcome);
            match failed {
                None => continue,
                Some(error) => tracing::warn!(%error, "cannot prepare a log segment"),
            }
        }
        listener.await;
    }
}

async fn next(core: &Core, wanted: u64) -> Result<Arc<Segment>> {
    let number = core.versions.new_file_number();
    let plan = core.segments.plan(number, wanted, &core.dir);
    let named = async {
        let segment = Arc::new(prepare(&core.env, &core.dir, plan).await?);
        let edit = VersionEdit { wals_added: vec![naming(&segment)], ..VersionEdit::default() };
        core.apply(edit, Vec::new(), |_| core.segments.add(&segment)).await?;
        Ok(segment)
    };
    let outcome = named.await;
    if outcome.is_err() && core.versions.failure().is_none() {
        // On a full disk each attempt would leave its segment behind.
        remove(core.env.fs(), &core.dir, FileName::Wal(number)).await;
    }
    outcome
}
