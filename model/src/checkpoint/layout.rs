//! Which tensors a Mixtral-type model has, what they are called, and their shapes.
//!
//! Names: Hugging Face `transformers`, `MixtralForCausalLM`, as its checkpoints are stored. A matrix is stored as rows of
//! outputs: `[outputs, inputs]`.

use super::{Checkpoint, CheckpointError, Tensor};
use crate::config::{ModelConfig, OutputHead};

/// The tensors outside the layers.
#[derive(Clone, Copy, Debug)]
pub struct OuterTensors<'a> {
    /// `[vocab, hidden]`: row `i` is the embedding of token `i`.
    pub embeddings: Tensor<'a>,
    /// `[hidden]`: the weights of the last RMS norm.
    pub norm: Tensor<'a>,
    /// `[vocab, hidden]`: hidden state to logits. The embeddings again where they are tied.
    pub lm_head: Tensor<'a>,
}

/// The tensors of one layer, but for its experts.
#[derive(Clone, Copy, Debug)]
pub struct LayerTensors<'a> {
    /// `[hidden]`: the norm before attention.
    pub attention_norm: Tensor<'a>,
    /// `[heads × head_dim, hidden]`.
    pub q: Tensor<'a>,
    /// `[kv_heads × head_dim, hidden]`.
    pub k: Tensor<'a>,
    /// `[kv_heads × head_dim, hidden]`.
    pub v: Tensor<'a>,
    /// `[hidden, heads × head_dim]`.
    pub o: Tensor<'a>,
    /// `[hidden]`: the norm before the experts.
    pub expert_norm: Tensor<'a>,
    /// `[experts, hidden]`: hidden state to the experts' logits.
    pub gate: Tensor<'a>,
}

/// The tensors of one expert: `y = w2 · (silu(w1 · x) × (w3 · x))`.
#[derive(Clone, Copy, Debug)]
pub struct ExpertTensors<'a> {
    /// `[inner, hidden]`: the gated half.
    pub w1: Tensor<'a>,
    /// `[hidden, inner]`: back to the hidden width.
    pub w2: Tensor<'a>,
    /// `[inner, hidden]`: the linear half.
    pub w3: Tensor<'a>,
}

impl Checkpoint {
    /// The tensors outside the layers, their shapes checked.
    ///
    /// # Errors
    /// A tensor is missing, or of the wrong shape or type.
    pub fn outer(&self, config: &ModelConfig) -> Result<OuterTensors<'_>, CheckpointError> {
        let matrix = [config.vocab, config.hidden];
        let embeddings = self.tensor("model.embed_tokens.weight")?.expect_shape(&matrix)?;
        let lm_head = match config.tied_embeddings {
            OutputHead::TiedToEmbeddings => embeddings,
            OutputHead::Own => self.tensor("lm_head.weight")?.expect_shape(&matrix)?,
        };
        let norm = self.tensor("model.norm.weight")?.expect_shape(&[config.hidden])?;
        Ok(OuterTensors { embeddings, norm, lm_head })
    }

    /// The tensors of layer `layer` but for its experts, their shapes checked.
    ///
    /// # Errors
    /// A tensor is missing, or of the wrong shape or type.
    pub fn layer(&self, config: &ModelConfig, layer: usize) -> Result<LayerTensors<'_>, CheckpointError> {
        let get = |name: &str, shape: &[usize]| {
            self.tensor(&format!("model.layers.{layer}.{name}.weight"))?.expect_shape(shape)
        };
        let (hidden, queries) = (config.hidden, config.heads * config.head_dim);
        let keys = config.kv_heads * config.head_dim;
        Ok(LayerTensors {
            attention_norm: get("input_layernorm", &[hidden])?,
            q: get("self_attn.q_proj", &[queries, hidden])?,
            k: get("self_attn.k_proj", &[keys, hidden])?,
            v: get("self_attn.v_proj", &[keys, hidden])?,
            o: get("self_attn.o_proj", &[hidden, queries])?,
            expert_norm: get("post_attention_layernorm", &[hidden])?,
            gate: get("block_sparse_moe.gate", &[config.experts, hidden])?,
        })
    }

    /// The tensors of expert `expert` of layer `layer`, their shapes checked.
    ///
    /// # Errors
    /// [`CheckpointError::MissingExpert`] when one is missing; or one has the wrong shape or type.
    pub fn expert(
        &self,
        config: &ModelConfig,
        layer: usize,
        expert: usize,
    ) -> Result<ExpertTensors<'_>, CheckpointError> {
        let get = |matrix: &str, shape: &[usize]| {
            let name = format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}.weight");
            let tensor = self.tensor(&name).map_err(|error| match error {
                CheckpointError::MissingTensor { tensor } => CheckpointError::MissingExpert { layer, expert, tensor },
                other => other,
            })?;
            tensor.expect_shape(shape)
        };
        Ok(ExpertTensors {
            w1: get("w1", &[config.inner, config.hidden])?,
            w2: get("w2", &[config.hidden, config.inner])?,
            w3: get("w3", &[config.inner, config.hidden])?,
        })
    }

    /// Checks that every tensor of the model is there with its shape and a usable type. Reads no weights.
    ///
    /// # Errors
    /// The first tensor that is missing, or of the wrong shape or type.
    pub fn validate(&self, config: &ModelConfig) -> Result<(), CheckpointError> {
        self.outer(config)?;
        for layer in 0..config.layers {
            self.layer(config, layer)?;
            for expert in 0..config.experts {
                self.expert(config, layer, expert)?;
            }
        }
        Ok(())
    }
}
