//! Which tensors a model has, and their shapes; what they are called is in [`naming`]. A matrix is stored as rows of outputs:
//! `[outputs, inputs]`.

use super::naming::{self, TensorNames};
use super::{Checkpoint, CheckpointError, Tensor};
use crate::config::{ModelConfig, OutputHead, QkNorm};

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
    /// `[head_dim]`: the norm of each query head, before the rotation ([`QkNorm::PerHead`]).
    pub q_norm: Option<Tensor<'a>>,
    /// `[head_dim]`: the norm of each key head, likewise.
    pub k_norm: Option<Tensor<'a>>,
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
        let (names, matrix) = (config.naming.names(), [config.vocab, config.hidden]);
        let embeddings = self.tensor(names.embeddings)?.expect_shape(&matrix)?;
        let lm_head = match config.tied_embeddings {
            OutputHead::TiedToEmbeddings => embeddings,
            OutputHead::Own => self.tensor(names.lm_head)?.expect_shape(&matrix)?,
        };
        let norm = self.tensor(names.norm)?.expect_shape(&[config.hidden])?;
        Ok(OuterTensors { embeddings, norm, lm_head })
    }

    /// The tensors of layer `layer` but for its experts, their shapes checked.
    ///
    /// # Errors
    /// A tensor is missing, or of the wrong shape or type.
    pub fn layer(&self, config: &ModelConfig, layer: usize) -> Result<LayerTensors<'_>, CheckpointError> {
        let get = |pattern: &str, shape: &[usize]| self.tensor(&naming::in_layer(pattern, layer))?.expect_shape(shape);
        let head_norm = |pattern: &str| match config.qk_norm {
            QkNorm::Absent => Ok(None),
            QkNorm::PerHead => get(pattern, &[config.head_dim]).map(Some),
        };
        let (names, hidden) = (config.naming.names(), config.hidden);
        let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        Ok(LayerTensors {
            attention_norm: get(names.attention_norm, &[hidden])?,
            q: get(names.q, &[queries, hidden])?,
            k: get(names.k, &[keys, hidden])?,
            v: get(names.v, &[keys, hidden])?,
            o: get(names.o, &[hidden, queries])?,
            q_norm: head_norm(names.q_norm)?,
            k_norm: head_norm(names.k_norm)?,
            expert_norm: get(names.expert_norm, &[hidden])?,
            gate: get(names.gate, &[config.experts, hidden])?,
        })
    }

    /// The tensors of expert `expert` of layer `layer`, their shapes checked. Where a layer's experts are stacked in one tensor,
    /// they are the expert's parts of it, under its name.
    ///
    /// # Errors
    /// [`CheckpointError::MissingExpert`] when one is missing; or one has the wrong shape or type.
    pub fn expert(
        &self,
        config: &ModelConfig,
        layer: usize,
        expert: usize,
    ) -> Result<ExpertTensors<'_>, CheckpointError> {
        let get = |matrix: usize, shape: [usize; 2]| {
            let found = self.expert_matrix(config, config.naming.names(), matrix, (layer, expert), shape);
            found.map_err(|error| match error {
                CheckpointError::MissingTensor { tensor } => CheckpointError::MissingExpert { layer, expert, tensor },
                other => other,
            })
        };
        Ok(ExpertTensors {
            w1: get(0, [config.inner, config.hidden])?,
            w2: get(1, [config.hidden, config.inner])?,
            w3: get(2, [config.inner, config.hidden])?,
        })
    }

    /// Matrix `matrix` (w1, w2, w3) of one expert: its own tensor, or its part of the stacked one if that is there.
    fn expert_matrix(
        &self,
        config: &ModelConfig,
        names: &TensorNames,
        matrix: usize,
        (layer, expert): (usize, usize),
        shape: [usize; 2],
    ) -> Result<Tensor<'_>, CheckpointError> {
        let own = naming::of_expert(names.expert[matrix], layer, expert);
        let stacked = names.stacked.map(|stacked| naming::in_layer(stacked[matrix], layer));
        match stacked {
            Some(stacked) if !self.has_tensor(&own) => {
                let whole = self.tensor(&stacked)?.expect_shape(&[config.experts, shape[0], shape[1]])?;
                whole.part(expert).ok_or(CheckpointError::MissingTensor { tensor: stacked })
            }
            _ => self.tensor(&own)?.expect_shape(&shape),
        }
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
