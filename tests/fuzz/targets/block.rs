//! `seerdb::fuzz::block`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| seerdb::fuzz::block(bytes));
