//! The crate `tokenizers`, twice: once it recognises control tokens in text, once it does not.

use std::collections::BTreeMap;

use tokenizers::models::ModelWrapper;

use super::bytes::{Spelling, spelling};
use super::{Special, TokenizerError};

pub(super) struct Library {
    /// Recognises control tokens.
    trusted: tokenizers::Tokenizer,
    /// Takes control tokens for text.
    plain: tokenizers::Tokenizer,
}

/// Ids, and which of them the tokenizer's settings added.
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// 1 where the settings added the token, 0 where it comes from the text.
    pub(super) added: Vec<u32>,
}

impl Library {
    /// Loads a `tokenizer.json`.
    pub(super) fn from_json(json: &[u8]) -> tokenizers::Result<Self> {
        // The library's loader panics on some malformed files: on a merge longer than every token, for one.
        let loaded = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(json));
        loaded.unwrap_or_else(|_| Err("its loader panicked".into())).and_then(Self::new)
    }

    /// Truncation and padding, if set, are turned off.
    pub(super) fn new(mut tokenizer: tokenizers::Tokenizer) -> tokenizers::Result<Self> {
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        tokenizer.set_encode_special_tokens(false);
        let mut plain = tokenizer.clone();
        plain.set_encode_special_tokens(true);
        Ok(Self { trusted: tokenizer, plain })
    }

    pub(super) fn control(&self) -> BTreeMap<u32, String> {
        let special = self.trusted.get_added_tokens_decoder().into_iter().filter(|(_, token)| token.special);
        special.map(|(id, token)| (id, token.content)).collect()
    }

    /// The token for text that the vocabulary cannot express.
    pub(super) fn unknown(&self) -> Option<u32> {
        match self.trusted.get_model() {
            ModelWrapper::BPE(bpe) => bpe.get_unk_token().as_deref().and_then(|token| self.trusted.token_to_id(token)),
            _ => None,
        }
    }

    /// How the vocabulary spells bytes, if it is a known way.
    pub(super) fn spelling(&self) -> Option<Spelling> {
        spelling(self.trusted.get_decoder())
    }

    /// One more than the highest id.
    pub(super) fn tokens(&self) -> usize {
        self.trusted.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    pub(super) fn encode(&self, text: &str, special: Special) -> Result<Encoded, TokenizerError> {
        let encoding = self.plain.encode_fast(text, special == Special::Add).map_err(failed)?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), added: encoding.get_special_tokens_mask().to_vec() })
    }

    pub(super) fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.trusted.encode_fast(text, false).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.trusted.decode(ids, true).map_err(failed)
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.trusted.token_to_id(token)
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        self.trusted.id_to_token(id)
    }
}

fn failed(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Failed { reason: error.to_string() }
}
