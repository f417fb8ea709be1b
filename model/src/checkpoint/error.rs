//! Why a checkpoint cannot be opened or read: one error a cause, each with the file, the tensor, what was expected and found.

use super::gguf::GgufError;
use crate::config::ConfigError;

/// An error of a checkpoint. Files are named as in the checkpoint's folder. Unless said otherwise the caller's next act is
/// to get the file anew: it is damaged, or not what it claims to be.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The system cannot read it.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file that every checkpoint has is not there.
    #[error("{file}: no such file in the checkpoint")]
    MissingFile {
        /// The file.
        file: String,
    },
    /// Neither `model.safetensors` nor `model.safetensors.index.json` nor a GGUF file is there.
    #[error(
        "no weights: neither model.safetensors nor model.safetensors.index.json nor a .gguf file is in the checkpoint"
    )]
    NoWeights,
    /// Only pickled weights are there. They are programs; convert them to safetensors.
    #[error("{file}: pickled weights are refused, for loading them runs code: convert the checkpoint to safetensors")]
    Pickle {
        /// The file.
        file: String,
    },
    /// Several GGUF models are in one folder. Name the file of one.
    #[error("{file} and {other} are in one folder: name the file that is meant")]
    SeveralModels {
        /// A GGUF file, the first of its model.
        file: String,
        /// One of another model.
        other: String,
    },
    /// A file beside the weights, or a count, is over its bound.
    #[error("{file}: {found} {unit}, at most {limit}")]
    TooLarge {
        /// The file.
        file: String,
        /// Its size.
        found: u64,
        /// The bound.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// The name of a shard is a path, or a link leads out of the checkpoint.
    #[error("{file}: refused: {reason}")]
    UnsafePath {
        /// The name or path.
        file: String,
        /// Why.
        reason: &'static str,
    },
    /// Not the JSON that it should be.
    #[error("{file}: {source}")]
    Json {
        /// The file.
        file: String,
        /// What serde_json says, with line and column.
        source: serde_json::Error,
    },
    /// The file ends before its header does.
    #[error("{file}: truncated: the header needs {needed} bytes, the file has {found}")]
    Truncated {
        /// The file.
        file: String,
        /// Bytes up to the end of the header.
        needed: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The header's length is absurd.
    #[error("{file}: the header claims {length} bytes, at most {limit}")]
    HeaderLength {
        /// The file.
        file: String,
        /// The length claimed.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// A name stands twice, in one file or in two.
    #[error("{file}: tensor {tensor} is also in {other}")]
    DuplicateTensor {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where it stands already.
        other: String,
    },
    /// The number of bytes of a shape does not fit the machine, or it has too many dimensions.
    #[error("{file}: tensor {tensor}: impossible shape {shape:?}")]
    ShapeOverflow {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape, cut after a few dimensions.
        shape: Vec<u64>,
    },
    /// A tensor's bytes lie outside the file (which may be truncated), or end before they begin.
    #[error("{file}: tensor {tensor}: bytes {begin}..{end} are not within the {available} bytes of data: truncated?")]
    OutsideFile {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// First byte, counted from the beginning of the data.
        begin: u64,
        /// End, likewise.
        end: u64,
        /// Bytes of data.
        available: u64,
    },
    /// Shape and type ask for another number of bytes than the tensor has.
    #[error("{file}: tensor {tensor}: shape and type make {expected} bytes, its offsets {found}")]
    WrongSize {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Bytes by shape and type.
        expected: u64,
        /// Bytes by offsets.
        found: u64,
    },
    /// Two tensors share bytes.
    #[error("{file}: tensors {tensor} and {other} overlap")]
    Overlap {
        /// The file.
        file: String,
        /// The tensor that begins later.
        tensor: String,
        /// The tensor it begins in.
        other: String,
    },
    /// Bytes that no tensor claims.
    #[error("{file}: bytes {begin}..{end} of the data belong to no tensor")]
    Hole {
        /// The file.
        file: String,
        /// First byte, counted from the beginning of the data.
        begin: u64,
        /// End, likewise.
        end: u64,
    },
    /// The index names a shard for a tensor that is not in it.
    #[error("{file}: tensor {tensor} should be in this shard by the index, but is not")]
    IndexDisagrees {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that the model needs is nowhere.
    #[error("tensor {tensor} is missing")]
    MissingTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor of an expert is nowhere.
    #[error("layer {layer}, expert {expert}: tensor {tensor} is missing")]
    MissingExpert {
        /// The layer.
        layer: usize,
        /// The expert in it.
        expert: usize,
        /// The tensor.
        tensor: String,
    },
    /// The configuration asks for another shape.
    #[error("{file}: tensor {tensor}: shape {expected:?} expected, {found:?} found")]
    WrongShape {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape by the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor of a type that weights here cannot have.
    #[error("{file}: tensor {tensor}: type {found} is not supported ({supported} are)")]
    WrongDtype {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its type, in the file's spelling.
        found: String,
        /// The types that are supported in such files.
        supported: &'static str,
    },
    /// A weight is NaN or infinite.
    #[error("{file}: tensor {tensor}: element {element} is NaN or infinite")]
    NotFinite {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The first such element, in row-major order.
        element: usize,
    },
    /// The header of a GGUF file is damaged, or one that we do not read.
    #[error("{file}: {error}")]
    Gguf {
        /// The file.
        file: String,
        /// What is wrong.
        error: GgufError,
    },
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
}
