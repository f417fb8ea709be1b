//! The bytes of one file: mapped, or part of the program.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::bus_error::Watched;

/// Bytes that Linux maps with one page that is looked at, if it has them in memory (`fault_around_bytes`, as it is built).
const FAULT_AROUND: usize = 64 << 10;

/// Bytes read ahead at a time. Of a longer piece Linux would read no more than what it reads ahead from that disk, which is
/// this much or more (`read_ahead_kb`, 128 unless set otherwise), and leave the rest to page faults.
const READ_AHEAD: usize = 128 << 10;

/// A file's bytes. They are read from the disk only where they are looked at.
pub(crate) enum FileBytes {
    Mapped(Mapped),
    Embedded(&'static [u8]),
}

/// A mapped file. When it is truncated, or its disk fails, reading it ends the process with a message (`bus_error`).
pub(crate) struct Mapped {
    // Before the map, so that it is dropped first.
    _watched: Watched,
    map: Mmap,
}

impl FileBytes {
    /// Maps all of `file`, a regular file, which is at `path`.
    ///
    /// When another process overwrites the file while it is mapped, weights change under a running model. Replace checkpoints
    /// by renaming a new folder into place, or mount them read-only.
    #[allow(unsafe_code)]
    pub(crate) fn map(file: &File, path: &Path) -> io::Result<Self> {
        if file.metadata()?.len() == 0 {
            return Ok(Self::Embedded(&[]));
        }
        // SAFETY: the map is read-only and handed out as `&[u8]` for as long as it lives. That no one changes the file
        // meanwhile cannot be enforced from here; it is asked of the operator (see above). Bytes are only ever read as
        // numbers and text, never as a type with invalid values, so a change cannot break an invariant of a type.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self::Mapped(Mapped { _watched: Watched::new(&map, path)?, map }))
    }

    /// Has the system begin to read `part`, some of these bytes: it then reads all of that and nothing beside it, where reading
    /// page by page would have it guess how much more is wanted.
    pub(crate) fn prefetch(&self, part: &[u8]) {
        if let Some((map, offset)) = self.place_of(part) {
            for begin in (0..part.len()).step_by(READ_AHEAD) {
                // Advice. If it is not taken, the bytes are read when they are looked at.
                let _ = map.advise_range(Advice::WillNeed, offset + begin, READ_AHEAD.min(part.len() - begin));
            }
        }
    }

    /// Takes `part`, some of these bytes, out of this process's memory, and what the system put there beside them. It may go on
    /// keeping them as it keeps any file's; looked at again, they come back from there or from the disk.
    #[allow(unsafe_code)]
    pub(crate) fn release(&self, part: &[u8]) {
        if let Some((map, offset)) = self.place_of(part) {
            let begin = offset.saturating_sub(FAULT_AROUND);
            let end = (offset + part.len() + FAULT_AROUND).min(map.len());
            // SAFETY: the map is of a file and never written to, so pages that are dropped come back as they were.
            // Advice, again.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, begin, end - begin) };
        }
    }

    /// The map that `part` lies in, and where; `None` when it lies in the program or somewhere else.
    fn place_of(&self, part: &[u8]) -> Option<(&Mmap, usize)> {
        let Self::Mapped(Mapped { map, .. }) = self else { return None };
        let (all, part) = (map.as_ptr_range(), part.as_ptr_range());
        (all.start <= part.start && part.end <= all.end).then(|| (map, part.start.addr() - all.start.addr()))
    }

    /// As [`Self::map`], on huge pages where the system has them for files: for bytes that are read again and again.
    pub(crate) fn map_huge(file: &File, path: &Path) -> io::Result<Self> {
        let bytes = Self::map(file, path)?;
        #[cfg(target_os = "linux")]
        if let Self::Mapped(Mapped { map, .. }) = &bytes {
            // Advice: a system without huge pages for files maps small ones.
            let _ = map.advise(Advice::HugePage);
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
            Self::Mapped(mapped) => &mapped.map,
            Self::Embedded(bytes) => bytes,
        }
    }
}
