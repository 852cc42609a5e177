//! The same database with synchronous calls, for threads that may block.
//!
//! Every call runs the asynchronous one on the calling thread and parks it while it waits. Inside
//! an async runtime use [`crate::DB`], or call these within `spawn_blocking`.

use std::future::IntoFuture;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;

use crate::db::{Batch, IntoValue, RangeStream, Snapshot as AsyncSnapshot};
use crate::error::Result;
use crate::key::SeqNo;
use crate::options::DBOptions;
use crate::range::KeyRange;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Parks the thread until the future resolves.
fn wait<F: IntoFuture>(future: F) -> F::Output {
    let mut future = pin!(future.into_future());
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// A database handle with synchronous calls; see [`crate::DB`] for what each does.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("db");
/// use seerdb::blocking::DB;
///
/// let db = DB::open(path)?;
/// db.put(b"key1", b"value1")?;
/// assert_eq!(db.get(b"key1")?.as_deref(), Some(b"value1".as_slice()));
/// for item in db.iter() {
///     let (key, value) = item?;
///     assert_eq!((&key[..], &value[..]), (&b"key1"[..], &b"value1"[..]));
/// }
/// db.close()?;
/// # Ok::<(), seerdb::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct DB {
    db: crate::DB,
}

impl DB {
    /// As [`crate::DB::open`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open(path: impl AsRef<Path>) -> Result<DB> {
        DB::open_with(&DBOptions::default(), path)
    }

    /// As [`DBOptions::open`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open_with(options: &DBOptions, path: impl AsRef<Path>) -> Result<DB> {
        Ok(DB { db: wait(options.open(path))? })
    }

    /// The asynchronous handle to the same database.
    pub fn as_async(&self) -> &crate::DB {
        &self.db
    }

    /// As [`crate::DB::put`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl IntoValue) -> Result<SeqNo> {
        wait(self.db.put(key, value))
    }

    /// As [`crate::DB::delete`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<SeqNo> {
        wait(self.db.delete(key))
    }

    /// As [`crate::DB::batch`]; commit it with [`DB::commit`].
    pub fn batch(&self) -> Batch {
        self.db.batch()
    }

    /// As [`Batch::commit`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn commit(&self, batch: Batch) -> Result<SeqNo> {
        wait(batch.commit())
    }

    /// As [`crate::DB::get`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        wait(self.db.get(key))
    }

    /// As [`crate::DB::get_many`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Bytes>>> {
        wait(self.db.get_many(keys))
    }

    /// As [`crate::DB::range`].
    pub fn range(&self, range: impl KeyRange) -> Range {
        Range { stream: self.db.range(range) }
    }

    /// As [`crate::DB::prefix`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        Range { stream: self.db.prefix(prefix) }
    }

    /// As [`crate::DB::iter`].
    pub fn iter(&self) -> Range {
        Range { stream: self.db.iter() }
    }

    /// As [`crate::DB::snapshot`].
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { snapshot: self.db.snapshot() }
    }

    /// As [`crate::DB::flush`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn flush(&self) -> Result<()> {
        wait(self.db.flush())
    }

    /// As [`crate::DB::compact_range`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn compact_range(&self, range: impl KeyRange) -> Result<()> {
        wait(self.db.compact_range(range))
    }

    /// As [`crate::DB::verify`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn verify(&self) -> Result<()> {
        wait(self.db.verify())
    }

    /// As [`crate::DB::close`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn close(&self) -> Result<()> {
        wait(self.db.close())
    }
}

/// A [`crate::Snapshot`] with synchronous calls.
#[derive(Clone)]
pub struct Snapshot {
    snapshot: AsyncSnapshot,
}

impl Snapshot {
    /// As [`crate::Snapshot::get`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>> {
        wait(self.snapshot.get(key))
    }

    /// As [`crate::Snapshot::range`].
    pub fn range(&self, range: impl KeyRange) -> Range {
        Range { stream: self.snapshot.range(range) }
    }

    /// As [`crate::Snapshot::prefix`].
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> Range {
        Range { stream: self.snapshot.prefix(prefix) }
    }

    /// As [`crate::Snapshot::iter`].
    pub fn iter(&self) -> Range {
        Range { stream: self.snapshot.iter() }
    }
}

/// A [`RangeStream`] as an iterator.
#[must_use = "an iterator does nothing until it is advanced"]
pub struct Range {
    stream: RangeStream,
}

impl Range {
    /// From the end of the range to its start; before the first item only.
    ///
    /// # Panics
    ///
    /// As [`RangeStream::rev`].
    pub fn backwards(self) -> Self {
        Range { stream: self.stream.rev() }
    }

    /// Ends after `count` items.
    pub fn limit(self, count: usize) -> Self {
        Range { stream: self.stream.limit(count) }
    }

    /// As [`RangeStream::keys`].
    ///
    /// # Errors
    ///
    /// Each item may be an error; it is the last one then.
    pub fn keys(self) -> impl Iterator<Item = Result<Bytes>> {
        let mut keys = self.stream.keys();
        std::iter::from_fn(move || wait(keys.next()))
    }

    /// As [`KeyStream::sizes`](crate::KeyStream::sizes).
    ///
    /// # Errors
    ///
    /// As for [`Range::keys`].
    pub fn sizes(self) -> impl Iterator<Item = Result<(Bytes, usize)>> {
        let mut sizes = self.stream.keys().sizes();
        std::iter::from_fn(move || wait(sizes.next()))
    }
}

impl Iterator for Range {
    type Item = Result<(Bytes, Bytes)>;

    fn next(&mut self) -> Option<Self::Item> {
        wait(self.stream.next())
    }
}
