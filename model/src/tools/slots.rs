//! The tensors of a model as GGUF stores them: names, shapes, order, and what each is for.

use crate::checkpoint::naming::{Naming, in_layer};
use crate::config::{ModelConfig, OutputHead, QkNorm};

/// What a tensor is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A row a token.
    Embeddings,
    /// Before the output.
    OutputNorm,
    /// Hidden state to logits.
    Output,
    /// Before attention.
    AttentionNorm,
    /// To queries.
    Query,
    /// To keys.
    Key,
    /// To values.
    Value,
    /// From attention.
    AttentionOutput,
    /// Of a query head.
    QueryNorm,
    /// Of a key head.
    KeyNorm,
    /// Before the experts.
    ExpertNorm,
    /// To the experts' scores.
    Gate,
    /// Matrix w1, w2 or w3 (0, 1, 2) of all experts.
    Experts(usize),
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its layer; 0 outside of them.
    pub layer: usize,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl Slot {
    /// The values of a row.
    pub(super) fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// All tensors of a model of `config`, in the order in which llama.cpp's tools write them.
pub fn slots(config: &ModelConfig) -> Vec<Slot> {
    let names = Naming::Gguf.names();
    let outer =
        |name: &str, role, shape: &[usize]| Slot { name: name.to_owned(), role, layer: 0, shape: shape.to_vec() };
    let mut slots = vec![outer(names.embeddings, Role::Embeddings, &[config.vocab, config.hidden])];
    for layer in 0..config.layers {
        slots.extend(layer_slots(config, layer));
    }
    slots.push(outer(names.norm, Role::OutputNorm, &[config.hidden]));
    if config.tied_embeddings == OutputHead::Own {
        slots.push(outer(names.lm_head, Role::Output, &[config.vocab, config.hidden]));
    }
    slots
}

fn layer_slots(config: &ModelConfig, layer: usize) -> Vec<Slot> {
    let names = Naming::Gguf.names();
    let (hidden, inner, experts) = (config.hidden, config.inner, config.experts);
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let mut all = vec![
        (names.attention_norm, Role::AttentionNorm, vec![hidden]),
        (names.q, Role::Query, vec![queries, hidden]),
        (names.k, Role::Key, vec![keys, hidden]),
        (names.v, Role::Value, vec![keys, hidden]),
        (names.o, Role::AttentionOutput, vec![hidden, queries]),
    ];
    if config.qk_norm == QkNorm::PerHead {
        all.push((names.q_norm, Role::QueryNorm, vec![config.head_dim]));
        all.push((names.k_norm, Role::KeyNorm, vec![config.head_dim]));
    }
    all.push((names.expert_norm, Role::ExpertNorm, vec![hidden]));
    all.push((names.gate, Role::Gate, vec![experts, hidden]));
    let shapes = [vec![experts, inner, hidden], vec![experts, hidden, inner], vec![experts, inner, hidden]];
    for (matrix, (name, shape)) in names.stacked.into_iter().flatten().zip(shapes).enumerate() {
        all.push((name, Role::Experts(matrix), shape));
    }
    all.into_iter().map(|(name, role, shape)| Slot { name: in_layer(name, layer), role, layer, shape }).collect()
}
