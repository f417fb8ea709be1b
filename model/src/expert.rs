//! One expert's feed-forward network: `w2 · (silu(w1 · x) × (w3 · x))`.

use tramontane_kernels::{
    Activations, Compute, F32Buf, Gated, Inner, NotFinite, PackedMatrix, Product, Q8Buf, gated_all, matmul_all,
};

use crate::checkpoint::{Checkpoint, ExpertTensors};
use crate::config::ModelConfig;
use crate::weights::{LoadError, Packing, Quantize, pack};

/// An expert's three matrices, ready to multiply.
#[derive(Debug)]
pub struct Expert {
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
}

/// What one expert is to compute: rows of the model's hidden width, and where their results go.
pub struct ExpertRun<'a> {
    /// The expert.
    pub expert: &'a Expert,
    /// Its rows, in the form it takes.
    pub rows: Activations<'a>,
    /// Buffers.
    pub scratch: &'a mut ExpertScratch,
    /// The result, rows × hidden, made to fit.
    pub out: &'a mut Vec<f32>,
}

/// Buffers of [`forward_all`], one for each expert of a call, kept from call to call.
#[derive(Debug, Default)]
pub struct ExpertScratch {
    floats: F32Buf,
    blocks: Q8Buf,
}

impl Expert {
    /// Maps expert `expert` of layer `layer` and packs it; no other expert's bytes are touched.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor.
    pub fn load(
        packing: &Packing,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        layer: usize,
        expert: usize,
        quantize: Quantize,
    ) -> Result<Self, LoadError> {
        let ExpertTensors { w1, w2, w3 } = checkpoint.expert(config, layer, expert)?;
        let quantized = [&w1, &w3, &w2].map(|tensor| quantize.held_as(tensor.ty).is_quantized());
        if quantized.iter().any(|q| *q != quantized[0]) {
            return Err(LoadError::MixedExperts);
        }
        let matrix = |tensor| pack(packing, checkpoint, tensor, quantize);
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
}

/// Computes several experts together: what one leaves of the threads' time the next one takes. For each the outcome:
///
/// # Errors
/// [`NotFinite`] when the inner activation of a row is not, and the expert's weights are quantised; its result means nothing then. A
/// float expert lets it through to its answer, where the coordinator finds it.
///
/// # Panics
/// When the kind or shape of an expert's rows is not its own.
pub fn forward_all(compute: &Compute, runs: &mut [ExpertRun<'_>]) -> Vec<Result<(), NotFinite>> {
    let mut halves: Vec<Gated<'_>> = runs
        .iter_mut()
        .map(|run| {
            let inner = match run.rows {
                Activations::Q8(_) => Inner::Q8(&mut run.scratch.blocks),
                Activations::F32(_) => Inner::F32(&mut run.scratch.floats),
            };
            Gated::new(&run.expert.gate, &run.expert.up, run.rows, inner)
        })
        .collect();
    gated_all(compute, &mut halves);
    let outcomes: Vec<_> = halves.iter().map(Gated::finite).collect();
    let finite = runs.iter_mut().zip(&outcomes).filter(|(_, outcome)| outcome.is_ok());
    let mut products: Vec<Product<'_>> = finite
        .map(|(run, _)| {
            let down = &run.expert.down;
            run.out.resize(run.rows.rows() * down.rows(), 0.0);
            let inner = match run.rows {
                Activations::Q8(_) => Activations::Q8(&run.scratch.blocks),
                Activations::F32(_) => Activations::F32(&run.scratch.floats),
            };
            Product::new(down, inner, run.out)
        })
        .collect();
    matmul_all(compute, &mut products);
    outcomes
}
