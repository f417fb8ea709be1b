//! The decoder's attention half: embeddings, attention over the KV cache, the gate's logits, the output head.
//!
//! What lies between two of its layers, the experts, is computed elsewhere; the caller adds their result to the hidden states.

mod backend;
mod cpu;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tramontane_kernels::math::RopeTable;
use tramontane_kernels::{
    Activations, Angles, AttentionScratch, AttentionShape, Compute, F32Buf, KvLayer, KvType, NotFinite, PackedMatrix,
    Product, Q8Buf, QueryRow, attention, matmul_all, rms_norm, rope,
};

pub use self::backend::{DecoderBackend, DecoderError, load};
pub use self::cpu::CpuDecoder;
use crate::checkpoint::{Checkpoint, CheckpointError, Tensor};
use crate::config::ModelConfig;
use crate::weights::{LoadError, Packing, Quantize, pack, vector};

/// Why a step's tokens have no embeddings.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The vocabulary does not have the token: the request is at fault.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    UnknownToken {
        /// The token.
        token: u32,
        /// Tokens in the vocabulary.
        vocab: usize,
    },
    /// The checkpoint is.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Everything of a model but its experts.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    checkpoint: Arc<Checkpoint>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    lm_head: PackedMatrix,
    rope: RopeTable,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    q: PackedMatrix,
    k: PackedMatrix,
    v: PackedMatrix,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    o: PackedMatrix,
    expert_norm: Vec<f32>,
    gate: PackedMatrix,
}

/// What a layer is to compute.
#[derive(Clone, Copy, Debug)]
pub struct LayerRows<'a> {
    /// The layer.
    pub layer: usize,
    /// The step's rows.
    pub rows: &'a [QueryRow<'a>],
    /// Which of them go on.
    pub keep: Keep<'a>,
}

/// Which rows of a layer go on after its keys and values are stored.
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a> {
    /// All.
    All,
    /// Only these, ascending: the last layer's, where the others' results are needed by nobody.
    Rows(&'a [usize]),
}

/// Buffers of a step, kept from call to call. `sin` and `cos` are filled by [`Decoder::begin`] for the step's positions.
#[derive(Debug, Default)]
pub struct DecoderScratch {
    sin: Vec<f32>,
    cos: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    parts: AttentionScratch,
    mixed: Vec<f32>,
    projected: Vec<f32>,
    head_normed: Vec<f32>,
    rows: EncodedRows,
}

impl Decoder {
    /// Loads embeddings, attention and gates; experts' bytes are not touched.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor.
    pub fn load(packing: &Packing, checkpoint: Arc<Checkpoint>, config: &ModelConfig) -> Result<Self, LoadError> {
        let vector = |tensor: &Tensor<'_>| vector(&checkpoint, tensor);
        let matrix = |tensor| pack(packing, &checkpoint, &tensor, Quantize::AsStored);
        let outer = checkpoint.outer(config)?;
        check_embeddings(&checkpoint, &outer.embeddings)?;
        let (norm, lm_head) = (vector(&outer.norm)?, matrix(outer.lm_head)?);
        let layers = (0..config.layers)
            .map(|i| {
                let tensors = checkpoint.layer(config, i)?;
                Ok(Layer {
                    attention_norm: vector(&tensors.attention_norm)?,
                    q: matrix(tensors.q)?,
                    k: matrix(tensors.k)?,
                    v: matrix(tensors.v)?,
                    q_norm: tensors.q_norm.as_ref().map(vector).transpose()?,
                    k_norm: tensors.k_norm.as_ref().map(vector).transpose()?,
                    o: matrix(tensors.o)?,
                    expert_norm: vector(&tensors.expert_norm)?,
                    gate: matrix(tensors.gate)?,
                })
            })
            .collect::<Result<_, LoadError>>()?;
        let rope = RopeTable::new(config.head_dim, config.rope_theta);
        Ok(Self { config: config.clone(), checkpoint, layers, norm, lm_head, rope })
    }

    /// The model's dimensions.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An empty KV cache of `blocks` blocks: a layer each.
    pub fn kv_cache(&self, ty: KvType, blocks: usize) -> Vec<KvLayer> {
        (0..self.config.layers).map(|_| KvLayer::new(ty, blocks, self.config.kv_heads, self.config.head_dim)).collect()
    }

    /// Starts a step: the rotations of its rows' positions go to `scratch`, the embeddings of its tokens to `hidden` (rows × hidden).
    ///
    /// # Errors
    /// [`EmbedError::UnknownToken`] names the first token outside the vocabulary.
    pub fn begin(
        &self,
        tokens: &[u32],
        rows: &[QueryRow<'_>],
        scratch: &mut DecoderScratch,
        hidden: &mut Vec<f32>,
    ) -> Result<(), EmbedError> {
        angles(&self.rope, rows, &mut scratch.sin, &mut scratch.cos);
        embed(&self.checkpoint, &self.config, tokens, hidden)
    }

    /// A layer up to its experts: stores the rows' keys and values in `kv`, and adds attention's result to `hidden`. With
    /// [`Keep::Rows`] `hidden` shrinks to the rows kept.
    ///
    /// # Errors
    /// [`NotFinite`] names the step's row where it meets quantised weights. Float weights let it through to the gate.
    ///
    /// # Panics
    /// When `hidden` is not the step's rows, or a row's blocks do not reach its position.
    pub fn attend(
        &self,
        compute: &Compute,
        what: LayerRows<'_>,
        kv: &mut KvLayer,
        scratch: &mut DecoderScratch,
        hidden: &mut Vec<f32>,
    ) -> Result<(), NotFinite> {
        let LayerRows { layer, rows, keep } = what;
        let (config, weights) = (&self.config, &self.layers[layer]);
        let width = config.hidden;
        assert_eq!(hidden.len(), rows.len() * width, "the step's rows");
        let DecoderScratch { sin, cos, normed, q, k, v, parts, mixed, projected, head_normed, rows: encoded } = scratch;
        normed.resize(hidden.len(), 0.0);
        rms_norm(compute, hidden, &weights.attention_norm, config.rms_eps, normed);
        let all: Vec<usize> = (0..rows.len()).collect();
        let kept = match keep {
            Keep::All => &all,
            Keep::Rows(kept) => kept,
        };
        let pruned = kept.len() < rows.len();
        if pruned {
            encoded.encode(compute, &[&weights.k, &weights.v], normed)?;
            encoded.project(compute, [(&weights.k, &mut *k), (&weights.v, &mut *v)]);
        } else {
            encoded.encode(compute, &[&weights.q, &weights.k, &weights.v], normed)?;
            encoded.project(compute, [(&weights.q, &mut *q), (&weights.k, &mut *k), (&weights.v, &mut *v)]);
        }
        self.norm_heads(compute, weights.k_norm.as_deref(), k, head_normed);
        let angles = Angles { sin, cos, pairs: self.rope.pairs() };
        rope(compute, k, config.rope_pairs, angles, &all);
        kv.write(compute, rows, k, v);

        let of_step = |NotFinite { row }| NotFinite { row: kept[row] };
        if pruned {
            for (to, &from) in kept.iter().enumerate() {
                hidden.copy_within(from * width..(from + 1) * width, to * width);
                normed.copy_within(from * width..(from + 1) * width, to * width);
            }
            hidden.truncate(kept.len() * width);
            normed.truncate(kept.len() * width);
            encoded.encode(compute, &[&weights.q], normed).map_err(of_step)?;
            encoded.project(compute, [(&weights.q, &mut *q)]);
        }
        self.norm_heads(compute, weights.q_norm.as_deref(), q, head_normed);
        rope(compute, q, config.rope_pairs, angles, kept);
        let kept_rows: Vec<QueryRow<'_>> = kept.iter().map(|&row| rows[row]).collect();
        mixed.resize(q.len(), 0.0);
        let shape = AttentionShape { heads: config.heads, window: config.sliding_window };
        attention(compute, kv, shape, &kept_rows, q, parts, mixed);
        encoded.encode(compute, &[&weights.o], mixed).map_err(of_step)?;
        encoded.project(compute, [(&weights.o, &mut *projected)]);
        for (hidden, projected) in hidden.iter_mut().zip(projected) {
            *hidden += *projected;
        }
        Ok(())
    }

    /// Norms every head of `x` where the model does (Qwen3).
    fn norm_heads(&self, compute: &Compute, weight: Option<&[f32]>, x: &mut Vec<f32>, normed: &mut Vec<f32>) {
        if let Some(weight) = weight {
            normed.resize(x.len(), 0.0);
            rms_norm(compute, x, weight, self.config.rms_eps, normed);
            std::mem::swap(x, normed);
        }
    }

    /// What layer `layer`'s gate says of each row: `normed` becomes the experts' input (rows × hidden), `logits` rows × experts.
    ///
    /// # Errors
    /// [`NotFinite`] names the row of `hidden` where it meets quantised weights.
    pub fn gate(
        &self,
        compute: &Compute,
        layer: usize,
        hidden: &[f32],
        scratch: &mut DecoderScratch,
        normed: &mut Vec<f32>,
        logits: &mut Vec<f32>,
    ) -> Result<(), NotFinite> {
        let weights = &self.layers[layer];
        normed.resize(hidden.len(), 0.0);
        rms_norm(compute, hidden, &weights.expert_norm, self.config.rms_eps, normed);
        scratch.rows.encode(compute, &[&weights.gate], normed)?;
        scratch.rows.project(compute, [(&weights.gate, logits)]);
        Ok(())
    }

    /// The last hidden states, as the output head reads them: `hidden`'s rows, which have passed all layers, after the last norm.
    pub fn last_hidden(&self, compute: &Compute, hidden: &[f32], normed: &mut Vec<f32>) {
        normed.resize(hidden.len(), 0.0);
        rms_norm(compute, hidden, &self.norm, self.config.rms_eps, normed);
    }

    /// The vocabulary's logits (rows × vocab) for rows that have passed all layers.
    ///
    /// # Errors
    /// [`NotFinite`] names the row of `hidden` where it meets quantised weights.
    pub fn logits(
        &self,
        compute: &Compute,
        hidden: &[f32],
        scratch: &mut DecoderScratch,
        logits: &mut Vec<f32>,
    ) -> Result<(), NotFinite> {
        self.last_hidden(compute, hidden, &mut scratch.normed);
        scratch.rows.encode(compute, &[&self.lm_head], &scratch.normed)?;
        scratch.rows.project(compute, [(&self.lm_head, logits)]);
        Ok(())
    }
}

/// The embeddings of `tokens` (tokens × hidden), read out of the checkpoint.
pub(crate) fn embed(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    tokens: &[u32],
    hidden: &mut Vec<f32>,
) -> Result<(), EmbedError> {
    let (width, vocab) = (config.hidden, config.vocab);
    if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocab) {
        return Err(EmbedError::UnknownToken { token, vocab });
    }
    hidden.resize(tokens.len() * width, 0.0);
    let embeddings = checkpoint.outer(config)?.embeddings;
    let row_bytes = embeddings.data.len() / vocab;
    for (&token, hidden) in tokens.iter().zip(hidden.chunks_exact_mut(width)) {
        let at = token as usize * row_bytes;
        embeddings.ty.decode_row(&embeddings.data[at..at + row_bytes], hidden);
    }
    Ok(())
}

/// The rotations of `rows`' positions (rows × pairs).
pub(crate) fn angles(rope: &RopeTable, rows: &[QueryRow<'_>], sin: &mut Vec<f32>, cos: &mut Vec<f32>) {
    let pairs = rope.pairs();
    sin.resize(rows.len() * pairs, 0.0);
    cos.resize(rows.len() * pairs, 0.0);
    let angles = sin.chunks_exact_mut(pairs).zip(cos.chunks_exact_mut(pairs));
    rows.iter().zip(angles).for_each(|(row, (sin, cos))| rope.fill(row.position as u32, sin, cos));
}

/// Reads the embeddings once, for values that are not finite. Of what is mapped a step reads its tokens' rows alone.
pub(crate) fn check_embeddings(checkpoint: &Checkpoint, embeddings: &Tensor<'_>) -> Result<(), CheckpointError> {
    checkpoint.prefetch(embeddings.data, embeddings.name);
    embeddings.check_finite()?;
    checkpoint.release(embeddings.data, embeddings.name);
    Ok(())
}

/// Rows in the forms that some matrices want.
#[derive(Debug, Default)]
struct EncodedRows {
    blocks: Q8Buf,
    floats: F32Buf,
}

impl EncodedRows {
    /// Takes the rows `x`, once for all of `weights`.
    fn encode(&mut self, compute: &Compute, weights: &[&PackedMatrix], x: &[f32]) -> Result<(), NotFinite> {
        if let Some(quantized) = weights.iter().find(|weights| weights.ty().is_quantized()) {
            self.blocks.quantize(compute, x, quantized.width())?;
        }
        if let Some(float) = weights.iter().find(|weights| !weights.ty().is_quantized()) {
            self.floats.fill(x, float.width());
        }
        Ok(())
    }

    /// `out = weights · x` for each of `products`, as one job; `out` is made to fit. The weights are among those for which the rows were
    /// taken.
    fn project<const N: usize>(&self, compute: &Compute, products: [(&PackedMatrix, &mut Vec<f32>); N]) {
        let mut products = products.map(|(weights, out)| {
            let rows = if weights.ty().is_quantized() {
                Activations::Q8(&self.blocks)
            } else {
                Activations::F32(&self.floats)
            };
            out.resize(rows.rows() * weights.rows(), 0.0);
            Product::new(weights, rows, out)
        });
        matmul_all(compute, &mut products);
    }
}
