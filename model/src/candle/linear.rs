//! A matrix on a device: as floats, or quantised as it is stored.

use std::borrow::Cow;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use tramontane_kernels::WeightType;

use super::CandleDevice;
use crate::checkpoint::{self, Checkpoint};
use crate::weights::{LoadError, Quantize, matrix_shape, stored};

/// `y = W · x`.
#[derive(Debug)]
pub(super) enum Linear {
    /// Output width × input width.
    Float(Tensor),
    /// The same, in ggml's blocks.
    Quantized(QTensor),
}

/// In which precision a float matrix is held.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    /// As it is stored, where the device multiplies that: products are rounded to it.
    Stored,
    /// f32: for what decides between experts.
    Full,
}

impl Linear {
    /// Uploads a 2-dimensional tensor, converted if asked, and gives its mapped bytes back.
    pub(super) fn load(
        on: &CandleDevice,
        checkpoint: &Checkpoint,
        tensor: &checkpoint::Tensor<'_>,
        quantize: Quantize,
        precision: Precision,
    ) -> std::result::Result<Self, LoadError> {
        checkpoint.prefetch(tensor.data, tensor.name);
        tensor.check_finite()?;
        let (rows, width) = matrix_shape(tensor)?;
        let (ty, data) = stored(tensor, rows, width, quantize)?;
        let uploaded = match quantized(ty) {
            Some(ty) if precision == Precision::Stored => {
                qtensor_from_ggml(ty, &aligned(&data), vec![rows, width], &on.device).map(Self::Quantized)
            }
            _ => float(&on.device, ty, &data, [rows, width], precision).map(Self::Float),
        };
        checkpoint.release(tensor.data, tensor.name);
        uploaded.map_err(|error| on.failed(tensor.name, &error))
    }

    /// For each row of `x` (rows × input width, f32) the product (rows × output width, f32).
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Float(weight) => x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32),
            Self::Quantized(weight) => x.apply_op1_no_bwd(weight),
        }
    }

    /// Bytes on the device, to within padding.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Float(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Self::Quantized(weight) => weight.storage_size_in_bytes(),
        }
    }
}

/// What candle calls a quantised type.
fn quantized(ty: WeightType) -> Option<GgmlDType> {
    match ty {
        WeightType::F32 | WeightType::Bf16 | WeightType::F16 => None,
        WeightType::Q8_0 => Some(GgmlDType::Q8_0),
        WeightType::Q4_0 => Some(GgmlDType::Q4_0),
        WeightType::Q4_1 => Some(GgmlDType::Q4_1),
        WeightType::Q5_0 => Some(GgmlDType::Q5_0),
        WeightType::Q5_1 => Some(GgmlDType::Q5_1),
        WeightType::Q4K => Some(GgmlDType::Q4K),
        WeightType::Q5K => Some(GgmlDType::Q5K),
        WeightType::Q6K => Some(GgmlDType::Q6K),
    }
}

/// `data` at an even address: candle reads blocks where they stand, and a checkpoint's tensors begin anywhere.
fn aligned(data: &[u8]) -> Cow<'_, [u8]> {
    if data.as_ptr().addr().is_multiple_of(align_of::<u16>()) { Cow::Borrowed(data) } else { Cow::Owned(data.to_vec()) }
}

fn float(
    device: &Device,
    ty: WeightType,
    data: &[u8],
    [rows, width]: [usize; 2],
    precision: Precision,
) -> Result<Tensor> {
    let dtype = match ty {
        WeightType::F32 => DType::F32,
        WeightType::Bf16 => DType::BF16,
        WeightType::F16 => DType::F16,
        _ => return Tensor::from_vec(decoded(ty, data, rows, width), (rows, width), device),
    };
    let weight = Tensor::from_raw_buffer(data, dtype, &[rows, width], device)?;
    // On the CPU candle multiplies no bf16, and f16 with less precision.
    if precision == Precision::Full || device.is_cpu() { weight.to_dtype(DType::F32) } else { Ok(weight) }
}

fn decoded(ty: WeightType, data: &[u8], rows: usize, width: usize) -> Vec<f32> {
    let mut values = vec![0.0; rows * width];
    let stored = data.chunks_exact(data.len() / rows);
    stored.zip(values.chunks_exact_mut(width)).for_each(|(stored, values)| ty.decode_row(stored, values));
    values
}
