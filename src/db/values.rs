//! Reading values that stay in the log: from what is not written yet, the cache, the page cache,
//! the disk, in this order.
//!
//! Invariants:
//! 1. The first look does all the work that memory can answer.
//! 2. A value that has to be waited for keeps its file, whatever happens to the version meanwhile.
//! 3. What goes into the cache was checked by the pointer that it is found by.
//! 4. A failed sync takes from the page cache what it could not write. A value that is lost so was
//!    never durable, and its reader hears that the log has failed, not that the disk is damaged.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use super::Core;
use super::commit::Pipeline;
use crate::error::{Error, Result};
use crate::key::{KeyBuf, SeqNo};
use crate::lz4;
use crate::pointer::Pointer;
use crate::probe::{Origin, Probe};
use crate::sstable::{CacheId, Cached};
use crate::version::Version;
use crate::vlog::Place;
use crate::vlog::file::{ValueFile, Wanted};

/// What the first look at a pointer came to.
pub(super) enum Look {
    Value(Bytes),
    /// Only the disk can tell.
    Disk(Distant),
    /// The version does not know the segment: it is an older one than the pointer.
    Unknown,
}

/// A value that has to be read from a file.
#[derive(Clone)]
pub(super) struct Distant {
    file: Arc<ValueFile>,
    pointer: Pointer,
    seqno: SeqNo,
}

impl Distant {
    /// The bytes that it will take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.pointer.raw as usize
    }
}

/// The pointer that an entry holds.
pub(super) fn pointer_of(encoded: &[u8]) -> Pointer {
    Pointer::decode(encoded).expect("blocks and memtables hold whole pointers")
}

impl Core {
    /// Looks for the value of `key` that the commit `seqno` wrote and `encoded` points to; what
    /// comes from the page cache is kept with `fill`.
    pub(super) fn look_up(
        &self,
        version: &Version,
        key: &[u8],
        seqno: SeqNo,
        encoded: &[u8],
        fill: bool,
        probe: &Probe,
    ) -> Result<Look> {
        let pointer = pointer_of(encoded);
        if let Some(stored) = self.pipeline.fresh.get(Place::of(&pointer)) {
            probe.value(Origin::Memory);
            return unpack(&pointer, stored).map(Look::Value);
        }
        let id = CacheId::value(&pointer);
        if let Some(value) = self.cache.get(&id).and_then(|cached| cached.into_value(&pointer)) {
            probe.value(Origin::Memory);
            return Ok(Look::Value(value));
        }
        let Some(file) = version.value_file(pointer.segment) else { return Ok(Look::Unknown) };
        match file.read_now(&Wanted { pointer, key, seqno }) {
            Some(value) => {
                probe.value(Origin::PageCache);
                if fill {
                    self.cache.insert(id, Cached::Value(pointer.check(), value.clone()));
                }
                Ok(Look::Value(value))
            }
            None => Ok(Look::Disk(Distant { file: file.clone(), pointer, seqno })),
        }
    }

    /// Reads a value from its file; concurrent reads of one value are one. Kept with `fill`.
    pub(super) fn fetch(
        &self,
        distant: Distant,
        key: &[u8],
        fill: bool,
    ) -> impl Future<Output = Result<Bytes>> + Send + 'static + use<> {
        let Distant { file, pointer, seqno } = distant;
        let key = KeyBuf::from_slice(key);
        let load = async move {
            let value = file.read(&Wanted { pointer, key: &key, seqno }).await?;
            Ok(Cached::Value(pointer.check(), value))
        };
        let loading = self.cache.load(CacheId::value(&pointer), fill, load);
        let pipeline = self.pipeline.clone();
        async move {
            let loaded = loading.await.map_err(|error| pipeline.explain_loss(seqno, error))?;
            loaded.into_value(&pointer).ok_or_else(|| unknown(&pointer))
        }
    }
}

/// The error for a pointer that leads nowhere.
pub(super) fn unknown(pointer: &Pointer) -> Error {
    let what = format!("a pointer leads to {:?}, where nothing is", Place::of(pointer));
    Error::new(crate::error::ErrorKind::Corruption, what)
}

fn unpack(pointer: &Pointer, stored: Bytes) -> Result<Bytes> {
    if pointer.raw == pointer.stored {
        return Ok(stored);
    }
    let raw = lz4::unpack(&stored, pointer.raw as usize);
    raw.map_err(|what| Error::new(crate::error::ErrorKind::Corruption, what))
}

impl Pipeline {
    /// Keeps a value for readers until it is written; its credits come back then.
    pub(super) fn keep_value(&self, seqno: SeqNo, pointer: Pointer, stored: &Bytes) {
        if self.fresh.insert(seqno, pointer, stored) {
            // It may have been written since the log took it.
            self.give_written_values();
        } else {
            self.throttle.release(stored.len());
        }
    }

    /// Gives up the values that are written by now, and their credits. Those that the page cache
    /// does not have go into the cache. Never called with the commit lock: it wakes writers.
    pub(super) fn give_written_values(&self) {
        let mut released = 0;
        self.fresh.give_written(|pointer, stored| {
            released += stored.len();
            if let Some(cache) = &self.written_values
                && pointer.raw == pointer.stored
            {
                // A copy: the caller's buffer may be much larger than the value.
                let value = Cached::Value(pointer.check(), Bytes::copy_from_slice(&stored));
                cache.insert(CacheId::value(&pointer), value);
            }
        });
        if released > 0 {
            self.throttle.release(released);
        }
    }
}
