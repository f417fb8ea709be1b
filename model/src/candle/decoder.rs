//! The attention half on a device, with its KV cache.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::rotary_emb;
use tramontane_kernels::math::RopeTable;
use tramontane_kernels::{KV_BLOCK, KvType, QueryRow, RopePairs};

use super::CandleDevice;
use super::linear::{Linear, Precision};
use super::paging::{Group, groups, slot};
use crate::checkpoint::{self, Checkpoint};
use crate::config::ModelConfig;
use crate::decoder::{DecoderBackend, DecoderError, EmbedError, Keep, LayerRows, check_embeddings, embed};
use crate::weights::{LoadError, Quantize, vector};

/// Everything of a model but its experts, on a device. Hidden states come from and go to the caller's memory: between two layers they
/// are with the experts anyway.
pub(super) struct CandleDecoder {
    config: ModelConfig,
    checkpoint: Arc<Checkpoint>,
    device: Device,
    layers: Vec<Layer>,
    norm: Tensor,
    lm_head: Linear,
    rope: RopeTable,
    step: Option<StepTensors>,
    /// What the last layer's attention has left, for its gate.
    attended: Option<Tensor>,
}

struct Layer {
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: Option<Tensor>,
    k_norm: Option<Tensor>,
    o: Linear,
    expert_norm: Tensor,
    gate: Linear,
    cache: Cache,
}

/// One layer's keys and values: slots × (heads × head_dim), a block's positions side by side.
struct Cache {
    k: Tensor,
    v: Tensor,
}

/// What all layers of a step share.
struct StepTensors {
    sin: Tensor,
    cos: Tensor,
    /// Where each row's key and value go: rows × (heads × head_dim), a row's values equal.
    slots: Tensor,
    /// The groups of all rows, once a layer has asked for them.
    all: Option<Vec<GroupTensors>>,
}

struct GroupTensors {
    group: Group,
    rows: Tensor,
    slots: Tensor,
    mask: Tensor,
}

impl CandleDecoder {
    /// Uploads embeddings' companions, attention and gates; experts' bytes are not touched, embeddings stay mapped.
    pub(super) fn load(
        on: &CandleDevice,
        checkpoint: Arc<Checkpoint>,
        config: &ModelConfig,
        kv: KvType,
        kv_blocks: usize,
    ) -> std::result::Result<Self, LoadError> {
        let outer = checkpoint.outer(config)?;
        check_embeddings(&checkpoint, &outer.embeddings)?;
        let norm = upload_vector(on, &checkpoint, &outer.norm)?;
        let lm_head = Linear::load(on, &checkpoint, &outer.lm_head, Quantize::AsStored, Precision::Stored)?;
        let layers = (0..config.layers)
            .map(|i| Layer::load(on, &checkpoint, config, i, (kv, kv_blocks)))
            .collect::<std::result::Result<_, LoadError>>()?;
        let rope = RopeTable::new(config.head_dim, config.rope_theta);
        let (config, device) = (config.clone(), on.device.clone());
        Ok(Self { config, checkpoint, device, layers, norm, lm_head, rope, step: None, attended: None })
    }

    fn upload(&self, values: &[f32], width: usize) -> Result<Tensor> {
        Tensor::from_slice(values, (values.len() / width, width), &self.device)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(&x.contiguous()?, weight, self.config.rms_eps)
    }

    fn step_tensors(&self, rows: &[QueryRow<'_>]) -> Result<StepTensors> {
        let pairs = self.rope.pairs();
        let (mut sin, mut cos) = (vec![0.0; rows.len() * pairs], vec![0.0; rows.len() * pairs]);
        let angles = sin.chunks_exact_mut(pairs).zip(cos.chunks_exact_mut(pairs));
        rows.iter().zip(angles).for_each(|(row, (sin, cos))| self.rope.fill(row.position as u32, sin, cos));
        let shape = (rows.len(), self.config.kv_heads * self.config.head_dim);
        let slots = Tensor::from_vec(rows.iter().map(slot).collect(), (rows.len(), 1), &self.device)?;
        Ok(StepTensors {
            sin: self.upload(&sin, pairs)?,
            cos: self.upload(&cos, pairs)?,
            slots: slots.broadcast_as(shape)?.contiguous()?,
            all: None,
        })
    }

    fn group_tensors(&self, rows: &[QueryRow<'_>], kept: &[usize]) -> Result<Vec<GroupTensors>> {
        let tensors = |group: Group| {
            let (segments, queries, keys) = (group.segments, group.queries, group.keys);
            Ok(GroupTensors {
                rows: Tensor::from_slice(&group.rows, group.rows.len(), &self.device)?,
                slots: Tensor::from_slice(&group.slots, group.slots.len(), &self.device)?,
                mask: Tensor::from_slice(&group.mask, (segments, 1, queries, keys), &self.device)?,
                group,
            })
        };
        groups(rows, kept, self.config.sliding_window).into_iter().map(tensors).collect()
    }

    /// Turns each head of `x` (rows × heads × head_dim values) by its row's angles, after its norm where the model has one.
    fn turn(&self, x: &Tensor, heads: usize, norm: Option<&Tensor>, sin: &Tensor, cos: &Tensor) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let shape = (1, rows, heads, self.config.head_dim);
        let x = match norm {
            Some(weight) => self.norm(&x.reshape((rows * heads, self.config.head_dim))?, weight)?,
            None => x.clone(),
        };
        let x = x.reshape(shape)?.transpose(1, 2)?.contiguous()?;
        let turned = match self.config.rope_pairs {
            RopePairs::Halves => rotary_emb::rope(&x, cos, sin)?,
            RopePairs::Interleaved => rotary_emb::rope_i(&x, cos, sin)?,
        };
        turned.transpose(1, 2)?.reshape((rows, heads * self.config.head_dim))
    }

    /// Takes a layer's keys and values in, and computes attention for the rows that go on: hidden states with its result added; `None` when
    /// none goes on.
    fn layer(&mut self, what: LayerRows<'_>, hidden: &[f32]) -> Result<Option<Tensor>> {
        let LayerRows { layer, rows, keep } = what;
        let mut step = match self.step.take() {
            Some(step) => step,
            None => self.step_tensors(rows)?,
        };
        if matches!(keep, Keep::All) && step.all.is_none() {
            let all: Vec<usize> = (0..rows.len()).collect();
            step.all = Some(self.group_tensors(rows, &all)?);
        }
        let x = self.upload(hidden, self.config.hidden)?;
        let normed = self.norm(&x, &self.layers[layer].attention_norm)?;
        self.store(layer, &step, &normed)?;
        let attended = match keep {
            Keep::All => {
                let groups = step.all.as_deref().unwrap_or_default();
                Some(self.attend_on(layer, [x, normed, step.sin.clone(), step.cos.clone()], groups)?)
            }
            Keep::Rows([]) => None,
            Keep::Rows(kept) => {
                let groups = self.group_tensors(rows, kept)?;
                let ids: Vec<u32> = kept.iter().map(|&row| row as u32).collect();
                let ids = Tensor::from_vec(ids, kept.len(), &self.device)?;
                let select = |tensor: &Tensor| tensor.index_select(&ids, 0);
                let of_kept = [select(&x)?, select(&normed)?, select(&step.sin)?, select(&step.cos)?];
                Some(self.attend_on(layer, of_kept, &groups)?)
            }
        };
        self.step = Some(step);
        Ok(attended)
    }

    /// Puts the rows' keys and values where they belong.
    fn store(&self, layer: usize, step: &StepTensors, normed: &Tensor) -> Result<()> {
        let weights = &self.layers[layer];
        let k = weights.k.forward(normed)?;
        let k = self.turn(&k, self.config.kv_heads, weights.k_norm.as_ref(), &step.sin, &step.cos)?;
        weights.cache.store(&step.slots, &k, &weights.v.forward(normed)?)
    }

    /// `x` with attention's result added; all four tensors have a row for each row that goes on.
    fn attend_on(&self, layer: usize, [x, normed, sin, cos]: [Tensor; 4], groups: &[GroupTensors]) -> Result<Tensor> {
        let weights = &self.layers[layer];
        let q = weights.q.forward(&normed)?;
        let q = self.turn(&q, self.config.heads, weights.q_norm.as_ref(), &sin, &cos)?;
        let mixed = self.attention(&weights.cache, groups, &q)?;
        x + weights.o.forward(&mixed)?
    }

    /// Each query's mixed values (queries × (heads × head_dim)), in the order of `q`.
    fn attention(&self, cache: &Cache, groups: &[GroupTensors], q: &Tensor) -> Result<Tensor> {
        if let [only] = groups
            && only.group.rows.iter().zip(0..).all(|(row, at)| *row == at)
        {
            return self.group_attention(cache, only, q);
        }
        let (mut mixed, mut order) = (Vec::new(), Vec::new());
        for tensors in groups {
            mixed.push(self.group_attention(cache, tensors, &q.index_select(&tensors.rows, 0)?)?);
            order.extend_from_slice(&tensors.group.rows);
        }
        let mut back = vec![0u32; order.len()];
        order.iter().zip(0..).for_each(|(&row, at)| back[row as usize] = at);
        Tensor::cat(&mixed, 0)?.index_select(&Tensor::from_vec(back, order.len(), &self.device)?, 0)
    }

    /// Grouped-query attention of one group: a KV head's query heads are more queries of its own.
    fn group_attention(&self, cache: &Cache, tensors: &GroupTensors, q: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let GroupTensors { group: Group { segments: n, queries, keys, .. }, slots, mask, .. } = tensors;
        let (n, queries, keys, kv_heads, head_dim) = (*n, *queries, *keys, config.kv_heads, config.head_dim);
        let share = config.heads / kv_heads;
        let gather = |stored: &Tensor| {
            let gathered =
                stored.index_select(slots, 0)?.to_dtype(DType::F32)?.reshape((n, keys, kv_heads, head_dim))?;
            gathered.transpose(1, 2)?.contiguous()?.reshape((n * kv_heads, keys, head_dim))
        };
        let q = (q.reshape((n, queries, kv_heads, share, head_dim))? / (head_dim as f64).sqrt())?;
        let q = q.permute((0, 2, 3, 1, 4))?.contiguous()?.reshape((n * kv_heads, share * queries, head_dim))?;
        let scores = q.matmul(&gather(&cache.k)?.transpose(1, 2)?)?.reshape((n, config.heads, queries, keys))?;
        let weights = softmax_last_dim(&scores.broadcast_add(mask)?)?;
        let mixed = weights.reshape((n * kv_heads, share * queries, keys))?.matmul(&gather(&cache.v)?)?;
        let mixed = mixed.reshape((n, kv_heads, share, queries, head_dim))?.permute((0, 3, 1, 2, 4))?;
        mixed.contiguous()?.reshape((n * queries, config.heads * head_dim))
    }

    /// The experts' input and the gate's logits for what attention has left.
    fn gated(&self, layer: usize, x: &Tensor) -> Result<(Vec<f32>, Vec<f32>)> {
        let weights = &self.layers[layer];
        let normed = self.norm(x, &weights.expert_norm)?;
        let logits = weights.gate.forward(&normed)?;
        Ok((normed.flatten_all()?.to_vec1()?, logits.flatten_all()?.to_vec1()?))
    }
}

impl Layer {
    fn load(
        on: &CandleDevice,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        layer: usize,
        (kv, kv_blocks): (KvType, usize),
    ) -> std::result::Result<Self, LoadError> {
        let tensors = checkpoint.layer(config, layer)?;
        let vector = |tensor: &checkpoint::Tensor<'_>| upload_vector(on, checkpoint, tensor);
        let matrix = |tensor, precision| Linear::load(on, checkpoint, tensor, Quantize::AsStored, precision);
        let cache = Cache::new(&on.device, config, kv, kv_blocks);
        Ok(Self {
            attention_norm: vector(&tensors.attention_norm)?,
            q: matrix(&tensors.q, Precision::Stored)?,
            k: matrix(&tensors.k, Precision::Stored)?,
            v: matrix(&tensors.v, Precision::Stored)?,
            q_norm: tensors.q_norm.as_ref().map(vector).transpose()?,
            k_norm: tensors.k_norm.as_ref().map(vector).transpose()?,
            o: matrix(&tensors.o, Precision::Stored)?,
            expert_norm: vector(&tensors.expert_norm)?,
            gate: matrix(&tensors.gate, Precision::Full)?,
            cache: cache.map_err(|error| on.failed("keys and values", &error))?,
        })
    }
}

impl Cache {
    fn new(device: &Device, config: &ModelConfig, kv: KvType, blocks: usize) -> Result<Self> {
        let dtype = match kv {
            KvType::F16 => DType::F16,
            KvType::F32 => DType::F32,
        };
        let shape = (blocks * KV_BLOCK, config.kv_heads * config.head_dim);
        Ok(Self { k: Tensor::zeros(shape, dtype, device)?, v: Tensor::zeros(shape, dtype, device)? })
    }

    fn store(&self, slots: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        for (stored, rows) in [(&self.k, k), (&self.v, v)] {
            stored.scatter_set(slots, &rows.to_dtype(stored.dtype())?.contiguous()?, 0)?;
        }
        Ok(())
    }

    fn copy_block(&self, from: u32, to: u32) -> Result<()> {
        for stored in [&self.k, &self.v] {
            let block = stored.narrow(0, from as usize * KV_BLOCK, KV_BLOCK)?.copy()?;
            stored.slice_set(&block, 0, to as usize * KV_BLOCK)?;
        }
        Ok(())
    }
}

fn upload_vector(
    on: &CandleDevice,
    checkpoint: &Checkpoint,
    tensor: &checkpoint::Tensor<'_>,
) -> std::result::Result<Tensor, LoadError> {
    let values = vector(checkpoint, tensor)?;
    let len = values.len();
    Tensor::from_vec(values, len, &on.device).map_err(|error| on.failed(tensor.name, &error))
}

fn device(error: candle_core::Error) -> DecoderError {
    DecoderError::Device { why: error.to_string() }
}

fn download(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}

impl DecoderBackend for CandleDecoder {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn begin(
        &mut self,
        tokens: &[u32],
        _rows: &[QueryRow<'_>],
        hidden: &mut Vec<f32>,
    ) -> std::result::Result<(), EmbedError> {
        (self.step, self.attended) = (None, None);
        embed(&self.checkpoint, &self.config, tokens, hidden)
    }

    fn attend(&mut self, what: LayerRows<'_>, hidden: &mut Vec<f32>) -> std::result::Result<(), DecoderError> {
        self.attended = self.layer(what, hidden).map_err(device)?;
        match &self.attended {
            Some(attended) => *hidden = download(attended).map_err(device)?,
            None => hidden.clear(),
        }
        Ok(())
    }

    fn gate(
        &mut self,
        layer: usize,
        hidden: &[f32],
        normed: &mut Vec<f32>,
        logits: &mut Vec<f32>,
    ) -> std::result::Result<(), DecoderError> {
        let x = match self.attended.take() {
            Some(x) if x.elem_count() == hidden.len() => x,
            _ => self.upload(hidden, self.config.hidden).map_err(device)?,
        };
        (*normed, *logits) = self.gated(layer, &x).map_err(device)?;
        Ok(())
    }

    fn last_hidden(&mut self, hidden: &[f32], normed: &mut Vec<f32>) -> std::result::Result<(), DecoderError> {
        normed.clear();
        if hidden.is_empty() {
            return Ok(());
        }
        let x = self.upload(hidden, self.config.hidden).and_then(|x| self.norm(&x, &self.norm));
        *normed = x.and_then(|x| download(&x)).map_err(device)?;
        Ok(())
    }

    fn logits(&mut self, hidden: &[f32], logits: &mut Vec<f32>) -> std::result::Result<(), DecoderError> {
        logits.clear();
        if hidden.is_empty() {
            return Ok(());
        }
        let x = self.upload(hidden, self.config.hidden).and_then(|x| self.norm(&x, &self.norm));
        let computed = x.and_then(|x| self.lm_head.forward(&x)).and_then(|x| download(&x));
        *logits = computed.map_err(device)?;
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) -> std::result::Result<(), DecoderError> {
        self.layers.iter().try_for_each(|layer| layer.cache.copy_block(from, to)).map_err(device)
    }
}
