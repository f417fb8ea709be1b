//! The manifest of a checkpoint: a hash for every tensor and one, the root, for all. Nodes compare roots at the door, and
//! each node checks the tensors it maps.
//!
//! A tensor's hash is BLAKE3 of its bytes as stored. The root is BLAKE3 of, for all tensors in ascending order of their names
//! (as UTF-8 bytes), after the text `tramontane manifest 1` and a zero byte:
//!
//! ```text
//! length of the name (u64), name, length of the type (u64), type in safetensors' spelling ("BF16"),
//! number of dimensions (u64), each dimension (u64), hash (32 bytes)
//! ```
//!
//! Integers are little endian. So the root depends on the model alone: not on how it is cut into shards, nor on the order
//! of tensors in them. The file `tramontane.manifest.json` (or `FILE.manifest.json`) also holds the weight files' sizes, by which it is noticed that a
//! stored manifest belongs to other files.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, StoredTensor};

/// The name of the file in a checkpoint's folder.
pub const MANIFEST_FILE: &str = "tramontane.manifest.json";
/// What follows the name of a checkpoint that is one file.
const BESIDE_FILE: &str = ".manifest.json";
/// Largest manifest that is read, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 256 << 20;

const VERSION: u32 = 1;
const ROOT_CONTEXT: &[u8] = b"tramontane manifest 1\0";
/// Bytes hashed at a time, so that a mapped tensor's pages come and go in pieces.
const PIECE_BYTES: usize = 1 << 20;

/// The hashes of a checkpoint's tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    version: u32,
    root: String,
    /// Sizes of the weight files in bytes, by name.
    files: BTreeMap<String, u64>,
    tensors: BTreeMap<String, TensorRecord>,
}

/// One tensor in a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its type, in safetensors' spelling.
    pub dtype: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// BLAKE3 of its bytes, lower-case hex.
    pub blake3: String,
}

impl TensorRecord {
    /// Hashes `tensor`.
    pub(crate) fn of(tensor: &StoredTensor<'_>) -> Self {
        let blake3 = hash(tensor.data).to_hex().to_string();
        Self { dtype: tensor.dtype.to_owned(), shape: tensor.shape.to_vec(), blake3 }
    }
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The system cannot read or write it.
    #[error("{file}: {source}")]
    Io {
        /// The path.
        file: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not a manifest, or was changed by hand. Compute it anew.
    #[error("{file}: not a manifest: {reason}")]
    Malformed {
        /// The path.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// It belongs to other weights than those of the checkpoint. Compute it anew.
    #[error("{file}: the manifest is stale: {reason}")]
    Stale {
        /// The path.
        file: String,
        /// What differs.
        reason: String,
    },
    /// A tensor's bytes are not those that were hashed. Get the file anew.
    #[error("{file}: tensor {tensor}: BLAKE3 {expected} expected, {found} found")]
    Changed {
        /// The weight file.
        file: String,
        /// The tensor.
        tensor: String,
        /// The hash in the manifest, or "none".
        expected: String,
        /// The hash of the bytes.
        found: String,
    },
}

impl Manifest {
    /// Hashes all tensors of `checkpoint`. Reads all of its weights.
    pub fn compute(checkpoint: &Checkpoint) -> Self {
        let record = |tensor: StoredTensor<'_>| {
            let record = (tensor.name.to_owned(), TensorRecord::of(&tensor));
            checkpoint.release(tensor.data, tensor.name);
            record
        };
        Self::of(checkpoint, checkpoint.stored().map(record).collect())
    }

    /// The manifest of `checkpoint`, whose tensors are hashed already: `tensors` has the record of each.
    pub(crate) fn of(checkpoint: &Checkpoint, tensors: BTreeMap<String, TensorRecord>) -> Self {
        Self { version: VERSION, root: root_of(&tensors), files: file_sizes(checkpoint), tensors }
    }

    /// The root, lower-case hex: equal roots are equal weights.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// The tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorRecord> {
        &self.tensors
    }

    /// Compares the hash of the tensor `name` in `file` with `found`.
    ///
    /// # Errors
    /// [`ManifestError::Changed`].
    pub(crate) fn check(&self, file: &str, name: &str, found: &TensorRecord) -> Result<(), ManifestError> {
        let (expected, found) = (self.tensors.get(name).map_or("none", |record| &record.blake3), &found.blake3);
        if expected == found {
            return Ok(());
        }
        let (file, tensor) = (file.to_owned(), name.to_owned());
        Err(ManifestError::Changed { file, tensor, expected: expected.to_owned(), found: found.clone() })
    }

    /// Reads the manifest of the checkpoint at `path` (see [`Manifest::path_for`]), and checks that it is whole and belongs to
    /// `checkpoint`: the same files with the same sizes, the same tensors. Reads no weights. `None` when there is none.
    ///
    /// # Errors
    /// [`ManifestError`]; after `Malformed` and `Stale`, compute it anew.
    pub fn load(path: &Path, checkpoint: &Checkpoint) -> Result<Option<Self>, ManifestError> {
        let path = Self::path_for(path);
        let file = path.display().to_string();
        let io_error = |source| ManifestError::Io { file: file.clone(), source };
        let malformed = |reason| Err(ManifestError::Malformed { file: file.clone(), reason });
        match fs::metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_error(e)),
            Ok(found) if !found.is_file() => return malformed("not a regular file".to_owned()),
            Ok(found) if found.len() > MAX_MANIFEST_BYTES => return malformed(format!("{} bytes", found.len())),
            Ok(_) => {}
        }
        let manifest: Self = match serde_json::from_slice(&fs::read(&path).map_err(io_error)?) {
            Ok(manifest) => manifest,
            Err(e) => return malformed(e.to_string()),
        };
        if manifest.version != VERSION {
            return malformed(format!("version {}, not {VERSION}", manifest.version));
        }
        if manifest.root != root_of(&manifest.tensors) {
            return malformed("the root does not follow from the tensors".to_owned());
        }
        match manifest.difference(checkpoint) {
            Some(reason) => Err(ManifestError::Stale { file, reason }),
            None => Ok(Some(manifest)),
        }
    }

    /// Where the manifest of the checkpoint at `path` is: in its folder, or beside its file as `FILE.manifest.json`.
    pub fn path_for(path: &Path) -> PathBuf {
        match path.file_name() {
            Some(name) if path.is_file() => {
                let mut name = name.to_owned();
                name.push(BESIDE_FILE);
                path.with_file_name(name)
            }
            _ => path.join(MANIFEST_FILE),
        }
    }

    /// Writes the manifest of the checkpoint at `path`, a folder or a file: whole or not at all.
    ///
    /// # Errors
    /// [`ManifestError::Io`]; what was written so far is removed.
    pub fn store(&self, path: &Path) -> Result<(), ManifestError> {
        let path = Self::path_for(path);
        // The process's id keeps two processes that share a folder from writing into one file.
        let mut temporary = path.clone().into_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let written = self.write(&temporary).and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|source| {
            // It may not exist; the first error is the one that counts.
            let _ = fs::remove_file(&temporary);
            ManifestError::Io { file: path.display().to_string(), source }
        })
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(fs::File::create(path)?);
        serde_json::to_writer_pretty(&mut file, self)?;
        file.flush()?;
        file.get_ref().sync_all()
    }

    /// What in `checkpoint` is not as it was when this manifest was made.
    fn difference(&self, checkpoint: &Checkpoint) -> Option<String> {
        let files = file_sizes(checkpoint);
        if let Some((name, size)) = files.iter().find(|(name, size)| self.files.get(*name) != Some(size)) {
            return Some(match self.files.get(name) {
                Some(then) => format!("{name} has {size} bytes, had {then}"),
                None => format!("{name} is new"),
            });
        }
        if let Some(name) = self.files.keys().find(|name| !files.contains_key(*name)) {
            return Some(format!("{name} is gone"));
        }
        let same = |name: &str, dtype: &str, shape: &[usize]| {
            self.tensors.get(name).is_some_and(|record| record.dtype == dtype && record.shape == shape)
        };
        let mut count = 0;
        for tensor in checkpoint.stored() {
            if !same(tensor.name, tensor.dtype, tensor.shape) {
                return Some(format!("tensor {} is new or has another type or shape", tensor.name));
            }
            count += 1;
        }
        (count < self.tensors.len()).then(|| "a tensor is gone".to_owned())
    }
}

fn file_sizes(checkpoint: &Checkpoint) -> BTreeMap<String, u64> {
    checkpoint.weight_files().map(|(name, size)| (name.to_owned(), size)).collect()
}

fn hash(data: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for piece in data.chunks(PIECE_BYTES) {
        hasher.update(piece);
    }
    hasher.finalize()
}

/// The root over `tensors`, by the format at the top of this file. A hash that is no hex enters as 32 zero bytes, so that it
/// cannot be the root of an honest manifest.
fn root_of(tensors: &BTreeMap<String, TensorRecord>) -> String {
    let mut hasher = blake3::Hasher::new();
    let number = |hasher: &mut blake3::Hasher, n: usize| {
        hasher.update(&(n as u64).to_le_bytes());
    };
    hasher.update(ROOT_CONTEXT);
    for (name, record) in tensors {
        for text in [name, &record.dtype] {
            number(&mut hasher, text.len());
            hasher.update(text.as_bytes());
        }
        number(&mut hasher, record.shape.len());
        for &dim in &record.shape {
            number(&mut hasher, dim);
        }
        let hash = blake3::Hash::from_hex(&record.blake3).map_or([0; 32], |hash| *hash.as_bytes());
        hasher.update(&hash);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::{Raw, embedded, write_folder};

    fn tensors() -> Vec<Raw> {
        vec![Raw::f32("b", &[2], &[1.0, 2.0]), Raw::f32("a", &[1, 2], &[3.0, 4.0])]
    }

    #[test]
    fn the_root_follows_the_documented_format() {
        let manifest = Manifest::compute(&embedded(&tensors()));
        let mut bytes = b"tramontane manifest 1\0".to_vec();
        for (name, dims, values) in [("a", vec![1u64, 2], [3.0f32, 4.0]), ("b", vec![2], [1.0, 2.0])] {
            bytes.extend(1u64.to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(3u64.to_le_bytes());
            bytes.extend(b"F32");
            bytes.extend((dims.len() as u64).to_le_bytes());
            bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            bytes.extend(blake3::hash(&data).as_bytes());
        }
        assert_eq!(manifest.root(), blake3::hash(&bytes).to_hex().as_str());
        assert_eq!(manifest.tensors().keys().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn the_root_ignores_order_in_the_file_and_notices_everything_else() {
        let root = |tensors: &[Raw]| Manifest::compute(&embedded(tensors)).root().to_owned();
        let original = root(&tensors());
        let mut reordered = tensors();
        reordered.reverse();
        assert_eq!(root(&reordered), original);
        for changed in [
            Raw::f32("a", &[1, 2], &[3.0, -4.0]),
            Raw::f32("a", &[2, 1], &[3.0, 4.0]),
            Raw::f32("c", &[1, 2], &[3.0, 4.0]),
        ] {
            assert_ne!(root(&[tensors().remove(0), changed]), original);
        }
    }

    #[test]
    fn hashing_in_pieces_is_hashing() {
        let data: Vec<u8> = (0..PIECE_BYTES * 2 + 5).map(|i| (i % 251) as u8).collect();
        assert_eq!(hash(&data), blake3::hash(&data));
    }

    #[test]
    fn a_stored_manifest_is_loaded_until_the_files_change() {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &tensors());
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(Manifest::load(folder.path(), &checkpoint).unwrap(), None);
        let manifest = Manifest::compute(&checkpoint);
        manifest.store(folder.path()).unwrap();
        assert_eq!(Manifest::load(folder.path(), &checkpoint).unwrap(), Some(manifest));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");

        let longer = embedded(&[Raw::f32("a", &[3], &[0.0; 3])]);
        let stale = Manifest::load(folder.path(), &longer).unwrap_err();
        assert!(matches!(stale, ManifestError::Stale { .. }), "{stale}");
        let renamed = embedded(&[Raw::f32("b", &[2], &[1.0, 2.0]), Raw::f32("c", &[1, 2], &[3.0, 4.0])]);
        let stale = Manifest::load(folder.path(), &renamed).unwrap_err();
        assert!(stale.to_string().contains("tensor c is new"), "{stale}");
    }

    #[test]
    fn a_manifest_changed_by_hand_is_malformed() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = embedded(&tensors());
        let manifest = Manifest::compute(&checkpoint);
        let text = serde_json::to_string(&manifest).unwrap();
        let hash = &manifest.tensors()["a"].blake3;
        for broken in [
            text.replace(hash.as_str(), &"0".repeat(64)),
            text.replace(hash.as_str(), "no hash"),
            text.replace("\"version\":1", "\"version\":2"),
            text[..text.len() / 2].to_owned(),
        ] {
            fs::write(folder.path().join(MANIFEST_FILE), broken).unwrap();
            let error = Manifest::load(folder.path(), &checkpoint).unwrap_err();
            assert!(matches!(error, ManifestError::Malformed { .. }), "{error}");
        }
    }

    #[test]
    fn a_changed_tensor_is_found_by_its_hash() {
        let checkpoint = embedded(&tensors());
        let manifest = Manifest::compute(&checkpoint);
        let hashed = |checkpoint: &Checkpoint, name: &str| {
            TensorRecord::of(&checkpoint.stored().find(|tensor| tensor.name == name).unwrap())
        };
        manifest.check("f", "a", &hashed(&checkpoint, "a")).unwrap();
        let other = embedded(&[Raw::f32("a", &[1, 2], &[3.0, 4.5]), Raw::f32("new", &[1], &[0.0])]);
        for name in ["a", "new"] {
            let changed = manifest.check("f", name, &hashed(&other, name)).unwrap_err();
            assert!(matches!(&changed, ManifestError::Changed { tensor, .. } if tensor == name), "{changed}");
        }
    }

    #[test]
    fn the_manifest_of_one_file_is_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        write_folder(folder.path(), &tensors());
        let (file, checkpoint) = (folder.path().join("model.safetensors"), embedded(&tensors()));
        let manifest = Manifest::compute(&checkpoint);
        manifest.store(&file).unwrap();
        assert!(folder.path().join("model.safetensors.manifest.json").is_file());
        assert_eq!(Manifest::load(&file, &checkpoint).unwrap(), Some(manifest));
        assert_eq!(Manifest::load(folder.path(), &checkpoint).unwrap(), None);
    }

    #[test]
    fn storing_where_one_cannot_is_an_error_that_names_the_file() {
        let manifest = Manifest::compute(&embedded(&tensors()));
        let folder = tempfile::tempdir().unwrap();
        let error = manifest.store(&folder.path().join("absent")).unwrap_err();
        assert!(error.to_string().contains(MANIFEST_FILE), "{error}");
    }
}
