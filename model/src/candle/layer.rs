//! One layer's attention on a device: its weights, and its keys and values.

use candle_core::{DType, Device, Result, Tensor};
use tramontane_kernels::{KV_BLOCK, KvType};

use super::CandleDevice;
use super::linear::{Linear, Precision};
use crate::checkpoint::{self, Checkpoint};
use crate::config::ModelConfig;
use crate::weights::{LoadError, Quantize, vector as vector_of};

/// What a layer has on the device.
pub(super) struct Layer {
    pub(super) attention_norm: Tensor,
    /// Queries, keys and values, side by side.
    pub(super) qkv: Linear,
    pub(super) head_norm: Option<HeadNorm>,
    pub(super) o: Linear,
    pub(super) expert_norm: Tensor,
    pub(super) gate: Linear,
    pub(super) cache: Cache,
}

/// The norm of query and key heads, in models that have it.
pub(super) struct HeadNorm {
    pub(super) ones: Tensor,
    /// (heads + KV heads) × head_dim.
    pub(super) weights: Tensor,
}

/// One layer's keys and values: KV heads × slots × head_dim, a block's positions side by side.
pub(super) struct Cache {
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

impl Layer {
    pub(super) fn load(
        on: &CandleDevice,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        layer: usize,
        (kv, kv_blocks): (KvType, usize),
    ) -> std::result::Result<Self, LoadError> {
        let tensors = checkpoint.layer(config, layer)?;
        let vector = |tensor: &checkpoint::Tensor<'_>| upload_vector(on, checkpoint, tensor);
        let (stored, full) = (Precision::Stored, Precision::Full);
        let cache = Cache::new(&on.device, config, kv, kv_blocks);
        let head_norm = |(q, k): (&checkpoint::Tensor<'_>, &checkpoint::Tensor<'_>)| {
            let [q, k] = [vector_of(checkpoint, q)?, vector_of(checkpoint, k)?];
            let made = HeadNorm::new(&on.device, config, &q, &k);
            made.map_err(|error| on.failed("norms of heads", &error))
        };
        Ok(Self {
            attention_norm: vector(&tensors.attention_norm)?,
            qkv: Linear::load(on, checkpoint, [&tensors.q, &tensors.k, &tensors.v], Quantize::AsStored, stored)?,
            head_norm: tensors.q_norm.as_ref().zip(tensors.k_norm.as_ref()).map(head_norm).transpose()?,
            o: Linear::load(on, checkpoint, [&tensors.o], Quantize::AsStored, stored)?,
            expert_norm: vector(&tensors.expert_norm)?,
            gate: Linear::load(on, checkpoint, [&tensors.gate], Quantize::AsStored, full)?,
            cache: cache.map_err(|error| on.failed("keys and values", &error))?,
        })
    }
}

impl HeadNorm {
    fn new(device: &Device, config: &ModelConfig, q: &[f32], k: &[f32]) -> Result<Self> {
        let heads = [q.repeat(config.heads), k.repeat(config.kv_heads)].concat();
        Ok(Self {
            ones: Tensor::ones(config.head_dim, DType::F32, device)?,
            weights: Tensor::from_vec(heads, (config.heads + config.kv_heads, config.head_dim), device)?,
        })
    }
}

impl Cache {
    fn new(device: &Device, config: &ModelConfig, kv: KvType, blocks: usize) -> Result<Self> {
        let dtype = match kv {
            KvType::F16 => DType::F16,
            KvType::F32 => DType::F32,
        };
        let shape = (config.kv_heads, blocks * KV_BLOCK, config.head_dim);
        Ok(Self { k: Tensor::zeros(shape, dtype, device)?, v: Tensor::zeros(shape, dtype, device)? })
    }

    pub(super) fn store(&self, slots: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        for (stored, rows) in [(&self.k, k), (&self.v, v)] {
            stored.scatter_set(slots, &rows.to_dtype(stored.dtype())?.contiguous()?, 1)?;
        }
        Ok(())
    }

    pub(super) fn copy_block(&self, from: u32, to: u32) -> Result<()> {
        for stored in [&self.k, &self.v] {
            let block = stored.narrow(1, from as usize * KV_BLOCK, KV_BLOCK)?.force_contiguous()?;
            stored.slice_set(&block, 1, to as usize * KV_BLOCK)?;
        }
        Ok(())
    }
}

pub(super) fn upload_vector(
    on: &CandleDevice,
    checkpoint: &Checkpoint,
    tensor: &checkpoint::Tensor<'_>,
) -> std::result::Result<Tensor, LoadError> {
    let values = vector_of(checkpoint, tensor)?;
    let len = values.len();
    Tensor::from_vec(values, len, &on.device).map_err(|error| on.failed(tensor.name, &error))
}
