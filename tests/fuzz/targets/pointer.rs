//! `seerdb::fuzz::pointer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| seerdb::fuzz::pointer(bytes));
