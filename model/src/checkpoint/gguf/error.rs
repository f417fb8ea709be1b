//! What can be wrong with the header of a GGUF file.

/// A fault of a GGUF header. The file's name is in the [`CheckpointError::Gguf`](crate::checkpoint::CheckpointError::Gguf)
/// around it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GgufError {
    /// It begins with other bytes than GGUF files do.
    #[error("no GGUF file: it begins with {found:02x?}, not \"GGUF\"")]
    Magic {
        /// Its first bytes.
        found: [u8; 4],
    },
    /// Written by another version of the format. Convert it anew.
    #[error("GGUF version {found} is not supported (2 and 3 in little endian are)")]
    Version {
        /// The version.
        found: u32,
    },
    /// Something is larger than we read.
    #[error("{item}: {found} {unit}, at most {limit}")]
    TooLarge {
        /// What is too large: a key, a tensor, a part of the header.
        item: String,
        /// Its size by the file.
        found: u64,
        /// The bound.
        limit: u64,
        /// What is counted.
        unit: &'static str,
    },
    /// A name or text that is no UTF-8.
    #[error("{item} is not UTF-8")]
    NotUtf8 {
        /// Which.
        item: String,
    },
    /// A value of a type that the format does not have.
    #[error("key {key}: unknown value type {found}")]
    UnknownValueType {
        /// The key.
        key: String,
        /// The type's number.
        found: u32,
    },
    /// A truth value is neither 0 nor 1.
    #[error("key {key}: a bool of {found}")]
    NotBool {
        /// The key.
        key: String,
        /// The byte.
        found: u8,
    },
    /// A key stands twice.
    #[error("key {key} stands twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A key that the model needs is not there.
    #[error("key {key} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key's value has another type, or does not fit it.
    #[error("key {key}: {expected} expected, {found} found")]
    WrongType {
        /// The key.
        key: String,
        /// The type needed.
        expected: &'static str,
        /// The type, or value, found.
        found: String,
    },
    /// `general.alignment` is no power of two.
    #[error("key general.alignment: {found} is no power of two")]
    Alignment {
        /// Its value.
        found: u64,
    },
    /// A tensor does not begin where the alignment lets it.
    #[error("tensor {tensor}: offset {offset} is no multiple of the alignment {alignment}")]
    Misaligned {
        /// The tensor.
        tensor: String,
        /// Its first byte, counted from the beginning of the data.
        offset: u64,
        /// The file's alignment, in bytes.
        alignment: u64,
    },
    /// A row of a quantised tensor is no whole number of blocks.
    #[error("tensor {tensor}: rows of {width} values are no whole number of {ty} blocks of {block}")]
    PartialBlock {
        /// The tensor.
        tensor: String,
        /// Its type, in ggml's spelling.
        ty: &'static str,
        /// Values of a row.
        width: u64,
        /// Values of a block.
        block: u64,
    },
    /// One file of a split model says something else than its name or the other files.
    #[error("key {key}: {expected} expected in this file of a split model, {found} found")]
    SplitDisagrees {
        /// The key.
        key: &'static str,
        /// What the file's name, or the set, makes of it.
        expected: u64,
        /// What the file says.
        found: u64,
    },
}
