//! `config.json` as it is written, in the old and the new spelling, and its translation into [`ModelConfig`].

use serde::Deserialize;

use tramontane_kernels::RopePairs;

use super::{ConfigError, ModelConfig, OutputHead, QkNorm};
use crate::checkpoint::naming::Naming;

/// A field's name and its value.
type Size = (&'static str, Option<usize>);

/// What distinguishes the models that we compute.
struct Family {
    /// Their `model_type`.
    model_type: &'static str,
    naming: Naming,
    qk_norm: QkNorm,
    /// The inner width of an expert.
    inner: fn(&Raw) -> Size,
    /// How many experts a layer has.
    experts: fn(&Raw) -> Size,
    /// Whether a token's weights are scaled to add up to 1.
    renormalise: fn(&Raw) -> bool,
}

const FAMILIES: [Family; 2] = [
    Family {
        model_type: "mixtral",
        naming: Naming::Mixtral,
        qk_norm: QkNorm::Absent,
        inner: |raw| ("intermediate_size", raw.intermediate_size),
        experts: |raw| ("num_local_experts", raw.num_local_experts),
        renormalise: |_| true,
    },
    Family {
        model_type: "qwen3_moe",
        naming: Naming::Qwen3Moe,
        qk_norm: QkNorm::PerHead,
        inner: |raw| ("moe_intermediate_size", raw.moe_intermediate_size),
        experts: |raw| ("num_experts", raw.num_experts.or(raw.num_local_experts)),
        renormalise: |raw| raw.norm_topk_prob.unwrap_or(false),
    },
];
const SUPPORTED_MODELS: &str = "mixtral, qwen3_moe";

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
    intermediate_size: Option<usize>,
    moe_intermediate_size: Option<usize>,
    num_local_experts: Option<usize>,
    num_experts: Option<usize>,
    num_experts_per_tok: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    attention_bias: Option<bool>,
    norm_topk_prob: Option<bool>,
    mlp_only_layers: Option<Vec<usize>>,
    decoder_sparse_step: Option<usize>,
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
        let family = self.family(file)?;
        self.check_supported(file)?;
        let (inner, experts) = (required(file, (family.inner)(&self))?, required(file, (family.experts)(&self))?);
        let renormalise = (family.renormalise)(&self);
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
            inner,
            experts,
            experts_per_token: self.num_experts_per_tok,
            vocab: self.vocab_size,
            context: self.max_position_embeddings,
            rope_theta,
            rope_pairs: RopePairs::Halves,
            rms_eps: self.rms_norm_eps,
            qk_norm: family.qk_norm,
            sliding_window: self.sliding_window.filter(|_| self.use_sliding_window != Some(false)),
            tied_embeddings: match self.tie_word_embeddings {
                Some(true) => OutputHead::TiedToEmbeddings,
                Some(false) | None => OutputHead::Own,
            },
            renormalise,
            bos: self.bos_token_id,
            eos,
            naming: family.naming,
        })
    }

    fn family(&self, file: &str) -> Result<&'static Family, ConfigError> {
        let known = FAMILIES.iter().find(|family| family.model_type == self.model_type);
        known.ok_or_else(|| unsupported(file, "model_type", self.model_type.clone(), SUPPORTED_MODELS))
    }

    fn check_supported(&self, file: &str) -> Result<(), ConfigError> {
        if let Some(act) = self.hidden_act.clone().filter(|act| act != "silu") {
            return Err(unsupported(file, "hidden_act", act, "silu"));
        }
        if self.quantization_config.is_some() {
            let supported = "none: weights in f32, bf16 or f16";
            return Err(unsupported(file, "quantization_config", "(an object)".to_owned(), supported));
        }
        if self.attention_bias == Some(true) {
            return Err(unsupported(file, "attention_bias", "true".to_owned(), "false"));
        }
        if self.use_sliding_window == Some(true) {
            return Err(unsupported(file, "use_sliding_window", "true".to_owned(), "false"));
        }
        if let Some(layers) = self.mlp_only_layers.as_ref().filter(|layers| !layers.is_empty()) {
            return Err(unsupported(file, "mlp_only_layers", format!("{layers:?}"), "none: experts in every layer"));
        }
        if let Some(step) = self.decoder_sparse_step.filter(|&step| step != 1) {
            return Err(unsupported(file, "decoder_sparse_step", step.to_string(), "1: experts in every layer"));
        }
        let ropes = self.rope_parameters.iter().chain(&self.rope_scaling);
        let mut types = ropes.flat_map(|rope| [&rope.rope_type, &rope.old_type]).flatten();
        match types.find(|name| *name != "default") {
            Some(rope) => Err(unsupported(file, "rope_type", rope.clone(), "default")),
            None => Ok(()),
        }
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
                field: "num_attention_heads".into(),
                reason: format!("{} does not divide hidden_size {}", self.num_attention_heads, self.hidden_size),
            }),
        }
    }

    fn rope_theta(&self, file: &str) -> Result<f64, ConfigError> {
        let inside = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        let missing = || ConfigError::Invalid {
            file: file.to_owned(),
            field: "rope_theta".into(),
            reason: "neither at the top nor in rope_parameters".to_owned(),
        };
        inside.or(self.rope_theta).ok_or_else(missing)
    }
}

fn required(file: &str, (field, value): Size) -> Result<usize, ConfigError> {
    let missing = || ConfigError::Invalid { file: file.to_owned(), field: field.into(), reason: "missing".to_owned() };
    value.ok_or_else(missing)
}

fn unsupported(file: &str, field: &'static str, found: String, supported: &'static str) -> ConfigError {
    ConfigError::Unsupported { file: file.to_owned(), field: field.into(), found, supported }
}
