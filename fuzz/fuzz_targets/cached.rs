//! Fuzzes files of the credentials cache.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fender_fuzz::cached(data));
