//! For tests: a small writer of safetensors, honest or not.

use std::fs;
use std::path::Path;

use proptest::sample::Index;
use serde_json::json;

use super::Checkpoint;

/// A tensor to be written.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Raw {
    /// An F32 tensor.
    pub(crate) fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self { name: name.to_owned(), dtype: "F32", shape: shape.to_vec(), data }
    }
}

/// A well-formed file of `tensors`, in their order.
pub(crate) fn write(tensors: &[Raw]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
    for tensor in tensors {
        let begin = data.len();
        data.extend(&tensor.data);
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
        entries.push(format!("{}:{entry}", json!(tensor.name)));
    }
    file(&format!("{{{}}}", entries.join(",")), &data)
}

/// A file of the header `header` and the data `data`.
pub(crate) fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

/// The checkpoint whose only file is `bytes`, as `model.safetensors`.
pub(crate) fn open_bytes(bytes: Vec<u8>) -> Result<Checkpoint, super::CheckpointError> {
    Checkpoint::from_files(&[("model.safetensors", bytes.leak())])
}

/// A checkpoint of `tensors` alone.
pub(crate) fn embedded(tensors: &[Raw]) -> Checkpoint {
    open_bytes(write(tensors)).expect("a well-formed file")
}

/// Writes `tensors` as the `model.safetensors` of `folder`.
pub(crate) fn write_folder(folder: &Path, tensors: &[Raw]) {
    fs::write(folder.join("model.safetensors"), write(tensors)).expect("a writable folder");
}

/// A file with bytes written over, and then cut off.
pub(crate) fn damage(mut bytes: Vec<u8>, flips: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    for (at, value) in flips {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}
