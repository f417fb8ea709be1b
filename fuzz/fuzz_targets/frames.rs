//! `tramontane_fuzz::fuzz("frames", …)` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tramontane_fuzz::fuzz("frames", data));
