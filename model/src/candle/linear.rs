//! A matrix on a device: as floats, or quantised as it is stored.

use std::borrow::Cow;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};
use tramontane_kernels::WeightType;

use super::CandleDevice;
use crate::checkpoint::{self, Checkpoint};
use crate::weights::{LoadError, Quantize, matrix_shape, stored};

/// `y = W · x`, for one matrix or for several whose results stand side by side. Neighbours of one type are one matrix: a launch is as dear
/// as a few rows.
#[derive(Debug)]
pub(super) struct Linear {
    parts: Vec<Part>,
}

#[derive(Debug)]
enum Part {
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

/// A matrix as it is uploaded.
struct Stored<'a> {
    ty: WeightType,
    rows: usize,
    width: usize,
    data: Cow<'a, [u8]>,
}

impl Linear {
    /// Uploads 2-dimensional tensors of one input width, converted if asked, and gives their mapped bytes back.
    pub(super) fn load<const N: usize>(
        on: &CandleDevice,
        checkpoint: &Checkpoint,
        tensors: [&checkpoint::Tensor<'_>; N],
        quantize: Quantize,
        precision: Precision,
    ) -> std::result::Result<Self, LoadError> {
        let mut parts: Vec<Stored<'_>> = Vec::new();
        for tensor in tensors {
            checkpoint.prefetch(tensor.data, tensor.name);
            tensor.check_finite()?;
            let (rows, width) = matrix_shape(tensor)?;
            let (ty, data) = stored(tensor, rows, width, quantize)?;
            match parts.last_mut().filter(|last| last.ty == ty && last.width == width) {
                Some(last) => {
                    last.rows += rows;
                    last.data.to_mut().extend_from_slice(&data);
                }
                None => parts.push(Stored { ty, rows, width, data }),
            }
        }
        let name = tensors.first().map_or("", |tensor| tensor.name);
        let uploaded = parts.iter().map(|part| part.upload(&on.device, precision)).collect::<Result<_>>();
        tensors.iter().for_each(|tensor| checkpoint.release(tensor.data, tensor.name));
        Ok(Self { parts: uploaded.map_err(|error| on.failed(name, &error))? })
    }

    /// For each row of `x` (rows × input width, f32) the products (rows × all output widths, f32).
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match &self.parts[..] {
            [only] => only.forward(x),
            parts => Tensor::cat(&parts.iter().map(|part| part.forward(x)).collect::<Result<Vec<_>>>()?, 1),
        }
    }

    /// Bytes on the device, to within padding.
    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }
}

impl Stored<'_> {
    fn upload(&self, device: &Device, precision: Precision) -> Result<Part> {
        match quantized(self.ty) {
            Some(ty) if precision == Precision::Stored => {
                qtensor_from_ggml(ty, &aligned(&self.data), vec![self.rows, self.width], device).map(Part::Quantized)
            }
            _ => self.floats(device, precision).map(Part::Float),
        }
    }

    fn floats(&self, device: &Device, precision: Precision) -> Result<Tensor> {
        let shape = [self.rows, self.width];
        let dtype = match self.ty {
            WeightType::F32 => DType::F32,
            WeightType::Bf16 => DType::BF16,
            WeightType::F16 => DType::F16,
            _ => return Tensor::from_vec(self.decoded(), &shape[..], device),
        };
        let weight = Tensor::from_raw_buffer(&self.data, dtype, &shape, device)?;
        // On the CPU candle multiplies no bf16, and f16 with less precision.
        if precision == Precision::Full || device.is_cpu() { weight.to_dtype(DType::F32) } else { Ok(weight) }
    }

    fn decoded(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.rows * self.width];
        let stored = self.data.chunks_exact(self.data.len() / self.rows);
        stored.zip(values.chunks_exact_mut(self.width)).for_each(|(stored, row)| self.ty.decode_row(stored, row));
        values
    }
}

impl Part {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Float(weight) => x.to_dtype(weight.dtype())?.matmul(&weight.t()?)?.to_dtype(DType::F32),
            Self::Quantized(weight) => x.apply_op1_no_bwd(weight),
        }
    }

    fn bytes(&self) -> usize {
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
