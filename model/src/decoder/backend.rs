//! The attention half as a step drives it, on whichever device.

use std::sync::Arc;

use tramontane_kernels::{Compute, KvType, NotFinite, QueryRow};

use super::{CpuDecoder, Decoder, EmbedError, LayerRows};
use crate::cache::PackedCache;
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::device::Device;
use crate::weights::{LoadError, Packing};

/// Why a step's rows could not be computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecoderError {
    /// The row is at fault: fail its request.
    #[error("the hidden state of row {row} is not finite")]
    NotFinite {
        /// The row, of those that were given.
        row: usize,
    },
    /// The device is: nothing will work until it does.
    #[error("the device failed: {why}")]
    Device {
        /// What it said.
        why: String,
    },
}

impl From<NotFinite> for DecoderError {
    fn from(NotFinite { row }: NotFinite) -> Self {
        Self::NotFinite { row }
    }
}

/// The attention half with its KV cache and its buffers. A step is [`begin`](Self::begin), then for each layer [`attend`](Self::attend) and
/// [`gate`](Self::gate), whose caller adds what the experts bring to the hidden states, then [`logits`](Self::logits).
pub trait DecoderBackend: Send {
    /// The model's dimensions.
    fn config(&self) -> &ModelConfig;

    /// Starts a step: the embeddings of its tokens go to `hidden` (rows × hidden).
    ///
    /// # Errors
    /// [`EmbedError::UnknownToken`] names the first token outside the vocabulary.
    fn begin(&mut self, tokens: &[u32], rows: &[QueryRow<'_>], hidden: &mut Vec<f32>) -> Result<(), EmbedError>;

    /// A layer up to its experts: stores the rows' keys and values, and adds attention's result to `hidden`, which shrinks to the rows kept.
    ///
    /// # Errors
    /// [`DecoderError`]; not every backend finds values that are not finite before the gate.
    ///
    /// # Panics
    /// When `hidden` is not the step's rows, or a row's blocks do not reach its position.
    fn attend(&mut self, what: LayerRows<'_>, hidden: &mut Vec<f32>) -> Result<(), DecoderError>;

    /// What the gate of the layer just attended says of each row: `normed` becomes the experts' input (rows × hidden), `logits` rows × experts.
    ///
    /// # Errors
    /// [`DecoderError`].
    fn gate(
        &mut self,
        layer: usize,
        hidden: &[f32],
        normed: &mut Vec<f32>,
        logits: &mut Vec<f32>,
    ) -> Result<(), DecoderError>;

    /// The last hidden states, as the output head reads them: `hidden`'s rows, which have passed all layers, after the last norm.
    ///
    /// # Errors
    /// [`DecoderError::Device`].
    fn last_hidden(&mut self, hidden: &[f32], normed: &mut Vec<f32>) -> Result<(), DecoderError>;

    /// The vocabulary's logits (rows × vocab) for rows that have passed all layers.
    ///
    /// # Errors
    /// [`DecoderError`].
    fn logits(&mut self, hidden: &[f32], logits: &mut Vec<f32>) -> Result<(), DecoderError>;

    /// Makes KV block `to` hold what block `from` does, in all layers.
    ///
    /// # Errors
    /// [`DecoderError::Device`].
    fn copy_block(&mut self, from: u32, to: u32) -> Result<(), DecoderError>;
}

/// Loads the attention half onto `device`, with room for `kv_blocks` blocks of keys and values; `compute` and `cache` are for this
/// machine's cores.
///
/// # Errors
/// [`LoadError`] names the file and tensor, or says what the device did.
pub fn load(
    device: &Device,
    compute: Compute,
    cache: Option<Arc<PackedCache>>,
    checkpoint: Arc<Checkpoint>,
    config: &ModelConfig,
    (kv, kv_blocks): (KvType, usize),
) -> Result<Box<dyn DecoderBackend>, LoadError> {
    match device {
        Device::Cpu => {
            let packing = Packing { pool: compute.pool.clone(), cache };
            Ok(Box::new(CpuDecoder::new(Decoder::load(&packing, checkpoint, config)?, compute, kv, kv_blocks)))
        }
        Device::Candle(device) => device.decoder(checkpoint, config, kv, kv_blocks),
    }
}
