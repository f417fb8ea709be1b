//! Text to token ids and back. The work is done by the crate `tokenizers`, or, for SentencePiece's BPE, by `spm`; what is
//! added here is the line between text and control tokens, and text that comes out piece by piece.
//!
//! A tokenizer's *control tokens* (`<s>`, `</s>`, …: those marked `special`) steer the model, so text from outside must never
//! become one by spelling it: [`Tokenizer::encode`] takes them for text. [`Tokenizer::encode_trusted`] recognises them and is
//! for text of our own, such as a chat template's.

pub(crate) mod byte_level;
mod bytes;
mod detokenizer;
mod gguf;
mod library;
mod of_checkpoint;
mod spellings;
mod spm;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::checkpoint::MAX_TOKENIZER_BYTES;
use library::{Encoded, Library};
use spellings::Spellings;
use spm::{Place, SentencePiece};

pub use bytes::TokenBytes;
pub use detokenizer::{Detokenizer, MAX_HELD_TOKENS};
pub use gguf::{GgufTokenizer, MAX_MERGES};
pub use of_checkpoint::OpenError;
pub use spm::proto::MAX_SENTENCEPIECE_BYTES;

/// Most tokens of a vocabulary read from `tokenizer.model` or GGUF.
pub const MAX_TOKENS: usize = 1 << 20;
/// Longest text of such a token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 1 << 12;

/// Whether encoding adds the tokens that begin (or end) a sequence, as the tokenizer's own settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Add them: for a prompt.
    Add,
    /// Text alone.
    None,
}

/// Why a tokenizer cannot be used, or refuses a text. `file` is what it was read from.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is over its bound. Not a tokenizer.
    #[error("{file}: {found} bytes, at most {limit}")]
    TooLarge {
        /// Its name.
        file: &'static str,
        /// Its size in bytes.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// It is not a tokenizer that we can load. Get the file anew.
    #[error("{file}: {reason}")]
    Malformed {
        /// Its name.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// It is a tokenizer of a kind that we do not compute. Use a checkpoint that has a `tokenizer.json`.
    #[error("{file}: a tokenizer of another kind: {reason}")]
    Unsupported {
        /// Its name.
        file: &'static str,
        /// What it has that we lack.
        reason: String,
    },
    /// It makes tokens that the model has no row for. It belongs to another model.
    #[error("the tokenizer has {tokens} tokens, but the model's vocabulary has {vocab}")]
    DoesNotFit {
        /// One more than the highest id.
        tokens: usize,
        /// The model's vocabulary.
        vocab: usize,
    },
    /// The tokenizer cannot encode the text or decode the tokens. Refuse the request.
    #[error("the tokenizer failed")]
    Failed {
        /// Its reason, which may quote the text: not for logs.
        reason: String,
    },
    /// Text would become a control token even as text. Refuse the request.
    #[error("the text spells the control token {token}")]
    ControlToken {
        /// The token.
        token: String,
    },
}

/// A tokenizer. Cheap to clone; clones share one vocabulary.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    codec: Codec,
    /// The token that begins a sequence, where the codec does not add it itself.
    bos: Option<u32>,
    /// Control tokens by id.
    control: BTreeMap<u32, String>,
    spellings: Spellings,
    tokens: usize,
}

/// What does the work.
enum Codec {
    Library(Box<Library>),
    SentencePiece(Box<SentencePiece>),
}

impl Tokenizer {
    /// Loads a `tokenizer.json`. Truncation and padding, if it sets them, are turned off.
    ///
    /// # Errors
    /// [`TokenizerError::TooLarge`], [`TokenizerError::Malformed`].
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        const FILE: &str = "tokenizer.json";
        if json.len() > MAX_TOKENIZER_BYTES {
            return Err(TokenizerError::TooLarge { file: FILE, found: json.len(), limit: MAX_TOKENIZER_BYTES });
        }
        let library = Library::from_json(json).map_err(|error| malformed(FILE, error.to_string()))?;
        Ok(Self::of_library(library, None))
    }

    /// Loads a `tokenizer.model`: a SentencePiece BPE that leaves text as it is (Llama's, Mistral's). Ids are SentencePiece's.
    ///
    /// [`Special::Add`] adds `<s>`, as those models want; the file does not say.
    ///
    /// # Errors
    /// [`TokenizerError::TooLarge`], [`TokenizerError::Malformed`], [`TokenizerError::Unsupported`].
    pub fn from_sentencepiece(model: &[u8]) -> Result<Self, TokenizerError> {
        let (sentencepiece, bos) = spm::proto::read(model)?;
        Ok(Self::of_sentencepiece(sentencepiece, bos))
    }

    /// Makes the tokenizer that GGUF metadata describes: `llama` (SentencePiece's BPE) or `gpt2` (byte-level BPE).
    ///
    /// # Errors
    /// [`TokenizerError::Malformed`], [`TokenizerError::Unsupported`].
    pub fn from_gguf(tokenizer: GgufTokenizer) -> Result<Self, TokenizerError> {
        gguf::read(tokenizer)
    }

    fn of_library(library: Library, bos: Option<u32>) -> Self {
        let (control, tokens) = (library.control(), library.tokens());
        Self::new(Codec::Library(Box::new(library)), bos, control, tokens)
    }

    fn of_sentencepiece(sentencepiece: SentencePiece, bos: Option<u32>) -> Self {
        let (control, tokens) = (sentencepiece.control(), sentencepiece.tokens());
        Self::new(Codec::SentencePiece(Box::new(sentencepiece)), bos, control, tokens)
    }

    fn new(codec: Codec, bos: Option<u32>, control: BTreeMap<u32, String>, tokens: usize) -> Self {
        let spellings = control.iter().map(|(&id, text)| (text.clone(), id)).collect();
        Self(Arc::new(Inner { codec, bos, control, spellings, tokens }))
    }

    /// Checks that every token has a row in a vocabulary of `vocab` entries.
    ///
    /// # Errors
    /// [`TokenizerError::DoesNotFit`].
    pub fn check_fits(&self, vocab: usize) -> Result<(), TokenizerError> {
        if self.0.tokens <= vocab {
            return Ok(());
        }
        Err(TokenizerError::DoesNotFit { tokens: self.0.tokens, vocab })
    }

    /// The ids of `text`, in which control tokens are text like any other.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`]; [`TokenizerError::ControlToken`] when the vocabulary has a control token's text among its
    /// ordinary words.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::from_iter(self.0.bos.filter(|_| special == Special::Add));
        match &self.0.codec {
            Codec::SentencePiece(sentencepiece) => ids.extend(sentencepiece.encode(text, Place::Alone)),
            Codec::Library(library) => {
                let encoded = library.encode(text, special)?;
                self.refuse_control(&encoded, library.unknown())?;
                ids.extend(encoded.ids);
            }
        }
        Ok(ids)
    }

    /// The ids of a text that follows a control token, in which control tokens are text like any other. None are added.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub(crate) fn encode_after_control(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match &self.0.codec {
            Codec::SentencePiece(sentencepiece) => Ok(sentencepiece.encode(text, Place::AfterControl)),
            Codec::Library(_) => self.encode(text, Special::None),
        }
    }

    /// The ids of `text`, in which control tokens are recognised. For text of our own. None are added.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let sentencepiece = match &self.0.codec {
            Codec::Library(library) => return library.encode_trusted(text),
            Codec::SentencePiece(sentencepiece) => sentencepiece,
        };
        let (mut ids, mut begin, mut place) = (Vec::new(), 0, Place::Alone);
        for (range, id) in self.find_control(text) {
            ids.extend(sentencepiece.encode(&text[begin..range.start], place));
            ids.push(id);
            (begin, place) = (range.end, Place::AfterControl);
        }
        ids.extend(sentencepiece.encode(&text[begin..], place));
        Ok(ids)
    }

    /// Refuses ids among which text became a control token. The unknown token is special, but harmless.
    fn refuse_control(&self, encoded: &Encoded, unknown: Option<u32>) -> Result<(), TokenizerError> {
        let mut from_text = encoded.ids.iter().zip(&encoded.added).filter(|(_, added)| **added == 0);
        match from_text.find(|(id, _)| self.is_control(**id) && Some(**id) != unknown) {
            Some((id, _)) => Err(TokenizerError::ControlToken { token: self.0.control[id].clone() }),
            None => Ok(()),
        }
    }

    /// The text of `ids`, without control tokens: what a [`Detokenizer`] gives for them, piece by piece.
    ///
    /// Bytes that are no UTF-8 become U+FFFD. Unknown ids have no text.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let mut detokenizer = self.detokenizer(&[])?;
        let mut text = String::new();
        for &id in ids {
            text.extend(detokenizer.push(id)?);
        }
        text.extend(detokenizer.finish()?);
        Ok(text)
    }

    /// A detokenizer for tokens that follow `prompt`.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn detokenizer(&self, prompt: &[u32]) -> Result<Detokenizer, TokenizerError> {
        Detokenizer::after(self.clone(), prompt)
    }

    /// One more than the highest id. (A model's vocabulary may be larger, padded for speed.)
    pub fn vocab_size(&self) -> usize {
        self.0.tokens
    }

    /// The id of a token, control tokens too, by its text in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.0.codec {
            Codec::Library(library) => library.token_to_id(token),
            Codec::SentencePiece(sentencepiece) => sentencepiece.token_to_id(token),
        }
    }

    /// The text in the vocabulary of a token: not what it decodes to (`▁the`, `<0x0A>`).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        match &self.0.codec {
            Codec::Library(library) => library.id_to_token(id),
            Codec::SentencePiece(sentencepiece) => sentencepiece.id_to_token(id).map(str::to_owned),
        }
    }

    /// Whether `id` is a control token.
    pub fn is_control(&self, id: u32) -> bool {
        self.0.control.contains_key(&id)
    }

    /// The texts of the control tokens.
    pub(crate) fn control_texts(&self) -> impl Iterator<Item = &str> {
        self.0.control.values().map(String::as_str)
    }

    /// Where control tokens stand in `text`, by their spelling: leftmost first, of several at one place the longest.
    pub(crate) fn find_control(&self, text: &str) -> Vec<(Range<usize>, u32)> {
        let mut found = Vec::new();
        let mut end = 0;
        for (at, _) in text.char_indices() {
            if let Some((length, id)) = self.0.spellings.longest_at(&text[at..]).filter(|_| at >= end) {
                end = at + length;
                found.push((at..end, id));
            }
        }
        found
    }

    /// The text of all `ids` at once.
    fn decode_whole(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        match &self.0.codec {
            Codec::Library(library) => library.decode(ids),
            Codec::SentencePiece(sentencepiece) => Ok(sentencepiece.decode(ids)),
        }
    }

    /// Whether decoding looks at `id` at all.
    fn has_text(&self, id: u32) -> bool {
        !self.is_control(id) && self.id_to_token(id).is_some()
    }
}

fn malformed(file: &'static str, reason: String) -> TokenizerError {
    TokenizerError::Malformed { file, reason }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer of {} tokens", self.0.tokens)
    }
}
