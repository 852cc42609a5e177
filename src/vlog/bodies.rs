//! Reading bodies in the order of their positions, for rewrites and for verification.
//!
//! Invariants:
//! 1. No body leaves this file before it was checked against what its table says of it.
//! 2. Memory is one window, or one body.

use seerdb_io::{AlignedBuf, BUF_ALIGN, File};

use super::Place;
use super::file::{ValueFile, is_worth_repeating};
use crate::codec::crc32c;
use crate::error::{Error, Result};
use crate::filename::FileNumber;
use crate::pointer::Body;

/// How much is read at once.
const WINDOW_BYTES: u64 = 512 << 10;

/// Reads the bodies of `segment` that tables refer to, in the order of their positions, and checks
/// them.
///
/// # Errors
///
/// `Corruption` when one does not check out twice in a row, `Io` when it cannot be read.
///
/// # Cancel safety
///
/// Dropping the future has no effect.
pub(crate) async fn verify(file: &ValueFile, segment: FileNumber, bodies: &[Body]) -> Result<()> {
    let Some(last) = bodies.last() else { return Ok(()) };
    let mut reader = BodyReader::open(file, false).await?;
    for body in bodies {
        reader.read(segment, body, last).await?;
    }
    Ok(())
}

/// Reads bodies through the background class.
pub(crate) struct BodyReader<'a> {
    values: &'a ValueFile,
    file: File,
    window: AlignedBuf,
    base: u64,
}

impl<'a> BodyReader<'a> {
    /// Reads `direct`, around the page cache where that is possible, only what is durable: what
    /// a failed sync has left in the page cache is not on the device.
    pub(crate) async fn open(values: &'a ValueFile, direct: bool) -> Result<BodyReader<'a>> {
        let file = values.open_background(direct).await?;
        Ok(BodyReader { values, file, window: AlignedBuf::new(), base: 0 })
    }

    /// `body` of `segment`, checked; `last` is the last one that will be asked for of the segment.
    ///
    /// # Errors
    ///
    /// `Corruption` when it does not check out twice in a row, `Io` when it cannot be read.
    pub(crate) async fn read(
        &mut self,
        segment: FileNumber,
        body: &Body,
        last: &Body,
    ) -> Result<&[u8]> {
        let place = |body: &Body| Place { segment, position: body.position };
        let offset = self.values.locate(place(body), body.len)?;
        let end = self.values.locate(place(last), last.len)? + u64::from(last.len);
        if !self.holds(offset, body) {
            match self.fill(offset, body, end).await {
                Err(error) if is_worth_repeating(&error) => self.fill(offset, body, end).await?,
                filled => filled?,
            }
        }
        if !self.is_sound(offset, body) {
            self.fill(offset, body, end).await?;
        }
        if !self.is_sound(offset, body) && !planted!(RewriteUnchecked) {
            let what = "a value is not the one that a table refers to";
            return Err(Error::corruption(self.values.path(), offset, what));
        }
        Ok(self.bytes(offset, body))
    }

    fn holds(&self, offset: u64, body: &Body) -> bool {
        let end = offset + u64::from(body.len);
        offset >= self.base && end <= self.base + self.window.len() as u64
    }

    fn bytes(&self, offset: u64, body: &Body) -> &[u8] {
        let from = usize::try_from(offset - self.base).unwrap_or(usize::MAX);
        self.window.get(from..from.saturating_add(body.len as usize)).unwrap_or_default()
    }

    fn is_sound(&self, offset: u64, body: &Body) -> bool {
        self.holds(offset, body) && crc32c(self.bytes(offset, body)) == body.crc
    }

    /// Reads a window that begins with `body` and goes no further than `end`.
    async fn fill(&mut self, offset: u64, body: &Body, end: u64) -> Result<()> {
        let base = offset - offset % BUF_ALIGN as u64;
        let until = end.min(base + WINDOW_BYTES).max(offset + u64::from(body.len));
        let len = usize::try_from(until - base).unwrap_or(usize::MAX);
        let wanted = len.next_multiple_of(BUF_ALIGN);
        let mut buf = std::mem::take(&mut self.window);
        buf.clear();
        buf.resize(wanted);
        let (read, mut buf) = self.file.read_at(buf, base).await;
        buf.truncate(read?);
        self.window = buf;
        self.base = base;
        Ok(())
    }
}
