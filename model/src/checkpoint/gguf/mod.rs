//! GGUF, the file format of ggml and llama.cpp: read with suspicion, and written.

mod chat;
mod config;
mod cursor;
mod error;
mod header;
mod metadata;
mod split;
mod tensors;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod types;
mod value;
mod writer;

pub use error::GgufError;
pub use metadata::Metadata;
pub use split::set_of;
pub use value::{Array, Number, NumberType, Value};
pub use writer::{GgufWriteError, GgufWriter, TensorInfo};

pub(super) use chat::chat_source;
pub(super) use config::config;
pub(super) use header::{Header, parse};
pub(super) use split::{check as check_split, only_model};
pub(super) use types::SUPPORTED_TYPES;

/// The extension of the files' names.
pub(super) const EXTENSION: &str = "gguf";

/// Longest header, in bytes.
pub const MAX_HEADER_BYTES: u64 = 128 << 20;
/// Most metadata keys of a file.
pub const MAX_METADATA: u64 = 1 << 16;
/// Longest key and longest name of a tensor, in bytes: the specification's bound for keys.
pub const MAX_NAME_BYTES: u64 = 65_535;
/// Longest text, in bytes.
pub const MAX_STRING_BYTES: u64 = 16 << 20;
/// Most values that all arrays of a file have together.
pub const MAX_ARRAY_VALUES: u64 = 1 << 24;
/// How deep arrays may stand within each other.
pub const MAX_ARRAY_DEPTH: u64 = 4;
/// Most tensors of a file.
pub const MAX_TENSORS: u64 = 1 << 20;
/// Most dimensions of a tensor: ggml's bound.
pub const MAX_DIMENSIONS: u64 = 4;
