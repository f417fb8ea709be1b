//! What is read from files, and read again when these change.

use std::convert::Infallible;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of one of them, at most.
const MAX_FILE: u64 = 1 << 20;

/// The files cannot be used: put others there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", file.display())]
pub struct TlsError {
    /// Which one.
    pub file: PathBuf,
    /// Why.
    pub why: String,
}

impl TlsError {
    pub(super) fn new(file: &Path, why: impl Into<String>) -> Self {
        Self { file: file.to_owned(), why: why.into() }
    }
}

/// What another look at the files has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// They are as they were.
    Unchanged,
    /// From now on handshakes use what is in them. Connections that are open stay.
    Changed,
}

/// What is made of `N` files' bytes.
pub(super) struct Watched<T, const N: usize> {
    files: [PathBuf; N],
    /// Makes it; of what was made before, where that was, because it may not become just anything.
    make: Box<Make<T, N>>,
    current: RwLock<Current<T, N>>,
}

/// What was made, and of what.
struct Current<T, const N: usize> {
    made: Arc<T>,
    contents: Arc<[Vec<u8>; N]>,
}

type Make<T, const N: usize> = dyn Fn(&[Vec<u8>; N], Option<&T>) -> Result<T, TlsError> + Send + Sync;

impl<T, const N: usize> Watched<T, N> {
    pub(super) fn load(
        files: [PathBuf; N],
        make: impl Fn(&[Vec<u8>; N], Option<&T>) -> Result<T, TlsError> + Send + Sync + 'static,
    ) -> Result<Self, TlsError> {
        let contents = read_all(&files)?;
        let made = make(&contents, None)?;
        Ok(Self {
            files,
            make: Box::new(make),
            current: RwLock::new(Current { made: Arc::new(made), contents: Arc::new(contents) }),
        })
    }

    pub(super) fn current(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).made.clone()
    }

    /// Reads the files again; at an error what was read before stays.
    pub(super) fn reload(&self) -> Result<Reloaded, TlsError> {
        let contents = read_all(&self.files)?;
        let before = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            if contents == *current.contents {
                return Ok(Reloaded::Unchanged);
            }
            current.made.clone()
        };
        let made = Arc::new((self.make)(&contents, Some(&before))?);
        let current = Current { made, contents: Arc::new(contents) };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(Reloaded::Changed)
    }

    /// Reads the files again whenever they have changed, for as long as it is polled.
    pub(super) async fn follow(&self) -> Infallible {
        let mut failed = None;
        loop {
            tokio::time::sleep(LOOK).await;
            let outcome = self.reload();
            match &outcome {
                Ok(Reloaded::Unchanged) => {}
                Ok(Reloaded::Changed) => tracing::info!(file = %self.files[0].display(), "certificates read again"),
                // Said once: files that are written one after the other do not fit for a moment.
                Err(error) if failed.as_ref() != Some(error) => {
                    tracing::warn!(%error, "new certificates are not used");
                }
                Err(_) => {}
            }
            failed = outcome.err();
        }
    }
}

fn read_all<const N: usize>(files: &[PathBuf; N]) -> Result<[Vec<u8>; N], TlsError> {
    let mut contents = [const { Vec::new() }; N];
    for (file, bytes) in files.iter().zip(&mut contents) {
        *bytes = read(file)?;
    }
    Ok(contents)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |error: std::io::Error| TlsError::new(path, error.to_string());
    let mut bytes = Vec::new();
    let length = std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    if length.map_err(failed)? as u64 > MAX_FILE {
        return Err(TlsError::new(path, format!("larger than {MAX_FILE} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_again_when_they_change_and_what_is_no_good_changes_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("number");
        let write = |text: &str| std::fs::write(&file, text).expect("a file");
        let number = |[bytes]: &[Vec<u8>; 1], before: Option<&u32>| {
            let text = String::from_utf8_lossy(bytes);
            let number: u32 = text.parse().map_err(|_| TlsError::new(Path::new("number"), "no number"))?;
            if before.is_some_and(|&before| number < before) {
                return Err(TlsError::new(Path::new("number"), "it falls"));
            }
            Ok(number)
        };
        assert!(Watched::load([file.clone()], number).is_err(), "there is none");
        write("1");
        let watched = Watched::load([file.clone()], number).expect("a number");
        assert_eq!(watched.reload(), Ok(Reloaded::Unchanged));
        write("2");
        assert_eq!((watched.reload(), *watched.current()), (Ok(Reloaded::Changed), 2));
        for (text, why) in [("x", "no number"), ("1", "it falls")] {
            write(text);
            assert_eq!(watched.reload().expect_err(text).why, why);
            assert_eq!(*watched.current(), 2);
        }
        std::fs::write(&file, vec![b'1'; MAX_FILE as usize + 1]).expect("a file");
        assert!(watched.reload().expect_err("too large").why.contains("larger"));
    }
}
