//! Writes a file from its beginning to its end: chunk by chunk, a few of them at a time.
//!
//! Invariants:
//! 1. `put` touches memory only; files are touched in `write_full_chunks`, `finish` and `abandon`.
//! 2. Writes are whole multiples of [`BUF_ALIGN`] at such multiples; only the last one is padded,
//!    and the padding is cut off again before the sync.
//! 3. `out` holds the bytes of the file from `out_offset` on; `crc` covers all bytes up to the end
//!    of `out`. What is before `out_offset` was handed to the kernel.
//! 4. Memory is bounded by a few chunks, when the caller writes as `needs_write` asks.

use std::collections::VecDeque;
use std::path::Path;

use seerdb_io::{AlignedBuf, BUF_ALIGN, BufResult, Class, File, Fs, Op, OpenOptions};

use crate::codec::{Sink, crc32c_append};
use crate::error::Result;
use crate::filename::FileName;

/// How many writes may be in flight.
const WRITES_MAX: usize = 2;
/// How far ahead of the writes space is reserved.
const ALLOCATE_BYTES: u64 = 8 << 20;

/// A file being written.
pub(crate) struct Appender {
    fs: Fs,
    file: File,
    out: AlignedBuf,
    out_offset: u64,
    crc: u32,
    allocated: u64,
    in_flight: VecDeque<Op<BufResult>>,
    spare: Vec<AlignedBuf>,
    /// How much is written at once.
    chunk_bytes: usize,
}

/// How a file is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// Around the page cache where the file system can: a ninth of the processor time, but the
    /// file is cold then.
    pub(crate) direct: bool,
    /// How much is collected for one write.
    pub(crate) chunk_bytes: usize,
}

impl Appender {
    /// Creates the file `name` in `dir`.
    ///
    /// # Errors
    ///
    /// When the file exists or cannot be created.
    pub(crate) async fn create(
        fs: &Fs,
        dir: &Path,
        name: FileName,
        manner: Manner,
    ) -> Result<Appender> {
        let Manner { direct, chunk_bytes } = manner;
        let open = OpenOptions { write: true, create_new: true, direct, class: Class::Background };
        let file = fs.open(name.in_dir(dir), open).await?;
        Ok(Appender {
            fs: fs.clone(),
            file,
            out: AlignedBuf::new(),
            out_offset: 0,
            crc: 0,
            allocated: 0,
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            chunk_bytes,
        })
    }

    /// Appends `bytes`.
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.crc = crc32c_append(self.crc, bytes);
        self.out.put(bytes);
    }

    /// The offset in the file of the next byte that is put.
    pub(crate) fn offset(&self) -> u64 {
        self.out_offset + self.out.len() as u64
    }

    /// How many bytes were handed to the kernel.
    pub(crate) fn handed(&self) -> u64 {
        self.out_offset
    }

    /// The CRC32C of all bytes so far.
    pub(crate) fn crc(&self) -> u32 {
        self.crc
    }

    /// Whether enough is collected for [`Appender::write_full_chunks`].
    pub(crate) fn needs_write(&self) -> bool {
        self.out.len() >= self.chunk_bytes
    }

    /// Starts to write what is collected, and waits while too many writes are in flight.
    ///
    /// # Errors
    ///
    /// Those of this and earlier writes; then the file is lost and should be abandoned.
    ///
    /// # Cancel safety
    ///
    /// A file whose write was dropped halfway can only be abandoned.
    pub(crate) async fn write_full_chunks(&mut self) -> Result<()> {
        let whole = self.out.len() - self.out.len() % BUF_ALIGN;
        if whole == 0 {
            return Ok(());
        }
        let mut next = self.spare.pop().unwrap_or_default();
        next.clear();
        next.reserve(self.chunk_bytes + 2 * BUF_ALIGN);
        next.put(self.out.get(whole..).unwrap_or_default());
        let mut full = std::mem::replace(&mut self.out, next);
        full.truncate(whole);
        let offset = self.out_offset;
        self.out_offset += whole as u64;
        if self.out_offset > self.allocated {
            self.allocated = self.out_offset + ALLOCATE_BYTES;
            self.file.allocate(self.allocated).await?;
        }
        self.start_write(full, offset).await
    }

    async fn start_write(&mut self, buf: AlignedBuf, offset: u64) -> Result<()> {
        self.await_writes(WRITES_MAX - 1).await?;
        let mut write = self.file.write_at(buf, offset);
        match futures::poll!(&mut write) {
            std::task::Poll::Ready(result) => self.written(result),
            std::task::Poll::Pending => {
                self.in_flight.push_back(write);
                Ok(())
            }
        }
    }

    /// Waits until no more than `left` writes are in flight.
    async fn await_writes(&mut self, left: usize) -> Result<()> {
        while self.in_flight.len() > left
            && let Some(write) = self.in_flight.front_mut()
        {
            let result = write.await;
            self.in_flight.pop_front();
            self.written(result)?;
        }
        Ok(())
    }

    fn written(&mut self, (result, buf): BufResult) -> Result<()> {
        result?;
        // Only buffers of the usual size: one huge value must not keep its memory to the end.
        if self.spare.len() < WRITES_MAX && buf.capacity() <= 4 * self.chunk_bytes {
            self.spare.push(buf);
        }
        Ok(())
    }

    /// Completes the file and syncs it. The name is durable when the caller synced the directory.
    /// The length of the file.
    ///
    /// # Errors
    ///
    /// When a write or the sync fails: then the file is removed where that is possible.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        let file_bytes = self.offset();
        match self.flush_and_sync(file_bytes).await {
            Ok(()) => Ok(file_bytes),
            Err(error) => {
                self.abandon().await;
                Err(error)
            }
        }
    }

    async fn flush_and_sync(&mut self, file_bytes: u64) -> Result<()> {
        let mut rest = std::mem::take(&mut self.out);
        let padded = rest.len().next_multiple_of(BUF_ALIGN);
        rest.resize(padded);
        let offset = self.out_offset;
        self.out_offset += padded as u64;
        self.start_write(rest, offset).await?;
        self.await_writes(0).await?;
        self.file.set_len(file_bytes).await?;
        let synced = match self.forgets_sync() {
            true => Ok(()),
            false => self.file.sync_data().await,
        };
        if !planted!(SwallowSyncErrorOfTable) {
            synced?;
        }
        Ok(())
    }

    fn forgets_sync(&self) -> bool {
        let is_table = self.file.path().extension().is_some_and(|extension| extension == "sst");
        if is_table { planted!(SkipSyncOfTable) } else { planted!(SkipSyncOfValues) }
    }

    /// Gives the file up and removes it; one that cannot be removed now is removed when the
    /// database is opened next.
    pub(crate) async fn abandon(mut self) {
        while let Some(write) = self.in_flight.pop_front() {
            drop(write.await);
        }
        let path = self.file.path().to_path_buf();
        if let Err(error) = self.fs.remove_file(path).await {
            tracing::warn!(%error, "an abandoned file could not be removed");
        }
    }
}
