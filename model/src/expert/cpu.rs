//! An expert on this machine's cores, by the numeric contract.

use tramontane_kernels::{
    Activations, Compute, F32Buf, Gated, Inner, Isa, NotFinite, PackedMatrix, Product, Q8Buf, gated_all, matmul_all,
};

use super::ExpertRun;
use crate::checkpoint::{Checkpoint, ExpertTensors};
use crate::weights::{LoadError, Packing, Quantize, pack};

/// An expert's three matrices, packed in panels.
#[derive(Debug)]
pub struct CpuExpert {
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
}

/// Buffers of one expert's computation, kept from call to call: its rows and its inner activation, in the form that it takes.
#[derive(Debug, Default)]
pub(super) struct CpuBuffers {
    floats: F32Buf,
    blocks: Q8Buf,
    inner_floats: F32Buf,
    inner_blocks: Q8Buf,
}

impl CpuExpert {
    /// Maps the expert's matrices and packs them; no other expert's bytes are touched.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor.
    pub(super) fn load(
        packing: &Packing,
        checkpoint: &Checkpoint,
        tensors: ExpertTensors<'_>,
        quantize: Quantize,
    ) -> Result<Self, LoadError> {
        let ExpertTensors { w1, w2, w3 } = tensors;
        let matrix = |tensor| pack(packing, checkpoint, tensor, quantize);
        Ok(Self { gate: matrix(&w1)?, up: matrix(&w3)?, down: matrix(&w2)? })
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.gate.bytes() + self.up.bytes() + self.down.bytes()
    }
}

/// One expert's work, with its rows taken in.
struct Run<'a> {
    expert: &'a CpuExpert,
    rows: Activations<'a>,
    floats: &'a mut F32Buf,
    blocks: &'a mut Q8Buf,
    out: &'a mut Vec<f32>,
}

impl<'a> Run<'a> {
    fn new(isa: Isa, expert: &'a CpuExpert, run: &'a mut ExpertRun<'_>) -> Self {
        let CpuBuffers { floats, blocks, inner_floats, inner_blocks } = &mut run.workspace.cpu;
        let (width, stored) = (expert.gate.width(), run.rows.iter().copied());
        let rows = if expert.gate.ty().is_quantized() {
            blocks.receive(isa, width, stored);
            Activations::Q8(blocks)
        } else {
            floats.receive(width, stored);
            Activations::F32(floats)
        };
        Self { expert, rows, floats: inner_floats, blocks: inner_blocks, out: &mut run.workspace.out }
    }
}

/// Computes several experts together: what one leaves of the threads' time the next one takes. For each the outcome:
///
/// # Errors
/// [`NotFinite`] when the inner activation of a row is not, and the expert's weights are quantised; its result means nothing then. A
/// float expert lets it through to its answer, where the coordinator finds it.
///
/// # Panics
/// When a row has another length than the expert's are.
pub(super) fn forward<'a, 'b: 'a>(
    compute: &Compute,
    runs: impl Iterator<Item = (&'a CpuExpert, &'a mut ExpertRun<'b>)>,
) -> Vec<Result<(), NotFinite>> {
    let mut runs: Vec<Run<'_>> = runs.map(|(expert, run)| Run::new(compute.isa, expert, run)).collect();
    let mut halves: Vec<Gated<'_>> = runs
        .iter_mut()
        .map(|run| {
            let inner = match run.rows {
                Activations::Q8(_) => Inner::Q8(&mut *run.blocks),
                Activations::F32(_) => Inner::F32(&mut *run.floats),
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
                Activations::Q8(_) => Activations::Q8(&*run.blocks),
                Activations::F32(_) => Activations::F32(&*run.floats),
            };
            Product::new(down, inner, run.out)
        })
        .collect();
    matmul_all(compute, &mut products);
    outcomes
}
