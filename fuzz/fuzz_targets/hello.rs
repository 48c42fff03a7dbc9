//! Fuzzes the first words of a stranger on a port with TLS.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fender_fuzz::hello(data));
