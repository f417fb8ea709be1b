//! The model's two halves in candle-core tensors: on a GPU, or on this machine's cores to try what a GPU would run.
//!
//! Results are those of candle's kernels: close to the numeric contract's, and not equal to them. They may also depend on which rows are computed
//! together. So this is a numeric profile of its own, in which nothing is compared bit by bit.

#[cfg_attr(feature = "cuda", path = "cuda/enabled.rs")]
#[cfg_attr(not(feature = "cuda"), path = "cuda/disabled.rs")]
mod cuda;
mod decoder;
mod expert;
mod layer;
mod linear;
mod paging;

use std::sync::Arc;

use candle_core::Device;
use tramontane_kernels::KvType;

pub use self::expert::CandleExpert;
use crate::checkpoint::{Checkpoint, ExpertTensors};
use crate::config::ModelConfig;
use crate::decoder::DecoderBackend;
use crate::device::{DeviceError, DeviceName};
use crate::expert::{ExpertError, ExpertRun};
use crate::weights::{LoadError, Quantize};

/// A device of candle's. Copies share it.
#[derive(Clone, Debug)]
pub struct CandleDevice {
    name: DeviceName,
    device: Device,
}

impl CandleDevice {
    /// Opens the device `name`.
    ///
    /// # Errors
    /// [`DeviceError`] when this build or this machine has none, or candle has nothing to do with it.
    pub fn open(name: DeviceName) -> Result<Self, DeviceError> {
        let device = match name {
            DeviceName::Cpu | DeviceName::CandleCpu => Device::Cpu,
            DeviceName::Cuda(ordinal) => cuda::open(name, ordinal)?,
        };
        Ok(Self { name, device })
    }

    pub(crate) const fn name(&self) -> DeviceName {
        self.name
    }

    /// Bytes that are free on it now; `None` where it has no memory of its own.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        cuda::free_bytes(&self.device)
    }

    /// Uploads an expert.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor, or says what the device did.
    pub(crate) fn expert(
        &self,
        checkpoint: &Checkpoint,
        tensors: &ExpertTensors<'_>,
        quantize: Quantize,
    ) -> Result<CandleExpert, LoadError> {
        CandleExpert::load(self, checkpoint, tensors, quantize)
    }

    /// Computes each expert on its rows.
    pub(crate) fn forward<'a, 'b: 'a>(
        &self,
        runs: impl Iterator<Item = (&'a CandleExpert, &'a mut ExpertRun<'b>)>,
    ) -> Vec<Result<(), ExpertError>> {
        expert::forward(self, runs)
    }

    /// Uploads the attention half, with room for `kv_blocks` blocks of keys and values.
    ///
    /// # Errors
    /// [`LoadError`] names the file and tensor, or says what the device did.
    pub(crate) fn decoder(
        &self,
        checkpoint: Arc<Checkpoint>,
        config: &ModelConfig,
        kv: KvType,
        kv_blocks: usize,
    ) -> Result<Box<dyn DecoderBackend>, LoadError> {
        Ok(Box::new(decoder::CandleDecoder::load(self, checkpoint, config, kv, kv_blocks)?))
    }

    /// That the device failed at `what`.
    fn failed(&self, what: &str, error: &candle_core::Error) -> LoadError {
        LoadError::Device { device: self.name, what: what.to_owned(), why: error.to_string() }
    }
}
