//! Without the feature `candle`: no such device can be opened.

use std::sync::Arc;

use tramontane_kernels::KvType;

use crate::checkpoint::{Checkpoint, ExpertTensors};
use crate::config::ModelConfig;
use crate::decoder::DecoderBackend;
use crate::device::{DeviceError, DeviceName};
use crate::expert::{ExpertError, ExpertRun};
use crate::weights::{LoadError, Quantize};

/// A device of candle's: none in this build.
#[derive(Clone, Debug)]
pub enum CandleDevice {}

/// An expert on such a device: none in this build.
#[derive(Debug)]
pub enum CandleExpert {}

impl CandleDevice {
    /// # Errors
    /// Always [`DeviceError::NotBuilt`].
    pub fn open(device: DeviceName) -> Result<Self, DeviceError> {
        let feature = if matches!(device, DeviceName::Cuda(_)) { "cuda" } else { "candle" };
        Err(DeviceError::NotBuilt { device, feature })
    }

    pub(crate) fn name(&self) -> DeviceName {
        match *self {}
    }

    pub(crate) fn free_bytes(&self) -> Option<u64> {
        match *self {}
    }

    pub(crate) fn expert(&self, _: &Checkpoint, _: &ExpertTensors<'_>, _: Quantize) -> Result<CandleExpert, LoadError> {
        match *self {}
    }

    pub(crate) fn forward<'a, 'b: 'a>(
        &self,
        _: impl Iterator<Item = (&'a CandleExpert, &'a mut ExpertRun<'b>)>,
    ) -> Vec<Result<(), ExpertError>> {
        match *self {}
    }

    pub(crate) fn decoder(
        &self,
        _: Arc<Checkpoint>,
        _: &ModelConfig,
        _: KvType,
        _: usize,
    ) -> Result<Box<dyn DecoderBackend>, LoadError> {
        match *self {}
    }
}

impl CandleExpert {
    pub(crate) fn bytes(&self) -> usize {
        match *self {}
    }
}
