//! The public API from outside, by behaviour: what each call promises, what bad input comes to,
//! and what happens around the edges of a database's life.
//!
//! Tests that need something the machine does not grant (a mount, io_uring) print that they were
//! skipped.
//!
//! Bad inputs, and where they are tested; a test checks that these names exist:
//!
//! | input | test |
//! |---|---|
//! | empty key, empty value | `basic::the_empty_key_and_the_empty_value_are_like_any_other` |
//! | longest key, one byte more | `limits::a_key_at_its_limit_works_and_one_byte_more_is_refused` |
//! | value or batch too large | `limits::a_value_or_a_batch_above_its_limit_is_refused_whole` |
//! | batch of too many operations | `limits::a_batch_of_too_many_operations_is_refused_whole` |
//! | values of 0 bytes to many segments | `values::values_of_every_size_come_back` |
//! | another threshold, or none | `values::the_threshold_may_change_and_go` |
//! | a directory moved or copied | `values::a_database_goes_where_its_directory_goes` |
//! | empty batch | `basic::an_empty_batch_resolves_to_the_newest_seqno` |
//! | a key twice in a batch | `basic::in_a_batch_the_last_operation_on_a_key_wins` |
//! | keys of 0x00, 0xFF, prefixes | `range::a_prefix_covers_its_keys_and_no_others` |
//! | empty, inverted ranges | `range::a_range_may_be_empty_but_not_inverted` |
//! | unbounded, excluded bounds | `range::every_kind_of_bound_means_what_it_says` |
//! | long runs of tombstones | `range::long_runs_of_tombstones_are_passed_over` |
//! | a stream dropped midway | `range::a_stream_dropped_midway_lets_the_database_go_on` |
//! | a `next` dropped midway | `range::dropping_a_next_loses_no_item` |
//! | they outlive the handle | `snapshot::snapshots_and_streams_keep_a_dropped_database_open` |
//! | so do writes | `snapshot::unawaited_writes_and_batches_keep_a_dropped_database_open_too` |
//! | use after close, close twice | `snapshot::after_a_close_every_call_says_so` |
//! | close amid commits | `runtime::a_close_amid_writes_leaves_each_of_them_done_or_refused` |
//! | a dropped close | `snapshot::a_close_that_is_dropped_midway_closes_all_the_same` |
//! | a million snapshots | `process::a_million_snapshots_cost_memory_and_nothing_else` |
//! | open twice, also by a symlink | `recovery::a_directory_is_open_once_in_a_process` |
//! | open twice by two processes | `recovery::a_directory_is_open_in_one_process` |
//! | open twice by a bind mount | `process::a_directory_is_open_once_through_a_bind_mount_too` |
//! | no directory, path too long | `recovery::paths_that_cannot_be_a_database_are_refused` |
//! | path that is no text | `recovery::a_path_need_not_be_text` |
//! | directory read-only | `recovery::a_read_only_directory_is_an_error_and_loses_nothing` |
//! | removed | `recovery::a_directory_that_is_removed_while_open_does_not_break_the_process` |
//! | disk full | `limits::a_full_disk_refuses_writes_until_there_is_space_again` |
//! | disk without direct transfers | `process::a_file_system_without_direct_transfers_will_do` |
//! | odd options | `options::options_out_of_range_or_in_contradiction_are_refused_by_name` |
//! | a backend that does not exist | `process::a_backend_that_does_not_exist_is_not_supported` |
//! | other options at the next open | `options::every_option_may_change_between_two_opens` |
//! | a future moved | `runtime::a_future_may_move_to_another_thread_between_two_polls` |
//! | a future polled after its end | `runtime::polling_a_resolved_future_panics_and_does_no_harm` |
//! | a future forgotten | `runtime::a_forgotten_future_hinders_neither_work_nor_close` |
//! | a dropped write | `runtime::a_write_dropped_after_any_number_of_polls_is_whole_or_absent` |
//! | a runtime that ends first | `runtime::a_runtime_may_end_before_the_database` |
//! | fork | `fork::a_forked_child_can_do_no_harm` |
//! | fork and exec | `fork::a_child_that_executes_a_program_inherits_no_lock` |
//! | a log that cannot be written | `failing::a_failing_log_is_indeterminate_once_and_stops_writing_then` |
//! | `RLIMIT_NOFILE` | `process::too_few_descriptors_are_an_error_and_do_no_harm` |
//! | `RLIMIT_FSIZE` | `process::a_limit_of_file_sizes_is_no_space_and_does_no_harm` |
//!
//! Elsewhere: io_uring refused (`io/tests/conformance/refusal.rs`), the last seqno (a unit test of
//! the commit pipeline). The engine never reads the wall clock: what it says does not matter.

#[cfg(test)]
mod basic;
#[cfg(test)]
mod compaction;
#[cfg(test)]
mod failing;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod fork;
#[cfg(test)]
mod host;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod options;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod process;
#[cfg(test)]
mod range;
#[cfg(test)]
mod recovery;
#[cfg(test)]
mod runtime;
#[cfg(test)]
mod snapshot;
#[cfg(test)]
mod stats;
#[cfg(test)]
mod values;

/// The table above names tests that exist.
#[test]
fn every_bad_input_has_its_test() {
    let files = [
        ("basic", include_str!("basic.rs")),
        ("compaction", include_str!("compaction.rs")),
        ("failing", include_str!("failing.rs")),
        ("fork", include_str!("fork.rs")),
        ("limits", include_str!("limits.rs")),
        ("options", include_str!("options.rs")),
        ("process", include_str!("process.rs")),
        ("range", include_str!("range.rs")),
        ("recovery", include_str!("recovery.rs")),
        ("runtime", include_str!("runtime.rs")),
        ("snapshot", include_str!("snapshot.rs")),
        ("stats", include_str!("stats.rs")),
        ("values", include_str!("values.rs")),
    ];
    let rows = include_str!("main.rs").lines().filter(|line| line.starts_with("//! | "));
    let mut named = 0;
    for row in rows.skip(1) {
        let test = row.rsplit('`').nth(1).unwrap();
        let (file, name) = test.split_once("::").unwrap();
        let text = files.iter().find(|(stem, _)| *stem == file).unwrap().1;
        assert!(text.contains(&format!("#[test]\nfn {name}()")), "there is no {test}");
        named += 1;
    }
    assert!(named > 35, "only {named} rows were read");
}

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
