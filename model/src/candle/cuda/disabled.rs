//! Without the feature `cuda`: no GPU.

use candle_core::Device;

use crate::device::{DeviceError, DeviceName};

pub(super) fn open(device: DeviceName, _ordinal: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device, feature: "cuda" })
}

pub(super) fn free_bytes(_: &Device) -> Option<u64> {
    None
}
