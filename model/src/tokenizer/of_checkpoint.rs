//! The tokenizer of a checkpoint, wherever it keeps it.

use super::{GgufTokenizer, Tokenizer, TokenizerError};
use crate::checkpoint::gguf::Metadata;
use crate::checkpoint::{Checkpoint, CheckpointError};

/// Why a checkpoint gives no tokenizer: the file is at fault.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none, or it cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// It is not sound, or of a kind that is not supported.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl Tokenizer {
    /// The tokenizer in GGUF metadata; of a folder, `tokenizer.json`, or `tokenizer.model` where there is none.
    ///
    /// # Errors
    /// [`OpenError`] names the file or the key.
    pub fn of(checkpoint: &Checkpoint) -> Result<Self, OpenError> {
        if let Some(metadata) = checkpoint.gguf_metadata() {
            return Ok(Self::from_gguf(GgufTokenizer::from_metadata(metadata)?)?);
        }
        match (checkpoint.tokenizer_json(), checkpoint.sentencepiece_model()?) {
            (Err(CheckpointError::MissingFile { .. }), Some(model)) => Ok(Self::from_sentencepiece(&model)?),
            (json, _) => Ok(Self::from_json(&json?)?),
        }
    }
}

impl GgufTokenizer {
    /// What stands in `metadata`. Keys: ggml's `docs/gguf.md`, section "Tokenizer".
    ///
    /// # Errors
    /// A key is absent, or of another type.
    pub(crate) fn from_metadata(metadata: &Metadata) -> Result<Self, CheckpointError> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let tokens = metadata.strings(&key("tokens"))?;
        let model = metadata.string(&key("model"))?;
        Ok(Self {
            model: metadata.required(&key("model"), model)?.to_owned(),
            pre: metadata.string(&key("pre"))?.map(str::to_owned),
            tokens: metadata.required(&key("tokens"), tokens)?.to_vec(),
            scores: metadata.f32s(&key("scores"))?.unwrap_or_default(),
            token_types: metadata.i32s(&key("token_type"))?.unwrap_or_default(),
            merges: metadata.strings(&key("merges"))?.unwrap_or_default().to_vec(),
            bos: metadata.u32(&key("bos_token_id"))?,
            unknown: metadata.u32(&key("unknown_token_id"))?,
            add_bos: metadata.bool(&key("add_bos_token"))?,
            add_space_prefix: metadata.bool(&key("add_space_prefix"))?,
        })
    }
}
