//! Where a checkpoint's files are: a folder, or the program itself. Opens by plain name and follows no link out of the folder.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::map::FileBytes;

/// The files of one checkpoint.
pub(crate) enum Files {
    /// A folder, its path free of links; with it the blob folder that a Hugging Face cache links to, if it is in one.
    Folder { root: PathBuf, blobs: Option<PathBuf> },
    /// Names and contents.
    Embedded(Vec<(String, &'static [u8])>),
}

impl Files {
    /// The files of the folder `path`.
    ///
    /// The Hugging Face cache keeps a checkpoint in `REPO/snapshots/REVISION` as links into `REPO/blobs`. Those links are
    /// followed; any other that leads out of the folder is refused.
    pub(crate) fn folder(path: &Path) -> Result<Self, CheckpointError> {
        let io_error = |source| CheckpointError::Io { file: path.display().to_string(), source };
        let root = fs::canonicalize(path).map_err(io_error)?;
        if !root.is_dir() {
            return Err(io_error(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        let snapshots = root.parent().filter(|parent| parent.file_name() == Some(OsStr::new("snapshots")));
        let blobs = snapshots.and_then(Path::parent).and_then(|repo| fs::canonicalize(repo.join("blobs")).ok());
        Ok(Self::Folder { root, blobs })
    }

    /// Opens the file `name`; `None` when there is none.
    pub(crate) fn open(&self, name: &str) -> Result<Option<FileBytes>, CheckpointError> {
        check_plain_name(name)?;
        match self {
            Self::Embedded(files) => {
                Ok(files.iter().find(|(known, _)| known == name).map(|(_, bytes)| FileBytes::Embedded(bytes)))
            }
            Self::Folder { root, blobs } => open_in(root, blobs.as_deref(), name),
        }
    }

    /// The names of all files, ascending; those that are no UTF-8 are left out.
    pub(crate) fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let mut names: Vec<String> = match self {
            Self::Embedded(files) => files.iter().map(|(name, _)| name.clone()).collect(),
            Self::Folder { root, .. } => {
                let io_error = |source| CheckpointError::Io { file: root.display().to_string(), source };
                let entries: io::Result<Vec<_>> = fs::read_dir(root).map_err(io_error)?.collect();
                entries.map_err(io_error)?.iter().filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
        };
        names.sort_unstable();
        Ok(names)
    }
}

/// Whether `name` ends in one of `extensions`.
pub(crate) fn has_extension(name: &str, extensions: &[&str]) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| extensions.contains(&extension))
}

/// Refuses names that are paths: an index comes from outside and must not reach beyond its folder.
fn check_plain_name(name: &str) -> Result<(), CheckpointError> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0', ':']);
    if plain {
        return Ok(());
    }
    Err(CheckpointError::UnsafePath { file: name.to_owned(), reason: "not a plain file name" })
}

fn open_in(root: &Path, blobs: Option<&Path>, name: &str) -> Result<Option<FileBytes>, CheckpointError> {
    let io_error = |source| CheckpointError::Io { file: name.to_owned(), source };
    let refused = |reason| Err(CheckpointError::UnsafePath { file: name.to_owned(), reason });
    let target = match fs::canonicalize(root.join(name)) {
        Ok(target) => target,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(e)),
    };
    if !target.starts_with(root) && !blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return refused("a link that leads out of the checkpoint");
    }
    // Asked of the path before it is opened, for opening a pipe would wait for its writer.
    if !fs::metadata(&target).map_err(io_error)?.is_file() {
        return refused("not a regular file");
    }
    let file = File::open(&target).map_err(io_error)?;
    FileBytes::map(&file, &target).map(Some).map_err(io_error)
}
