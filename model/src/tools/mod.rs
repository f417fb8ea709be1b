//! What an operator does to checkpoints: writes them as GGUF in smaller types, makes them up for measurements, cuts a dense model into
//! experts, looks into them, checks them. Everything that is written streams, tensor by tensor, into a file that takes its name
//! only when it is whole.

mod inspect;
mod metadata;
mod output;
mod quantize;
mod recipe;
mod slots;
mod split;
mod synth;
#[cfg(test)]
mod tests;
mod verify;
mod vocabulary;

use tramontane_kernels::Unquantizable;

pub use inspect::{ExpertBytes, FileReport, LayerReport, Report, TensorReport, inspect};
pub use quantize::quantize;
pub use recipe::Recipe;
pub use slots::{Role, Slot, slots};
pub use split::split;
pub use synth::{Like, SynthOptions, synth};
pub use verify::{Verdict, verify};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::gguf::GgufWriteError;

/// Called with bytes done and bytes in all, now and then.
pub type OnProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// Why a tool gave up. The file that was to be written is not there then.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The checkpoint is damaged or not one that we compute. Get it anew.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A weight is not finite, or too large for the type asked for. Choose another type.
    #[error("tensor {tensor}, row {row}: {source}")]
    Weight {
        /// The tensor that was to be written.
        tensor: String,
        /// The row in it, all its matrices counted through.
        row: usize,
        /// What is wrong.
        source: Unquantizable,
    },
    /// The output cannot be written: a full disk, a folder that is not there. What was written is removed.
    #[error("{file}: {source}")]
    Write {
        /// The output.
        file: String,
        /// What is wrong.
        source: GgufWriteError,
    },
    /// The tokenizer is of a kind that we do not write to GGUF. Convert the checkpoint with its maker's tools.
    #[error("tokenizer.json cannot be written to GGUF: {reason}")]
    Tokenizer {
        /// What is different.
        reason: String,
    },
    /// GGUF has no words for something in the model.
    #[error("cannot be written as GGUF: {what}")]
    Inexpressible {
        /// What it is.
        what: String,
    },
    /// The model cannot be cut as asked. Choose another number of experts, or another model.
    #[error("{file}: cannot be split: {reason}")]
    Split {
        /// The dense model.
        file: String,
        /// Why.
        reason: String,
    },
}
