//! The attention half on a device, with its KV cache.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::rotary_emb;
use tramontane_kernels::math::RopeTable;
use tramontane_kernels::{KvType, QueryRow, RopePairs};

use super::CandleDevice;
use super::layer::{Cache, Layer, upload_vector};
use super::linear::{Linear, Precision};
use super::paging::{Group, groups, slot};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::decoder::{DecoderBackend, DecoderError, EmbedError, Keep, LayerRows, angles, check_embeddings, embed};
use crate::weights::{LoadError, Quantize};

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
    /// What the layer's gate says of the hidden states that its attention has left: computed with them, so that the device is waited for
    /// once. Normed rows, and logits.
    gated: Option<(Vec<f32>, Vec<f32>)>,
}

/// What all layers of a step share.
struct StepTensors {
    sin: Tensor,
    cos: Tensor,
    /// Where each row's key and value go: KV heads × rows × head_dim, a row's values equal.
    slots: Tensor,
    /// The groups of all rows, once a layer has asked for them.
    all: Option<Vec<GroupTensors>>,
}

struct GroupTensors {
    group: Group,
    rows: Tensor,
    slots: Tensor,
    /// 1 × segments × 1 × queries × keys; none where all is seen.
    mask: Option<Tensor>,
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
        let lm_head = Linear::load(on, &checkpoint, [&outer.lm_head], Quantize::AsStored, Precision::Stored)?;
        let layers = (0..config.layers)
            .map(|i| Layer::load(on, &checkpoint, config, i, (kv, kv_blocks)))
            .collect::<std::result::Result<_, LoadError>>()?;
        let rope = RopeTable::new(config.head_dim, config.rope_theta);
        let (config, device) = (config.clone(), on.device.clone());
        Ok(Self { config, checkpoint, device, layers, norm, lm_head, rope, step: None, gated: None })
    }

    fn upload(&self, values: &[f32], width: usize) -> Result<Tensor> {
        Tensor::from_slice(values, (values.len() / width, width), &self.device)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        rms_norm(&x.contiguous()?, weight, self.config.rms_eps)
    }

    fn step_tensors(&self, rows: &[QueryRow<'_>]) -> Result<StepTensors> {
        let pairs = self.rope.pairs();
        let (mut sin, mut cos) = (Vec::new(), Vec::new());
        angles(&self.rope, rows, &mut sin, &mut cos);
        let shape = (self.config.kv_heads, rows.len(), self.config.head_dim);
        let slots = Tensor::from_vec(rows.iter().map(slot).collect(), (1, rows.len(), 1), &self.device)?;
        Ok(StepTensors {
            sin: self.upload(&sin, pairs)?,
            cos: self.upload(&cos, pairs)?,
            slots: slots.broadcast_as(shape)?.contiguous()?,
            all: None,
        })
    }

    fn group_tensors(&self, rows: &[QueryRow<'_>], kept: &[usize]) -> Result<Vec<GroupTensors>> {
        let tensors = |group: Group| {
            let shape = (1, group.segments, 1, group.queries, group.keys);
            let mask = || Tensor::from_slice(&group.mask, shape, &self.device);
            Ok(GroupTensors {
                rows: Tensor::from_slice(&group.rows, group.rows.len(), &self.device)?,
                slots: Tensor::from_slice(&group.slots, group.slots.len(), &self.device)?,
                mask: if group.sees_all() { None } else { Some(mask()?) },
                group,
            })
        };
        groups(rows, kept, self.config.sliding_window).into_iter().map(tensors).collect()
    }

    /// Queries ((heads × rows × head_dim), turned), keys (likewise) and values of `normed`'s rows.
    fn project(&self, layer: usize, normed: &Tensor, step: &StepTensors) -> Result<[Tensor; 3]> {
        let (config, weights) = (&self.config, &self.layers[layer]);
        let (rows, head_dim, turned) = (normed.dim(0)?, config.head_dim, config.heads + config.kv_heads);
        let qkv = weights.qkv.forward(normed)?;
        let qk = qkv.narrow(1, 0, turned * head_dim)?.reshape((rows, turned, head_dim))?;
        let v = qkv.narrow(1, turned * head_dim, config.kv_heads * head_dim)?;
        let qk = match &weights.head_norm {
            Some(norm) => self.norm(&qk, &norm.ones)?.broadcast_mul(&norm.weights)?,
            None => qk,
        };
        let qk = qk.transpose(0, 1)?.contiguous()?.unsqueeze(0)?;
        let qk = match config.rope_pairs {
            RopePairs::Halves => rotary_emb::rope(&qk, &step.cos, &step.sin)?,
            RopePairs::Interleaved => rotary_emb::rope_i(&qk, &step.cos, &step.sin)?,
        };
        let qk = qk.squeeze(0)?;
        let v = v.reshape((rows, config.kv_heads, head_dim))?.transpose(0, 1)?;
        Ok([qk.narrow(0, 0, config.heads)?, qk.narrow(0, config.heads, config.kv_heads)?, v])
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
        let [q, k, v] = self.project(layer, &normed, &step)?;
        self.layers[layer].cache.store(&step.slots, &k, &v)?;
        let attended = match keep {
            Keep::All => Some(self.attend_on(layer, &x, &q, step.all.as_deref().unwrap_or_default())?),
            Keep::Rows([]) => None,
            Keep::Rows(kept) => {
                let groups = self.group_tensors(rows, kept)?;
                let ids: Vec<u32> = kept.iter().map(|&row| row as u32).collect();
                let ids = Tensor::from_vec(ids, kept.len(), &self.device)?;
                Some(self.attend_on(layer, &x.index_select(&ids, 0)?, &q.index_select(&ids, 1)?, &groups)?)
            }
        };
        self.step = Some(step);
        Ok(attended)
    }

    /// `x` with attention's result added; `q` has queries of the same rows.
    fn attend_on(&self, layer: usize, x: &Tensor, q: &Tensor, groups: &[GroupTensors]) -> Result<Tensor> {
        let weights = &self.layers[layer];
        let mixed = self.attention(&weights.cache, groups, q)?;
        x + weights.o.forward(&mixed)?
    }

    /// Each query's mixed values (rows × (heads × head_dim)), in the order of `q`.
    fn attention(&self, cache: &Cache, groups: &[GroupTensors], q: &Tensor) -> Result<Tensor> {
        if let [only] = groups
            && only.group.rows.iter().zip(0..).all(|(row, at)| *row == at)
        {
            return self.group_attention(cache, only, q);
        }
        let (mut mixed, mut order) = (Vec::new(), Vec::new());
        for tensors in groups {
            mixed.push(self.group_attention(cache, tensors, &q.index_select(&tensors.rows, 1)?)?);
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
            stored.index_select(slots, 1)?.to_dtype(DType::F32)?.reshape((kv_heads * n, keys, head_dim))
        };
        let q = (q * (1.0 / (head_dim as f64).sqrt()))?.reshape((kv_heads, share, n, queries, head_dim))?;
        let q = q.transpose(1, 2)?.contiguous()?.reshape((kv_heads * n, share * queries, head_dim))?;
        let scores = q.matmul(&gather(&cache.k)?.transpose(1, 2)?)?;
        let scores = match mask {
            Some(mask) => scores.reshape((kv_heads, n, share, queries, keys))?.broadcast_add(mask)?,
            None => scores,
        };
        let weights = softmax_last_dim(&scores)?.reshape((kv_heads * n, share * queries, keys))?;
        let mixed = weights.matmul(&gather(&cache.v)?)?.reshape((kv_heads, n, share, queries, head_dim))?;
        mixed.permute((1, 3, 0, 2, 4))?.contiguous()?.reshape((n * queries, config.heads * head_dim))
    }

    /// `hidden` after the last norm.
    fn last(&self, hidden: &[f32]) -> Result<Tensor> {
        self.norm(&self.upload(hidden, self.config.hidden)?, &self.norm)
    }

    /// The experts' input and the gate's logits for `x`.
    fn gate_of(&self, layer: usize, x: &Tensor) -> Result<[Tensor; 2]> {
        let weights = &self.layers[layer];
        let normed = self.norm(x, &weights.expert_norm)?;
        let logits = weights.gate.forward(&normed)?;
        Ok([normed, logits])
    }

    /// Hidden states after attention, and what the gate says of them, in one transfer.
    fn attended(&self, layer: usize, x: &Tensor) -> Result<[Vec<f32>; 3]> {
        let [normed, logits] = self.gate_of(layer, x)?;
        let rows = download(&Tensor::cat(&[x, &normed, &logits], 1)?)?;
        let (width, experts) = (self.config.hidden, self.config.experts);
        let part = |from: usize, len: usize| {
            rows.chunks_exact(2 * width + experts).flat_map(|row| &row[from..from + len]).copied().collect()
        };
        Ok([part(0, width), part(width, width), part(2 * width, experts)])
    }
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
        (self.step, self.gated) = (None, None);
        embed(&self.checkpoint, &self.config, tokens, hidden)
    }

    fn attend(&mut self, what: LayerRows<'_>, hidden: &mut Vec<f32>) -> std::result::Result<(), DecoderError> {
        let layer = what.layer;
        let attended = self.layer(what, hidden).map_err(device)?;
        let Some(attended) = attended else {
            hidden.clear();
            return Ok(());
        };
        let [attended, normed, logits] = self.attended(layer, &attended).map_err(device)?;
        (*hidden, self.gated) = (attended, Some((normed, logits)));
        Ok(())
    }

    fn gate(
        &mut self,
        layer: usize,
        hidden: &[f32],
        normed: &mut Vec<f32>,
        logits: &mut Vec<f32>,
    ) -> std::result::Result<(), DecoderError> {
        let known = self.gated.take().filter(|(normed, _)| normed.len() == hidden.len());
        (*normed, *logits) = match known {
            Some(known) => known,
            None => {
                let gate = self.upload(hidden, self.config.hidden).and_then(|x| self.gate_of(layer, &x));
                gate.and_then(|[normed, logits]| Ok((download(&normed)?, download(&logits)?))).map_err(device)?
            }
        };
        Ok(())
    }

    fn last_hidden(&mut self, hidden: &[f32], normed: &mut Vec<f32>) -> std::result::Result<(), DecoderError> {
        normed.clear();
        if hidden.is_empty() {
            return Ok(());
        }
        *normed = self.last(hidden).and_then(|x| download(&x)).map_err(device)?;
        Ok(())
    }

    fn logits(&mut self, hidden: &[f32], logits: &mut Vec<f32>) -> std::result::Result<(), DecoderError> {
        logits.clear();
        if hidden.is_empty() {
            return Ok(());
        }
        let computed = self.last(hidden).and_then(|x| self.lm_head.forward(&x)).and_then(|x| download(&x));
        *logits = computed.map_err(device)?;
        Ok(())
    }

    fn copy_block(&mut self, from: u32, to: u32) -> std::result::Result<(), DecoderError> {
        self.layers.iter().try_for_each(|layer| layer.cache.copy_block(from, to)).map_err(device)
    }
}
