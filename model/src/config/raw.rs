//! `config.json` as it is written, in the old and the new spelling, and its translation into [`ModelConfig`].

use serde::Deserialize;

use super::{ConfigError, ModelConfig, OutputHead};

const SUPPORTED_MODELS: &str = "mixtral";

/// The fields we read. Absent and null are the same.
#[derive(Deserialize)]
pub(super) struct Raw {
    model_type: String,
    hidden_act: Option<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    intermediate_size: usize,
    num_local_experts: usize,
    num_experts_per_tok: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    sliding_window: Option<usize>,
    tie_word_embeddings: Option<bool>,
    bos_token_id: Option<u32>,
    #[serde(default)]
    eos_token_id: OneOrMany,
    quantization_config: Option<serde::de::IgnoredAny>,
}

/// `rope_parameters` (version 5) or `rope_scaling` (version 4, where `rope_type` was once called `type`;
/// some files hold both).
#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
}

/// What we read of `generation_config.json`.
#[derive(Deserialize)]
pub(super) struct Generation {
    #[serde(default)]
    pub(super) eos_token_id: OneOrMany,
}

/// A token, a list of tokens, or null.
#[derive(Default, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
    #[default]
    None,
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
            Self::None => Vec::new(),
        }
    }
}

impl Raw {
    pub(super) fn into_config(self, file: &str) -> Result<ModelConfig, ConfigError> {
        self.check_supported(file)?;
        let head_dim = self.head_dim(file)?;
        let rope_theta = self.rope_theta(file)?;
        let mut eos = self.eos_token_id.into_vec();
        eos.sort_unstable();
        eos.dedup();
        Ok(ModelConfig {
            hidden: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim,
            inner: self.intermediate_size,
            experts: self.num_local_experts,
            experts_per_token: self.num_experts_per_tok,
            vocab: self.vocab_size,
            context: self.max_position_embeddings,
            rope_theta,
            rms_eps: self.rms_norm_eps,
            sliding_window: self.sliding_window,
            tied_embeddings: match self.tie_word_embeddings {
                Some(true) => OutputHead::TiedToEmbeddings,
                Some(false) | None => OutputHead::Own,
            },
            renormalise: true,
            bos: self.bos_token_id,
            eos,
        })
    }

    fn check_supported(&self, file: &str) -> Result<(), ConfigError> {
        let unsupported = |field, found: &str, supported| {
            Err(ConfigError::Unsupported { file: file.to_owned(), field, found: found.to_owned(), supported })
        };
        if self.model_type != SUPPORTED_MODELS {
            return unsupported("model_type", &self.model_type, SUPPORTED_MODELS);
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|act| *act != "silu") {
            return unsupported("hidden_act", act, "silu");
        }
        if self.quantization_config.is_some() {
            return unsupported("quantization_config", "(an object)", "none: weights in f32, bf16 or f16");
        }
        let ropes = self.rope_parameters.iter().chain(&self.rope_scaling);
        let mut types = ropes.flat_map(|rope| [rope.rope_type.as_deref(), rope.old_type.as_deref()]).flatten();
        if let Some(rope) = types.find(|name| *name != "default") {
            return unsupported("rope_type", rope, "default");
        }
        Ok(())
    }

    /// Explicit, or the hidden width shared out among the heads.
    fn head_dim(&self, file: &str) -> Result<usize, ConfigError> {
        if let Some(head_dim) = self.head_dim {
            return Ok(head_dim);
        }
        match self.hidden_size.checked_rem(self.num_attention_heads) {
            Some(0) => Ok(self.hidden_size / self.num_attention_heads),
            _ => Err(ConfigError::Invalid {
                file: file.to_owned(),
                field: "num_attention_heads",
                reason: format!("{} does not divide hidden_size {}", self.num_attention_heads, self.hidden_size),
            }),
        }
    }

    fn rope_theta(&self, file: &str) -> Result<f64, ConfigError> {
        let inside = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        let missing = || ConfigError::Invalid {
            file: file.to_owned(),
            field: "rope_theta",
            reason: "neither at the top nor in rope_parameters".to_owned(),
        };
        inside.or(self.rope_theta).ok_or_else(missing)
    }
}
