//! Text to token ids and back. The work is done by the crate `tokenizers`; what is ours is the line between text and
//! control tokens, and text that comes out piece by piece.
//!
//! A tokenizer's *control tokens* (`<s>`, `</s>`, …: those marked `special`) steer the model, so text from outside must never
//! become one by spelling it: [`Tokenizer::encode`] takes them for text. [`Tokenizer::encode_trusted`] recognises them and is
//! for text of our own, such as a chat template's.

mod detokenizer;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use tokenizers::models::ModelWrapper;

use crate::checkpoint::MAX_TOKENIZER_BYTES;

pub use detokenizer::{Detokenizer, MAX_HELD_TOKENS};

/// Whether encoding adds the tokens that begin (or end) a sequence, as the tokenizer's own settings say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Add them: for a prompt.
    Add,
    /// Text alone.
    None,
}

/// Why a tokenizer cannot be used, or refuses a text.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file is over its bound. Not a tokenizer.
    #[error("tokenizer.json: {found} bytes, at most {limit}")]
    TooLarge {
        /// Its size in bytes.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// It is not a tokenizer that we can load. Get the file anew.
    #[error("tokenizer.json: {reason}")]
    Malformed {
        /// The loader's reason.
        reason: String,
    },
    /// It makes tokens that the model has no row for. It belongs to another model.
    #[error("tokenizer.json: {tokens} tokens, but the model's vocabulary has {vocab}")]
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
    /// Recognises control tokens.
    trusted: tokenizers::Tokenizer,
    /// Takes control tokens for text.
    plain: tokenizers::Tokenizer,
    /// Control tokens by id.
    control: BTreeMap<u32, String>,
    /// Control tokens by the first character of their text, longest first.
    by_first: BTreeMap<char, Vec<(String, u32)>>,
    /// The token for text that the vocabulary cannot express: special, but harmless.
    unknown: Option<u32>,
    tokens: usize,
}

impl Tokenizer {
    /// Loads a `tokenizer.json`. Truncation and padding, if it sets them, are turned off.
    ///
    /// # Errors
    /// [`TokenizerError::TooLarge`], [`TokenizerError::Malformed`].
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        if json.len() > MAX_TOKENIZER_BYTES {
            return Err(TokenizerError::TooLarge { found: json.len(), limit: MAX_TOKENIZER_BYTES });
        }
        let malformed = |e: tokenizers::Error| TokenizerError::Malformed { reason: e.to_string() };
        let mut trusted = tokenizers::Tokenizer::from_bytes(json).map_err(malformed)?;
        trusted.with_truncation(None).map_err(malformed)?;
        trusted.with_padding(None);
        trusted.set_encode_special_tokens(false);
        let mut plain = trusted.clone();
        plain.set_encode_special_tokens(true);

        let added = trusted.get_added_tokens_decoder();
        let special = added.into_iter().filter(|(_, token)| token.special);
        let control: BTreeMap<u32, String> = special.map(|(id, token)| (id, token.content)).collect();
        let mut by_first: BTreeMap<char, Vec<(String, u32)>> = BTreeMap::new();
        for (&id, text) in &control {
            if let Some(first) = text.chars().next() {
                by_first.entry(first).or_default().push((text.clone(), id));
            }
        }
        by_first.values_mut().for_each(|texts| texts.sort_by_key(|(text, _)| std::cmp::Reverse(text.len())));
        let unknown = match trusted.get_model() {
            ModelWrapper::BPE(bpe) => bpe.get_unk_token().as_deref().and_then(|token| trusted.token_to_id(token)),
            _ => None,
        };
        let highest = trusted.get_vocab(true).into_values().max();
        let tokens = highest.map_or(0, |id| id as usize + 1);
        Ok(Self(Arc::new(Inner { trusted, plain, control, by_first, unknown, tokens })))
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
        let encoding = self.0.plain.encode_fast(text, special == Special::Add).map_err(failed)?;
        let ids = encoding.get_ids();
        // The mask is 1 where the tokenizer's settings added the token, 0 where it comes from the text.
        let mut from_text = ids.iter().zip(encoding.get_special_tokens_mask()).filter(|(_, mask)| **mask == 0);
        let is_control = |id: &u32| self.is_control(*id) && Some(*id) != self.0.unknown;
        if let Some((id, _)) = from_text.find(|(id, _)| is_control(id)) {
            return Err(TokenizerError::ControlToken { token: self.0.control[id].clone() });
        }
        Ok(ids.to_vec())
    }

    /// The ids of `text`, in which control tokens are recognised. For text of our own. None are added.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.0.trusted.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
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
        self.0.trusted.token_to_id(token)
    }

    /// The text in the vocabulary of a token: not what it decodes to (`▁the`, `<0x0A>`).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.trusted.id_to_token(id)
    }

    /// Whether `id` is a control token.
    pub(crate) fn is_control(&self, id: u32) -> bool {
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
        for (at, first) in text.char_indices() {
            let candidates = self.0.by_first.get(&first).filter(|_| at >= end).into_iter().flatten();
            if let Some((token, id)) = candidates.into_iter().find(|(token, _)| text[at..].starts_with(token)) {
                end = at + token.len();
                found.push((at..end, *id));
            }
        }
        found
    }

    /// The text of all `ids` at once.
    fn decode_whole(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.0.trusted.decode(ids, true).map_err(failed)
    }

    /// Whether decoding looks at `id` at all.
    fn has_text(&self, id: u32) -> bool {
        !self.is_control(id) && self.0.trusted.id_to_token(id).is_some()
    }
}

fn failed(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Failed { reason: error.to_string() }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer of {} tokens", self.0.tokens)
    }
}
