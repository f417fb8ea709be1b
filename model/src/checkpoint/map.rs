//! The bytes of one file: mapped, or part of the program. The only `unsafe` of this crate.

use std::fs::File;
use std::io;
use std::ops::Deref;

use memmap2::Mmap;

/// A file's bytes. They are read from the disk only where they are looked at.
pub(crate) enum FileBytes {
    Mapped(Mmap),
    Embedded(&'static [u8]),
}

impl FileBytes {
    /// Maps all of `file`, which must be a regular file.
    ///
    /// A limit for now: when another process truncates the file while it is mapped, reading past its new end kills this
    /// process (SIGBUS), and when it overwrites the file, weights change under a running model. Replace checkpoints by
    /// renaming a new folder into place, or mount them read-only.
    #[allow(unsafe_code)]
    pub(crate) fn map(file: &File) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::Embedded(&[]));
        }
        // SAFETY: the map is read-only and handed out as `&[u8]` for as long as it lives. That no one changes the file
        // meanwhile cannot be enforced from here; it is asked of the operator (see above). Bytes are only ever read as
        // numbers and text, never as a type with invalid values, so a change cannot break an invariant of a type.
        unsafe { Mmap::map(file) }.map(Self::Mapped)
    }

    /// As [`Self::map`], on huge pages where the system has them for files: for bytes that are read again and again.
    pub(crate) fn map_huge(file: &File) -> io::Result<Self> {
        let bytes = Self::map(file)?;
        #[cfg(target_os = "linux")]
        if let Self::Mapped(map) = &bytes {
            // Advice: a system without huge pages for files maps small ones.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(bytes)
    }
}

impl AsRef<[u8]> for FileBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}
