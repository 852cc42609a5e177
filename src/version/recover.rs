//! What is in a directory at open: nothing, a database, or the ruins of one.
//!
//! Invariants:
//! 1. A directory without CURRENT is new only if a crash inside the creation can explain it:
//!    nothing of ours but the first manifest, CURRENT.tmp and LOCK. Otherwise CURRENT was lost.
//! 2. Every number in the directory, referred to or not, is below the state's next file number.
//! 3. The names that are seen are durable before anything is built on them: a process that was
//!    killed may have left them in the page cache, and what is written next must not outlive them.
//! 4. Nothing is deleted but the left-overs of a creation that never took place.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use seerdb_io::{Fs, OpenOptions};

use crate::error::{Error, Result};
use crate::filename::{FileName, FileNumber};
use crate::key::SEQNO_MAX;
use crate::log::format::Stream;
use crate::sstable::Table;
use crate::vlog::file::ValueFile;
use crate::vlog::{Kind, ValuesMeta};

use super::edit::VersionEdit;
use super::manifest;
use super::state::State;

/// How many tables are opened at the same time.
const OPEN_PARALLEL: usize = 16;
/// The number of the manifest that a creation writes.
const FIRST_MANIFEST: FileNumber = 1;
/// No database gets this far: a file with a larger number is foreign, a counter beyond it is wrong.
const NUMBER_MAX: FileNumber = 1 << 56;
/// The best that compression can do, for entries of a byte each.
const ENTRIES_PER_BYTE_MAX: u64 = 255;

/// What a directory holds.
pub(super) enum Found {
    /// No database, or one that was never completely created.
    Nothing,
    /// A database with this state.
    Database(Box<State>),
}

/// Looks at `dir`, and reads its manifest.
pub(super) async fn find(fs: &Fs, dir: &Path) -> Result<Found> {
    let mut lens: HashMap<FileName, u64> = HashMap::new();
    fs.sync_dir(dir).await?;
    for entry in fs.list_dir(dir).await? {
        let name = FileName::parse(&entry.name).filter(|_| entry.is_file);
        if let Some(name) = name.filter(|name| name.number().is_none_or(|n| n <= NUMBER_MAX)) {
            lens.insert(name, entry.len);
        }
    }
    if !lens.contains_key(&FileName::Current) {
        return clear_left_overs(fs, dir, &lens).await;
    }
    let id = manifest::read_current(fs, dir).await?;
    let path = FileName::Manifest(id.number).in_dir(dir);
    let mut state = State::empty();
    for (offset, edit) in manifest::read(fs, dir, id).await? {
        state = state.apply(&edit).map_err(|what| {
            Error::corruption(path.clone(), offset, format!("a wrong version edit: {what}"))
        })?;
    }
    check_files(dir, &state, &lens)?;
    check_bounds(&state).map_err(|what| Error::corruption(path, 0, what))?;
    let seen = lens.keys().filter_map(|name| name.number()).max().unwrap_or(0);
    let seen = if planted!(ReuseFileNumber) { 0 } else { seen };
    let next_file = seen + 1;
    let edit =
        VersionEdit { next_file: Some(state.next_file().max(next_file)), ..VersionEdit::default() };
    let state = state.apply(&edit).expect("a rising counter contradicts nothing");
    assert!(state.next_file() > seen, "number {seen} would be used again");
    Ok(Found::Database(Box::new(state)))
}

/// There is no CURRENT: removes what an interrupted creation left, or refuses.
async fn clear_left_overs(fs: &Fs, dir: &Path, lens: &HashMap<FileName, u64>) -> Result<Found> {
    let left_overs = [FileName::CurrentTemp, FileName::Manifest(FIRST_MANIFEST)];
    let mut other =
        lens.keys().filter(|name| **name != FileName::Lock && !left_overs.contains(*name));
    if let Some(other) = other.next() {
        let what = format!("CURRENT is missing, but {other} is there");
        return Err(Error::corruption(FileName::Current.in_dir(dir), 0, what));
    }
    let mut removed = 0;
    for name in left_overs.into_iter().filter(|name| lens.contains_key(name)) {
        fs.remove_file(name.in_dir(dir)).await?;
        removed += 1;
    }
    if removed > 0 {
        // Numbers are used once: the file must be gone for good before its number serves again.
        fs.sync_dir(dir).await?;
    }
    Ok(Found::Nothing)
}

/// Refuses what no life of a database leads to; later steps count on it. The checksums were right,
/// so somebody wrote this on purpose.
fn check_bounds(state: &State) -> std::result::Result<(), String> {
    for (what, counter) in [("file number", state.next_file()), ("run id", state.next_run())] {
        if counter > NUMBER_MAX {
            return Err(format!("the next {what} is {counter}"));
        }
    }
    let flushed = state.flushed_seqno();
    if flushed > SEQNO_MAX {
        return Err(format!("the flushed seqno is {flushed}"));
    }
    for table in state.tables() {
        if table.seqno_max > flushed {
            return Err(format!("table {} is newer than the flushed seqno", table.number));
        }
        if table.entries > table.file_bytes.saturating_mul(ENTRIES_PER_BYTE_MAX) {
            return Err(format!("table {} has more entries than it has room for", table.number));
        }
    }
    Ok(())
}

/// Refuses a database whose files are not all there.
fn check_files(dir: &Path, state: &State, lens: &HashMap<FileName, u64>) -> Result<()> {
    for table in state.tables() {
        let name = FileName::Table(table.number);
        match lens.get(&name) {
            Some(len) if *len == table.file_bytes => {}
            Some(len) => {
                let what = format!("the table has {len} bytes instead of {}", table.file_bytes);
                return Err(Error::corruption(
                    name.in_dir(dir),
                    (*len).min(table.file_bytes),
                    what,
                ));
            }
            None => return Err(Error::corruption(name.in_dir(dir), 0, "the table is missing")),
        }
    }
    for meta in state.values() {
        let name = FileName::Values(meta.number);
        let len = lens.get(&name).copied();
        let fits = match meta.kind {
            Kind::Segment { .. } => len.is_some_and(|len| len >= meta.bytes),
            Kind::Rewritten { .. } => len == Some(meta.bytes),
        };
        if !fits {
            let what = match len {
                Some(len) => format!("the value file has {len} bytes instead of {}", meta.bytes),
                None => "the value file is missing".to_string(),
            };
            let offset = len.unwrap_or(0).min(meta.bytes);
            return Err(Error::corruption(name.in_dir(dir), offset, what));
        }
    }
    for segment in state.segments() {
        let name = segment.stream.file_name(segment.number);
        if !lens.contains_key(&name) && !planted!(IgnoreMissingLog) {
            let what = "the log segment is missing";
            return Err(Error::corruption(name.in_dir(dir), 0, what));
        }
    }
    Ok(())
}

/// Opens all files of the value log that `state` names, several at a time.
pub(super) async fn open_values(
    fs: &Fs,
    dir: &Path,
    state: &State,
    options: OpenOptions,
) -> Result<Vec<Arc<ValueFile>>> {
    let in_log = state.segments().filter(|named| named.stream == Stream::Values);
    let in_log = in_log.map(|named| {
        let kind = Kind::Segment { salt: named.salt };
        Arc::new(ValuesMeta { number: named.number, bytes: 0, kind })
    });
    let metas: Vec<_> = state.values().cloned().chain(in_log).collect();
    stream::iter(metas)
        .map(|meta| async move { ValueFile::open(fs, dir, &meta, options).await })
        .buffer_unordered(OPEN_PARALLEL)
        .try_collect()
        .await
}

/// Opens all tables of `state`, several at a time.
pub(super) async fn open_tables(
    fs: &Fs,
    dir: &Path,
    state: &State,
    options: OpenOptions,
) -> Result<Vec<Arc<Table>>> {
    let metas: Vec<_> = state.tables().cloned().collect();
    let count = metas.len();
    let tables: Vec<Arc<Table>> = stream::iter(metas)
        .map(|meta| Table::open(fs, dir, meta, options))
        .buffer_unordered(OPEN_PARALLEL)
        .try_collect()
        .await?;
    assert_eq!(tables.len(), count, "a table was not opened");
    Ok(tables)
}
