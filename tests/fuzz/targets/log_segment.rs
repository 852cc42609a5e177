//! `seerdb::fuzz::log_segment`, with its file in memory.
#![no_main]

use std::sync::OnceLock;

use futures::executor::block_on;
use seerdb::Env;
use tempfile::TempDir;

static WORLD: OnceLock<(Env, TempDir)> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    let (env, dir) = WORLD.get_or_init(|| (seerdb_fuzz::env(), seerdb_fuzz::scratch()));
    if let Err(error) = block_on(seerdb::fuzz::log_segment(env, dir.path(), script)) {
        assert!(error.is_corruption(), "{error:?}");
    }
});
