//! Fuzzes lists of forwarded addresses.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fender_fuzz::forwarded(data));
