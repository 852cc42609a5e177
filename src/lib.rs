//! seerdb: an async-first embedded key-value storage engine on io_uring.

mod cache;
mod codec;
mod compaction;
mod error;
mod filename;
mod filter;
mod iter;
mod key;
mod options;
mod record;
mod sstable;
mod version;

pub use error::{Error, ErrorKind, Result};
pub use key::{BATCH_BYTES_MAX, BATCH_OPS_MAX, KEY_BYTES_MAX, SEQNO_MAX, SeqNo, VALUE_BYTES_MAX};
pub use options::{Compression, DBOptions, Durability};
