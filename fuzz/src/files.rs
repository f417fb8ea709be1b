//! Checkpoints: weights in safetensors, and models in GGUF, in files as a user has them. They are opened, looked into, checked, hashed.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use tramontane_model::chat::ChatTemplate;
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::manifest::Manifest;
use tramontane_model::tokenizer::Tokenizer;
use tramontane_model::tools;

use super::texts;

/// Where memory is a folder: thousands of files a second are written.
const MEMORY: &str = "/dev/shm";

thread_local! {
    static FOLDER: TempDir = TempDir::new_in(MEMORY).or_else(|_| TempDir::new()).expect("a folder for temporary files");
}

/// `data` is `model.safetensors`, beside the demo model's configuration.
pub(super) fn safetensors(data: &[u8]) {
    FOLDER.with(|folder| {
        write(folder.path(), "config.json", super::CONFIG);
        write(folder.path(), "model.safetensors", data);
        if let Ok(checkpoint) = Checkpoint::open(folder.path()) {
            examine(&checkpoint);
        }
    });
}

/// `data` is a model in GGUF.
pub(super) fn gguf(data: &[u8]) {
    FOLDER.with(|folder| {
        write(folder.path(), "model.gguf", data);
        if let Ok(checkpoint) = Checkpoint::open(&folder.path().join("model.gguf")) {
            examine(&checkpoint);
            if let Ok(tokenizer) = Tokenizer::of(&checkpoint) {
                texts::use_tokenizer(&tokenizer);
            }
            if let Ok(Some(source)) = checkpoint.chat_template() {
                _ = ChatTemplate::compile(&source);
            }
        }
    });
}

fn write(folder: &Path, name: &str, data: &[u8]) {
    fs::write(folder.join(name), data).expect("a file can be written");
}

fn examine(checkpoint: &Checkpoint) {
    let report = tools::inspect(checkpoint);
    let verdict = tools::verify(checkpoint, None, &mut |_, _| ());
    assert_eq!(report.tensors.len(), verdict.tensors);
    let stored: u64 = checkpoint.weight_files().map(|(_, bytes)| bytes).sum();
    assert!(report.bytes <= stored, "tensors of {} bytes in files of {stored}", report.bytes);
    assert!(
        verdict.problems.is_empty() <= report.problem.is_none(),
        "sound, and not to be served: {:?}",
        report.problem
    );
    let again = Manifest::compute(checkpoint);
    assert_eq!(verdict.manifest.root(), again.root());
    _ = checkpoint.license();
}
