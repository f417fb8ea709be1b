//! Hidden states as kernels eat them: int8 blocks for quantised weights (also what crosses the wire), f32 for float ones.
//!
//! Rows stand in groups, and within a group block by block: the rows that a tile multiplies together lie side by side, wherever
//! in the batch they came from, and their distance is never a power of two.

mod blocks;
mod floats;

pub use blocks::Q8Buf;
pub(crate) use blocks::{Q8_ROWS, Q8Block, RECORD_ROW, Record, quantize_group};
pub use floats::F32Buf;
pub(crate) use floats::{F32_ROWS, interleave};

/// A value that is NaN or infinite stood in a hidden state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("row {row} holds a value that is not finite")]
pub struct NotFinite {
    /// The row, from 0.
    pub row: usize,
}

/// The rows a matrix is multiplied with.
#[derive(Clone, Copy, Debug)]
pub enum Activations<'a> {
    /// For float weights.
    F32(&'a F32Buf),
    /// For quantised weights.
    Q8(&'a Q8Buf),
}

impl Activations<'_> {
    /// Rows.
    pub const fn rows(&self) -> usize {
        match self {
            Self::F32(x) => x.rows(),
            Self::Q8(x) => x.rows(),
        }
    }

    /// Values in a row.
    pub const fn width(&self) -> usize {
        match self {
            Self::F32(x) => x.width(),
            Self::Q8(x) => x.width(),
        }
    }

    /// Groups of rows.
    pub(crate) const fn groups(&self) -> usize {
        match self {
            Self::F32(x) => x.rows().div_ceil(F32_ROWS),
            Self::Q8(x) => x.rows().div_ceil(Q8_ROWS),
        }
    }

    /// Rows in a group, but for the last.
    pub(crate) const fn group_rows(&self) -> usize {
        match self {
            Self::F32(_) => F32_ROWS,
            Self::Q8(_) => Q8_ROWS,
        }
    }
}
