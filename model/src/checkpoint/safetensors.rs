//! The header of a safetensors file, read with suspicion. Format: <https://huggingface.co/docs/safetensors>.
//!
//! A file is the length of its header (u64, little endian), the header (JSON: name → dtype, shape, `data_offsets` counted
//! from the header's end), and the data. Tensors must cover the data exactly: no overlaps, no holes, nothing after them.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use tramontane_kernels::WeightType;

use super::CheckpointError;
use super::entry::{Entry, StoredType};

/// Longest header, in bytes: the bound of the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Most dimensions of a tensor.
pub const MAX_DIMENSIONS: usize = 8;

/// The types that weights in safetensors can have.
pub(crate) const SUPPORTED_TYPES: &str = "F32, BF16, F16";

/// The type for weights that `dtype` names; `None` for types that weights here cannot have.
fn weight_type(dtype: &str) -> Option<WeightType> {
    match dtype {
        "F32" => Some(WeightType::F32),
        "BF16" => Some(WeightType::Bf16),
        "F16" => Some(WeightType::F16),
        _ => None,
    }
}

/// Bits of one value of `dtype`; `None` for types we do not know, whose sizes are then not checked.
fn bits(dtype: &str) -> Option<usize> {
    match dtype {
        "F64" | "I64" | "U64" | "C64" => Some(64),
        "F32" | "I32" | "U32" => Some(32),
        "F16" | "BF16" | "I16" | "U16" => Some(16),
        "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Some(8),
        _ => None,
    }
}

/// The tensors of the file `file` with the contents `bytes`, in the order of their data. Looks at the header alone.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Vec<Entry>, CheckpointError> {
    let (header, data_begin) = split_header(file, bytes)?;
    let Header(raw) =
        serde_json::from_slice(header).map_err(|source| CheckpointError::Json { file: file.to_owned(), source })?;
    let available = bytes.len() - data_begin;
    let entries: Result<Vec<_>, _> = raw.into_iter().map(|(name, raw)| entry(file, name, raw, available)).collect();
    let mut entries = entries?;
    entries.sort_by(|a, b| (a.bytes.start, a.bytes.end, &a.name).cmp(&(b.bytes.start, b.bytes.end, &b.name)));
    check_coverage(file, &entries, available)?;
    for entry in &mut entries {
        entry.bytes = entry.bytes.start + data_begin..entry.bytes.end + data_begin;
    }
    Ok(entries)
}

/// The header, and where the data begins.
fn split_header<'a>(file: &str, bytes: &'a [u8]) -> Result<(&'a [u8], usize), CheckpointError> {
    let truncated = |needed| CheckpointError::Truncated { file: file.to_owned(), needed, found: bytes.len() as u64 };
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| truncated(8))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(CheckpointError::HeaderLength { file: file.to_owned(), length, limit: MAX_HEADER_BYTES });
    }
    // The bound above makes both the conversion and the sum safe.
    let header = rest.get(..length as usize).ok_or_else(|| truncated(length + 8))?;
    Ok((header, header.len() + 8))
}

/// Checks one tensor by itself. Its range in the result is still counted from the header's end.
fn entry(file: &str, name: String, raw: RawEntry, available: usize) -> Result<Entry, CheckpointError> {
    let impossible = |name: &str| CheckpointError::ShapeOverflow {
        file: file.to_owned(),
        tensor: name.to_owned(),
        shape: raw.shape.iter().copied().take(MAX_DIMENSIONS).collect(),
    };
    let (begin, end) = raw.data_offsets;
    if begin > end || end > available as u64 {
        let available = available as u64;
        return Err(CheckpointError::OutsideFile { file: file.to_owned(), tensor: name, begin, end, available });
    }
    // Both are within the file now, so they fit.
    let bytes = begin as usize..end as usize;
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&dim| usize::try_from(dim).ok()).collect();
    let shape = shape.filter(|shape| shape.len() <= MAX_DIMENSIONS).ok_or_else(|| impossible(&name))?;
    let values = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let values = values.ok_or_else(|| impossible(&name))?;
    if let Some(bits) = bits(&raw.dtype) {
        let expected = values.checked_mul(bits).ok_or_else(|| impossible(&name))? / 8;
        if expected != bytes.len() {
            let (expected, found) = (expected as u64, bytes.len() as u64);
            return Err(CheckpointError::WrongSize { file: file.to_owned(), tensor: name, expected, found });
        }
    }
    let weights = weight_type(&raw.dtype);
    Ok(Entry { name, dtype: StoredType { name: raw.dtype, weights }, shape, bytes })
}

/// Checks that `entries`, ascending, cover `0..available` exactly.
fn check_coverage(file: &str, entries: &[Entry], available: usize) -> Result<(), CheckpointError> {
    let hole = |begin: usize, end: usize| {
        Err(CheckpointError::Hole { file: file.to_owned(), begin: begin as u64, end: end as u64 })
    };
    let mut covered = 0;
    let mut last = "";
    for entry in entries {
        if entry.bytes.start > covered {
            return hole(covered, entry.bytes.start);
        }
        if entry.bytes.start < covered {
            return Err(CheckpointError::Overlap {
                file: file.to_owned(),
                tensor: entry.name.clone(),
                other: last.to_owned(),
            });
        }
        covered = entry.bytes.end;
        last = &entry.name;
    }
    if covered < available { hole(covered, available) } else { Ok(()) }
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Names and entries as they stand, duplicates too: a map would silently keep one of two.
struct Header(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
