//! The log segments of an open database: which exist, which may be used again, and the task that
//! prepares the next one.
//!
//! Invariants:
//! 1. A segment is named in the manifest before a record enters it, and leaves the manifest before
//!    its file is renamed or removed.
//! 2. The task prepares one segment ahead in each stream that is in use; a commit waits only when
//!    it is slower than the writers, for the first segment of the value log, and while that log
//!    must not grow.
//! 3. Segments of the value log are never used again: what is in them is referred to.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use seerdb_io::{BUF_ALIGN, Env, OpenOptions};

use super::Core;
use super::background::remove;
use super::streams::is_below;
use crate::error::Result;
use crate::filename::{FileName, FileNumber};
use crate::log::format::Stream;
use crate::log::segment::{Plan, Segment, prepare};
use crate::memtable::Floor;
use crate::options::{Durability, Settings};
use crate::version::Opened;
use crate::version::edit::{SegmentName, VersionEdit};
use crate::vlog::file::ValueFile;

/// The first segment of an open, direct: small, so that opening does not wait for zeros.
const FIRST_DIRECT_BYTES: u64 = 4 << 20;
/// The first segment of an open, page-cached: small, because it takes its space even when all
/// commits go to the other stream.
const FIRST_CACHED_BYTES: u64 = 1 << 20;
/// Each segment is this many times as long as the one before, up to `wal_segment_bytes`.
const GROWTH: u64 = 4;
/// Retired segments of the WAL that are kept to be used again.
const SPARES_MAX: usize = 2;

/// The segments in use and those that wait to be used again.
pub(super) struct Segments {
    state: Mutex<State>,
    bytes_max: u64,
    values_bytes_max: u64,
    direct: bool,
}

struct State {
    /// In the manifest as a part of the log, oldest first.
    live: Vec<Arc<Segment>>,
    /// Retired files of the full length.
    spares: Vec<FileNumber>,
    /// The length of the last segment of each stream.
    last_wal_bytes: u64,
    last_values_bytes: u64,
    /// The length that segments of the value log shall have.
    values_bytes: u64,
    /// What preparing them wrote since the open.
    prepared_bytes: u64,
}

/// The edit that names a prepared segment in the manifest.
pub(super) fn naming(segment: &Segment) -> SegmentName {
    SegmentName { number: segment.id.number, salt: segment.id.salt, stream: segment.stream }
}

impl Segments {
    pub(super) fn new(settings: &Settings) -> Self {
        let bytes_max = settings.wal_segment_bytes as u64;
        let values_bytes_max = settings.value_segment_bytes as u64;
        let state = State {
            live: Vec::new(),
            spares: Vec::new(),
            last_wal_bytes: 0,
            last_values_bytes: 0,
            values_bytes: values_bytes_max,
            prepared_bytes: 0,
        };
        let direct = settings.durability == Durability::Synced;
        Segments { state: Mutex::new(state), bytes_max, values_bytes_max, direct }
    }

    /// What to prepare next, at least `wanted` bytes long.
    pub(super) fn plan(
        &self,
        stream: Stream,
        number: FileNumber,
        wanted: u64,
        dir: &std::path::Path,
    ) -> Plan {
        let mut state = self.state.lock();
        let (last_bytes, bytes_max) = match stream {
            Stream::Wal => (state.last_wal_bytes, self.bytes_max),
            Stream::Values => (state.last_values_bytes, state.values_bytes),
        };
        let grown = match last_bytes {
            0 if self.direct => FIRST_DIRECT_BYTES,
            0 => FIRST_CACHED_BYTES,
            last => last * GROWTH,
        };
        let bytes = grown.min(bytes_max).max(wanted);
        let serves = stream == Stream::Wal && bytes == self.bytes_max;
        let spare = if serves { state.spares.pop() } else { None };
        let recycled = spare.map(|number| FileName::Wal(number).in_dir(dir));
        Plan { stream, number, bytes, direct: self.direct, recycled }
    }

    /// What preparing segments wrote since the open, in bytes.
    pub(super) fn prepared_bytes(&self) -> u64 {
        self.state.lock().prepared_bytes
    }

    /// The length of the segments of the value log that commits enter, or may enter next.
    pub(super) fn open_values_bytes(&self) -> u64 {
        let state = self.state.lock();
        let open = state.live.iter().filter(|segment| segment.stream == Stream::Values);
        open.map(|segment| segment.bytes).sum()
    }

    /// The length of new segments of the value log.
    pub(super) fn values_bytes(&self) -> u64 {
        self.state.lock().values_bytes
    }

    /// From now on segments of the value log have `bytes`, as far as the options allow.
    pub(super) fn resize_values(&self, bytes: u64) {
        let bytes = bytes.min(self.values_bytes_max);
        self.state.lock().values_bytes = bytes - bytes % BUF_ALIGN as u64;
    }

    /// `segment` is named in the manifest.
    pub(super) fn add(&self, segment: &Arc<Segment>) {
        let mut state = self.state.lock();
        state.live.push(segment.clone());
        state.prepared_bytes += segment.prepared_bytes;
        match segment.stream {
            Stream::Wal => state.last_wal_bytes = segment.bytes,
            Stream::Values => state.last_values_bytes = segment.bytes,
        }
    }

    /// The live segments below `first_live`.
    pub(super) fn below(&self, first_live: Floor) -> Vec<Arc<Segment>> {
        let state = self.state.lock();
        state.live.iter().filter(|segment| is_below(segment, first_live)).cloned().collect()
    }

    /// The segments below `first_live` have left the log; returns those to remove.
    pub(super) fn retire(&self, first_live: Floor) -> Vec<FileName> {
        let mut state = self.state.lock();
        let (retired, live): (Vec<_>, Vec<_>) =
            state.live.drain(..).partition(|segment| is_below(segment, first_live));
        state.live = live;
        let mut removed = Vec::new();
        for segment in retired.iter().filter(|segment| segment.stream == Stream::Wal) {
            let number = segment.id.number;
            if segment.bytes == self.bytes_max && state.spares.len() < SPARES_MAX {
                state.spares.push(number);
            } else {
                removed.push(FileName::Wal(number));
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
    let segment = Arc::new(prepare(env, dir, segments.plan(Stream::Wal, number, 0, dir)).await?);
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
        // Order: whoever lowers it raises the event.
        let is_full = || core.is_overfull.load(Ordering::Relaxed);
        let may = |stream| stream == Stream::Wal || !is_full();
        if let Some((stream, wanted)) = core.pipeline.segment_wanted(may) {
            let outcome = next(&core, stream, wanted).await;
            let failed = outcome.as_ref().err().cloned();
            core.pipeline.segment_prepared(stream, outcome);
            match failed {
                None => continue,
                Some(error) => tracing::warn!(%error, "cannot prepare a log segment"),
            }
        }
        listener.await;
    }
}

async fn next(core: &Core, stream: Stream, wanted: u64) -> Result<Arc<Segment>> {
    let number = core.versions.new_file_number();
    let plan = core.segments.plan(stream, number, wanted, &core.dir);
    let named = async {
        let segment = Arc::new(prepare(&core.env, &core.dir, plan).await?);
        let edit = VersionEdit { segments_added: vec![naming(&segment)], ..VersionEdit::default() };
        let mut opened = Opened::default();
        if stream == Stream::Values {
            // A direct read would first have to store what is in the page cache.
            let direct = core.settings.direct_io && segment.file.is_direct();
            let options = OpenOptions { direct, ..core.settings.reading() };
            let file = ValueFile::open_segment(core.env.fs(), &core.dir, segment.id, options);
            opened.values.push(file.await?);
        }
        core.apply(edit, opened, |version| {
            core.segments.add(&segment);
            if stream == Stream::Values {
                core.read_states.install(version.clone(), None);
            }
        })
        .await?;
        Ok(segment)
    };
    let outcome = named.await;
    if outcome.is_err() && core.versions.failure().is_none() {
        // On a full disk each attempt would leave its segment behind.
        remove(core.env.fs(), &core.dir, stream.file_name(number)).await;
    }
    outcome
}
