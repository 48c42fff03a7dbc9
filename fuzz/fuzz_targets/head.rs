//! Fuzzes request heads.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fender_fuzz::head(data));
