//! What a GGUF header says of the file's tensors, and whether that can be true.
//!
//! A tensor's dimensions stand innermost first, the reverse of our row-major shapes. A tensor of a type that we do not know is
//! no error until it is asked for; as its size is not known, it is taken to reach to the next tensor or the end of the file.

use std::collections::BTreeSet;

use super::cursor::Cursor;
use super::types::GgmlType;
use super::{GgufError, MAX_DIMENSIONS, MAX_NAME_BYTES, MAX_TENSORS};
use crate::checkpoint::CheckpointError;
use crate::checkpoint::entry::{Entry, StoredType};

/// One tensor as the header has it.
struct Info {
    name: String,
    shape: Vec<usize>,
    type_id: u32,
    /// First byte, counted from the beginning of the data.
    begin: usize,
    /// Bytes by shape and type; `None` when the type is not known.
    length: Option<usize>,
}

/// Reads what is said of `count` tensors; with them the header ends, and after padding to `alignment` the data begins.
pub(super) fn read(cursor: &mut Cursor<'_>, count: u64, alignment: usize) -> Result<Vec<Entry>, CheckpointError> {
    cursor.bound("the file", count, MAX_TENSORS, "tensors")?;
    let mut infos = (0..count).map(|n| read_info(cursor, n, alignment)).collect::<Result<Vec<_>, _>>()?;
    let mut names = BTreeSet::new();
    if let Some(twice) = infos.iter().find(|info| !names.insert(&info.name)) {
        let (file, tensor) = (cursor.file().to_owned(), twice.name.clone());
        return Err(CheckpointError::DuplicateTensor { other: file.clone(), file, tensor });
    }
    infos.sort_by(|a, b| (a.begin, a.length, &a.name).cmp(&(b.begin, b.length, &b.name)));
    // A header is bounded far below an overflow. A file whose tensors are empty may end before the padding does.
    let data_begin = cursor.position().next_multiple_of(alignment).min(cursor.file_bytes());
    let available = cursor.file_bytes() - data_begin;
    let ends = ends(cursor, &infos, available)?;
    let entries = infos.into_iter().zip(ends).map(|(info, end)| {
        let ty = GgmlType::of_id(info.type_id);
        let name = ty.map_or_else(|| format!("number {}", info.type_id), |ty| ty.name.to_owned());
        let dtype = StoredType { name, weights: ty.and_then(|ty| ty.weights) };
        Entry { name: info.name, dtype, shape: info.shape, bytes: data_begin + info.begin..data_begin + end }
    });
    Ok(entries.collect())
}

fn read_info(cursor: &mut Cursor<'_>, number: u64, alignment: usize) -> Result<Info, CheckpointError> {
    let name = cursor.string(&format!("tensor number {number}"), MAX_NAME_BYTES)?;
    let dimensions = cursor.u32()?;
    cursor.bound(&format!("tensor {name}"), dimensions.into(), MAX_DIMENSIONS, "dimensions")?;
    let mut dims = (0..dimensions).map(|_| cursor.u64()).collect::<Result<Vec<_>, _>>()?;
    dims.reverse();
    let (type_id, offset) = (cursor.u32()?, cursor.u64()?);
    let impossible =
        || CheckpointError::ShapeOverflow { file: cursor.file().to_owned(), tensor: name.clone(), shape: dims.clone() };
    let shape = dims.iter().map(|&dim| usize::try_from(dim).ok()).collect::<Option<Vec<_>>>().ok_or_else(impossible)?;
    let values = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim)).ok_or_else(impossible)?;
    let length = match GgmlType::of_id(type_id) {
        None => None,
        Some(ty) => {
            let width = shape.last().copied().unwrap_or(1);
            if !width.is_multiple_of(ty.block_values) {
                let (width, block) = (width as u64, ty.block_values as u64);
                return Err(cursor.error(GgufError::PartialBlock { tensor: name, ty: ty.name, width, block }));
            }
            Some((values / ty.block_values).checked_mul(ty.block_bytes).ok_or_else(impossible)?)
        }
    };
    let begin = usize::try_from(offset).map_err(|_| impossible())?;
    if !begin.is_multiple_of(alignment) {
        let alignment = alignment as u64;
        return Err(cursor.error(GgufError::Misaligned { tensor: name, offset, alignment }));
    }
    Ok(Info { name, shape, type_id, begin, length })
}

/// Where each of `infos`, ascending, ends; checks that all lie within the `available` bytes and none in another.
fn ends(cursor: &Cursor<'_>, infos: &[Info], available: usize) -> Result<Vec<usize>, CheckpointError> {
    let mut ends = Vec::with_capacity(infos.len());
    for (i, info) in infos.iter().enumerate() {
        let next = infos.get(i + 1);
        let room = next.map_or(available, |next| next.begin.min(available));
        let end = info.length.map_or(Some(room), |length| info.begin.checked_add(length));
        let (file, tensor) = (cursor.file().to_owned(), info.name.clone());
        let end = match end {
            Some(end) if info.begin <= end && end <= available => end,
            _ => {
                let end = end.unwrap_or(usize::MAX) as u64;
                let (begin, available) = (info.begin as u64, available as u64);
                return Err(CheckpointError::OutsideFile { file, tensor, begin, end, available });
            }
        };
        if let Some(next) = next.filter(|next| next.begin < end) {
            return Err(CheckpointError::Overlap { file, tensor: next.name.clone(), other: tensor });
        }
        ends.push(end);
    }
    Ok(ends)
}
