//! `seerdb::fuzz::stored_block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| seerdb::fuzz::stored_block(bytes));
