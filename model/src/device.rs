//! Where a model is computed.

use std::fmt;
use std::str::FromStr;

use crate::candle::CandleDevice;

/// What a device is called on the command line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// `cpu`: this machine's cores, by the numeric contract.
    #[default]
    Cpu,
    /// `candle-cpu`: candle's tensors on this machine's cores; slow, and the same code that a GPU runs.
    CandleCpu,
    /// `cuda:N`: candle's tensors on the Nth GPU.
    Cuda(usize),
}

/// A device, opened. Copies share it.
#[derive(Clone, Debug, Default)]
pub enum Device {
    /// This machine's cores.
    #[default]
    Cpu,
    /// A device of candle's.
    Candle(CandleDevice),
}

/// Why there is no such device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Take a binary that has it.
    #[error("--device {device}: this binary was built without the feature {feature}")]
    NotBuilt {
        /// The device.
        device: DeviceName,
        /// What would bring it.
        feature: &'static str,
    },
    /// Look at the machine.
    #[error("--device {device}: {why}")]
    Unavailable {
        /// The device.
        device: DeviceName,
        /// What its library says.
        why: String,
    },
}

impl Device {
    /// Opens the device `name`.
    ///
    /// # Errors
    /// [`DeviceError`] when this build or this machine has none.
    pub fn open(name: DeviceName) -> Result<Self, DeviceError> {
        match name {
            DeviceName::Cpu => Ok(Self::Cpu),
            other => CandleDevice::open(other).map(Self::Candle),
        }
    }

    /// What a numeric profile calls its arithmetic.
    pub fn arithmetic(&self) -> &'static str {
        match self {
            Self::Cpu => DeviceName::Cpu.arithmetic(),
            Self::Candle(device) => device.name().arithmetic(),
        }
    }

    /// Bytes that are free on it now; `None` where weights stand in the machine's own memory.
    pub fn free_bytes(&self) -> Option<u64> {
        match self {
            Self::Cpu => None,
            Self::Candle(device) => device.free_bytes(),
        }
    }
}

impl DeviceName {
    /// What a numeric profile calls the arithmetic done on it.
    pub const fn arithmetic(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CandleCpu => "candle-cpu",
            Self::Cuda(_) => "candle-cuda",
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            other => f.write_str(other.arithmetic()),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ordinal = |text: &str| text.parse().map_err(|_| format!("not the number of a GPU: {text}"));
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "candle-cpu" => Ok(Self::CandleCpu),
            None if text == "cuda" => Ok(Self::Cuda(0)),
            Some(("cuda", number)) => ordinal(number).map(Self::Cuda),
            _ => Err(format!("not a device: {text}; there are cpu, candle-cpu and cuda:N")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_is_written() {
        for name in [DeviceName::Cpu, DeviceName::CandleCpu, DeviceName::Cuda(0), DeviceName::Cuda(7)] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CPU"] {
            wrong.parse::<DeviceName>().unwrap_err();
        }
    }
}
