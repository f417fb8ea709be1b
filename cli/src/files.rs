//! Small files that are read whole.

use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::path::Path;

/// The text in the file at `path`, of at most `max` bytes.
///
/// # Errors
/// It cannot be read, is longer, or is no UTF-8.
pub(crate) fn read_text(path: &Path, max: u64) -> std::io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(max + 1).read_to_string(&mut text)?;
    if read as u64 > max {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("more than {max} bytes")));
    }
    Ok(text)
}
