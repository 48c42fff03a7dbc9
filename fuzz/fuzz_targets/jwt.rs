//! Fuzzes signed tokens and the key sets they are verified with.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fender_fuzz::jwt(data));
