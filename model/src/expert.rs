//! One expert's feed-forward network: `w2 · (silu(w1 · x) × (w3 · x))`.

use tramontane_kernels::{Activations, Compute, F32Buf, Inner, NotFinite, PackedMatrix, Pool, Q8Buf, gated, matmul};

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::weights::{LoadError, Quantize, pack};

/// An expert's three matrices, ready to multiply.
#[derive(Debug)]
pub struct Expert {
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
}

/// Buffers of [`Expert::forward`], kept from call to call.
#[derive(Debug, Default)]
pub struct ExpertScratch {
    floats: F32Buf,
    blocks: Q8Buf,
}

impl Expert {
    /// Maps expert `expert` of layer `layer` and packs it on the threads of `pool`; no other expert's bytes are touched.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor.
    pub fn load(
        pool: &Pool,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        layer: usize,
        expert: usize,
        quantize: Quantize,
    ) -> Result<Self, LoadError> {
        let tensors = checkpoint.expert(config, layer, expert)?;
        let quantized = [&tensors.w1, &tensors.w3, &tensors.w2].map(|t| quantize.held_as(t.ty).is_quantized());
        if quantized.iter().any(|q| *q != quantized[0]) {
            return Err(LoadError::MixedExperts);
        }
        Ok(Self {
            gate: pack(pool, &tensors.w1, quantize)?,
            up: pack(pool, &tensors.w3, quantize)?,
            down: pack(pool, &tensors.w2, quantize)?,
        })
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }

    /// Whether it takes its rows as int8 blocks (and answers in bf16) or as f32.
    pub fn is_quantized(&self) -> bool {
        self.gate.ty().is_quantized()
    }

    /// Computes the network for `rows` (of the model's hidden width) into `out` (rows × hidden).
    ///
    /// # Errors
    /// [`NotFinite`] when the inner activation of a row is not, and the expert's weights are quantised. A float expert lets it
    /// through to its answer, where the coordinator finds it.
    ///
    /// # Panics
    /// When the kind or shape of `rows` is not this expert's.
    pub fn forward(
        &self,
        compute: &Compute,
        rows: Activations<'_>,
        scratch: &mut ExpertScratch,
        out: &mut Vec<f32>,
    ) -> Result<(), NotFinite> {
        out.resize(rows.rows() * self.down.rows(), 0.0);
        let inner = if self.is_quantized() {
            gated(compute, &self.gate, &self.up, rows, Inner::Q8(&mut scratch.blocks))?;
            Activations::Q8(&scratch.blocks)
        } else {
            gated(compute, &self.gate, &self.up, rows, Inner::F32(&mut scratch.floats))?;
            Activations::F32(&scratch.floats)
        };
        matmul(compute, &self.down, inner, out);
        Ok(())
    }
}
