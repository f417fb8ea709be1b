//! What a step must read and compute, from the model's sizes and types. Pure.
//!
//! Counted are the matrices: norms' weights, embeddings (a row a token), scores and activations are left out, less than a
//! thousandth of Mixtral's. Bytes are those of the stored formats; the panels of the K types in memory are a little wider.

use tramontane_kernels::{KvType, WeightType};
use tramontane_model::checkpoint::{Checkpoint, CheckpointError, Tensor};
use tramontane_model::config::ModelConfig;
use tramontane_model::tools::{Recipe, Role, slots};
use tramontane_model::weights::Quantize;

/// Some matrices: how many weights, and their bytes as held.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Group {
    pub(crate) weights: f64,
    pub(crate) bytes: f64,
}

impl Group {
    fn of_shape(shape: &[usize], ty: WeightType) -> Self {
        let weights = shape.iter().product::<usize>() as f64;
        Self { weights, bytes: weights * ty.block_bytes() as f64 / ty.block_values() as f64 }
    }

    fn of(tensors: &[Tensor<'_>], quantize: Quantize) -> Self {
        tensors
            .iter()
            .map(|tensor| Self::of_shape(tensor.shape, quantize.held_as(tensor.ty)))
            .fold(Self::default(), Self::plus)
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self { weights: self.weights + other.weights, bytes: self.bytes + other.bytes }
    }

    pub(crate) fn times(self, factor: f64) -> Self {
        Self { weights: self.weights * factor, bytes: self.bytes * factor }
    }
}

/// The matrices of one layer.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Layer {
    /// To keys and values: every row passes them.
    pub(crate) keys_values: Group,
    /// Queries, output projection and gate: in the last layer only rows that need logits pass them, and their experts.
    pub(crate) rest: Group,
    /// One expert; the mean, where they differ.
    pub(crate) expert: Group,
}

/// A model's matrices.
#[derive(Debug, PartialEq)]
pub(crate) struct ModelWeights {
    pub(crate) layers: Vec<Layer>,
    pub(crate) lm_head: Group,
    /// Experts of a layer.
    pub(crate) experts: f64,
    /// Experts of a layer that a token visits.
    pub(crate) experts_per_token: f64,
}

impl ModelWeights {
    /// Read from the headers of a checkpoint whose experts are held as `quantize` says.
    ///
    /// # Errors
    /// [`CheckpointError`] when a tensor is missing or wrong.
    pub(crate) fn of(
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
            Ok(Layer {
                keys_values: Group::of(&[own.k, own.v], Quantize::AsStored),
                rest: Group::of(&[own.q, own.o, own.gate], Quantize::AsStored),
                expert: experts.times(1.0 / config.experts as f64),
            })
        };
        let layers = (0..config.layers).map(layer).collect::<Result<_, CheckpointError>>()?;
        let lm_head = Group::of(&[checkpoint.outer(config)?.lm_head], Quantize::AsStored);
        Ok(Self::new(config, layers, lm_head))
    }

    /// Those that a model of `config` has when it is written by `recipe`.
    pub(crate) fn by_recipe(config: &ModelConfig, recipe: Recipe) -> Self {
        let mut layers = vec![Layer::default(); config.layers];
        let mut lm_head = Group::default();
        for slot in slots(config) {
            let group = Group::of_shape(&slot.shape, recipe.type_of(&slot, config));
            let layer = &mut layers[slot.layer];
            let of = match slot.role {
                // Where there is no output of its own, the embeddings are it, and come first.
                Role::Embeddings | Role::Output => {
                    lm_head = group;
                    continue;
                }
                Role::Key | Role::Value => (&mut layer.keys_values, 1.0),
                Role::Query | Role::AttentionOutput | Role::Gate => (&mut layer.rest, 1.0),
                Role::Experts(_) => (&mut layer.expert, 1.0 / config.experts as f64),
                Role::OutputNorm | Role::AttentionNorm | Role::QueryNorm | Role::KeyNorm | Role::ExpertNorm => continue,
            };
            *of.0 = of.0.plus(group.times(of.1));
        }
        Self::new(config, layers, lm_head)
    }

    fn new(config: &ModelConfig, layers: Vec<Layer>, lm_head: Group) -> Self {
        let (experts, experts_per_token) = (config.experts as f64, config.experts_per_token as f64);
        Self { layers, lm_head, experts, experts_per_token }
    }

    /// What every decoded token passes, whatever its experts.
    pub(crate) fn attention(&self) -> Group {
        self.layers.iter().map(|layer| layer.keys_values.plus(layer.rest)).fold(self.lm_head, Group::plus)
    }

    /// One expert of each layer.
    pub(crate) fn column(&self) -> Group {
        self.layers.iter().map(|layer| layer.expert).fold(Group::default(), Group::plus)
    }

    /// Bytes of weights that a step of one token reads.
    pub(crate) fn decode_bytes(&self) -> f64 {
        self.attention().plus(self.column().times(self.experts_per_token)).bytes
    }

    /// How many experts of a layer `tokens` tokens visit together, expected, if each visits any as likely as any other.
    pub(crate) fn distinct(&self, tokens: usize) -> f64 {
        self.experts * (1.0 - (1.0 - self.experts_per_token / self.experts).powf(tokens as f64))
    }

    /// Operations (two a multiply-add) of a prefill of `tokens` tokens of which the last has its logits computed: with the
    /// attention's matrices, and with the experts'.
    pub(crate) fn prefill_parts(&self, tokens: usize) -> (f64, f64) {
        let last = self.layers.len().saturating_sub(1);
        let rows = |i: usize| if i == last { 1.0 } else { tokens as f64 };
        let own =
            |(i, layer): (usize, &Layer)| tokens as f64 * layer.keys_values.weights + rows(i) * layer.rest.weights;
        let experts = |(i, layer): (usize, &Layer)| rows(i) * self.experts_per_token * layer.expert.weights;
        let attention = self.layers.iter().enumerate().map(own).sum::<f64>() + self.lm_head.weights;
        (2.0 * attention, 2.0 * self.layers.iter().enumerate().map(experts).sum::<f64>())
    }

    /// Operations of a prefill, both parts.
    pub(crate) fn prefill_operations(&self, tokens: usize) -> f64 {
        let (attention, experts) = self.prefill_parts(tokens);
        attention + experts
    }
}

/// Bytes of keys and values of one position in all layers.
pub(crate) const fn kv_position_bytes(config: &ModelConfig, ty: KvType) -> usize {
    2 * config.layers * config.kv_heads * config.head_dim * ty.bytes()
}

/// Bytes of keys and values that a step of one sequence reads: the mean over `tokens` steps after `depth` positions.
pub(crate) fn kv_bytes(config: &ModelConfig, ty: KvType, depth: usize, tokens: usize) -> f64 {
    let visible = |position: usize| (position + 1).min(config.sliding_window.unwrap_or(usize::MAX));
    let positions: usize = (depth..depth + tokens).map(visible).sum();
    kv_position_bytes(config, ty) as f64 * positions as f64 / tokens as f64
}

#[cfg(test)]
mod tests {
    use tramontane_model::tools::Like;

    use super::*;
    use crate::demo;

    // Breeze: 4 layers, hidden 256, inner 256, 8 heads and 4 KV heads of 32, 2 of 8 experts, vocabulary 2048.
    const KEYS_VALUES: f64 = 2.0 * 128.0 * 256.0;
    const QUERIES_OUTPUT_GATE: f64 = (2 * 256 * 256 + 8 * 256) as f64;
    const TWO_EXPERTS: f64 = 2.0 * 3.0 * 256.0 * 256.0;
    const HEAD: f64 = 2048.0 * 256.0;

    fn breeze(quantize: Quantize) -> (ModelWeights, ModelConfig) {
        let checkpoint = Checkpoint::from_files(&demo::FILES).expect("the demo model opens");
        let config = checkpoint.config().expect("it has a configuration");
        (ModelWeights::of(&checkpoint, &config, quantize).expect("it is whole"), config)
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

    #[test]
    fn many_tokens_visit_all_experts_and_one_visits_its_own() {
        let (weights, _) = breeze(Quantize::AsStored);
        assert_eq!((weights.distinct(0), weights.distinct(1)), (0.0, 2.0));
        // Two tokens: 8 × (1 − (6/8)²).
        assert_eq!(weights.distinct(2), 3.5);
        assert!(weights.distinct(100) > 7.999 && weights.distinct(100) <= 8.0);
    }

    #[test]
    fn a_recipe_alone_says_what_the_file_would_hold() {
        // Mixtral 8x7B has 46.7 billion weights, of which 12.9 are a token's; the embeddings are neither read nor counted here.
        let weights = ModelWeights::by_recipe(&Like::Mixtral8x7b.config(), Recipe::F16);
        let embeddings = 32000.0 * 4096.0;
        let norms = 65.0 * 4096.0;
        let all = weights.attention().plus(weights.column().times(8.0)).weights;
        assert_eq!(all + embeddings + norms, 46_702_792_704.0);
        let token = weights.attention().plus(weights.column().times(2.0)).weights;
        assert_eq!(token + embeddings + norms, 12_879_925_248.0);
        // All of it in two bytes but for the gate's four.
        assert_eq!(weights.attention().bytes, 2.0 * weights.attention().weights + 2.0 * 32.0 * 8.0 * 4096.0);
    }
}
