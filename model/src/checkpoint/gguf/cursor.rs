//! Reads a GGUF header from front to back; nothing is read beyond its end, and nothing allocated by a length that is not there.

use super::{GgufError, MAX_HEADER_BYTES};
use crate::checkpoint::CheckpointError;

/// A place in a file's header.
pub(super) struct Cursor<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The beginning of the file `file` with the contents `bytes`.
    pub(super) const fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Self { file, bytes, at: 0 }
    }

    pub(super) const fn file(&self) -> &'a str {
        self.file
    }

    /// How many bytes are read.
    pub(super) const fn position(&self) -> usize {
        self.at
    }

    /// Bytes of the whole file.
    pub(super) const fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// `error`, with the file's name.
    pub(super) fn error(&self, error: GgufError) -> CheckpointError {
        CheckpointError::Gguf { file: self.file.to_owned(), error }
    }

    /// Checks that `item` is not over its bound.
    pub(super) fn bound(&self, item: &str, found: u64, limit: u64, unit: &'static str) -> Result<(), CheckpointError> {
        if found <= limit {
            return Ok(());
        }
        Err(self.error(GgufError::TooLarge { item: item.to_owned(), found, limit, unit }))
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], CheckpointError> {
        let end = self.at.saturating_add(length);
        self.bound("the header", end as u64, MAX_HEADER_BYTES, "bytes")?;
        let taken = self.bytes.get(self.at..end).ok_or_else(|| CheckpointError::Truncated {
            file: self.file.to_owned(),
            needed: end as u64,
            found: self.bytes.len() as u64,
        })?;
        self.at = end;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self) -> Result<u32, CheckpointError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, CheckpointError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next text, of at most `limit` bytes; `item` names it in errors.
    pub(super) fn string(&mut self, item: &str, limit: u64) -> Result<String, CheckpointError> {
        let length = self.u64()?;
        self.bound(item, length, limit, "bytes")?;
        let not_utf8 = |_| GgufError::NotUtf8 { item: item.to_owned() };
        // The limits are far below what a usize holds.
        let bytes = self.take(length as usize)?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|e| self.error(not_utf8(e)))
    }
}
