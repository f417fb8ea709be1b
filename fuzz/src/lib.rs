//! What is fuzzed: for each target one function that takes bytes from outside, as the program would, and panics where something is wrong.
//! `fuzz_targets` feeds them from libFuzzer; `tests/fuzz.rs` replays every file in `corpus` through them.
//!
//! *Absent from here*: anything that only a fuzzer can build.

mod api;
mod files;
mod frames;
mod texts;

/// A target's name, which is that of its folder in `corpus`, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 7] = [
    ("api", api::request),
    ("chat_template", texts::chat_template),
    ("frames", frames::messages),
    ("gguf", files::gguf),
    ("grammar", texts::grammar),
    ("safetensors", files::safetensors),
    ("tokenizer", texts::tokenizer),
];

/// Runs the target `name` on `data`.
///
/// # Panics
/// Something is wrong with what was fuzzed; or there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("no target {name}"));
    target(data);
}

/// The same under libFuzzer, whose own hook takes every panic for a finding: here one that the program catches is none, as libraries that
/// panic on malformed texts are caught where they are called.
pub fn fuzz(name: &str, data: &[u8]) {
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
    if std::panic::catch_unwind(|| run(name, data)).is_err() {
        std::process::abort();
    }
}

/// The demo model's files, for what needs a model around it.
pub(crate) const TOKENIZER: &[u8] = include_bytes!("../../models/breeze/tokenizer.json");
pub(crate) const TOKENIZER_CONFIG: &[u8] = include_bytes!("../../models/breeze/tokenizer_config.json");
pub(crate) const CONFIG: &[u8] = include_bytes!("../../models/breeze/config.json");
