//! `tramontane_fuzz::fuzz("tokenizer", …)` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tramontane_fuzz::fuzz("tokenizer", data));
