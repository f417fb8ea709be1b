//! Rows on their way to and from experts: the payload formats and the batch a node receives and answers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Epoch, ModelId};

/// How one row of `width` values stands in a payload (little endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowFormat {
    /// `width` × f32: rows for float experts, and their answers.
    F32,
    /// `width` × bf16: answers of quantised experts.
    Bf16,
    /// `width` × int8, then `width / 32` × f32 scales: rows for quantised experts (numeric contract, "activations").
    Q8,
}

impl RowFormat {
    /// Bytes of one row of `width` values.
    pub const fn row_bytes(self, width: usize) -> usize {
        match self {
            Self::F32 => width * 4,
            Self::Bf16 => width * 2,
            Self::Q8 => width + width / 32 * 4,
        }
    }
}

/// `rows` rows of `width` values in one format, as one buffer: what crosses the wire is what the kernel eats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// How a row stands in `data`.
    pub format: RowFormat,
    /// Values in a row.
    pub width: usize,
    /// `rows × format.row_bytes(width)` bytes.
    pub data: Bytes,
}

impl Rows {
    /// How many rows `data` holds; `None` when it is no whole number of rows.
    pub fn count(&self) -> Option<usize> {
        let row = self.format.row_bytes(self.width);
        (row > 0 && self.data.len().is_multiple_of(row)).then(|| self.data.len() / row)
    }

    /// The bytes of row `i`.
    ///
    /// # Panics
    /// When `i` is not below [`Rows::count`].
    pub fn row(&self, i: usize) -> &[u8] {
        let row = self.format.row_bytes(self.width);
        &self.data[i * row..(i + 1) * row]
    }
}

/// One expert's share of a batch: which of the batch's rows it computes, ascending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertWork {
    /// Expert within the batch's layer.
    pub expert: u32,
    /// Indices into the batch's rows.
    pub rows: Vec<u32>,
}

/// Where work stands in a trace that is recorded: the trace's id (16 bytes), then the span's (8). Nothing is decided by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceIds(pub [u8; Self::BYTES]);

impl TraceIds {
    /// How long it is.
    pub const BYTES: usize = 24;
}

/// What one node computes for one coordinator in one layer: each token's row once, and who computes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertBatch {
    /// The model.
    pub model: ModelId,
    /// The placement epoch the sender planned with: a hint, for a node refuses only what it does not hold.
    pub epoch: Epoch,
    /// The layer.
    pub layer: u32,
    /// The tokens' hidden states, each once.
    pub rows: Rows,
    /// Experts, ascending, with the rows each computes.
    pub work: Vec<ExpertWork>,
    /// Where the sender shows it, if it does.
    pub trace: Option<TraceIds>,
}

impl ExpertBatch {
    /// Rows the node answers with: one a (row, expert) pair.
    pub fn answers(&self) -> usize {
        self.work.iter().map(|w| w.rows.len()).sum()
    }
}

/// A node's answer: one row a (expert, row) pair, in the order of the batch's `work`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertRows {
    /// The answers, f32 or bf16.
    pub rows: Rows,
}
