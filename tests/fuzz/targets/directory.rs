//! A database whose files the input damages, with or without mending the checksums; then it is
//! opened, read, merged, written to and closed. Any answer will do but a panic, a hang, or an
//! error that says something else than what is wrong.
#![no_main]

use std::sync::OnceLock;

use futures::executor::block_on;
use seerdb_fuzz::golden::Goldens;

static GOLDENS: OnceLock<Goldens> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|script: &[u8]| {
    let goldens = GOLDENS.get_or_init(Goldens::make);
    block_on(goldens.trial(script));
});
