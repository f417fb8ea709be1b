//! What a checkpoint says of its model: sizes and constants, checked before anything is allocated or read by them.
//!
//! Source of the field names: Hugging Face `transformers`, `MixtralConfig` and `Qwen3MoeConfig`, in the spelling of versions 4
//! (`rope_theta` at the top, `torch_dtype`) and 5 (`rope_parameters`, `dtype`). The stored type of a weight is read from its
//! tensor, never here. GGUF metadata are translated in `checkpoint::gguf`.

mod raw;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use raw::Raw;
use tramontane_kernels::RopePairs;

use crate::checkpoint::naming::Naming;

/// Most decoder layers a model may have.
pub const MAX_LAYERS: usize = 1024;
/// Widest hidden state, expert and attention projection.
pub const MAX_WIDTH: usize = 1 << 20;
/// Most attention heads.
pub const MAX_HEADS: usize = 1024;
/// Widest head.
pub const MAX_HEAD_DIM: usize = 1024;
/// Most experts in a layer.
pub const MAX_EXPERTS: usize = 4096;
/// Most entries of a vocabulary.
pub const MAX_VOCAB: usize = 1 << 22;
/// Longest context, in tokens.
pub const MAX_CONTEXT: usize = 1 << 24;
/// Most weights of one model (counted as values, all experts together).
pub const MAX_WEIGHTS: u64 = 1 << 44;
/// Most tokens that end a sequence.
pub const MAX_EOS: usize = 64;

/// Where the output projection (`lm_head`) comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputHead {
    /// It is a tensor of its own.
    Own,
    /// It is the embedding matrix.
    TiedToEmbeddings,
}

/// Whether query and key heads are normed before the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// They are not.
    Absent,
    /// Each head by an RMS norm with ε = `rms_eps`, whose weights (head_dim) all heads of a layer share.
    PerHead,
}

/// The sizes and constants of a decoder with experts in every layer. Made by [`ModelConfig::from_json`] or
/// [`Checkpoint::config`](crate::checkpoint::Checkpoint::config), which check them.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Width of a hidden state.
    pub hidden: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Intermediate width of one expert.
    pub inner: usize,
    /// Experts in each layer.
    pub experts: usize,
    /// Experts that each token visits in a layer (top-k).
    pub experts_per_token: usize,
    /// Entries of the vocabulary, which is the number of logits.
    pub vocab: usize,
    /// Longest sequence the model was made for, in tokens.
    pub context: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Which values of a head the rotary embedding turns together, as query and key rows are stored.
    pub rope_pairs: RopePairs,
    /// ε of the RMS norms.
    pub rms_eps: f32,
    /// Whether query and key heads are normed.
    pub qk_norm: QkNorm,
    /// How many positions, itself included, a token attends to; `None`: all.
    pub sliding_window: Option<usize>,
    /// Where the output projection comes from.
    pub tied_embeddings: OutputHead,
    /// Whether the weights of a token's k experts are scaled to add up to 1 (always so but in some Qwen3-MoE).
    pub renormalise: bool,
    /// Token that begins a sequence.
    pub bos: Option<u32>,
    /// Tokens that end a sequence, ascending, each once.
    pub eos: Vec<u32>,
    /// How the checkpoint names the tensors.
    pub naming: Naming,
}

/// Why a configuration cannot be used. All of them ask for another checkpoint, or another version of this program.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, a field missing, of the wrong type, or given twice.
    #[error("{file}: {source}")]
    Json {
        /// The file, as the caller named it.
        file: String,
        /// What serde_json says, with line and column.
        source: serde_json::Error,
    },
    /// A well-formed configuration of a model that this version does not compute.
    #[error("{file}: {field} {found} is not supported (supported: {supported})")]
    Unsupported {
        /// The file.
        file: String,
        /// The field, or GGUF key.
        field: Cow<'static, str>,
        /// What it holds.
        found: String,
        /// What it may hold.
        supported: &'static str,
    },
    /// A model without experts.
    #[error("{file}: a {architecture} model without experts: `tramontane models split` makes one with experts of it")]
    Dense {
        /// The file.
        file: String,
        /// The architecture.
        architecture: &'static str,
    },
    /// A value that no model can have.
    #[error("{file}: {field}: {reason}")]
    Invalid {
        /// The file.
        file: String,
        /// The field, or GGUF key.
        field: Cow<'static, str>,
        /// What is wrong with it, with the value.
        reason: String,
    },
}

impl ModelConfig {
    /// Reads and checks a `config.json`. `file` names it in errors.
    ///
    /// # Errors
    /// [`ConfigError`]: bad JSON, another kind of model, or sizes that contradict each other or exceed the bounds here.
    pub fn from_json(json: &[u8], file: &str) -> Result<Self, ConfigError> {
        let raw: Raw =
            serde_json::from_slice(json).map_err(|source| ConfigError::Json { file: file.to_owned(), source })?;
        let config = raw.into_config(file)?;
        config.check(file)?;
        Ok(config)
    }

    /// Adds the tokens that `generation_config.json` names as ending a sequence.
    ///
    /// # Errors
    /// [`ConfigError`]: bad JSON, a token outside the vocabulary, too many tokens.
    pub fn merge_generation(&mut self, json: &[u8], file: &str) -> Result<(), ConfigError> {
        let generation: raw::Generation =
            serde_json::from_slice(json).map_err(|source| ConfigError::Json { file: file.to_owned(), source })?;
        self.eos.extend(generation.eos_token_id.into_vec());
        self.eos.sort_unstable();
        self.eos.dedup();
        self.check_tokens(file)
    }

    /// Checks every field by itself and all together. `file` names the file they come from.
    pub(crate) fn check(&self, file: &str) -> Result<(), ConfigError> {
        let invalid = |field: &'static str, reason| {
            Err(ConfigError::Invalid { file: file.to_owned(), field: field.into(), reason })
        };
        for (field, value, most) in [
            ("hidden_size", self.hidden, MAX_WIDTH),
            ("num_hidden_layers", self.layers, MAX_LAYERS),
            ("num_attention_heads", self.heads, MAX_HEADS),
            ("num_key_value_heads", self.kv_heads, MAX_HEADS),
            ("head_dim", self.head_dim, MAX_HEAD_DIM),
            ("intermediate_size", self.inner, MAX_WIDTH),
            ("num_local_experts", self.experts, MAX_EXPERTS),
            ("num_experts_per_tok", self.experts_per_token, self.experts),
            ("vocab_size", self.vocab, MAX_VOCAB),
            ("max_position_embeddings", self.context, MAX_CONTEXT),
            ("sliding_window", self.sliding_window.unwrap_or(1), MAX_CONTEXT),
        ] {
            if value == 0 || value > most {
                return invalid(field, format!("{value} is not in 1..={most}"));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return invalid("num_key_value_heads", format!("{} does not divide {} heads", self.kv_heads, self.heads));
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid("head_dim", format!("{} is odd", self.head_dim));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return invalid("rope_theta", format!("{} is no positive number", self.rope_theta));
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0) {
            return invalid("rms_norm_eps", format!("{} is no positive f32", self.rms_eps));
        }
        if self.weights().is_none_or(|weights| weights > MAX_WEIGHTS) {
            return invalid("num_hidden_layers", format!("the model has more than {MAX_WEIGHTS} weights"));
        }
        self.check_tokens(file)
    }

    fn check_tokens(&self, file: &str) -> Result<(), ConfigError> {
        let invalid = |field: &'static str, reason| {
            Err(ConfigError::Invalid { file: file.to_owned(), field: field.into(), reason })
        };
        let outside = |id: &&u32| **id as usize >= self.vocab;
        if let Some(id) = self.bos.iter().find(outside) {
            return invalid("bos_token_id", format!("{id} is outside the vocabulary of {}", self.vocab));
        }
        if let Some(id) = self.eos.iter().find(outside) {
            return invalid("eos_token_id", format!("{id} is outside the vocabulary of {}", self.vocab));
        }
        if self.eos.len() > MAX_EOS {
            return invalid("eos_token_id", format!("{} tokens, at most {MAX_EOS}", self.eos.len()));
        }
        Ok(())
    }

    /// Number of weights, all matrices together; `None` when it overflows.
    fn weights(&self) -> Option<u64> {
        let product = |factors: &[usize]| factors.iter().try_fold(1u64, |p, &f| p.checked_mul(f as u64));
        let expert = product(&[3, self.hidden, self.inner, self.experts])?;
        let attention = product(&[2, self.hidden, self.heads.checked_add(self.kv_heads)?, self.head_dim])?;
        let layer = expert.checked_add(attention)?;
        layer.checked_mul(self.layers as u64)?.checked_add(product(&[2, self.vocab, self.hidden])?)
    }
}
