//! Models made up for measurements: the shapes of well-known ones, weights at random. The same options give the same file.

use std::path::Path;

use half::f16;
use tramontane_kernels::{QUANT_BLOCK, RopePairs, WeightType, encode_row};

use super::output::Output;
use super::slots::{Role, Slot, slots};
use super::{OnProgress, Recipe, ToolError, metadata, vocabulary};
use crate::checkpoint::gguf::TensorInfo;
use crate::checkpoint::naming::Naming;
use crate::config::{MAX_LAYERS, ModelConfig, OutputHead, QkNorm};

/// Standard deviation of the weights: that with which such models are trained from.
const DEVIATION: f32 = 0.02;
/// Bytes made at a time, at least; a row is never cut.
const PIECE_BYTES: usize = 1 << 20;

/// Which model's shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Like {
    /// Mixtral 8x7B: 32 layers of 8 experts, 2 a token.
    Mixtral8x7b,
    /// Qwen3-30B-A3B: 48 layers of 128 experts, 8 a token.
    Qwen3_30bA3b,
    /// Two layers of 4 experts, 2 a token; a few megabytes.
    Tiny,
}

impl Like {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Mixtral8x7b, Self::Qwen3_30bA3b, Self::Tiny];

    /// Its name in flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mixtral8x7b => "mixtral-8x7b",
            Self::Qwen3_30bA3b => "qwen3-30b-a3b",
            Self::Tiny => "tiny",
        }
    }

    /// The sizes, from the models' `config.json`.
    pub fn config(self) -> ModelConfig {
        let mixtral = ModelConfig {
            hidden: 4096,
            layers: 32,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            inner: 14336,
            experts: 8,
            experts_per_token: 2,
            vocab: 32000,
            context: 32768,
            rope_theta: 1e6,
            rope_pairs: RopePairs::Interleaved,
            rms_eps: 1e-5,
            qk_norm: QkNorm::Absent,
            sliding_window: None,
            tied_embeddings: OutputHead::Own,
            renormalise: true,
            bos: Some(1),
            eos: vec![2],
            naming: Naming::Gguf,
        };
        match self {
            Self::Mixtral8x7b => mixtral,
            Self::Qwen3_30bA3b => ModelConfig {
                hidden: 2048,
                layers: 48,
                kv_heads: 4,
                inner: 768,
                experts: 128,
                experts_per_token: 8,
                vocab: 151_936,
                context: 40960,
                rope_pairs: RopePairs::Halves,
                rms_eps: 1e-6,
                qk_norm: QkNorm::PerHead,
                ..mixtral
            },
            Self::Tiny => ModelConfig {
                hidden: 256,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                head_dim: 64,
                inner: 512,
                experts: 4,
                vocab: 512,
                context: 2048,
                ..mixtral
            },
        }
    }
}

/// What is made up.
#[derive(Clone, Copy, Debug)]
pub struct SynthOptions {
    /// Whose shapes.
    pub like: Like,
    /// How many layers; `None`: as many as the model has.
    pub layers: Option<usize>,
    /// In which types.
    pub recipe: Recipe,
    /// Another seed, other weights.
    pub seed: u64,
}

/// Writes the model to `path`. Its tokenizer has placeholders for tokens.
///
/// # Errors
/// [`ToolError`]; nothing is left at `path` then but what was there before.
pub fn synth(options: SynthOptions, path: &Path, on_progress: OnProgress<'_>) -> Result<(), ToolError> {
    let whole = options.like.config();
    let layers = options.layers.unwrap_or(whole.layers);
    if layers == 0 || layers > MAX_LAYERS {
        return Err(ToolError::Inexpressible { what: format!("{layers} layers") });
    }
    let config = ModelConfig { layers, ..whole };
    let mut keys = metadata::keys(&config, &format!("{} with random weights", options.like.name()))?;
    vocabulary::put_placeholders(config.vocab, &mut keys);
    metadata::set_recipe(&mut keys, options.recipe);
    let slots = slots(&config);
    let info = |slot: &Slot| TensorInfo {
        name: slot.name.clone(),
        ty: options.recipe.type_of(slot, &config),
        shape: slot.shape.clone(),
    };
    let infos: Vec<TensorInfo> = slots.iter().map(info).collect();
    let mut output = Output::create(path, &keys, &infos, on_progress)?;
    for (number, (slot, info)) in slots.iter().zip(&infos).enumerate() {
        // Each tensor has a generator of its own, so that a layer is the same however many follow it.
        let mut random = SplitMix(options.seed ^ (number as u64).wrapping_mul(GOLDEN));
        put_tensor(slot, info, &mut random, &mut output)?;
    }
    output.commit()
}

fn put_tensor(slot: &Slot, info: &TensorInfo, random: &mut SplitMix, output: &mut Output<'_>) -> Result<(), ToolError> {
    let rows = slot.shape.iter().product::<usize>() / slot.width();
    let ones = matches!(
        slot.role,
        Role::AttentionNorm | Role::OutputNorm | Role::ExpertNorm | Role::QueryNorm | Role::KeyNorm
    );
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let mut values = vec![1.0; if info.ty.is_quantized() { 0 } else { slot.width() }];
    for row in 0..rows {
        if info.ty.is_quantized() {
            (0..slot.width() / info.ty.block_values()).for_each(|_| put_block(info.ty, random, &mut piece));
        } else {
            if !ones {
                values.iter_mut().for_each(|value| *value = random.gaussian() * DEVIATION);
            }
            encode_row(info.ty, &values, &mut piece).map_err(|source| ToolError::Weight {
                tensor: info.name.clone(),
                row,
                source,
            })?;
        }
        if piece.len() >= PIECE_BYTES {
            output.append(&info.name, &piece)?;
            piece.clear();
        }
    }
    output.append(&info.name, &piece)
}

/// Standard deviation of integers uniform in 0…n−1.
fn uniform_deviation(n: f32) -> f32 {
    ((n * n - 1.0) / 12.0).sqrt()
}

/// Appends a block of uniform integers, scaled so that the weights have mean about 0 and standard deviation [`DEVIATION`]. Where the integers'
/// mean is not 0 and there is no offset, the scale's sign is random.
fn put_block(ty: WeightType, random: &mut SplitMix, out: &mut Vec<u8>) {
    /// Every 6-bit scale and minimum of a Q4_K or Q5_K block 32, as the 12 bytes store them.
    const SCALES_OF_32: [u8; 12] = [0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0xa0, 0, 0, 0, 0];
    /// Every scale of a Q6_K block, so large that the scale of scales is a normal f16.
    const SIX_BIT_SCALE: u8 = 16;
    let begin = out.len();
    let levels = match ty {
        WeightType::Q8_0 => 256.0,
        WeightType::Q5_0 | WeightType::Q5_1 | WeightType::Q5K => 32.0,
        WeightType::Q6K => 64.0,
        _ => 16.0,
    };
    let d = DEVIATION / uniform_deviation(levels);
    let half = |out: &mut Vec<u8>, value: f32| out.extend(f16::from_f32(value).to_le_bytes());
    let centre = (levels - 1.0) / 2.0;
    let sign = if random.next() & 1 == 0 { 1.0 } else { -1.0 };
    match ty {
        WeightType::Q4_1 | WeightType::Q5_1 => {
            half(out, d);
            half(out, -d * centre);
        }
        WeightType::Q4K | WeightType::Q5K => {
            half(out, d / 32.0);
            half(out, d * centre / 32.0);
            out.extend(SCALES_OF_32);
        }
        WeightType::Q6K => {}
        _ => half(out, d * sign),
    }
    let scales = if ty == WeightType::Q6K { ty.block_values() / (QUANT_BLOCK / 2) + 2 } else { 0 };
    random.fill(out, begin + ty.block_bytes() - scales);
    if ty == WeightType::Q6K {
        out.resize(begin + ty.block_bytes() - 2, SIX_BIT_SCALE);
        half(out, d * sign / f32::from(SIX_BIT_SCALE));
    }
    if ty == WeightType::Q8_0 {
        // −128 is never made by a quantiser.
        out[begin + 2..].iter_mut().filter(|q| **q == 0x80).for_each(|q| *q = 0x81);
    }
}

/// 2^64 over the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 (Steele, Lea, Flood 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// About normal, of mean 0 and deviation 1: four uniform values of 16 bits, added.
    fn gaussian(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|i| bits >> (16 * i) & 0xffff).sum();
        (sum as f32 - 2.0 * 65535.0) / (2.0 * uniform_deviation(65536.0))
    }

    /// Appends random bytes until `out` has `length`.
    fn fill(&mut self, out: &mut Vec<u8>, length: usize) {
        while out.len() < length {
            let bytes = self.next().to_le_bytes();
            out.extend(&bytes[..bytes.len().min(length - out.len())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_blocks_of_every_type_have_the_wanted_mean_and_deviation() {
        for ty in WeightType::ALL.into_iter().filter(|ty| ty.is_quantized()) {
            let (mut random, mut stored) = (SplitMix(3), Vec::new());
            let blocks = (1 << 16) / ty.block_values();
            (0..blocks).for_each(|_| put_block(ty, &mut random, &mut stored));
            assert_eq!(stored.len(), blocks * ty.block_bytes(), "{}", ty.name());
            let mut values = vec![0.0; 1 << 16];
            ty.decode_row(&stored, &mut values);
            let n = values.len() as f32;
            let mean = values.iter().sum::<f32>() / n;
            let deviation = (values.iter().map(|x| x * x).sum::<f32>() / n).sqrt();
            assert!(mean.abs() < DEVIATION * 0.02, "{}: mean {mean}", ty.name());
            assert!((deviation / DEVIATION - 1.0).abs() < 0.02, "{}: deviation {deviation}", ty.name());
        }
    }

    #[test]
    fn random_floats_are_about_normal() {
        let mut random = SplitMix(5);
        let values: Vec<f32> = (0..1 << 16).map(|_| random.gaussian()).collect();
        let n = values.len() as f32;
        let (mean, square) = (values.iter().sum::<f32>() / n, values.iter().map(|x| x * x).sum::<f32>() / n);
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.02, "{mean} {square}");
    }
}
