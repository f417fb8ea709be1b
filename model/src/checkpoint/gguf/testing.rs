//! For tests: GGUF files, honest and not; small models in them.

use std::collections::BTreeMap;

use tramontane_kernels::WeightType;

use super::types::GgmlType;
use super::value::STRING;
use super::{GgufWriter, TensorInfo, Value};
use crate::checkpoint::{Checkpoint, CheckpointError};

/// The name of the one file of [`open`].
pub(crate) const FILE: &str = "m.gguf";

/// A file put together by hand: whatever it says, true or not.
#[derive(Clone)]
pub(crate) struct Forged {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// The numbers claimed; those that are there unless set.
    pub(crate) tensor_count: Option<u64>,
    pub(crate) key_count: Option<u64>,
    /// Key, type, bytes of the value.
    pub(crate) keys: Vec<(Vec<u8>, u32, Vec<u8>)>,
    /// Name, dimensions innermost first, type, offset.
    pub(crate) tensors: Vec<(Vec<u8>, Vec<u64>, u32, u64)>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

impl Forged {
    /// A version 3 file of `data` bytes of data and nothing else.
    pub(crate) fn new(data: usize) -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            key_count: None,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: vec![0; data],
        }
    }

    pub(crate) fn key(mut self, key: &str, ty: u32, bytes: &[u8]) -> Self {
        self.keys.push((key.into(), ty, bytes.to_vec()));
        self
    }

    /// An F32 tensor of `dims` at `offset`.
    pub(crate) fn f32(self, name: &str, dims: &[u64], offset: u64) -> Self {
        self.tensor(name, dims, GgmlType::id_of(WeightType::F32), offset)
    }

    pub(crate) fn tensor(mut self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        self.tensors.push((name.into(), dims.to_vec(), ty, offset));
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = [&self.magic[..], &self.version.to_le_bytes()].concat();
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, ty, bytes) in &self.keys {
            out.extend(string(key));
            out.extend(ty.to_le_bytes());
            out.extend(bytes);
        }
        for (name, dims, ty, offset) in &self.tensors {
            out.extend(string(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(ty.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    pub(crate) fn open(&self) -> Result<Checkpoint, CheckpointError> {
        open(self.bytes())
    }
}

/// A text as it stands in a file.
pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// An array value as it stands in a file.
pub(crate) fn array(ty: u32, length: u64, values: &[u8]) -> Vec<u8> {
    [&ty.to_le_bytes()[..], &length.to_le_bytes(), values].concat()
}

/// An array of texts as it stands in a file.
pub(crate) fn strings(texts: &[&str]) -> Vec<u8> {
    let values: Vec<u8> = texts.iter().flat_map(|text| string(text.as_bytes())).collect();
    array(STRING, texts.len() as u64, &values)
}

/// The checkpoint whose only file is `bytes`.
pub(crate) fn open(bytes: Vec<u8>) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_files(&[(FILE, bytes.leak())])
}

/// What a model's file holds, before it is written.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) metadata: BTreeMap<String, Value>,
    /// Name, dimensions outermost first.
    pub(crate) tensors: Vec<(String, Vec<usize>)>,
}

impl Model {
    pub(crate) fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.metadata.insert(key.to_owned(), value.into());
        self
    }

    /// The honest file: F32 tensors, value i of each is i.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let infos = self.tensors.iter().map(|(name, shape)| TensorInfo {
            name: name.clone(),
            ty: WeightType::F32,
            shape: shape.clone(),
        });
        let mut writer = GgufWriter::new(Vec::new(), &self.metadata, &infos.collect::<Vec<_>>()).unwrap();
        for (name, shape) in &self.tensors {
            let values = shape.iter().product::<usize>() as u32;
            let data: Vec<u8> = (0..values).flat_map(|i| (i as f32).to_le_bytes()).collect();
            writer.append(name, &data).unwrap();
        }
        writer.finish().unwrap()
    }

    pub(crate) fn open(&self) -> Result<Checkpoint, CheckpointError> {
        open(self.bytes())
    }
}

/// A model of `architecture` of one layer, two experts, four heads of width 2 over a hidden width of 4, an inner width of 6,
/// five tokens.
pub(crate) fn tiny(architecture: &str) -> Model {
    let mut model = Model::default();
    model.set("general.architecture", architecture).set("tokenizer.ggml.bos_token_id", 1);
    model.set("tokenizer.ggml.eos_token_id", 4).set("tokenizer.ggml.eot_token_id", 2);
    for (key, value) in [
        ("block_count", 1),
        ("embedding_length", 4),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("attention.key_length", 2),
        ("attention.value_length", 2),
        ("rope.dimension_count", 2),
        ("feed_forward_length", if architecture == "llama" { 6 } else { 99 }),
        ("expert_feed_forward_length", 6),
        ("expert_count", 2),
        ("expert_used_count", 1),
        ("context_length", 8),
    ] {
        model.set(&format!("{architecture}.{key}"), value);
    }
    model.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), 1e-5f32);
    model.set(&format!("{architecture}.rope.freq_base"), 1e6f32);
    for (name, shape) in [
        ("token_embd", &[5, 4][..]),
        ("output_norm", &[4]),
        ("output", &[5, 4]),
        ("blk.0.attn_norm", &[4]),
        ("blk.0.attn_q", &[8, 4]),
        ("blk.0.attn_k", &[4, 4]),
        ("blk.0.attn_v", &[4, 4]),
        ("blk.0.attn_output", &[4, 8]),
        ("blk.0.ffn_norm", &[4]),
        ("blk.0.ffn_gate_inp", &[2, 4]),
        ("blk.0.ffn_gate_exps", &[2, 6, 4]),
        ("blk.0.ffn_up_exps", &[2, 6, 4]),
        ("blk.0.ffn_down_exps", &[2, 4, 6]),
        ("blk.0.attn_q_norm", &[2]),
        ("blk.0.attn_k_norm", &[2]),
    ] {
        if architecture == "qwen3moe" || !matches!(name, "blk.0.attn_q_norm" | "blk.0.attn_k_norm") {
            model.tensors.push((format!("{name}.weight"), shape.to_vec()));
        }
    }
    model
}
