//! Whether a checkpoint is sound: a model that we compute, every weight finite, every tensor as its manifest says.

use super::OnProgress;
use crate::checkpoint::Checkpoint;
use crate::manifest::Manifest;

/// What [`verify`] finds.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Tensors looked at.
    pub tensors: usize,
    /// What is wrong; nothing when the checkpoint is sound.
    pub problems: Vec<String>,
}

/// Reads all weights of `checkpoint`, and compares their hashes with those of `manifest`.
pub fn verify(checkpoint: &Checkpoint, manifest: Option<&Manifest>, on_progress: OnProgress<'_>) -> Verdict {
    let mut problems = Vec::new();
    let whole = checkpoint.config().and_then(|config| checkpoint.validate(&config));
    problems.extend(whole.err().map(|error| error.to_string()));
    let total: u64 = checkpoint.stored().map(|tensor| tensor.data.len() as u64).sum();
    let (mut done, mut tensors) = (0, 0);
    for name in checkpoint.tensor_names() {
        tensors += 1;
        let tensor = match checkpoint.tensor(name) {
            Ok(tensor) => tensor,
            Err(error) => {
                problems.push(error.to_string());
                continue;
            }
        };
        problems.extend(tensor.check_finite().err().map(|error| error.to_string()));
        problems.extend(manifest.and_then(|manifest| manifest.check(&tensor).err()).map(|error| error.to_string()));
        done += tensor.data.len() as u64;
        on_progress(done, total);
    }
    Verdict { tensors, problems }
}
