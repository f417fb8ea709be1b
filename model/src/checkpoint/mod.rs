//! A checkpoint: one model's weights in safetensors, and the files beside them, from a folder in the Hugging Face layout or
//! from the program itself.
//!
//! Everything in it comes from outside and is trusted with nothing: a file that lies about itself is an error that names it.
//! Weights are memory-mapped and read only where used. Opening reads the headers alone.

mod error;
mod files;
mod layout;
mod map;
mod safetensors;
mod sidecars;
mod tensor;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

pub use error::CheckpointError;
pub use layout::{ExpertTensors, LayerTensors, OuterTensors};
pub use safetensors::{MAX_DIMENSIONS, MAX_HEADER_BYTES};
pub use sidecars::{ChatSource, MAX_SIDECAR_BYTES, MAX_TOKENIZER_BYTES};
pub use tensor::Tensor;

use files::Files;
use map::FileBytes;

/// Largest `model.safetensors.index.json`, in bytes.
pub const MAX_INDEX_BYTES: usize = 64 << 20;
/// Most files that one checkpoint's weights are spread over.
pub const MAX_SHARDS: usize = 4096;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "pkl", "ckpt"];

/// An open checkpoint.
pub struct Checkpoint {
    files: Files,
    shards: Vec<Shard>,
    /// Every tensor, by name.
    tensors: BTreeMap<String, Located>,
}

struct Shard {
    name: String,
    bytes: FileBytes,
}

struct Located {
    /// Index of its shard.
    shard: usize,
    dtype: String,
    shape: Vec<usize>,
    /// Its bytes in the shard.
    bytes: Range<usize>,
}

/// A tensor of any type, in safetensors' own terms: what a manifest is made from.
pub(crate) struct StoredTensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: &'a str,
    pub(crate) shape: &'a [usize],
    pub(crate) data: &'a [u8],
}

impl Checkpoint {
    /// Opens the checkpoint in the folder `path`.
    ///
    /// Its weights are `model.safetensors`, or else the shards that `model.safetensors.index.json` names. A link is followed
    /// only within the folder, or into the blobs of the Hugging Face cache that the folder belongs to.
    ///
    /// # Errors
    /// Any [`CheckpointError`] of files and headers; weights are not looked at.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        Self::read(Files::folder(path)?)
    }

    /// Opens a checkpoint whose files, by name, are part of the program.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_files(files: &[(&str, &'static [u8])]) -> Result<Self, CheckpointError> {
        Self::read(Files::Embedded(files.iter().map(|&(name, bytes)| (name.to_owned(), bytes)).collect()))
    }

    fn read(files: Files) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self { files, shards: Vec::new(), tensors: BTreeMap::new() };
        if let Some(bytes) = checkpoint.files.open(SINGLE)? {
            checkpoint.add_shard(SINGLE, bytes)?;
        } else if let Some(index) = checkpoint.sidecar(INDEX, MAX_INDEX_BYTES)? {
            checkpoint.add_indexed(&index)?;
        } else {
            return match checkpoint.files.find_extension(&PICKLES)? {
                Some(file) => Err(CheckpointError::Pickle { file }),
                None => Err(CheckpointError::NoWeights),
            };
        }
        Ok(checkpoint)
    }

    /// Adds the shards that the index names, and checks that its tensors are where it says.
    fn add_indexed(&mut self, index: &[u8]) -> Result<(), CheckpointError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let Index { weight_map } =
            serde_json::from_slice(index).map_err(|source| CheckpointError::Json { file: INDEX.to_owned(), source })?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        if shards.len() > MAX_SHARDS {
            let (found, limit) = (shards.len() as u64, MAX_SHARDS as u64);
            return Err(CheckpointError::TooLarge { file: INDEX.to_owned(), found, limit, unit: "shards" });
        }
        for name in shards {
            let missing = || CheckpointError::MissingFile { file: name.clone() };
            let bytes = self.files.open(name)?.ok_or_else(missing)?;
            self.add_shard(name, bytes)?;
        }
        for (tensor, file) in &weight_map {
            let found = self.tensors.get(tensor).map(|located| &self.shards[located.shard].name);
            if found != Some(file) {
                return Err(CheckpointError::IndexDisagrees { file: file.clone(), tensor: tensor.clone() });
            }
        }
        Ok(())
    }

    fn add_shard(&mut self, name: &str, bytes: FileBytes) -> Result<(), CheckpointError> {
        let shard = self.shards.len();
        let entries = safetensors::parse(name, &bytes)?;
        self.shards.push(Shard { name: name.to_owned(), bytes });
        for safetensors::Entry { name: tensor, dtype, shape, bytes } in entries {
            if let Some(other) = self.tensors.get(&tensor) {
                let other = self.shards[other.shard].name.clone();
                return Err(CheckpointError::DuplicateTensor { file: name.to_owned(), tensor, other });
            }
            self.tensors.insert(tensor, Located { shard, dtype, shape, bytes });
        }
        Ok(())
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`]; [`CheckpointError::WrongDtype`] when it is neither F32, BF16 nor F16.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>, CheckpointError> {
        let missing = || CheckpointError::MissingTensor { tensor: name.to_owned() };
        let (name, located) = self.tensors.get_key_value(name).ok_or_else(missing)?;
        let Shard { name: file, bytes } = &self.shards[located.shard];
        let ty = safetensors::weight_type(&located.dtype).ok_or_else(|| CheckpointError::WrongDtype {
            file: file.clone(),
            tensor: name.clone(),
            found: located.dtype.clone(),
        })?;
        Ok(Tensor { name, file, ty, shape: &located.shape, data: &bytes[located.bytes.clone()] })
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
            dtype: &located.dtype,
            shape: &located.shape,
            data: &self.shards[located.shard].bytes[located.bytes.clone()],
        })
    }

    /// A copy of a small file; `None` when there is none.
    fn sidecar(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, CheckpointError> {
        let Some(bytes) = self.files.open(name)? else { return Ok(None) };
        if bytes.len() > limit {
            let (found, limit) = (bytes.len() as u64, limit as u64);
            return Err(CheckpointError::TooLarge { file: name.to_owned(), found, limit, unit: "bytes" });
        }
        Ok(Some(bytes.to_vec()))
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint of {} tensors in {} files", self.tensors.len(), self.shards.len())
    }
}
