//! A checkpoint: one model's weights and what is said of them. In safetensors, with files beside them, from a folder in the
//! Hugging Face layout or from the program itself; or in GGUF, which holds everything itself.
//!
//! Everything in it comes from outside and is trusted with nothing: a file that lies about itself is an error that names it.
//! Weights are memory-mapped and read only where used. Opening reads the headers alone.

mod bus_error;
mod entry;
mod error;
mod files;
pub mod gguf;
mod layout;
mod license;
mod map;
pub mod naming;
mod open;
mod safetensors;
mod sidecars;
mod tensor;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

pub use error::CheckpointError;
pub use layout::{ExpertTensors, LayerTensors, OuterTensors};
pub use open::{MAX_INDEX_BYTES, MAX_SHARDS};
pub use safetensors::{MAX_DIMENSIONS, MAX_HEADER_BYTES};
pub use sidecars::{ChatSource, MAX_SIDECAR_BYTES, MAX_TOKENIZER_BYTES};
pub use tensor::Tensor;

use entry::StoredType;
use files::Files;
use gguf::Metadata;
pub(crate) use map::FileBytes;

/// An open checkpoint.
pub struct Checkpoint {
    files: Files,
    shards: Vec<Shard>,
    /// Every tensor, by name.
    tensors: BTreeMap<String, Located>,
    /// Of GGUF the first file's metadata; `None` for safetensors.
    metadata: Option<Metadata>,
}

struct Shard {
    name: String,
    bytes: FileBytes,
}

struct Located {
    /// Index of its shard.
    shard: usize,
    dtype: StoredType,
    shape: Vec<usize>,
    /// Its bytes in the shard.
    bytes: Range<usize>,
}

/// A tensor of any type, in its file's own terms: what a manifest is made from.
pub(crate) struct StoredTensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) file: &'a str,
    pub(crate) dtype: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) data: &'a [u8],
}

impl Checkpoint {
    /// The tensor `name`.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`]; [`CheckpointError::WrongDtype`] when it is of no type of weights.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor { tensor: name.to_owned() };
        let (name, located) = self.tensors.get_key_value(name).ok_or_else(missing)?;
        let Shard { name: file, bytes } = &self.shards[located.shard];
        let ty = located.dtype.weights.ok_or_else(|| CheckpointError::WrongDtype {
            file: file.clone(),
            tensor: name.clone(),
            found: located.dtype.name.clone(),
            supported: match self.metadata {
                None => safetensors::SUPPORTED_TYPES,
                Some(_) => gguf::SUPPORTED_TYPES,
            },
        })?;
        Ok(Tensor { name, file, ty, shape: &located.shape, data: &bytes[located.bytes.clone()], offset: 0 })
    }

    /// Has the system begin to read `data`, bytes of the tensor `name`.
    pub(crate) fn prefetch(&self, data: &[u8], name: &str) {
        if let Some(file) = self.file_of(name) {
            file.prefetch(data);
        }
    }

    /// Takes `data`, bytes of the tensor `name`, out of this process's memory until they are looked at again.
    pub(crate) fn release(&self, data: &[u8], name: &str) {
        if let Some(file) = self.file_of(name) {
            file.release(data);
        }
    }

    fn file_of(&self, tensor: &str) -> Option<&FileBytes> {
        self.tensors.get(tensor).map(|located| &self.shards[located.shard].bytes)
    }

    /// Whether the tensor `name` is there, of whatever type.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The metadata of a GGUF checkpoint (of a split one, its first file's); `None` for safetensors.
    pub const fn gguf_metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }

    /// The names of all tensors, ascending.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The files that hold the weights, with their sizes in bytes, ascending by name.
    pub fn weight_files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.shards.iter().map(|shard| (shard.name.as_str(), shard.bytes.len() as u64))
    }

    /// All tensors whatever their type, ascending by name.
    pub(crate) fn stored(&self) -> impl Iterator<Item = StoredTensor<'_>> {
        self.tensors.iter().map(|(name, located)| StoredTensor {
            name,
            file: &self.shards[located.shard].name,
            dtype: &located.dtype.name,
            shape: &located.shape,
            data: &self.shards[located.shard].bytes[located.bytes.clone()],
        })
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint of {} tensors in {} files", self.tensors.len(), self.shards.len())
    }
}
