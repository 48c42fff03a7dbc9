//! Fuzzes files that age or SOPS encrypted.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fender_fuzz::sealed(data));
