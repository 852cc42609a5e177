//! `seerdb::fuzz::codec`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| seerdb::fuzz::codec(bytes));
