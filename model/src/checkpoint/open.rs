//! Opens a checkpoint: finds its files and locates every tensor in them by their headers.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::Path;

use super::entry::Entry;
use super::files::{Files, has_extension};
use super::map::FileBytes;
use super::{Checkpoint, CheckpointError, Located, Shard, gguf, safetensors};

/// Largest `model.safetensors.index.json`, in bytes.
pub const MAX_INDEX_BYTES: usize = 64 << 20;
/// Most files that one checkpoint's weights are spread over.
pub const MAX_SHARDS: usize = 4096;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const PICKLES: [&str; 5] = ["bin", "pt", "pth", "pkl", "ckpt"];

impl Checkpoint {
    /// Opens the checkpoint at `path`: a folder or a GGUF file.
    ///
    /// A folder's weights are `model.safetensors`, or else the shards that `model.safetensors.index.json` names, or else its
    /// only GGUF model. A GGUF file that is one of several by its name stands for all of them. A link is followed only within
    /// the folder, or into the blobs of the Hugging Face cache that the folder belongs to.
    ///
    /// # Errors
    /// Any [`CheckpointError`] of files and headers; weights are not looked at.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        match path.file_name().and_then(OsStr::to_str) {
            Some(name) if path.is_file() => {
                let folder = path.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."));
                let mut checkpoint = Self::empty(Files::folder(folder)?);
                checkpoint.add_gguf(&gguf::set_of(name)?)?;
                Ok(checkpoint)
            }
            _ => Self::read(Files::folder(path)?),
        }
    }

    /// Opens a checkpoint whose files, by name, are part of the program.
    ///
    /// # Errors
    /// As [`Checkpoint::open`] of a folder.
    pub fn from_files(files: &[(&str, &'static [u8])]) -> Result<Self, CheckpointError> {
        Self::read(Files::Embedded(files.iter().map(|&(name, bytes)| (name.to_owned(), bytes)).collect()))
    }

    const fn empty(files: Files) -> Self {
        Self { files, shards: Vec::new(), tensors: BTreeMap::new(), metadata: None }
    }

    fn read(files: Files) -> Result<Self, CheckpointError> {
        let mut checkpoint = Self::empty(files);
        if let Some(bytes) = checkpoint.files.open(SINGLE)? {
            let entries = safetensors::parse(SINGLE, &bytes)?;
            checkpoint.add_shard(SINGLE, bytes, entries)?;
        } else if let Some(index) = checkpoint.sidecar(INDEX, MAX_INDEX_BYTES)? {
            checkpoint.add_indexed(&index)?;
        } else {
            let names = checkpoint.files.names()?;
            let Some(model) = gguf::only_model(&names)? else {
                return Err(match names.into_iter().find(|name| has_extension(name, &PICKLES)) {
                    Some(file) => CheckpointError::Pickle { file },
                    None => CheckpointError::NoWeights,
                });
            };
            checkpoint.add_gguf(&model)?;
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
            let bytes = self.shard_bytes(name)?;
            let entries = safetensors::parse(name, &bytes)?;
            self.add_shard(name, bytes, entries)?;
        }
        for (tensor, file) in &weight_map {
            let found = self.tensors.get(tensor).map(|located| &self.shards[located.shard].name);
            if found != Some(file) {
                return Err(CheckpointError::IndexDisagrees { file: file.clone(), tensor: tensor.clone() });
            }
        }
        Ok(())
    }

    /// Adds the GGUF files of one model, in order, and checks that they say so too.
    fn add_gguf(&mut self, files: &[String]) -> Result<(), CheckpointError> {
        let mut all = Vec::with_capacity(files.len());
        for name in files {
            let bytes = self.shard_bytes(name)?;
            let gguf::Header { metadata, entries } = gguf::parse(name, &bytes)?;
            self.add_shard(name, bytes, entries)?;
            all.push(metadata);
        }
        gguf::check_split(&all, self.tensors.len())?;
        self.metadata = all.into_iter().next();
        Ok(())
    }

    fn shard_bytes(&self, name: &str) -> Result<FileBytes, CheckpointError> {
        self.files.open(name)?.ok_or_else(|| CheckpointError::MissingFile { file: name.to_owned() })
    }

    fn add_shard(&mut self, name: &str, bytes: FileBytes, entries: Vec<Entry>) -> Result<(), CheckpointError> {
        let shard = self.shards.len();
        self.shards.push(Shard { name: name.to_owned(), bytes });
        for Entry { name: tensor, dtype, shape, bytes } in entries {
            if let Some(other) = self.tensors.get(&tensor) {
                let other = self.shards[other.shard].name.clone();
                return Err(CheckpointError::DuplicateTensor { file: name.to_owned(), tensor, other });
            }
            self.tensors.insert(tensor, Located { shard, dtype, shape, bytes });
        }
        Ok(())
    }
}
