//! The header of a GGUF file, read with suspicion. Format: ggml's repository, `docs/gguf.md`, versions 2 and 3.
//!
//! A file is the magic, a version (u32), the numbers of tensors and of metadata values (u64 each), the metadata, what is said
//! of each tensor, padding to the alignment, and the data. Everything is little endian; a text is its length (u64) and its
//! bytes. Bytes between tensors are padding; files of version 1, with lengths of 32 bits, are refused.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::metadata::Metadata;
use super::tensors;
use super::value::{ARRAY, Array, Number, NumberType, STRING, Value};
use super::{GgufError, MAX_ARRAY_DEPTH, MAX_ARRAY_VALUES, MAX_METADATA, MAX_NAME_BYTES, MAX_STRING_BYTES};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::entry::Entry;

/// The bytes a file begins with.
pub(super) const MAGIC: [u8; 4] = *b"GGUF";
/// What tensors are aligned to unless [`ALIGNMENT_KEY`] says otherwise, in bytes.
pub(super) const DEFAULT_ALIGNMENT: u32 = 32;
/// The key of the alignment.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// What the header of one file says.
pub(crate) struct Header {
    pub(crate) metadata: Metadata,
    /// The file's tensors, in the order of their data.
    pub(crate) entries: Vec<Entry>,
}

/// The header of the file `file` with the contents `bytes`. Looks at the header alone.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Header, CheckpointError> {
    let mut cursor = Cursor::new(file, bytes);
    let found = cursor.array::<4>()?;
    if found != MAGIC {
        return Err(cursor.error(GgufError::Magic { found }));
    }
    let found = cursor.u32()?;
    if !matches!(found, 2 | 3) {
        return Err(cursor.error(GgufError::Version { found }));
    }
    let (tensors, keys) = (cursor.u64()?, cursor.u64()?);
    let metadata = read_metadata(&mut cursor, keys)?;
    let alignment = metadata.u32(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(cursor.error(GgufError::Alignment { found: alignment.into() }));
    }
    let entries = tensors::read(&mut cursor, tensors, alignment as usize)?;
    Ok(Header { metadata, entries })
}

fn read_metadata(cursor: &mut Cursor<'_>, keys: u64) -> Result<Metadata, CheckpointError> {
    cursor.bound("the metadata", keys, MAX_METADATA, "keys")?;
    let mut values = BTreeMap::new();
    let mut budget = MAX_ARRAY_VALUES;
    for number in 0..keys {
        let key = cursor.string(&format!("key number {number}"), MAX_NAME_BYTES)?;
        let item = format!("key {key}");
        let ty = cursor.u32()?;
        let value = match ty {
            STRING => Value::String(cursor.string(&item, MAX_STRING_BYTES)?),
            ARRAY => Value::Array(read_array(cursor, &key, &mut budget, 1)?),
            _ => {
                let ty = number_type(cursor, &key, ty)?;
                let bytes = cursor.take(ty.bytes())?;
                check_bools(cursor, &key, ty, bytes)?;
                Value::Number(Number::read(ty, bytes))
            }
        };
        if values.contains_key(&key) {
            return Err(cursor.error(GgufError::DuplicateKey { key }));
        }
        values.insert(key, value);
    }
    Ok(Metadata::new(cursor.file(), values))
}

/// Reads an array that stands at `depth` (1: not within another). `budget` is how many more array values the file may have.
fn read_array(cursor: &mut Cursor<'_>, key: &str, budget: &mut u64, depth: u64) -> Result<Array, CheckpointError> {
    let item = format!("key {key}");
    cursor.bound(&item, depth, MAX_ARRAY_DEPTH, "levels of arrays")?;
    let (ty, length) = (cursor.u32()?, cursor.u64()?);
    if length > *budget {
        let (found, limit) = (length, MAX_ARRAY_VALUES);
        return Err(cursor.error(GgufError::TooLarge { item, found, limit, unit: "array values in the file" }));
    }
    *budget -= length;
    // Lists grow with what is read, so that a false length allocates nothing.
    match ty {
        STRING => {
            let texts = (0..length).map(|_| cursor.string(&item, MAX_STRING_BYTES));
            Ok(Array::Strings(texts.collect::<Result<_, _>>()?))
        }
        ARRAY => {
            let arrays = (0..length).map(|_| read_array(cursor, key, budget, depth + 1));
            Ok(Array::Arrays(arrays.collect::<Result<_, _>>()?))
        }
        _ => {
            let ty = number_type(cursor, key, ty)?;
            // The budget bounds the length far below an overflow.
            let bytes = cursor.take(length as usize * ty.bytes())?;
            check_bools(cursor, key, ty, bytes)?;
            Ok(Array::Numbers { ty, bytes: bytes.to_vec() })
        }
    }
}

fn number_type(cursor: &Cursor<'_>, key: &str, found: u32) -> Result<NumberType, CheckpointError> {
    let unknown = || cursor.error(GgufError::UnknownValueType { key: key.to_owned(), found });
    NumberType::of_id(found).ok_or_else(unknown)
}

fn check_bools(cursor: &Cursor<'_>, key: &str, ty: NumberType, bytes: &[u8]) -> Result<(), CheckpointError> {
    match bytes.iter().find(|&&byte| byte > 1) {
        Some(&found) if ty == NumberType::Bool => Err(cursor.error(GgufError::NotBool { key: key.to_owned(), found })),
        _ => Ok(()),
    }
}
