//! The file layer of seerdb: files, clock, randomness and task spawning behind one boundary.
//!
//! Everything that is not deterministic enters an engine through an [`Env`]: [`Fs`] (files and
//! directories), [`Clock`], [`Rng`] and [`Spawner`]. File operations own their buffers, so that a
//! future may be dropped at any moment while the kernel still writes into the memory.
//!
//! # The contract of every operation
//!
//! 1. Nothing happens before the first poll; the first poll starts the operation, and an operation
//!    that the page cache can answer is ready on that poll.
//! 2. Dropping a future never frees memory that the kernel may still touch. A dropped read has no
//!    effect; a dropped write may or may not have happened.
//! 3. Short reads and writes, `EINTR` and `EAGAIN` are handled inside. A read comes back short
//!    only at the end of the file.
//! 4. Any executor may poll the futures; none of them needs a runtime of the caller's.
//! 5. Nothing spins: an idle environment uses no CPU.
//!
//! # Durability
//!
//! A write is durable after [`File::sync_data`] on the same file resolved, provided that the write
//! had resolved before the sync was first polled, or when [`File::write_at_durable`] resolved. A
//! name is durable after [`Fs::sync_dir`] on its directory. A failed sync says that the data may be
//! lost for good: callers never repeat it.

mod armed;
mod buf;
mod ended;
mod env;
mod error;
mod forked;
mod fs;
mod lane;
mod op;
mod pool;
#[cfg(feature = "sim")]
pub mod sim;
mod sys;
mod system;
mod threads;
mod timer;
mod transfer;
#[cfg(all(target_os = "linux", not(seerdb_no_uring)))]
mod uring;

/// What `armed.rs` and `ended.rs` are made of; their model has other atomics of the same names.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
}

pub use buf::{AlignedBuf, BUF_ALIGN};
pub use env::{
    Backend, Clock, Env, EnvOptions, IoBackend, Lane, Panicked, Rng, Shutdown, Sleep, Spawner, Task,
};
pub use error::{Error, Operation, Result};
pub use fs::{BufResult, Class, DirEntry, File, Fs, LockFile, Op, OpenOptions, Plug};
