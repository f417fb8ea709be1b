//! GPUs through CUDA.

use candle_core::Device;

use crate::device::{DeviceError, DeviceName};

/// Opens GPU `ordinal`.
pub(super) fn open(device: DeviceName, ordinal: usize) -> Result<Device, DeviceError> {
    Device::new_cuda(ordinal).map_err(|error| DeviceError::Unavailable { device, why: error.to_string() })
}

/// What the GPU's memory has left, for this process and all others on it.
pub(super) fn free_bytes(device: &Device) -> Option<u64> {
    let Device::Cuda(cuda) = device else { return None };
    cuda.cuda_stream().context().mem_get_info().ok().map(|(free, _)| free as u64)
}
