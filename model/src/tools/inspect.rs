//! What is in a checkpoint: tensors and bytes, by type, layer and expert. Reads headers alone.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::checkpoint::{Checkpoint, CheckpointError, StoredTensor};
use crate::config::ModelConfig;

/// What [`inspect`] finds.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// The files with the weights.
    pub files: Vec<FileReport>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Bytes of tensors by the type's name.
    pub types: BTreeMap<String, u64>,
    /// Bytes layer by layer; empty when it is no model that we compute.
    pub layers: Vec<LayerReport>,
    /// Why it is no model that we compute, if it is not.
    pub problem: Option<String>,
    /// The tensors, ascending by name.
    pub tensors: Vec<TensorReport>,
}

/// A file.
#[derive(Clone, Debug, Serialize)]
pub struct FileReport {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// A tensor.
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// Its type, in the file's spelling.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: u64,
}

/// A layer.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Its number.
    pub layer: usize,
    /// Bytes of everything but its experts, which the coordinator holds.
    pub attention_bytes: u64,
    /// Its experts.
    pub experts: Vec<ExpertBytes>,
}

/// An expert.
#[derive(Clone, Debug, Serialize)]
pub struct ExpertBytes {
    /// Its index in the layer.
    pub expert: usize,
    /// Bytes of its three matrices as stored.
    pub bytes: u64,
}

/// Looks into `checkpoint`.
pub fn inspect(checkpoint: &Checkpoint) -> Report {
    let tensor = |tensor: StoredTensor<'_>| TensorReport {
        name: tensor.name.to_owned(),
        ty: tensor.dtype.to_owned(),
        shape: tensor.shape.to_vec(),
        bytes: tensor.data.len() as u64,
    };
    let tensors: Vec<TensorReport> = checkpoint.stored().map(tensor).collect();
    let mut types = BTreeMap::new();
    for tensor in &tensors {
        *types.entry(tensor.ty.clone()).or_default() += tensor.bytes;
    }
    let layers = checkpoint.config().and_then(|config| layers(checkpoint, &config));
    let (layers, problem) = match layers {
        Ok(layers) => (layers, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    Report {
        format: if checkpoint.gguf_metadata().is_some() { "gguf" } else { "safetensors" },
        files: checkpoint.weight_files().map(|(name, bytes)| FileReport { name: name.to_owned(), bytes }).collect(),
        bytes: tensors.iter().map(|tensor| tensor.bytes).sum(),
        types,
        layers,
        problem,
        tensors,
    }
}

fn layers(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<Vec<LayerReport>, CheckpointError> {
    checkpoint.validate(config)?;
    let layer = |layer| -> Result<LayerReport, CheckpointError> {
        let own = checkpoint.layer(config, layer)?;
        let tensors = [own.attention_norm, own.q, own.k, own.v, own.o, own.expert_norm, own.gate];
        let attention = tensors.into_iter().chain(own.q_norm).chain(own.k_norm);
        let expert = |expert| -> Result<ExpertBytes, CheckpointError> {
            let tensors = checkpoint.expert(config, layer, expert)?;
            let bytes = [tensors.w1, tensors.w2, tensors.w3].iter().map(|tensor| tensor.data.len() as u64).sum();
            Ok(ExpertBytes { expert, bytes })
        };
        Ok(LayerReport {
            layer,
            attention_bytes: attention.map(|tensor| tensor.data.len() as u64).sum(),
            experts: (0..config.experts).map(expert).collect::<Result<_, _>>()?,
        })
    };
    (0..config.layers).map(layer).collect()
}
