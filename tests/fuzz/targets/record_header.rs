//! `seerdb::fuzz::record_header`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| seerdb::fuzz::record_header(bytes));
