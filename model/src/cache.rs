//! Packed weights kept on disk, and mapped from there the next time: a start that repacks nothing.
//!
//! A file holds one matrix exactly as it stands in memory, and is named after everything that its bytes follow from: the hash of its tensor,
//! which part of it, the type it is held in, its shape, the layout's version. What a name says is whole, since files get their names when
//! they are; what changed has another name. Nothing in here can fail a load: without the cache, weights are packed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tramontane_kernels::{PACKED_VERSION, PackedMatrix, SharedBytes, WeightType};

use crate::checkpoint::{FileBytes, Tensor};
use crate::manifest::Manifest;
use crate::weights::LoadError;

/// What files of the cache end in.
const SUFFIX: &str = "panels";

/// A folder of packed weights of one checkpoint, or of several beside each other.
#[derive(Debug)]
pub struct PackedCache {
    dir: PathBuf,
    max_bytes: u64,
    manifest: Arc<Manifest>,
    /// Bytes in the folder as far as this process knows.
    bytes: Mutex<u64>,
}

impl PackedCache {
    /// The cache in `dir`, which is made where it is missing, for the checkpoint that `manifest` describes. Files beyond `max_bytes` make
    /// room, the least recently used first.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(dir: &Path, max_bytes: u64, manifest: Arc<Manifest>) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let bytes = files(dir)?.iter().map(|file| file.bytes).sum();
        Ok(Self { dir: dir.to_owned(), max_bytes, manifest, bytes: Mutex::new(bytes) })
    }

    /// `tensor` packed as `ty`: from the cache, or from `make` and then kept.
    ///
    /// # Errors
    /// Those of `make`.
    pub(crate) fn matrix(
        &self,
        tensor: &Tensor<'_>,
        ty: WeightType,
        make: impl FnOnce() -> Result<PackedMatrix, LoadError>,
    ) -> Result<PackedMatrix, LoadError> {
        let (Some(path), &[rows, width]) = (self.path(tensor, ty), tensor.shape) else { return make() };
        if let Some(matrix) = map(&path, ty, rows, width) {
            return Ok(matrix);
        }
        let packed = make()?;
        match self.keep(&path, packed.as_bytes()) {
            // What was packed goes; all processes of this machine share the file's pages.
            Ok(()) => Ok(map(&path, ty, rows, width).unwrap_or(packed)),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "packed weights could not be cached");
                Ok(packed)
            }
        }
    }

    /// The file for `tensor` held as `ty`; `None` when the manifest does not know it.
    fn path(&self, tensor: &Tensor<'_>, ty: WeightType) -> Option<PathBuf> {
        let hash = &self.manifest.tensors().get(tensor.name)?.blake3;
        let what = format!(
            "tramontane packed {PACKED_VERSION} {hash} {} {} {} {} {:?}",
            tensor.offset,
            tensor.data.len(),
            tensor.ty.name(),
            ty.name(),
            tensor.shape
        );
        Some(self.dir.join(format!("{}.{SUFFIX}", blake3::hash(what.as_bytes()).to_hex())))
    }

    /// Writes a file, whole or not at all.
    fn keep(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.make_room(bytes.len() as u64)?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            // On the disk before it has its name; and pages written back may be replaced by huge ones when they are mapped.
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().inspect_err(|_| {
            // It may not exist; the first error is the one that counts.
            let _ = fs::remove_file(&temporary);
        })?;
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) += bytes.len() as u64;
        Ok(())
    }

    /// Removes the least recently used files until `more` bytes fit. Who has one mapped keeps it until he lets go.
    fn make_room(&self, more: u64) -> io::Result<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if more > self.max_bytes {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "one matrix is larger than the cache may be"));
        }
        if *bytes + more <= self.max_bytes {
            return Ok(());
        }
        let mut files = files(&self.dir)?;
        files.sort_by_key(|file| file.used);
        *bytes = files.iter().map(|file| file.bytes).sum();
        for file in files {
            if *bytes + more <= self.max_bytes {
                break;
            }
            fs::remove_file(&file.path)?;
            *bytes -= file.bytes;
        }
        Ok(())
    }
}

struct CachedFile {
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// The cache's files in `dir`.
fn files(dir: &Path) -> io::Result<Vec<CachedFile>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != SUFFIX) {
            continue;
        }
        // Gone since it was listed: another process made room.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        files.push(CachedFile { path, bytes: metadata.len(), used });
    }
    Ok(files)
}

/// The matrix in the file at `path`; `None` when there is none of that size.
fn map(path: &Path, ty: WeightType, rows: usize, width: usize) -> Option<PackedMatrix> {
    let file = File::open(path).ok()?;
    // When it was last used; where that cannot be noted, it may make room sooner.
    let _ = file.set_modified(SystemTime::now());
    let bytes = FileBytes::map_huge(&file, path).ok()?;
    let all = 0..bytes.len();
    let bytes: SharedBytes = Arc::new(bytes);
    PackedMatrix::from_packed(ty, rows, width, bytes, all).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::weights::{Packing, Quantize, pack};

    const FILES: [(&str, &[u8]); 2] = [
        ("config.json", include_bytes!("../../models/breeze/config.json")),
        ("model.safetensors", include_bytes!("../../models/breeze/model.safetensors")),
    ];
    const TENSOR: &str = "model.layers.0.self_attn.q_proj.weight";

    struct Case {
        checkpoint: Checkpoint,
        manifest: Arc<Manifest>,
        dir: tempfile::TempDir,
    }

    impl Case {
        fn new() -> Self {
            let checkpoint = Checkpoint::from_files(&FILES).unwrap();
            let manifest = Arc::new(Manifest::compute(&checkpoint));
            Self { checkpoint, manifest, dir: tempfile::tempdir().unwrap() }
        }

        fn packing(&self, max_bytes: u64) -> Packing {
            let cache = PackedCache::open(self.dir.path(), max_bytes, self.manifest.clone()).unwrap();
            Packing { cache: Some(Arc::new(cache)), ..Packing::on_one_thread() }
        }

        fn files(&self) -> Vec<PathBuf> {
            fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().path()).collect()
        }
    }

    #[test]
    fn what_was_packed_is_mapped_the_next_time() {
        let case = Case::new();
        let tensor = case.checkpoint.tensor(TENSOR).unwrap();
        let packed = pack(&Packing::on_one_thread(), &case.checkpoint, &tensor, Quantize::Q4_0).unwrap();
        for _ in 0..2 {
            let cached = pack(&case.packing(u64::MAX), &case.checkpoint, &tensor, Quantize::Q4_0).unwrap();
            assert!(cached.as_bytes() == packed.as_bytes());
            assert_eq!(case.files().len(), 1);
        }
        // It is the file that was read: another byte in it shows.
        let file = &case.files()[0];
        let mut bytes = fs::read(file).unwrap();
        bytes[7] ^= 1;
        fs::write(file, &bytes).unwrap();
        assert!(pack(&case.packing(u64::MAX), &case.checkpoint, &tensor, Quantize::Q4_0).unwrap().as_bytes() == bytes);
    }

    #[test]
    fn another_type_another_file_and_a_short_one_is_made_anew() {
        let case = Case::new();
        let (packing, tensor) = (case.packing(u64::MAX), case.checkpoint.tensor(TENSOR).unwrap());
        drop(pack(&packing, &case.checkpoint, &tensor, Quantize::AsStored).unwrap());
        fs::write(&case.files()[0], [1; 100]).unwrap();
        let again = pack(&packing, &case.checkpoint, &tensor, Quantize::AsStored).unwrap();
        assert_eq!(again.as_bytes().len(), again.bytes());
        assert_eq!(fs::metadata(&case.files()[0]).unwrap().len() as usize, again.bytes());
        pack(&packing, &case.checkpoint, &tensor, Quantize::Q8_0).unwrap();
        assert_eq!(case.files().len(), 2);
    }

    #[test]
    fn it_keeps_to_its_bound_and_a_folder_that_fails_costs_nothing() {
        let case = Case::new();
        let tensor = case.checkpoint.tensor(TENSOR).unwrap();
        let bytes = pack(&Packing::on_one_thread(), &case.checkpoint, &tensor, Quantize::Q8_0).unwrap().bytes() as u64;
        let packing = case.packing(bytes + bytes / 2);
        for layer in 0..3 {
            let name = TENSOR.replace(".0.", &format!(".{layer}."));
            pack(&packing, &case.checkpoint, &case.checkpoint.tensor(&name).unwrap(), Quantize::Q8_0).unwrap();
            assert_eq!(case.files().len(), 1, "the one before made room");
        }
        assert!(
            pack(&case.packing(bytes - 1), &case.checkpoint, &tensor, Quantize::Q8_0).is_ok(),
            "too large for the cache"
        );
        fs::remove_dir_all(case.dir.path()).unwrap();
        assert!(pack(&packing, &case.checkpoint, &tensor, Quantize::Q8_0).is_ok(), "no folder any more");
    }
}
