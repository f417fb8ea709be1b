//! The oracle: the whole model, experts and all, in candle-core tensors and f32, written for clearness alone.
//!
//! It shares nothing with the engine but the checkpoint reader: no kernels, no KV cache, no batching. Tests hold the engine and
//! foreign references against it.

use candle_core::{D, DType, Device, Result, Tensor};
use tramontane_kernels::RopePairs;

use crate::checkpoint::{self, Checkpoint};
use crate::config::ModelConfig;

/// Logits (positions × vocab) of every position of `tokens`, each seeing what stands before it.
///
/// # Errors
/// What the checkpoint or candle says.
pub fn logits(checkpoint: &Checkpoint, config: &ModelConfig, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
    let model = Oracle { checkpoint, config, device: Device::Cpu };
    model.forward(tokens)?.to_vec2()
}

struct Oracle<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    device: Device,
}

impl Oracle<'_> {
    fn forward(&self, tokens: &[u32]) -> Result<Tensor> {
        let outer = self.checkpoint.outer(self.config).map_err(candle_core::Error::wrap)?;
        let ids = Tensor::new(tokens, &self.device)?;
        let mut hidden = self.tensor(&outer.embeddings)?.index_select(&ids, 0)?;
        for layer in 0..self.config.layers {
            let weights = self.checkpoint.layer(self.config, layer).map_err(candle_core::Error::wrap)?;
            let normed = self.norm(&hidden, &weights.attention_norm)?;
            hidden = (hidden + self.attention(&weights, &normed)?)?;
            let normed = self.norm(&hidden, &weights.expert_norm)?;
            hidden = (&hidden + self.experts(layer, &weights, &normed)?)?;
        }
        self.linear(&self.norm(&hidden, &outer.norm)?, &outer.lm_head)
    }

    fn attention(&self, weights: &checkpoint::LayerTensors<'_>, x: &Tensor) -> Result<Tensor> {
        let config = self.config;
        let rows = x.dim(0)?;
        let heads = |x: Tensor, n: usize| x.reshape((rows, n, config.head_dim))?.transpose(0, 1)?.contiguous();
        let normed = |x: Tensor, weight: Option<&checkpoint::Tensor<'_>>| match weight {
            Some(weight) => self.norm(&x, weight),
            None => Ok(x),
        };
        let q = normed(heads(self.linear(x, &weights.q)?, config.heads)?, weights.q_norm.as_ref())?;
        let k = normed(heads(self.linear(x, &weights.k)?, config.kv_heads)?, weights.k_norm.as_ref())?;
        let (q, k) = (self.rope(&q)?, self.rope(&k)?);
        let v = heads(self.linear(x, &weights.v)?, config.kv_heads)?;
        let group = config.heads / config.kv_heads;
        let repeat = |x: Tensor| {
            let shape = (config.kv_heads, group, rows, config.head_dim);
            x.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?.reshape((config.heads, rows, config.head_dim))
        };
        let scores = (q.matmul(&repeat(k)?.transpose(1, 2)?.contiguous()?)? / (config.head_dim as f64).sqrt())?;
        let scores = scores.broadcast_add(&self.mask(rows)?)?;
        let mixed = softmax(&scores)?.matmul(&repeat(v)?)?;
        let mixed = mixed.transpose(0, 1)?.contiguous()?.reshape((rows, config.heads * config.head_dim))?;
        self.linear(&mixed, &weights.o)
    }

    /// Each row's top-k experts, one row at a time.
    fn experts(&self, layer: usize, weights: &checkpoint::LayerTensors<'_>, x: &Tensor) -> Result<Tensor> {
        let config = self.config;
        let probabilities: Vec<Vec<f32>> = softmax(&self.linear(x, &weights.gate)?)?.to_vec2()?;
        let mut out = Vec::new();
        for (row, probabilities) in probabilities.iter().enumerate() {
            let x = x.narrow(0, row, 1)?;
            let mut chosen: Vec<usize> = (0..config.experts).collect();
            chosen.sort_by(|&a, &b| probabilities[b].total_cmp(&probabilities[a]));
            chosen.truncate(config.experts_per_token);
            let total: f32 = if config.renormalise { chosen.iter().map(|&e| probabilities[e]).sum() } else { 1.0 };
            let mut sum = x.zeros_like()?;
            for expert in chosen {
                let tensors = self.checkpoint.expert(config, layer, expert).map_err(candle_core::Error::wrap)?;
                let gate = self.linear(&x, &tensors.w1)?.silu()?;
                let y = self.linear(&(gate * self.linear(&x, &tensors.w3)?)?, &tensors.w2)?;
                sum = (sum + (y * f64::from(probabilities[expert] / total))?)?;
            }
            out.push(sum);
        }
        Tensor::cat(&out, 0)
    }

    /// Heads come back with the pairs' first values before the second ones, however they were stored: queries and keys alike.
    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let (heads, rows, width) = x.dims3()?;
        let half = width / 2;
        let angle = |p: usize, i: usize| p as f64 * self.config.rope_theta.powf(-2.0 * i as f64 / width as f64);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (0..rows * half).map(|j| f(angle(j / half, j % half)) as f32).collect();
            Tensor::from_vec(values, (1, rows, half), &self.device)
        };
        let (sin, cos) = (table(f64::sin)?, table(f64::cos)?);
        let (a, b) = match self.config.rope_pairs {
            RopePairs::Halves => (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?),
            RopePairs::Interleaved => {
                let pairs = x.reshape((heads, rows, half, 2))?;
                (pairs.narrow(D::Minus1, 0, 1)?.squeeze(D::Minus1)?, pairs.narrow(D::Minus1, 1, 1)?.squeeze(D::Minus1)?)
            }
        };
        let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let turned_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[turned_a, turned_b], D::Minus1)
    }

    fn mask(&self, rows: usize) -> Result<Tensor> {
        let window = self.config.sliding_window.unwrap_or(usize::MAX);
        let hidden = |query: usize, key: usize| key > query || query - key >= window;
        let values: Vec<f32> =
            (0..rows * rows).map(|i| if hidden(i / rows, i % rows) { f32::NEG_INFINITY } else { 0.0 }).collect();
        Tensor::from_vec(values, (1, rows, rows), &self.device)
    }

    fn norm(&self, x: &Tensor, weight: &checkpoint::Tensor<'_>) -> Result<Tensor> {
        let mean = (x.sqr()?.sum_keepdim(D::Minus1)? / x.dim(D::Minus1)? as f64)?;
        let rms = (mean + f64::from(self.config.rms_eps))?.sqrt()?;
        x.broadcast_div(&rms)?.broadcast_mul(&self.tensor(weight)?)
    }

    fn linear(&self, x: &Tensor, weight: &checkpoint::Tensor<'_>) -> Result<Tensor> {
        x.matmul(&self.tensor(weight)?.t()?)
    }

    fn tensor(&self, tensor: &checkpoint::Tensor<'_>) -> Result<Tensor> {
        let dtype = match tensor.ty.name() {
            "f32" => DType::F32,
            "bf16" => DType::BF16,
            "f16" => DType::F16,
            other => candle_core::bail!("the oracle does not read {other}"),
        };
        Tensor::from_raw_buffer(tensor.data, dtype, tensor.shape, &self.device)?.to_dtype(DType::F32)
    }
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}
