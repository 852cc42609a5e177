//! Checks a whole table: every byte against the manifest, and every structure against the others.
//!
//! It streams through the background class and holds one window of the file at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codec::crc32c_append;
use crate::error::{Error, Result};
use crate::filename::FileNumber;
use crate::filter::{hash_tag, key_hash};
use crate::key::{Trailer, ValueKind, compare};
use crate::pointer::Body;

use super::reader::{BlockReader, is_worth_repeating};
use super::references::ReferencesBuilder;
use super::{Block, Table, TableMeta};

/// How much is read at once.
const WINDOW_BYTES: usize = 1 << 20;

impl Table {
    /// Reads the whole file and checks it, twice if need be: what went wrong on the way, and not on
    /// the device, is no damage.
    ///
    /// # Errors
    ///
    /// `Corruption` at the first thing that is not as it was written; `Io` when it cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub(crate) async fn verify(self: &Arc<Self>) -> Result<()> {
        match self.verify_once().await {
            Err(error) if is_worth_repeating(&error) => self.verify_once().await,
            result => result,
        }
    }

    async fn verify_once(self: &Arc<Self>) -> Result<()> {
        let file = self.open_background().await?;
        let reader = BlockReader { file: &file, meta: self.meta() };
        // Properties and footer have no other check than the one at open.
        let properties_at = reader.metadata().await?.properties_at;
        let mut seen = Seen::new(self.meta().number);
        let mut crc = 0;
        let mut next = 0;
        let mut offset = 0;
        while next < self.blocks() {
            let span = self.index().span_up(next, WINDOW_BYTES);
            let first = self.index().handle(span.start);
            let last = self.index().handle(span.end - 1);
            let len = usize::try_from(last.offset - first.offset).unwrap_or(usize::MAX);
            let bytes = reader.bytes(first.offset, len.saturating_add(last.file_bytes())).await?;
            crc = crc32c_append(crc, &bytes);
            offset = first.offset + bytes.len() as u64;
            next = span.end;
            for number in span {
                let handle = self.index().handle(number);
                let from = usize::try_from(handle.offset - first.offset).unwrap_or(usize::MAX);
                let stored = bytes.slice(from..from + handle.file_bytes());
                let block = reader.decode_block(handle, &stored)?;
                self.check_block(number, &block, &mut seen)
                    .map_err(|what| reader.file_ref().corruption(handle.offset, what))?;
            }
        }
        let bad = |offset, what: &str| -> Error { reader.file_ref().corruption(offset, what) };
        seen.check(self.meta()).map_err(|what| bad(0, what))?;
        self.check_references(seen.references.finish()).await?;
        while offset < properties_at {
            let left = properties_at - offset;
            let len = usize::try_from(left).unwrap_or(WINDOW_BYTES).min(WINDOW_BYTES);
            crc = crc32c_append(crc, &reader.bytes(offset, len).await?);
            offset += len as u64;
        }
        if crc != self.meta().checksum {
            return Err(bad(0, "the checksum of the table is not the one in the manifest"));
        }
        Ok(())
    }

    /// Reads what the table says it refers to, and compares it with what it refers to.
    async fn check_references(&self, mut found: BTreeMap<FileNumber, Vec<Body>>) -> Result<()> {
        for reference in &self.meta().references {
            let listed = self.bodies(reference).await?;
            if found.remove(&reference.segment) != Some(listed) {
                let what = "references block: it lists other bodies than the entries refer to";
                return Err(self.reader().file_ref().corruption(reference.handle.offset, what));
            }
        }
        match found.keys().next() {
            None => Ok(()),
            Some(segment) => {
                let what = format!("no references block lists segment {segment}");
                Err(self.reader().file_ref().corruption(0, what))
            }
        }
    }

    fn check_block(
        &self,
        number: usize,
        block: &Block,
        seen: &mut Seen,
    ) -> std::result::Result<(), &'static str> {
        for index in 0..block.len() {
            let entry = block.at(index);
            let key = block.key(entry);
            seen.add(key, entry.trailer, block.value(entry))?;
            let hash = key_hash(key);
            if block.tags().get(index) != Some(&hash_tag(hash)) {
                return Err("data block: a tag is not its key's");
            }
            if !self.filter().may_contain(hash) {
                return Err("data block: the filter excludes a key");
            }
            if !self.index().admits(number, key, entry.trailer) {
                return Err("data block: a key is outside its separators");
            }
        }
        Ok(())
    }
}

/// What the entries so far amount to.
struct Seen {
    meta: TableMeta,
    last: Option<Trailer>,
    references: ReferencesBuilder,
}

impl Seen {
    fn new(number: u64) -> Seen {
        let references = ReferencesBuilder::default();
        Seen { meta: TableMeta::empty(number), last: None, references }
    }

    fn add(
        &mut self,
        key: &[u8],
        trailer: Trailer,
        value: &[u8],
    ) -> std::result::Result<(), &'static str> {
        match self.last {
            Some(last) if compare((&self.meta.largest, last), (key, trailer)).is_ge() => {
                return Err("data block: its keys do not ascend");
            }
            _ => {}
        }
        self.last = Some(trailer);
        self.meta.note(key, trailer);
        if trailer.kind() == ValueKind::Pointer {
            self.references.note(key, trailer, value);
        }
        Ok(())
    }

    fn check(&self, meta: &TableMeta) -> std::result::Result<(), &'static str> {
        let references = Vec::new();
        let expected = TableMeta { file_bytes: 0, checksum: 0, references, ..meta.clone() };
        if self.meta == expected { Ok(()) } else { Err("its entries contradict the manifest") }
    }
}

#[cfg(test)]
mod tests;
