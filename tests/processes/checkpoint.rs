//! The demo model in a folder of its own, with one file changed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const CONFIG: &str = "config.json";
/// Positions of [`endless`]: many times what is computed before a test has seen enough.
const ENDLESS: u32 = 1 << 14;

/// The demo model's folder.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/breeze").canonicalize().expect("the demo model is there")
}

/// The demo model with its file `name` put through `change`.
fn with(name: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for entry in fs::read_dir(demo()).expect("the demo model can be listed").flatten() {
        if entry.file_name() != name {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).expect("a copy in our folder");
        }
    }
    let changed = change(fs::read(demo().join(name)).expect("the demo model can be read"));
    fs::write(folder.path().join(name), changed).expect("a file in our folder");
    folder
}

/// As it is.
pub(crate) fn unchanged() -> TempDir {
    with(CONFIG, |config| config)
}

/// With a context so long that a completion without end lasts longer than a test.
pub(crate) fn endless() -> TempDir {
    with(CONFIG, |config| {
        let mut config: Value = serde_json::from_slice(&config).expect("the config is JSON");
        config["max_position_embeddings"] = json!(ENDLESS);
        config.to_string().into_bytes()
    })
}

/// Without the tensor `name`.
pub(crate) fn without_tensor(name: &str) -> TempDir {
    with(WEIGHTS, |file| without(&file, name))
}

/// With one bit of the last tensor's data flipped, the lowest of a mantissa.
pub(crate) fn with_flipped_bit() -> TempDir {
    with(WEIGHTS, |mut file| {
        let low_byte = file.len() - 2;
        file[low_byte] ^= 1;
        file
    })
}

/// With the first `length` bytes of the weights only.
pub(crate) fn truncated(length: usize) -> TempDir {
    with(WEIGHTS, |mut file| {
        file.truncate(length);
        file
    })
}

/// A safetensors file without one tensor, the data moved up. Format: eight bytes of the header's length (little-endian),
/// the header in JSON, the data, in which each tensor's `data_offsets` count.
fn without(file: &[u8], name: &str) -> Vec<u8> {
    let (length, rest) = file.split_first_chunk::<8>().expect("a length");
    let (header, data) = rest.split_at(usize::try_from(u64::from_le_bytes(*length)).expect("a length in memory"));
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(header).expect("a header in JSON");
    header.remove(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let mut kept = Vec::with_capacity(data.len());
    for tensor in header.iter_mut().filter(|(name, _)| *name != "__metadata__").map(|(_, tensor)| tensor) {
        let offset = |i: usize| tensor["data_offsets"][i].as_u64().and_then(|o| usize::try_from(o).ok());
        let (Some(start), Some(end)) = (offset(0), offset(1)) else { panic!("a tensor without data: {tensor}") };
        let moved = kept.len();
        kept.extend_from_slice(&data[start..end]);
        tensor["data_offsets"] = json!([moved, kept.len()]);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), kept.as_slice()].concat()
}
