//! The record of a run: every operation, hashed, and in full on request; every injected fault.
//!
//! Invariants:
//! 1. Two runs have the same hash exactly if they submitted the same operations at the same
//!    virtual times with the same data, and got the same answers in the same order.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// Opens or creates a file.
    Open,
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Writes durably.
    WriteDurable,
    /// Writes into the page cache on the calling thread.
    WriteCached,
    /// Makes a file durable.
    Sync,
    /// Sets a length, or reserves space.
    Resize,
    /// Asks for a length.
    Inspect,
    /// Creates a directory.
    CreateDir,
    /// Renames a file.
    Rename,
    /// Removes a file.
    Remove,
    /// Lists a directory.
    ListDir,
    /// Makes names durable.
    SyncDir,
    /// Takes a lock, creating its file.
    Lock,
}

impl OpKind {
    /// Whether the operation may change what a power cut leaves.
    pub fn is_change(self) -> bool {
        !matches!(self, OpKind::Read | OpKind::Inspect | OpKind::ListDir)
    }

    pub(super) fn is_write(self) -> bool {
        matches!(self, OpKind::Write | OpKind::WriteDurable | OpKind::WriteCached)
    }

    pub(super) fn is_sync(self) -> bool {
        matches!(self, OpKind::Sync | OpKind::SyncDir)
    }

    /// Whether [`crate::Env::in_flight`] counts it.
    pub(super) fn is_transfer(self) -> bool {
        self.is_write() || matches!(self, OpKind::Read | OpKind::Sync)
    }
}

/// A fault that was injected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// The number of the operation.
    pub op: u64,
    /// The rule of the fault model.
    pub rule: &'static str,
    /// What was done.
    pub what: &'static str,
    /// The operation.
    pub kind: OpKind,
    /// The file or directory.
    pub path: PathBuf,
    /// Whether the caller was told by an error.
    pub is_error: bool,
}

/// One operation, for the hash and the text.
pub(super) struct Entry<'a> {
    pub(super) now: Duration,
    pub(super) number: u64,
    pub(super) kind: OpKind,
    pub(super) path: &'a Path,
    pub(super) offset: u64,
    pub(super) len: usize,
}

#[derive(Default)]
pub(super) struct Trace {
    hash: u64,
    text: Option<Vec<String>>,
    pub(super) injected: Vec<Injected>,
}

/// A quick hash of bytes; not against an enemy.
pub(super) fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = 0x9E37_79B9_7F4A_7C15 ^ bytes.len() as u64;
    let mut words = bytes.chunks_exact(8);
    for word in words.by_ref() {
        let word = word.try_into().map_or(0, u64::from_le_bytes);
        hash = (hash.rotate_left(23) ^ word).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    }
    for byte in words.remainder() {
        hash = (hash.rotate_left(9) ^ u64::from(*byte)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    }
    hash ^ (hash >> 32)
}

impl Trace {
    pub(super) fn new(text: bool) -> Trace {
        Trace { text: text.then(Vec::new), ..Trace::default() }
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash.rotate_left(27) ^ word).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        self.hash ^= self.hash >> 29;
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn text(&self) -> String {
        self.text.as_ref().map(|lines| lines.concat()).unwrap_or_default()
    }

    fn line(&mut self, line: impl FnOnce(&mut String)) {
        if let Some(text) = &mut self.text {
            let mut new = String::new();
            line(&mut new);
            new.push('\n');
            text.push(new);
        }
    }

    /// An operation was submitted, with this data.
    pub(super) fn submitted(&mut self, entry: &Entry<'_>, data: &[u8]) {
        let data = if data.is_empty() { 0 } else { hash_bytes(data) };
        let now = u64::try_from(entry.now.as_nanos()).unwrap_or(u64::MAX);
        let path = hash_bytes(entry.path.as_os_str().as_encoded_bytes());
        for word in [now, entry.number, entry.kind as u64, path, entry.offset, data] {
            self.mix(word);
        }
        self.mix(entry.len as u64);
        self.line(|line| {
            let Entry { now, number, kind, path, offset, len } = entry;
            let path = path.display();
            write!(line, "{now:?} #{number} {kind:?} {path} @{offset} +{len} [{data:016x}]").ok();
        });
    }

    /// It was answered, with this data.
    pub(super) fn answered(
        &mut self,
        now: Duration,
        number: u64,
        result: Result<u64, i32>,
        data: &[u8],
    ) {
        let data = if data.is_empty() { 0 } else { hash_bytes(data) };
        let word = match result {
            Ok(n) => n,
            Err(code) => u64::MAX - u64::from(code.unsigned_abs()),
        };
        for word in [u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), number, word, data] {
            self.mix(word);
        }
        self.line(|line| {
            write!(line, "{now:?} #{number} -> {result:?} [{data:016x}]").ok();
        });
    }

    /// Something that is no operation: the end of a life.
    pub(super) fn note(&mut self, now: Duration, what: &str) {
        self.mix(hash_bytes(what.as_bytes()));
        self.line(|line| {
            write!(line, "{now:?} {what}").ok();
        });
    }

    pub(super) fn fault(&mut self, fault: Injected) {
        self.mix(fault.op ^ hash_bytes(fault.what.as_bytes()));
        self.line(|line| {
            let Injected { op, rule, what, .. } = &fault;
            write!(line, "    fault {rule} at #{op}: {what}").ok();
        });
        self.injected.push(fault);
    }
}
