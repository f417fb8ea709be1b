//! From a tensor in a checkpoint to a matrix that kernels can multiply with.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use tramontane_kernels::{PackError, PackedMatrix, Pool, Unquantizable, WeightType, quantize_row};

use crate::cache::PackedCache;
use crate::checkpoint::{Checkpoint, CheckpointError, Tensor};
use crate::config::ModelConfig;
use crate::device::DeviceName;

/// Why weights could not be made ready. The file is at fault: nothing that the caller does with the same file will help.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The checkpoint is damaged or not the model's.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A weight cannot be stored in the type asked for.
    #[error("{file}: tensor {tensor}, row {row}: {source}")]
    Quantize {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its row.
        row: usize,
        /// What is wrong.
        source: Unquantizable,
    },
    /// A matrix whose width or size does not go with its type.
    #[error("{file}: tensor {tensor}: {source}")]
    Pack {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// What is wrong.
        source: PackError,
    },
    /// Quantise the rest too (`--quantize`): a row is encoded once for all experts.
    #[error("some experts are quantised and some are not")]
    MixedExperts,
    /// There is no room on the device, or it is broken.
    #[error("{device}, {what}: {why}")]
    Device {
        /// The device.
        device: DeviceName,
        /// What was uploaded.
        what: String,
        /// What its library says.
        why: String,
    },
}

/// In which type expert weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantize {
    /// As the checkpoint stores them.
    #[default]
    AsStored,
    /// Converted to Q8_0 at load.
    Q8_0,
    /// Converted to Q4_0 at load.
    Q4_0,
}

impl Quantize {
    fn target(self) -> Option<WeightType> {
        match self {
            Self::AsStored => None,
            Self::Q8_0 => Some(WeightType::Q8_0),
            Self::Q4_0 => Some(WeightType::Q4_0),
        }
    }

    /// The type in which a weight stored as `stored` is held.
    pub fn held_as(self, stored: WeightType) -> WeightType {
        self.target().unwrap_or(stored)
    }
}

/// How all experts of a model take their rows, and what a profile calls their type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertTypes {
    /// Whether rows go to them as int8 blocks.
    pub quantized: bool,
    /// The name of the type, `mixed` where there are several.
    pub name: String,
}

impl ExpertTypes {
    /// Reads the types of all experts from the headers; no weights are touched.
    ///
    /// # Errors
    /// [`LoadError`] when a tensor is missing or wrong, or some experts are quantised and some are not: a row could not be
    /// encoded once for all of them.
    pub fn of(checkpoint: &Checkpoint, config: &ModelConfig, quantize: Quantize) -> Result<Self, LoadError> {
        let mut types = BTreeSet::new();
        for (layer, expert) in (0..config.layers).flat_map(|l| (0..config.experts).map(move |e| (l, e))) {
            let tensors = checkpoint.expert(config, layer, expert)?;
            types.extend([tensors.w1, tensors.w2, tensors.w3].map(|t| quantize.held_as(t.ty)));
        }
        let quantized = types.iter().any(|ty| ty.is_quantized());
        if types.iter().any(|ty| ty.is_quantized() != quantized) {
            return Err(LoadError::MixedExperts);
        }
        let name = match types.first() {
            Some(ty) if types.len() == 1 => ty.name(),
            _ => "mixed",
        };
        Ok(Self { quantized, name: name.to_owned() })
    }
}

/// How weights are made ready.
#[derive(Clone, Debug)]
pub struct Packing {
    /// The threads that do it.
    pub pool: Arc<Pool>,
    /// Where packed weights are kept, if they are.
    pub cache: Option<Arc<PackedCache>>,
}

impl Packing {
    /// On the calling thread, without a cache.
    pub fn on_one_thread() -> Self {
        Self { pool: Arc::new(Pool::new(1)), cache: None }
    }
}

/// A 2-dimensional tensor of `checkpoint`, or a part of one, packed, converted if asked: out of the cache, or checked for NaN and
/// infinities and made. Its mapped bytes are given back: what is packed is a copy, and a process that kept both would take twice the
/// memory.
///
/// # Errors
/// [`LoadError`] names file, tensor and element.
pub fn pack(
    packing: &Packing,
    checkpoint: &Checkpoint,
    tensor: &Tensor<'_>,
    quantize: Quantize,
) -> Result<PackedMatrix, LoadError> {
    let make = || {
        checkpoint.prefetch(tensor.data, tensor.name);
        let packed = make(&packing.pool, tensor, quantize);
        checkpoint.release(tensor.data, tensor.name);
        packed
    };
    match &packing.cache {
        Some(cache) => cache.matrix(tensor, quantize.held_as(tensor.ty), make),
        None => make(),
    }
}

fn make(pool: &Pool, tensor: &Tensor<'_>, quantize: Quantize) -> Result<PackedMatrix, LoadError> {
    tensor.check_finite()?;
    let (rows, width) = matrix_shape(tensor)?;
    let (ty, data) = stored(tensor, rows, width, quantize)?;
    PackedMatrix::pack(pool, ty, rows, width, &data).map_err(|source| pack_error(tensor, source))
}

/// The rows and the width of a 2-dimensional tensor.
///
/// # Errors
/// [`CheckpointError::WrongShape`] when it is another.
pub(crate) fn matrix_shape(tensor: &Tensor<'_>) -> Result<(usize, usize), LoadError> {
    let &[rows, width] = tensor.shape else {
        return Err(CheckpointError::WrongShape {
            file: tensor.file.into(),
            tensor: tensor.name.into(),
            expected: vec![0, 0],
            found: tensor.shape.to_vec(),
        }
        .into());
    };
    Ok((rows, width))
}

/// The rows of `tensor` in the type in which it is held, as a checkpoint stores them.
///
/// # Errors
/// [`LoadError`] names the row that cannot be converted.
pub(crate) fn stored<'a>(
    tensor: &Tensor<'a>,
    rows: usize,
    width: usize,
    quantize: Quantize,
) -> Result<(WeightType, Cow<'a, [u8]>), LoadError> {
    let Some(ty) = quantize.target().filter(|&ty| ty != tensor.ty) else {
        return Ok((tensor.ty, Cow::Borrowed(tensor.data)));
    };
    let row_bytes = ty.row_bytes(width).ok_or_else(|| pack_error(tensor, PackError::Width { ty, width }))?;
    let mut stored = Vec::with_capacity(rows * row_bytes);
    let mut values = vec![0.0; width];
    for (row, bytes) in tensor.data.chunks_exact(tensor.data.len() / rows).enumerate() {
        tensor.ty.decode_row(bytes, &mut values);
        quantize_row(ty, &values, &mut stored).map_err(|source| LoadError::Quantize {
            file: tensor.file.into(),
            tensor: tensor.name.into(),
            row,
            source,
        })?;
    }
    Ok((ty, Cow::Owned(stored)))
}

fn pack_error(tensor: &Tensor<'_>, source: PackError) -> LoadError {
    LoadError::Pack { file: tensor.file.into(), tensor: tensor.name.into(), source }
}

/// A 1-dimensional tensor of `checkpoint` as f32.
///
/// # Errors
/// [`LoadError`] when a value is not finite.
pub fn vector(checkpoint: &Checkpoint, tensor: &Tensor<'_>) -> Result<Vec<f32>, LoadError> {
    checkpoint.prefetch(tensor.data, tensor.name);
    tensor.check_finite()?;
    let mut values = vec![0.0; tensor.shape.iter().product()];
    tensor.ty.decode_row(tensor.data, &mut values);
    checkpoint.release(tensor.data, tensor.name);
    Ok(values)
}
