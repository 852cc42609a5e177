//! Rewriting: what is referred to of some files of the value log becomes one new file.
//!
//! Invariants:
//! 1. Victims are only read. Nothing of the database changes before the caller applies the edit.
//! 2. Every body is checked against what its table says of it before it is copied: damage stays
//!    where it is, and is never given a new checksum.
//! 3. Pointers stay as they are: a body keeps its segment and position.
//! 4. Memory is a window of a victim (see `bodies`), a few chunks of output and 12 bytes for each
//!    body.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use seerdb_io::Fs;

use super::bodies::BodyReader;
use super::file::ValueFile;
use super::format::{footer, put_section};
use super::offsets::put_entry;
use super::{Kind, ValuesMeta};
use crate::appender::{Appender, Manner};
use crate::error::Result;
use crate::filename::{FileName, FileNumber};
use crate::pointer::Body;

/// What is alive of one segment: its file, and the bodies by position, none twice.
pub(crate) struct Survivors {
    pub(crate) file: Arc<ValueFile>,
    pub(crate) bodies: Vec<Body>,
}

/// What a rewrite works with.
#[derive(Clone, Copy)]
pub(crate) struct Rewrite<'a> {
    pub(crate) fs: &'a Fs,
    pub(crate) dir: &'a Path,
    /// The number of the new file.
    pub(crate) number: FileNumber,
    /// Whether the victims are durable; see [`BodyReader::open`].
    pub(crate) direct: bool,
    /// How much is written at once.
    pub(crate) chunk_bytes: usize,
}

/// Writes what survives of some segments to a new file, and syncs it and its name. `pace` is
/// awaited with the bytes copied since its last call.
///
/// # Errors
///
/// Those of reading the victims and writing the file, which is removed then; the victims are left
/// alone.
///
/// # Cancel safety
///
/// Dropped midway it leaves a file that nothing refers to; the next open removes it.
pub(crate) async fn rewrite<'a>(
    job: Rewrite<'_>,
    survivors: &BTreeMap<FileNumber, Survivors>,
    pace: impl Fn(u64) -> BoxFuture<'a, ()>,
) -> Result<ValuesMeta> {
    assert!(!survivors.is_empty(), "a file of nothing");
    let Rewrite { fs, dir, number, chunk_bytes, .. } = job;
    let manner = Manner { direct: true, chunk_bytes };
    let mut appender = Appender::create(fs, dir, FileName::Values(number), manner).await?;
    let checksum = match copy(&mut appender, job, survivors, pace).await {
        Ok(checksum) => checksum,
        Err(error) => {
            appender.abandon().await;
            return Err(error);
        }
    };
    let bytes = appender.finish().await?;
    if !planted!(SkipDirSyncOfValues)
        && let Err(error) = fs.sync_dir(dir).await
    {
        discard(fs, dir, number).await;
        return Err(error.into());
    }
    let segments = survivors.keys().copied().collect();
    Ok(ValuesMeta { number, bytes, kind: Kind::Rewritten { checksum, segments } })
}

/// Removes a file that was written for nothing.
async fn discard(fs: &Fs, dir: &Path, number: FileNumber) {
    if let Err(error) = fs.remove_file(FileName::Values(number).in_dir(dir)).await {
        tracing::warn!(%error, "a file of a failed rewrite stays until the next open");
    }
}

/// Copies the bodies, and appends what says where they are; the checksum of that.
async fn copy<'a>(
    appender: &mut Appender,
    job: Rewrite<'_>,
    survivors: &BTreeMap<FileNumber, Survivors>,
    pace: impl Fn(u64) -> BoxFuture<'a, ()>,
) -> Result<u32> {
    let mut block = Vec::new();
    for (segment, Survivors { file, bodies }) in survivors {
        let last = bodies.last().expect("a segment without bodies has no section");
        let mut reader = BodyReader::open(file, job.direct).await?;
        let mut entries = Vec::with_capacity(bodies.len() * 5);
        let mut before = 0;
        for body in bodies {
            appender.put(reader.read(*segment, body, last).await?);
            put_entry(&mut entries, before, body.position, body.len);
            before = body.position;
            if appender.needs_write() {
                let from = appender.handed();
                appender.write_full_chunks().await?;
                pace(appender.handed() - from).await;
            }
        }
        put_section(&mut block, *segment, bodies.len() as u64, &entries);
    }
    let (footer, checksum) = footer(job.number, appender.offset(), &block);
    appender.put(&block);
    appender.put(&footer);
    Ok(checksum)
}
