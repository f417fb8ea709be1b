//! The tokenizer that stands in GGUF metadata. Source: GGUF's specification (ggml, `docs/gguf.md`) and, for what absent keys
//! mean, llama.cpp's `src/llama-vocab.cpp`.

#[cfg(test)]
mod tests;

use super::library::Library;
use super::spm::{DummyPrefix, Kind, Piece, SentencePiece};
use super::{MAX_TOKENS, Tokenizer, TokenizerError, byte_level, malformed};

/// What the errors call it.
pub(super) const FILE: &str = "GGUF metadata";
/// Most merges of a byte-level BPE.
pub const MAX_MERGES: usize = 4 << 20;

/// The keys `tokenizer.ggml.*` as they stand in the file. What a kind of tokenizer does not use may be empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `model`: the kind, `llama` or `gpt2`.
    pub model: String,
    /// `pre`: how a byte-level BPE divides text into words.
    pub pre: Option<String>,
    /// `tokens`: the texts, by id.
    pub tokens: Vec<String>,
    /// `scores`: by id. `llama` needs them.
    pub scores: Vec<f32>,
    /// `token_type`: by id; 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Vec<i32>,
    /// `merges`: pairs of token texts, with a space between. `gpt2` needs them.
    pub merges: Vec<String>,
    /// `bos_token_id`: the token that begins a sequence.
    pub bos: Option<u32>,
    /// `unknown_token_id`: the token for what the vocabulary cannot express.
    pub unknown: Option<u32>,
    /// `add_bos_token`: whether a prompt begins with `bos`. By default yes in `llama`; in `gpt2` it depends on `pre`.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`: whether `llama` encodes a text as if a space stood before it. By default yes.
    pub add_space_prefix: Option<bool>,
}

/// The tokenizer that `gguf` describes.
pub(super) fn read(gguf: GgufTokenizer) -> Result<Tokenizer, TokenizerError> {
    let tokens = gguf.tokens.len();
    if tokens == 0 || tokens > MAX_TOKENS {
        return Err(malformed(FILE, format!("{tokens} tokens, but 1 to {MAX_TOKENS} are allowed")));
    }
    // Without types, control tokens could not be told from text.
    if gguf.token_types.len() != tokens {
        return Err(malformed(FILE, format!("{tokens} tokens, but {} token types", gguf.token_types.len())));
    }
    if let Some(id) = [gguf.bos, gguf.unknown].into_iter().flatten().find(|&id| id as usize >= tokens) {
        return Err(malformed(FILE, format!("a special token has the id {id} of {tokens}")));
    }
    match gguf.model.as_str() {
        "llama" => llama(gguf),
        "gpt2" => gpt2(&gguf),
        other => Err(unsupported(format!("tokenizer.ggml.model is {other:?}"))),
    }
}

fn llama(gguf: GgufTokenizer) -> Result<Tokenizer, TokenizerError> {
    if gguf.scores.len() != gguf.tokens.len() {
        return Err(malformed(FILE, format!("{} tokens, but {} scores", gguf.tokens.len(), gguf.scores.len())));
    }
    let bos = bos(&gguf, true)?;
    let kinds = kinds(&gguf)?;
    let pieces = gguf.tokens.into_iter().zip(gguf.scores).zip(kinds);
    let pieces = pieces.map(|((text, score), kind)| Piece { text, score, kind }).collect();
    let dummy_prefix = if gguf.add_space_prefix.unwrap_or(true) { DummyPrefix::Add } else { DummyPrefix::Omit };
    Ok(Tokenizer::of_sentencepiece(SentencePiece::new(pieces, dummy_prefix, FILE)?, bos))
}

fn gpt2(gguf: &GgufTokenizer) -> Result<Tokenizer, TokenizerError> {
    if gguf.merges.len() > MAX_MERGES {
        return Err(malformed(FILE, format!("{} merges, at most {MAX_MERGES}", gguf.merges.len())));
    }
    let pre = gguf.pre.as_deref().ok_or_else(|| unsupported("tokenizer.ggml.pre is absent".to_owned()))?;
    let scheme = byte_level::scheme(pre).ok_or_else(|| unsupported(format!("tokenizer.ggml.pre is {pre:?}")))?;
    let bos = bos(gguf, scheme.adds_bos)?;
    let tokenizer = byte_level::build(&scheme, &gguf.tokens, &kinds(gguf)?, &gguf.merges)?;
    let library = Library::new(tokenizer).map_err(|error| malformed(FILE, error.to_string()))?;
    Ok(Tokenizer::of_library(library, bos))
}

/// The token that begins a prompt, if one does.
fn bos(gguf: &GgufTokenizer, default: bool) -> Result<Option<u32>, TokenizerError> {
    match gguf.add_bos.unwrap_or(default) {
        true if gguf.bos.is_none() => {
            Err(malformed(FILE, "a prompt begins with bos_token_id, which is absent".to_owned()))
        }
        true => Ok(gguf.bos),
        false => Ok(None),
    }
}

fn kinds(gguf: &GgufTokenizer) -> Result<Vec<Kind>, TokenizerError> {
    let kinds = (0..).zip(&gguf.token_types).map(|(id, &number)| match Kind::from_number(number) {
        Some(_) if gguf.unknown == Some(id) => Ok(Kind::Unknown),
        Some(kind) => Ok(kind),
        None => Err(malformed(FILE, format!("token {id} is of the unknown type {number}"))),
    });
    kinds.collect()
}

fn unsupported(reason: String) -> TokenizerError {
    TokenizerError::Unsupported { file: FILE, reason }
}
