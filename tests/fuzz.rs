//! Replays the corpus of every fuzz target, past findings among it, through the functions that are fuzzed (`fuzz/src`).

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, dead_code, reason = "a library where it is fuzzed")]
mod fuzz;

use std::path::Path;

/// Runs every file of the target's corpus; a file whose run panics is named.
fn replay(target: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has no corpus");
    for file in &files {
        let data = std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let ended = std::panic::catch_unwind(|| fuzz::run(target, &data));
        assert!(ended.is_ok(), "{}: see above", file.display());
    }
    println!("{target}: {} files", files.len());
}

#[test]
fn every_corpus_is_a_targets_and_every_target_is_built() {
    let names = |folder: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(folder);
        let entries =
            std::fs::read_dir(folder).expect("it is there").map(|entry| entry.expect("it can be read").path());
        let mut stems: Vec<String> = entries.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect();
        stems.sort();
        stems
    };
    let targets = fuzz::TARGETS.map(|(name, _)| name.to_owned());
    assert_eq!(names("corpus"), targets);
    assert_eq!(names("fuzz_targets"), targets);
}

#[test]
fn api_bodies() {
    replay("api");
}

#[test]
fn chat_templates() {
    replay("chat_template");
}

#[test]
fn frames_of_the_exchange() {
    replay("frames");
}

#[test]
fn models_in_gguf() {
    replay("gguf");
}

#[test]
fn grammars() {
    replay("grammar");
}

#[test]
fn weights_in_safetensors() {
    replay("safetensors");
}

#[test]
fn tokenizers() {
    replay("tokenizer");
}
