//! From GGUF metadata to a [`ModelConfig`]. Keys: the specification in ggml's repository, `docs/gguf.md`; what llama.cpp makes of
//! absent ones: `llama_model::load_hparams`.

use tramontane_kernels::RopePairs;

use super::Metadata;
use crate::checkpoint::naming::{Naming, TensorNames};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{ConfigError, ModelConfig, OutputHead, QkNorm};

/// What distinguishes the architectures that we compute.
struct Architecture {
    name: &'static str,
    /// Key of an expert's inner width, after the architecture's name.
    inner: &'static str,
    rope_pairs: RopePairs,
    qk_norm: QkNorm,
}

/// In both a token's weights are scaled to add up to 1 (`norm_w` of llama.cpp's `build_moe_ffn`).
const ARCHITECTURES: [Architecture; 2] = [
    Architecture {
        name: "llama",
        inner: "feed_forward_length",
        rope_pairs: RopePairs::Interleaved,
        qk_norm: QkNorm::Absent,
    },
    Architecture {
        name: "qwen3moe",
        inner: "expert_feed_forward_length",
        rope_pairs: RopePairs::Halves,
        qk_norm: QkNorm::PerHead,
    },
];
const SUPPORTED: &str = "llama with experts, qwen3moe";

/// `ModelConfig`'s fields, as its errors call them, and the keys (after the architecture's name) that they come from.
const KEYS: [(&str, &str); 11] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("num_local_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
    ("rope_theta", "rope.freq_base"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
];
/// llama.cpp's base of the rotary embedding where none is given.
const DEFAULT_ROPE_THETA: f32 = 10_000.0;
/// The keys of tokens that end a sequence: its end, a turn's, a message's.
const EOS_KEYS: [&str; 3] =
    ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
/// Integers (after the architecture's name) that change what is computed, and the values that we compute.
const REFUSED_UNLESS: [(&str, &[u32], &str); 4] = [
    ("expert_shared_count", &[0], "0"),
    ("leading_dense_block_count", &[0], "0"),
    ("expert_gating_func", &[0, 1], "1 (softmax)"),
    ("expert_group_count", &[0, 1], "0, 1"),
];

/// One file's keys, of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'static Architecture,
}

/// The configuration of the model whose metadata are `metadata`, and whose tensors are those of `checkpoint`.
pub(crate) fn config(metadata: &Metadata, checkpoint: &Checkpoint) -> Result<ModelConfig, CheckpointError> {
    let names = Naming::Gguf.names();
    let keys = Keys { metadata, architecture: architecture(metadata)? };
    keys.check_supported()?;
    check_tensors(metadata, checkpoint)?;
    let tied_embeddings =
        if checkpoint.has_tensor(names.lm_head) { OutputHead::Own } else { OutputHead::TiedToEmbeddings };
    let config = keys.config(vocab(checkpoint, names)?, tied_embeddings)?;
    config.check(metadata.file()).map_err(|error| keys.in_gguf_terms(error))?;
    Ok(config)
}

fn architecture(metadata: &Metadata) -> Result<&'static Architecture, CheckpointError> {
    let field = "general.architecture";
    let name = metadata.required(field, metadata.string(field)?)?;
    let known = ARCHITECTURES.iter().find(|architecture| architecture.name == name);
    known.ok_or_else(|| unsupported(metadata, field, name, SUPPORTED))
}

fn unsupported(metadata: &Metadata, field: &str, found: &str, supported: &'static str) -> CheckpointError {
    let (file, field, found) = (metadata.file().to_owned(), field.to_owned().into(), found.to_owned());
    ConfigError::Unsupported { file, field, found, supported }.into()
}

/// Tensors that would change the result are refused: biases, and frequencies of a scaled rotary embedding.
fn check_tensors(metadata: &Metadata, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
    match checkpoint.tensor_names().find(|name| name.ends_with(".bias") || *name == "rope_freqs.weight") {
        Some(name) => Err(unsupported(metadata, "tensor", name, "no biases, no frequencies")),
        None => Ok(()),
    }
}

/// Entries of the vocabulary: rows of the embeddings.
fn vocab(checkpoint: &Checkpoint, names: &TensorNames) -> Result<usize, CheckpointError> {
    // The rest of the shape is checked with the other tensors'.
    Ok(checkpoint.tensor(names.embeddings)?.shape.first().copied().unwrap_or(0))
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    fn size(&self, key: &str) -> Result<Option<usize>, CheckpointError> {
        Ok(self.metadata.u32(&self.key(key))?.map(|value| value as usize))
    }

    fn required_size(&self, key: &str) -> Result<usize, CheckpointError> {
        self.metadata.required(&self.key(key), self.size(key)?)
    }

    fn config(&self, vocab: usize, tied_embeddings: OutputHead) -> Result<ModelConfig, CheckpointError> {
        let (hidden, heads) = (self.required_size("embedding_length")?, self.required_size("attention.head_count")?);
        let epsilon = self.key("attention.layer_norm_rms_epsilon");
        let mut eos = Vec::new();
        for key in EOS_KEYS {
            eos.extend(self.metadata.u32(key)?);
        }
        eos.sort_unstable();
        eos.dedup();
        Ok(ModelConfig {
            hidden,
            layers: self.required_size("block_count")?,
            heads,
            kv_heads: self.size("attention.head_count_kv")?.unwrap_or(heads),
            head_dim: self.head_dim(hidden, heads)?,
            inner: self.required_size(self.architecture.inner)?,
            experts: self.required_size("expert_count")?,
            experts_per_token: self.required_size("expert_used_count")?,
            vocab,
            context: self.required_size("context_length")?,
            rope_theta: self.metadata.f32(&self.key("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_THETA).into(),
            rope_pairs: self.architecture.rope_pairs,
            rms_eps: self.metadata.required(&epsilon, self.metadata.f32(&epsilon)?)?,
            qk_norm: self.architecture.qk_norm,
            sliding_window: self.size("attention.sliding_window")?.filter(|&window| window > 0),
            tied_embeddings,
            renormalise: true,
            bos: self.metadata.u32("tokenizer.ggml.bos_token_id")?,
            eos,
            naming: Naming::Gguf,
        })
    }

    /// Explicit, or the hidden width shared out among the heads; values and the rotation must have the same.
    fn head_dim(&self, hidden: usize, heads: usize) -> Result<usize, CheckpointError> {
        let shared = hidden.checked_div(heads).filter(|width| width * heads == hidden);
        let head_dim = match self.size("attention.key_length")?.or(shared) {
            Some(head_dim) => head_dim,
            None => {
                return Err(ConfigError::Invalid {
                    file: self.metadata.file().to_owned(),
                    field: self.key("attention.head_count").into(),
                    reason: format!("{heads} does not divide embedding_length {hidden}"),
                }
                .into());
            }
        };
        for key in ["attention.value_length", "rope.dimension_count"] {
            if let Some(found) = self.size(key)?.filter(|&found| found != head_dim) {
                return Err(unsupported(self.metadata, &self.key(key), &found.to_string(), "the width of a head"));
            }
        }
        Ok(head_dim)
    }

    fn check_supported(&self) -> Result<(), CheckpointError> {
        if self.size("expert_count")?.unwrap_or(0) == 0 {
            let (file, architecture) = (self.metadata.file().to_owned(), self.architecture.name);
            return Err(ConfigError::Dense { file, architecture }.into());
        }
        for (key, allowed, supported) in REFUSED_UNLESS {
            let key = self.key(key);
            if let Some(found) = self.metadata.u32(&key)?.filter(|found| !allowed.contains(found)) {
                return Err(unsupported(self.metadata, &key, &found.to_string(), supported));
            }
        }
        self.check_rope()
    }

    /// Refuses scaled rotary embeddings. A factor without a type means `linear`; 0 and 1 scale nothing.
    fn check_rope(&self) -> Result<(), CheckpointError> {
        let ty = self.key("rope.scaling.type");
        match self.metadata.string(&ty)? {
            Some("none") => return Ok(()),
            Some(found) => return Err(unsupported(self.metadata, &ty, found, "none")),
            None => {}
        }
        for key in ["rope.scaling.factor", "rope.scale_linear"] {
            let key = self.key(key);
            if let Some(found) = self.metadata.f32(&key)?.filter(|factor| *factor != 0.0 && *factor != 1.0) {
                return Err(unsupported(self.metadata, &key, &found.to_string(), "1"));
            }
        }
        Ok(())
    }

    /// The error, its field called by the key that it comes from.
    fn in_gguf_terms(&self, error: ConfigError) -> CheckpointError {
        let ConfigError::Invalid { file, field, reason } = error else { return error.into() };
        let key = KEYS.iter().find(|(name, _)| *name == field).map(|(_, key)| self.key(key));
        let field = key.unwrap_or_else(|| match &*field {
            "intermediate_size" => self.key(self.architecture.inner),
            "vocab_size" => format!("tensor {}", Naming::Gguf.names().embeddings),
            token => format!("tokenizer.ggml.{token}"),
        });
        ConfigError::Invalid { file, field: field.into(), reason }.into()
    }
}
