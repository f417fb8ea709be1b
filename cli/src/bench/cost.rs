//! What a step must read and compute, from the model's sizes and types. Pure.
//!
//! Counted are the matrices: norms' weights, embeddings (a row a token), scores and activations are left out, less than a
//! thousandth of Mixtral's. Bytes are those of the stored formats; the panels of the K types in memory are a little wider.

use tramontane_kernels::KvType;
use tramontane_model::checkpoint::{Checkpoint, CheckpointError, Tensor};
use tramontane_model::config::ModelConfig;
use tramontane_model::weights::Quantize;

/// Some matrices: how many weights, and their bytes as held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Group {
    weights: f64,
    bytes: f64,
}

impl Group {
    fn of(tensors: &[Tensor<'_>], quantize: Quantize) -> Self {
        let one = |tensor: &Tensor<'_>| {
            let (ty, weights) = (quantize.held_as(tensor.ty), tensor.shape.iter().product::<usize>() as f64);
            Self { weights, bytes: weights * ty.block_bytes() as f64 / ty.block_values() as f64 }
        };
        tensors.iter().map(one).fold(Self::default(), Self::plus)
    }

    fn plus(self, other: Self) -> Self {
        Self { weights: self.weights + other.weights, bytes: self.bytes + other.bytes }
    }

    fn times(self, factor: f64) -> Self {
        Self { weights: self.weights * factor, bytes: self.bytes * factor }
    }
}

/// The weights that one token meets in one layer.
#[derive(Clone, Copy, Debug)]
struct Layer {
    /// To keys and values: every row passes them.
    keys_values: Group,
    /// Queries, output projection, gate and the token's k experts: in the last layer only rows that need logits pass them.
    rest: Group,
}

/// The weights that one token meets.
#[derive(Debug)]
pub(super) struct ActiveWeights {
    layers: Vec<Layer>,
    lm_head: Group,
}

impl ActiveWeights {
    /// Read from the headers of a checkpoint whose experts are held as `quantize` says. A layer's experts count with their
    /// mean.
    ///
    /// # Errors
    /// [`CheckpointError`] when a tensor is missing or wrong.
    pub(super) fn of(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        quantize: Quantize,
    ) -> Result<Self, CheckpointError> {
        let layer = |layer| {
            let own = checkpoint.layer(config, layer)?;
            let mut experts = Group::default();
            for expert in 0..config.experts {
                let tensors = checkpoint.expert(config, layer, expert)?;
                experts = experts.plus(Group::of(&[tensors.w1, tensors.w2, tensors.w3], quantize));
            }
            let share = config.experts_per_token as f64 / config.experts as f64;
            let rest = Group::of(&[own.q, own.o, own.gate], Quantize::AsStored).plus(experts.times(share));
            Ok(Layer { keys_values: Group::of(&[own.k, own.v], Quantize::AsStored), rest })
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_, CheckpointError>>()?;
        let lm_head = Group::of(&[checkpoint.outer(config)?.lm_head], Quantize::AsStored);
        Ok(Self { layers, lm_head })
    }

    /// Bytes of weights that a step of one token reads.
    pub(super) fn decode_bytes(&self) -> f64 {
        self.layers.iter().map(|layer| layer.keys_values.plus(layer.rest)).fold(self.lm_head, Group::plus).bytes
    }

    /// Operations (two a multiply-add) of a prefill of `tokens` tokens of which the last has its logits computed.
    pub(super) fn prefill_operations(&self, tokens: usize) -> f64 {
        let last = self.layers.len().saturating_sub(1);
        let layer = |(i, layer): (usize, &Layer)| {
            let rows = if i == last { 1 } else { tokens };
            tokens as f64 * layer.keys_values.weights + rows as f64 * layer.rest.weights
        };
        2.0 * (self.layers.iter().enumerate().map(layer).sum::<f64>() + self.lm_head.weights)
    }
}

/// Bytes of keys and values that a step of one sequence reads: the mean over `tokens` steps after `depth` positions.
pub(super) fn kv_bytes(config: &ModelConfig, ty: KvType, depth: usize, tokens: usize) -> f64 {
    let visible = |position: usize| (position + 1).min(config.sliding_window.unwrap_or(usize::MAX));
    let positions: usize = (depth..depth + tokens).map(visible).sum();
    let position = 2 * config.layers * config.kv_heads * config.head_dim * ty.bytes();
    position as f64 * positions as f64 / tokens as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo;

    // Breeze: 4 layers, hidden 256, inner 256, 8 heads and 4 KV heads of 32, 2 of 8 experts, vocabulary 2048.
    const KEYS_VALUES: f64 = 2.0 * 128.0 * 256.0;
    const QUERIES_OUTPUT_GATE: f64 = (2 * 256 * 256 + 8 * 256) as f64;
    const TWO_EXPERTS: f64 = 2.0 * 3.0 * 256.0 * 256.0;
    const HEAD: f64 = 2048.0 * 256.0;

    fn breeze(quantize: Quantize) -> (ActiveWeights, ModelConfig) {
        let checkpoint = Checkpoint::from_files(&demo::FILES).expect("the demo model opens");
        let config = checkpoint.config().expect("it has a configuration");
        (ActiveWeights::of(&checkpoint, &config, quantize).expect("it is whole"), config)
    }

    #[test]
    fn a_token_reads_attention_gate_its_experts_and_the_head() {
        let others = 4.0 * (KEYS_VALUES + QUERIES_OUTPUT_GATE) + HEAD;
        let (stored, _) = breeze(Quantize::AsStored);
        let bf16 = 2.0;
        assert_eq!(stored.decode_bytes(), bf16 * (others + 4.0 * TWO_EXPERTS));
        let (quantized, _) = breeze(Quantize::Q4_0);
        assert_eq!(quantized.decode_bytes(), bf16 * others + 4.0 * TWO_EXPERTS * 18.0 / 32.0);
    }

    #[test]
    fn the_last_layer_computes_one_row_but_for_keys_and_values() {
        let (weights, _) = breeze(Quantize::AsStored);
        let rest = QUERIES_OUTPUT_GATE + TWO_EXPERTS;
        let expected = 2.0 * (10.0 * 4.0 * KEYS_VALUES + (3.0 * 10.0 + 1.0) * rest + HEAD);
        assert_eq!(weights.prefill_operations(10), expected);
    }

    #[test]
    fn keys_and_values_are_read_up_to_the_window() {
        let (_, config) = breeze(Quantize::AsStored);
        let position = (2 * 4 * 128 * 2) as f64;
        // 11, 12 and 13 positions.
        assert_eq!(kv_bytes(&config, KvType::F16, 10, 3), 12.0 * position);
        assert_eq!(kv_bytes(&config, KvType::F32, 10, 3), 24.0 * position);
        let windowed = ModelConfig { sliding_window: Some(12), ..config };
        assert_eq!(kv_bytes(&windowed, KvType::F16, 10, 4), (11 + 3 * 12) as f64 / 4.0 * position);
    }
}
