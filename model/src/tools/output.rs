//! A file that takes its name when it is whole, and leaves nothing behind when it is not.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use super::{OnProgress, ToolError};
use crate::checkpoint::gguf::{GgufWriteError, GgufWriter, TensorInfo, Value};

/// Bytes gathered before the system is asked to write them.
const BUFFER_BYTES: usize = 1 << 20;
/// Bytes between two reports of progress, at most. Less than the buffer, so that a piece of a mapped file is always copied into it: were
/// the system handed a piece of a file that has been truncated, it would report a bad address, and the output would be blamed.
const PIECE_BYTES: usize = BUFFER_BYTES / 2;

/// A GGUF file that is being written beside its place. Dropped before [`Output::commit`], it is removed.
pub(super) struct Output<'a> {
    path: PathBuf,
    temporary: Temporary,
    writer: GgufWriter<BufWriter<File>>,
    on_progress: OnProgress<'a>,
    done: u64,
    total: u64,
}

/// Removed when dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename it is not there any more, and that is well.
        let _ = fs::remove_file(&self.0);
    }
}

impl<'a> Output<'a> {
    /// Begins the file that will be `path`; its data must follow in the order of `tensors`.
    pub(super) fn create(
        path: &Path,
        metadata: &BTreeMap<String, Value>,
        tensors: &[TensorInfo],
        on_progress: OnProgress<'a>,
    ) -> Result<Self, ToolError> {
        let failed = |source| error(path, source);
        let name = path.file_name().ok_or_else(|| failed(io::Error::from(io::ErrorKind::IsADirectory).into()))?;
        // The process's id keeps two processes from writing into one file.
        let mut temporary = name.to_owned();
        temporary.push(format!(".{}.tmp", std::process::id()));
        let temporary = Temporary(path.with_file_name(temporary));
        let file = File::create(&temporary.0).map_err(|source| failed(source.into()))?;
        let writer =
            GgufWriter::new(BufWriter::with_capacity(BUFFER_BYTES, file), metadata, tensors).map_err(failed)?;
        let total = tensors.iter().filter_map(TensorInfo::bytes).sum();
        Ok(Self { path: path.to_owned(), temporary, writer, on_progress, done: 0, total })
    }

    /// Writes the next `bytes` of the tensor `tensor`.
    pub(super) fn append(&mut self, tensor: &str, bytes: &[u8]) -> Result<(), ToolError> {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.writer.append(tensor, piece).map_err(|source| error(&self.path, source))?;
            self.done += piece.len() as u64;
            (self.on_progress)(self.done, self.total);
        }
        Ok(())
    }

    /// Gives the whole file its name.
    pub(super) fn commit(self) -> Result<(), ToolError> {
        let Self { path, temporary, writer, .. } = self;
        let whole = writer.finish().and_then(|buffer| Ok(buffer.get_ref().sync_all()?));
        whole.and_then(|()| Ok(fs::rename(&temporary.0, &path)?)).map_err(|source| error(&path, source))
    }
}

fn error(path: &Path, source: GgufWriteError) -> ToolError {
    ToolError::Write { file: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use tramontane_kernels::WeightType;

    use super::*;

    fn one_tensor() -> [TensorInfo; 1] {
        [TensorInfo { name: "t".to_owned(), ty: WeightType::F32, shape: vec![2] }]
    }

    #[test]
    fn a_file_that_is_not_whole_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.gguf");
        let mut quiet = |_, _| {};
        let mut output = Output::create(&path, &BTreeMap::new(), &one_tensor(), &mut quiet).unwrap();
        output.append("t", &[0; 4]).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "the temporary file");
        assert!(matches!(
            output.commit(),
            Err(ToolError::Write { source: GgufWriteError::Order { missing: 4, .. }, .. })
        ));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_whole_file_takes_its_name_and_reports_its_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.gguf");
        let mut seen = Vec::new();
        let mut record = |done, total| seen.push((done, total));
        let mut output = Output::create(&path, &BTreeMap::new(), &one_tensor(), &mut record).unwrap();
        output.append("t", &[0; 4]).unwrap();
        output.append("t", &[0; 4]).unwrap();
        output.commit().unwrap();
        assert_eq!(seen, [(4, 8), (8, 8)]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(path.is_file());
    }

    #[test]
    fn where_one_cannot_write_is_named() {
        let path = Path::new("/nowhere/out.gguf");
        let mut quiet = |_, _| {};
        let failed = Output::create(path, &BTreeMap::new(), &one_tensor(), &mut quiet).err().unwrap();
        assert!(failed.to_string().starts_with("/nowhere/out.gguf: "), "{failed}");
    }
}
