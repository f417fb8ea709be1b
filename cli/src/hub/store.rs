//! The folder of models: `ORG/NAME/COMMIT`, with `-VARIANT` for a GGUF model, one folder each, with a record of what it is. As long as it
//! is not whole its name ends with `.partial`; one process at a time fills it.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tramontane_model::tools::OnProgress;

use super::choose::ends_with;
use super::download::{check_file, io_error, part_path};
use super::{Chosen, HubError, HubFile, Listing, Reference, Repo};
use crate::files::read_text;
use crate::output::bytes;

/// The record beside a model that was pulled.
const RECORD: &str = "tramontane.pull.json";
const MAX_RECORD: u64 = 32 << 20;
const PARTIAL: &str = ".partial";

/// What a folder holds, and how its files are known again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) repo: String,
    pub(crate) commit: String,
    /// What a GGUF model is called; none where it is safetensors.
    pub(crate) variant: Option<String>,
    /// The licence that its card names.
    pub(crate) license: Option<String>,
    pub(crate) files: Vec<HubFile>,
}

impl Record {
    /// Of what was chosen from `listing`.
    pub(crate) fn new(repo: &Repo, listing: Listing, chosen: Chosen) -> Self {
        let Chosen { variant, files } = chosen;
        Self { repo: repo.to_string(), commit: listing.commit, variant, license: listing.license, files }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// What is to be opened of the model in `folder`: the folder itself, or its GGUF file.
    pub(crate) fn model_in(&self, folder: &Path) -> PathBuf {
        let gguf = self.files.iter().map(HubFile::name).filter(|name| name.ends_with(".gguf")).min();
        gguf.filter(|_| self.variant.is_some()).map_or_else(|| folder.to_owned(), |name| folder.join(name))
    }

    /// What is there of it in `folder`.
    pub(crate) fn state_in(&self, folder: &Path) -> State {
        let have = |file: &HubFile| fs::metadata(folder.join(file.name())).is_ok_and(|found| found.len() == file.size);
        match self.files.iter().find(|file| !have(file)) {
            None => State::Whole,
            Some(file) if !is_partial(folder) => State::Damaged(file.path.clone()),
            Some(_) => State::Partial(self.bytes_in(folder)),
        }
    }

    /// Bytes that are there, parts of files included.
    fn bytes_in(&self, folder: &Path) -> u64 {
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |found| found.len());
        let have =
            |file: &HubFile| length(folder.join(file.name())).max(length(part_path(folder, file))).min(file.size);
        self.files.iter().map(have).sum()
    }

    /// Compares the sums of all its files in `folder`; returns what is wrong.
    pub(crate) fn check(&self, folder: &Path, on_progress: OnProgress<'_>) -> Vec<String> {
        let (total, mut before) = (self.bytes(), 0);
        let mut check = |file: &HubFile| {
            let checked = check_file(&folder.join(file.name()), file, |done| on_progress(before + done, total));
            before += file.size;
            match checked {
                Ok(()) => None,
                Err(HubError::Changed { sum, found, wanted, .. }) => {
                    Some(format!("{}: its {sum} is {found}, and the hub's was {wanted}", file.name()))
                }
                Err(error) => Some(crate::with_causes(&error.into())),
            }
        };
        self.files.iter().filter_map(&mut check).collect()
    }
}

/// The record of the model at `path`, if it was pulled, and its folder.
pub(crate) fn record_of(path: &Path) -> Option<(Record, PathBuf)> {
    let folder = if path.is_dir() { path } else { path.parent()? };
    let record: Record = serde_json::from_str(&read_text(&folder.join(RECORD), MAX_RECORD).ok()?).ok()?;
    let belongs = path.is_dir() || record.files.iter().any(|file| path.ends_with(file.name()));
    belongs.then(|| (record, folder.to_owned()))
}

/// How whole a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Whole,
    /// So many bytes are there.
    Partial(u64),
    /// This file is not there, or has another size.
    Damaged(String),
}

/// Where a model goes; locked as long as this is there.
pub(crate) struct Place {
    partial: PathBuf,
    whole: PathBuf,
    /// Of the folder `partial`, whose name changes in the end; the lock does not.
    _lock: Option<File>,
}

impl Place {
    /// The place of `record` in `models`. Nothing is made.
    pub(crate) fn of(models: &Path, repo: &Repo, record: &Record) -> Self {
        let variant = record.variant.as_ref().map(|variant| format!("-{variant}")).unwrap_or_default();
        let name = format!("{}{variant}", record.commit);
        let folder = models.join(&repo.org).join(&repo.name);
        Self { partial: folder.join(format!("{name}{PARTIAL}")), whole: folder.join(name), _lock: None }
    }

    /// The folder, once the model is whole.
    pub(crate) fn whole(&self) -> &Path {
        &self.whole
    }

    /// The folder that is filled.
    pub(crate) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Makes the folder, for this process alone, with `record` in it.
    pub(crate) fn claim(&mut self, record: &Record) -> Result<(), HubError> {
        let failed = io_error(&self.partial);
        fs::create_dir_all(&self.partial).map_err(&failed)?;
        let lock = File::open(&self.partial).map_err(&failed)?;
        match lock.try_lock() {
            Ok(()) => self._lock = Some(lock),
            Err(TryLockError::WouldBlock) => return Err(HubError::Busy { folder: self.partial.display().to_string() }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let path = self.partial.join(RECORD);
        let json = serde_json::to_vec_pretty(record).map_err(|error| io_error(&path)(error.into()))?;
        let written = fs::write(&path, json).and_then(|()| File::open(&path)?.sync_all());
        written.map_err(io_error(&path))
    }

    /// Whether what is missing of `record` has room.
    pub(crate) fn check_room(&self, record: &Record) -> Result<(), HubError> {
        let needed = record.bytes() - record.bytes_in(&self.partial);
        let disk = rustix::fs::statvfs(&self.partial).map_err(|error| io_error(&self.partial)(error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if needed <= free {
            return Ok(());
        }
        Err(HubError::NoRoom { folder: self.partial.display().to_string(), free: bytes(free), needed: bytes(needed) })
    }

    /// Gives the whole model its name.
    pub(crate) fn finish(self) -> Result<PathBuf, HubError> {
        let renamed = fs::rename(&self.partial, &self.whole);
        renamed.map_err(io_error(&self.whole))?;
        // That the name lasts matters to nobody before the next start; a system that cannot promise it goes on all the same.
        _ = self.whole.parent().map(File::open).and_then(Result::ok).map(|folder| folder.sync_all());
        Ok(self.whole)
    }
}

fn is_partial(folder: &Path) -> bool {
    folder.to_string_lossy().ends_with(PARTIAL)
}

/// A model in the folder of models.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) folder: PathBuf,
    pub(crate) state: State,
}

/// The models in `models`, by name; none where there is no such folder.
pub(crate) fn list(models: &Path) -> Result<Vec<Entry>, HubError> {
    let mut found = vec![models.to_owned()];
    for _level in ["organisation", "repository", "commit"] {
        let mut below = Vec::new();
        for folder in found {
            below.extend(folders_in(&folder)?);
        }
        found = below;
    }
    found.sort();
    let entry = |folder: PathBuf| {
        let (record, _) = record_of(&folder)?;
        Some(Entry { state: record.state_in(&folder), record, folder })
    };
    Ok(found.into_iter().filter_map(entry).collect())
}

fn folders_in(folder: &Path) -> Result<Vec<PathBuf>, HubError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error(folder))?,
    };
    let paths = entries.collect::<Result<Vec<_>, _>>().map_err(io_error(folder))?;
    Ok(paths.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

/// The model that `text` names, if it is one of `models`: `ORG/NAME[@COMMIT][:QUANTIZATION]`, where the commit may be cut short.
///
/// # Errors
/// It names several, or one that is not whole.
pub(crate) fn resolve(models: &Path, text: &str) -> Result<Option<PathBuf>, String> {
    let Ok(Reference { repo, revision, quantization }) = Reference::parse(text) else { return Ok(None) };
    let repo_text = repo.to_string();
    let mut entries = list(models).map_err(|error| crate::with_causes(&error.into()))?;
    entries.retain(|Entry { record, .. }| {
        let variant = record.variant.as_deref();
        record.repo == repo_text
            && revision.as_ref().is_none_or(|revision| record.commit.starts_with(revision.as_str()))
            && quantization.as_ref().is_none_or(|end| variant.is_some_and(|variant| ends_with(variant, end)))
    });
    let mut whole = entries.iter().filter(|entry| entry.state == State::Whole);
    match (whole.next(), whole.next()) {
        (Some(entry), None) => Ok(Some(entry.record.model_in(&entry.folder))),
        (Some(_), Some(_)) => {
            let name = |Entry { record, .. }: &Entry| {
                let variant = record.variant.as_ref().map(|variant| format!(":{variant}")).unwrap_or_default();
                format!("{}@{:.12}{variant}", record.repo, record.commit)
            };
            let names: Vec<String> = entries.iter().map(name).collect();
            Err(format!("several models are called so: {}", names.join(", ")))
        }
        (None, _) if entries.is_empty() => Ok(None),
        (None, _) => Err(format!("it is not whole: `tramontane models pull {text}` goes on with it")),
    }
}

/// Where models are kept unless it is said: by `TRAMONTANE_MODELS_DIR`, or else among the user's data.
pub(crate) fn default_folder(env: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let path = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = || path("XDG_DATA_HOME").filter(|path| path.is_absolute());
    let home = || path("HOME").map(|home| home.join(".local/share"));
    path("TRAMONTANE_MODELS_DIR").unwrap_or_else(|| {
        let data = data().or_else(home).unwrap_or_else(|| PathBuf::from("/var/lib"));
        data.join("tramontane/models")
    })
}
