//! Writes GGUF version 3 as a stream: the header first, then the tensors' data in order, in pieces of any size. Holds nothing
//! in memory but the header, so it writes files of any size to anything that takes bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use tramontane_kernels::WeightType;

use super::MAX_DIMENSIONS;
use super::header::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC};
use super::types::GgmlType;
use super::value::{ARRAY, Array, STRING, Value};

const VERSION: u32 = 3;

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// How its values are stored.
    pub ty: WeightType,
    /// Its dimensions, outermost first (row-major); at most [`MAX_DIMENSIONS`].
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Bytes of its data; `None` when its rows are no whole number of blocks, or the size overflows.
    pub fn bytes(&self) -> Option<u64> {
        let (width, outer) = self.shape.split_last().map_or((1, &[][..]), |(width, outer)| (*width, outer));
        let row = self.ty.row_bytes(width)? as u64;
        outer.iter().try_fold(row, |product, &dim| product.checked_mul(dim as u64))
    }
}

/// Why a file could not be written. But for `Io` the caller is at fault.
#[derive(Debug, thiserror::Error)]
pub enum GgufWriteError {
    /// The system cannot write it.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// `general.alignment` is no power of two of 32 bits.
    #[error("key general.alignment is no power of two")]
    Alignment,
    /// A tensor's rows are no whole number of blocks, or it is too large or has too many dimensions.
    #[error("tensor {tensor}: shape {shape:?} cannot be stored as {ty}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<usize>,
        /// Its type.
        ty: &'static str,
    },
    /// Two tensors have one name.
    #[error("tensor {tensor} stands twice")]
    DuplicateTensor {
        /// The name.
        tensor: String,
    },
    /// Data for another tensor than the one whose turn it is.
    #[error("data of tensor {tensor}, while {missing} bytes of {expected} are still to come")]
    Order {
        /// Whose data came, or "none" at the end of the file.
        tensor: String,
        /// Whose turn it is, or "none" after the last.
        expected: String,
        /// Bytes that it still needs.
        missing: u64,
    },
    /// More data for a tensor than it has.
    #[error("tensor {tensor}: {excess} bytes more than its shape and type make")]
    TooMuch {
        /// The tensor.
        tensor: String,
        /// Bytes over.
        excess: u64,
    },
}

/// A GGUF file that is being written. Buffer `W` where pieces are small.
#[derive(Debug)]
pub struct GgufWriter<W: Write> {
    out: W,
    alignment: u64,
    /// Name and bytes of each tensor.
    tensors: Vec<(String, u64)>,
    /// The tensor whose turn it is.
    current: usize,
    /// Bytes of it that are written.
    written: u64,
}

impl<W: Write> GgufWriter<W> {
    /// Writes the header. The data of `tensors` must follow, in their order. `metadata` says the alignment, if it is not 32.
    ///
    /// # Errors
    /// [`GgufWriteError`]; nothing is written where the caller is at fault.
    pub fn new(mut out: W, metadata: &BTreeMap<String, Value>, tensors: &[TensorInfo]) -> Result<Self, GgufWriteError> {
        let alignment = alignment(metadata)?;
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            put_string(&mut header, key);
            put_value(&mut header, value);
        }
        let (mut offset, mut names, mut sizes) = (0u64, BTreeSet::new(), Vec::with_capacity(tensors.len()));
        for info in tensors {
            let (tensor, shape) = (info.name.clone(), info.shape.clone());
            if !names.insert(&info.name) {
                return Err(GgufWriteError::DuplicateTensor { tensor });
            }
            let bytes = info.bytes().filter(|_| shape.len() as u64 <= MAX_DIMENSIONS);
            let next = bytes.and_then(|bytes| offset.checked_add(bytes)?.checked_next_multiple_of(alignment));
            let (Some(bytes), Some(next)) = (bytes, next) else {
                return Err(GgufWriteError::Shape { tensor, shape, ty: info.ty.name() });
            };
            put_tensor(&mut header, info, offset);
            sizes.push((tensor, bytes));
            offset = next;
        }
        header.resize(header.len().next_multiple_of(alignment as usize), 0);
        out.write_all(&header)?;
        let mut writer = Self { out, alignment, tensors: sizes, current: 0, written: 0 };
        writer.step()?;
        Ok(writer)
    }

    /// Writes the next `bytes` of the tensor `tensor`, whose turn it must be.
    ///
    /// # Errors
    /// [`GgufWriteError::Order`], [`GgufWriteError::TooMuch`], or the system's error.
    pub fn append(&mut self, tensor: &str, bytes: &[u8]) -> Result<(), GgufWriteError> {
        let Some((_, size)) = self.tensors.get(self.current).filter(|(name, _)| name == tensor) else {
            return Err(self.order(tensor));
        };
        let (missing, length) = (size - self.written, bytes.len() as u64);
        if length > missing {
            return Err(GgufWriteError::TooMuch { tensor: tensor.to_owned(), excess: length - missing });
        }
        self.out.write_all(bytes)?;
        self.written += length;
        self.step()
    }

    /// Ends the file, and hands back what it was written to, flushed.
    ///
    /// # Errors
    /// [`GgufWriteError::Order`] when data are missing, or the system's error.
    pub fn finish(mut self) -> Result<W, GgufWriteError> {
        if self.current < self.tensors.len() {
            return Err(self.order("none"));
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// Pads the tensors that are complete (the next may have no bytes at all) and goes on to the first that is not.
    fn step(&mut self) -> Result<(), GgufWriteError> {
        const ZEROS: [u8; 64] = [0; 64];
        while self.tensors.get(self.current).is_some_and(|(_, size)| *size == self.written) {
            let mut padding = self.written.next_multiple_of(self.alignment) - self.written;
            while padding > 0 {
                let piece = padding.min(ZEROS.len() as u64);
                self.out.write_all(&ZEROS[..piece as usize])?;
                padding -= piece;
            }
            self.current += 1;
            self.written = 0;
        }
        Ok(())
    }

    fn order(&self, tensor: &str) -> GgufWriteError {
        let (expected, missing) = match self.tensors.get(self.current) {
            Some((name, size)) => (name.clone(), size - self.written),
            None => ("none".to_owned(), 0),
        };
        GgufWriteError::Order { tensor: tensor.to_owned(), expected, missing }
    }
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, GgufWriteError> {
    let alignment = match metadata.get(ALIGNMENT_KEY) {
        None => Some(DEFAULT_ALIGNMENT),
        Some(Value::Number(number)) => number.as_integer().and_then(|value| u32::try_from(value).ok()),
        Some(_) => None,
    };
    alignment.filter(|value| value.is_power_of_two()).map(u64::from).ok_or(GgufWriteError::Alignment)
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Number(number) => {
            out.extend(number.ty().id().to_le_bytes());
            number.write(out);
        }
        Value::String(text) => {
            out.extend(STRING.to_le_bytes());
            put_string(out, text);
        }
        Value::Array(array) => {
            out.extend(ARRAY.to_le_bytes());
            put_array(out, array);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let mut head = |ty: u32, length: usize| {
        out.extend(ty.to_le_bytes());
        out.extend((length as u64).to_le_bytes());
    };
    match array {
        Array::Numbers { ty, bytes } => {
            head(ty.id(), bytes.len() / ty.bytes());
            out.extend_from_slice(bytes);
        }
        Array::Strings(texts) => {
            head(STRING, texts.len());
            texts.iter().for_each(|text| put_string(out, text));
        }
        Array::Arrays(arrays) => {
            head(ARRAY, arrays.len());
            arrays.iter().for_each(|array| put_array(out, array));
        }
    }
}

fn put_tensor(out: &mut Vec<u8>, info: &TensorInfo, offset: u64) {
    put_string(out, &info.name);
    out.extend((info.shape.len() as u32).to_le_bytes());
    for &dim in info.shape.iter().rev() {
        out.extend((dim as u64).to_le_bytes());
    }
    out.extend(GgmlType::id_of(info.ty).to_le_bytes());
    out.extend(offset.to_le_bytes());
}
