//! `tokenizer.model`: SentencePiece's ModelProto, the fields that encoding needs.
//! Source: sentencepiece, `src/sentencepiece_model.proto` (proto2: what is absent has the default given there).

use prost::Message;

use super::{DummyPrefix, Kind, Piece, SentencePiece};
use crate::tokenizer::{TokenizerError, malformed};

/// The file's name.
pub(crate) const FILE: &str = "tokenizer.model";
/// Largest `tokenizer.model`, in bytes. (Those of a quarter of a million pieces have five million.)
pub const MAX_SENTENCEPIECE_BYTES: usize = 16 << 20;
/// `TrainerSpec.ModelType`.
const BPE: i32 = 2;

#[derive(Message)]
struct ModelProto {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<PieceProto>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<TrainerSpec>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<NormalizerSpec>,
}

#[derive(Message)]
struct PieceProto {
    #[prost(string, tag = "1")]
    piece: String,
    #[prost(float, tag = "2")]
    score: f32,
    #[prost(int32, optional, tag = "3", default = "1")]
    kind: Option<i32>,
}

#[derive(Message)]
struct TrainerSpec {
    #[prost(int32, optional, tag = "3", default = "1")]
    model_type: Option<i32>,
    #[prost(bool, tag = "24")]
    treat_whitespace_as_suffix: bool,
    #[prost(string, optional, tag = "46", default = "<s>")]
    bos_piece: Option<String>,
}

#[derive(Message)]
struct NormalizerSpec {
    #[prost(bytes = "vec", tag = "2")]
    precompiled_charsmap: Vec<u8>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

/// The tokenizer in a `tokenizer.model`, and the token that begins a sequence: the control token spelled `bos_piece`.
pub(crate) fn read(bytes: &[u8]) -> Result<(SentencePiece, Option<u32>), TokenizerError> {
    if bytes.len() > MAX_SENTENCEPIECE_BYTES {
        return Err(TokenizerError::TooLarge { file: FILE, found: bytes.len(), limit: MAX_SENTENCEPIECE_BYTES });
    }
    let model = ModelProto::decode(bytes).map_err(|error| malformed(FILE, error.to_string()))?;
    let trainer = model.trainer.unwrap_or_default();
    let normalizer = model.normalizer.unwrap_or_default();
    refuse_others(&trainer, &normalizer)?;
    let pieces = (0..).zip(model.pieces).map(|(id, piece): (u32, _)| {
        let unheard_of = || malformed(FILE, format!("token {id} is of the unknown type {}", piece.kind()));
        let kind = Kind::from_number(piece.kind()).ok_or_else(unheard_of)?;
        Ok(Piece { text: piece.piece, score: piece.score, kind })
    });
    let pieces = pieces.collect::<Result<Vec<_>, TokenizerError>>()?;
    let is_bos = |piece: &Piece| piece.kind == Kind::Control && piece.text == trainer.bos_piece();
    let bos = (0..).zip(&pieces).find(|(_, piece)| is_bos(piece)).map(|(id, _)| id);
    let dummy_prefix = if normalizer.add_dummy_prefix() { DummyPrefix::Add } else { DummyPrefix::Omit };
    Ok((SentencePiece::new(pieces, dummy_prefix, FILE)?, bos))
}

/// Refuses what is no BPE, or changes text before encoding it.
fn refuse_others(trainer: &TrainerSpec, normalizer: &NormalizerSpec) -> Result<(), TokenizerError> {
    let refused = [
        (trainer.model_type() != BPE, "its model type is not BPE"),
        (!normalizer.precompiled_charsmap.is_empty(), "it normalises text by a table of characters"),
        (normalizer.remove_extra_whitespaces(), "it removes repeated spaces"),
        (!normalizer.escape_whitespaces(), "it does not escape spaces"),
        (trainer.treat_whitespace_as_suffix, "its spaces end words"),
    ];
    match refused.iter().find(|(refused, _)| *refused) {
        Some((_, reason)) => Err(TokenizerError::Unsupported { file: FILE, reason: (*reason).to_owned() }),
        None => Ok(()),
    }
}
