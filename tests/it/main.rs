//! The public API from outside, by behaviour: what each call promises, what bad input comes to,
//! and what happens around the edges of a database's life.
//!
//! Tests that need something the machine does not grant (a mount, io_uring) print that they were
//! skipped.

#[cfg(test)]
mod basic;
#[cfg(test)]
mod host;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod options;
#[cfg(test)]
mod range;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod runtime;
#[cfg(test)]
mod snapshot;

#[cfg(test)]
mod common {
    use std::future::IntoFuture;
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::time::Duration;

    use bytes::Bytes;
    use futures::TryStreamExt;
    use seerdb::{DB, DBOptions, Env, EnvOptions, ErrorKind, RangeStream, Result};

    /// One environment for all tests that do not ask for their own.
    static ENV: LazyLock<Env> = LazyLock::new(|| Env::new(&EnvOptions::default()).unwrap());

    pub(crate) fn env() -> &'static Env {
        &ENV
    }

    /// Resolves after a moment; for loops that wait for the engine's own threads.
    pub(crate) async fn moment() {
        env().clock().sleep(Duration::from_millis(1)).await;
    }

    /// Runs a future on this thread.
    pub(crate) fn run<F: IntoFuture>(future: F) -> F::Output {
        futures::executor::block_on(future.into_future())
    }

    /// A directory of the test's own, and the path of a database in it.
    pub(crate) fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::TempDir::with_prefix("seerdb-it-").unwrap();
        let path = dir.path().join("db");
        (dir, path)
    }

    /// The same in memory where the system has such a place: for tests of what is computed.
    fn fast_place() -> (tempfile::TempDir, PathBuf) {
        let Ok(dir) = tempfile::TempDir::with_prefix_in("seerdb-it-", "/dev/shm") else {
            return place();
        };
        let path = dir.path().join("db");
        (dir, path)
    }

    /// Default options but for the shared environment.
    pub(crate) fn plain() -> DBOptions {
        DBOptions::new().env(env().clone())
    }

    /// Options so small that a hundred writes flush and merge.
    pub(crate) fn tiny() -> DBOptions {
        plain()
            .memory_budget(1 << 20)
            .memtable_bytes(4096)
            .wal_segment_bytes(16 << 10)
            .block_bytes(256)
            .table_bytes(4096)
            .cache_bytes(4096)
            .size_ratio(2)
            .runs_per_level(1)
    }

    /// A new database with these options, in memory if possible.
    pub(crate) fn open(options: &DBOptions) -> (tempfile::TempDir, DB) {
        let (dir, path) = fast_place();
        let db = run(options.open(path)).unwrap();
        (dir, db)
    }

    /// Opens a database whose last handle was dropped, when its threads have let go of it.
    pub(crate) fn reopen(options: &DBOptions, path: &std::path::Path) -> DB {
        run(async {
            loop {
                match options.open(path).await {
                    Err(error) if error.kind() == ErrorKind::Locked => moment().await,
                    opened => return opened.unwrap(),
                }
            }
        })
    }

    pub(crate) fn collect(stream: RangeStream) -> Vec<(Bytes, Bytes)> {
        run(stream.try_collect::<Vec<_>>()).unwrap()
    }

    /// The keys of a stream as text.
    pub(crate) fn keys(stream: RangeStream) -> Vec<String> {
        let text = |key: Bytes| String::from_utf8(key.to_vec()).unwrap();
        collect(stream).into_iter().map(|(key, _)| text(key)).collect()
    }

    /// The kind of the error that this must be.
    #[track_caller]
    pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
        result.expect_err("this must fail").kind()
    }

    /// The kind of the error that a stream must begin with; it must end then.
    #[track_caller]
    pub(crate) fn stream_kind(mut stream: RangeStream) -> ErrorKind {
        let first = run(stream.next()).expect("the stream must yield an error");
        assert!(run(stream.next()).is_none(), "an error ends a stream");
        kind(first)
    }

    /// So many bytes that do not compress, different for each seed.
    pub(crate) fn noise(seed: u64, len: usize) -> Bytes {
        let mut state = seed.wrapping_add(1);
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            state = (state ^ (state >> 31)).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
            bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        bytes.truncate(len);
        Bytes::from(bytes)
    }
}
