//! Whether a checkpoint is sound: a model that we compute, every weight finite, every tensor as its manifest says.

use std::collections::BTreeMap;

use super::OnProgress;
use crate::checkpoint::Checkpoint;
use crate::manifest::{Manifest, TensorRecord};

/// What [`verify`] finds.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Tensors looked at.
    pub tensors: usize,
    /// What is wrong; nothing when the checkpoint is sound.
    pub problems: Vec<String>,
    /// The hashes that were found.
    pub manifest: Manifest,
}

/// Reads all weights of `checkpoint`, once, and compares their hashes with those of `manifest`.
pub fn verify(checkpoint: &Checkpoint, manifest: Option<&Manifest>, on_progress: OnProgress<'_>) -> Verdict {
    let mut problems = Vec::new();
    let whole = checkpoint.config().and_then(|config| checkpoint.validate(&config));
    problems.extend(whole.err().map(|error| error.to_string()));
    let total: u64 = checkpoint.stored().map(|tensor| tensor.data.len() as u64).sum();
    let mut done = 0;
    let mut records = BTreeMap::new();
    for stored in checkpoint.stored() {
        checkpoint.prefetch(stored.data, stored.name);
        let record = TensorRecord::of(&stored);
        match checkpoint.tensor(stored.name) {
            Ok(tensor) => problems.extend(tensor.check_finite().err().map(|error| error.to_string())),
            Err(error) => problems.push(error.to_string()),
        }
        let same = manifest.map_or(Ok(()), |manifest| manifest.check(stored.file, stored.name, &record));
        problems.extend(same.err().map(|error| error.to_string()));
        checkpoint.release(stored.data, stored.name);
        records.insert(stored.name.to_owned(), record);
        done += stored.data.len() as u64;
        on_progress(done, total);
    }
    Verdict { tensors: records.len(), problems, manifest: Manifest::of(checkpoint, records) }
}
