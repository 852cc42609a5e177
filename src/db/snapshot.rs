//! Snapshots: reads of one moment.

use bytes::Bytes;

use super::DB;
use super::read::Get;
use super::stream::RangeStream;
use crate::error::Result;
use crate::key::SeqNo;
use crate::range::KeyRange;
use crate::snapshot::Pin;

/// The database at one moment. It keeps the versions of that moment readable until it is dropped,
/// and keeps the database open as any handle does.
#[derive(Clone)]
pub struct Snapshot {
    db: DB,
    pin: Pin,
}

impl Snapshot {
    pub(super) fn new(db: &DB) -> Self {
        Snapshot { db: db.clone(), pin: db.core().pin_visible() }
    }

    /// The seqno of the moment: all writes up to it are seen, none after it.
    pub fn seqno(&self) -> SeqNo {
        self.pin.seqno()
    }

    /// As [`DB::get`], at this moment.
    pub fn get<K: AsRef<[u8]>>(&self, key: K) -> Get<'_, K> {
        Get::new(&self.db, key, Some(self.seqno()))
    }

    /// As [`DB::get_many`], at this moment.
    ///
    /// # Errors
    ///
    /// As for [`DB::get`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future has no effect.
    pub async fn get_many<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Bytes>>> {
        self.db.get_many_at(keys, self.seqno()).await
    }

    /// As [`DB::range`], at this moment.
    pub fn range(&self, range: impl KeyRange) -> RangeStream {
        RangeStream::new(&self.db, self.pin.clone(), range)
    }

    /// As [`DB::prefix`], at this moment.
    pub fn prefix(&self, prefix: impl AsRef<[u8]>) -> RangeStream {
        RangeStream::prefix(&self.db, self.pin.clone(), prefix.as_ref())
    }

    /// As [`DB::iter`], at this moment.
    pub fn iter(&self) -> RangeStream {
        RangeStream::new(&self.db, self.pin.clone(), ..)
    }
}
