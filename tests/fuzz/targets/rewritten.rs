//! `seerdb::fuzz::rewritten`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| seerdb::fuzz::rewritten(bytes));
