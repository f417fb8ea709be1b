//! One expert's feed-forward network: `w2 · (silu(w1 · x) × (w3 · x))`.

use tramontane_kernels::{Activations, Compute, NotFinite, PackedMatrix, Q8Buf, matmul, swiglu};

use crate::checkpoint::{Checkpoint, ExpertTensors};
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
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Q8Buf,
}

impl Expert {
    /// Maps and packs expert `expert` of layer `layer`; no other expert's bytes are touched.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        layer: usize,
        expert: usize,
        quantize: Quantize,
    ) -> Result<Self, LoadError> {
        let ExpertTensors { w1, w2, w3 } = checkpoint.expert(config, layer, expert)?;
        // The disk is at work on the others while the first is packed.
        [&w1, &w3, &w2].into_iter().for_each(|tensor| checkpoint.prefetch(tensor.data, tensor.name));
        let matrix = |tensor| pack(checkpoint, tensor, quantize);
        Ok(Self { gate: matrix(&w1)?, up: matrix(&w3)?, down: matrix(&w2)? })
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
        let count = match rows {
            Activations::F32(x) => x.len() / self.gate.width(),
            Activations::Q8(x) => x.rows(),
        };
        let inner = self.gate.rows();
        scratch.gate.resize(count * inner, 0.0);
        scratch.up.resize(count * inner, 0.0);
        out.resize(count * self.down.rows(), 0.0);
        matmul(compute, &self.gate, rows, &mut scratch.gate);
        matmul(compute, &self.up, rows, &mut scratch.up);
        swiglu(compute.isa, &mut scratch.gate, &scratch.up);
        let inner = if self.down.ty().is_quantized() {
            scratch.inner.quantize(compute.isa, &scratch.gate, inner)?;
            Activations::Q8(&scratch.inner)
        } else {
            Activations::F32(&scratch.gate)
        };
        matmul(compute, &self.down, inner, out);
        Ok(())
    }
}
