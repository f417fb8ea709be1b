//! One expert's feed-forward network, `w2 · (silu(w1 · x) × (w3 · x))`, on whichever device.

mod cpu;

use std::sync::Arc;

use tramontane_kernels::{Compute, NotFinite};

use self::cpu::CpuBuffers;
pub use self::cpu::CpuExpert;
use crate::cache::PackedCache;
use crate::candle::{CandleDevice, CandleExpert};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::device::Device;
use crate::weights::{LoadError, Packing, Quantize};

/// What holds and computes experts.
#[derive(Clone, Debug)]
pub enum ExpertBackend {
    /// This machine's cores, by the numeric contract.
    Cpu {
        /// The threads and their instruction set.
        compute: Compute,
        /// How weights are made ready.
        packing: Packing,
    },
    /// A device of candle's.
    Candle(CandleDevice),
}

/// An expert, ready to compute on the backend that loaded it.
#[derive(Debug)]
pub struct Expert {
    quantized: bool,
    held: Held,
}

#[derive(Debug)]
enum Held {
    Cpu(CpuExpert),
    Candle(CandleExpert),
}

/// What a caller has mixed up.
const ELSEWHERE: &str = "the expert was loaded by another backend";

/// What one expert is to compute.
pub struct ExpertRun<'a> {
    /// The expert.
    pub expert: &'a Expert,
    /// Its rows, of the model's hidden width, as they came: f32, little endian, for a float expert, else int8 blocks.
    pub rows: Vec<&'a [u8]>,
    /// Where it computes, and where its result goes.
    pub workspace: &'a mut Workspace,
}

/// One expert's buffers, kept from call to call.
#[derive(Debug, Default)]
pub struct Workspace {
    cpu: CpuBuffers,
    /// The result, rows × hidden.
    pub out: Vec<f32>,
}

/// Why an expert's result means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpertError {
    /// Compute again without the row.
    #[error("row {row}: the inner activation is not finite")]
    NotFinite {
        /// The row.
        row: usize,
    },
    /// Have it computed elsewhere.
    #[error("the device failed: {why}")]
    Device {
        /// What it said.
        why: String,
    },
}

impl From<NotFinite> for ExpertError {
    fn from(NotFinite { row }: NotFinite) -> Self {
        Self::NotFinite { row }
    }
}

impl ExpertBackend {
    /// The backend of `device`; `compute` and `cache` are for this machine's cores.
    pub fn new(device: Device, compute: Compute, cache: Option<Arc<PackedCache>>) -> Self {
        match device {
            Device::Cpu => Self::Cpu { packing: Packing { pool: compute.pool.clone(), cache }, compute },
            Device::Candle(device) => Self::Candle(device),
        }
    }

    /// This machine's cores, without a cache.
    pub fn cpu(compute: Compute) -> Self {
        Self::new(Device::Cpu, compute, None)
    }

    /// Maps expert `expert` of layer `layer` and makes it ready; no other expert's bytes are touched.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor, or says what the device did.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        layer: usize,
        expert: usize,
        quantize: Quantize,
    ) -> Result<Expert, LoadError> {
        let tensors = checkpoint.expert(config, layer, expert)?;
        let [quantized, up, down] =
            [&tensors.w1, &tensors.w3, &tensors.w2].map(|t| quantize.held_as(t.ty).is_quantized());
        if up != quantized || down != quantized {
            return Err(LoadError::MixedExperts);
        }
        let held = match self {
            Self::Cpu { packing, .. } => Held::Cpu(CpuExpert::load(packing, checkpoint, tensors, quantize)?),
            Self::Candle(device) => device.expert(checkpoint, &tensors, quantize).map(Held::Candle)?,
        };
        Ok(Expert { quantized, held })
    }

    /// Computes several experts together. For each the outcome:
    ///
    /// # Errors
    /// [`ExpertError`]; a float expert lets a row that is not finite through to its answer, where the coordinator finds it.
    ///
    /// # Panics
    /// When an expert was loaded by another backend, or a row has another length than its rows have.
    pub fn forward(&self, runs: &mut [ExpertRun<'_>]) -> Vec<Result<(), ExpertError>> {
        match self {
            Self::Cpu { compute, .. } => {
                let own = runs.iter_mut().map(|run| (run.expert.on_cpu(), run));
                cpu::forward(compute, own).into_iter().map(|outcome| outcome.map_err(ExpertError::from)).collect()
            }
            Self::Candle(device) => {
                let own = runs.iter_mut().map(|run| (run.expert.on_candle(), run));
                device.forward(own)
            }
        }
    }
}

impl Expert {
    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match &self.held {
            Held::Cpu(expert) => expert.bytes(),
            Held::Candle(expert) => expert.bytes(),
        }
    }

    /// Whether it takes its rows as int8 blocks (and answers in bf16) or as f32.
    pub const fn is_quantized(&self) -> bool {
        self.quantized
    }

    fn on_cpu(&self) -> &CpuExpert {
        match &self.held {
            Held::Cpu(expert) => expert,
            Held::Candle(_) => panic!("{ELSEWHERE}"),
        }
    }

    fn on_candle(&self) -> &CandleExpert {
        match &self.held {
            Held::Candle(expert) => expert,
            Held::Cpu(_) => panic!("{ELSEWHERE}"),
        }
    }
}
