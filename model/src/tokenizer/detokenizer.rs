//! Text from tokens as they come, complete characters only.
//!
//! A token's text depends on its neighbours: a leading space is dropped at the beginning of a text alone, and a character
//! may be spread over several byte tokens. So a few tokens whose text is already out (the *context*) are decoded once
//! without and once with the new ones (*held*); what the second text has more than the first is new.

use super::{Tokenizer, TokenizerError};

/// Most tokens held back for the rest of a character. A character has at most 4 bytes; then come tokens that end in the
/// middle of one again and again, and bytes that are no UTF-8.
pub const MAX_HELD_TOKENS: usize = 32;

/// Tokens of a prompt that are decoded before the first new one.
const CONTEXT_TOKENS: usize = 6;

/// Turns a sequence's tokens into text, one by one. The pieces together are the text of all.
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The last tokens whose text is out.
    context: Vec<u32>,
    context_text: String,
    /// The tokens after them.
    held: Vec<u32>,
}

impl Detokenizer {
    /// For tokens that follow `prompt`, whose own text is not given again.
    pub(super) fn after(tokenizer: Tokenizer, prompt: &[u32]) -> Result<Self, TokenizerError> {
        let last = prompt.iter().rev().copied().filter(|&id| tokenizer.has_text(id)).take(CONTEXT_TOKENS);
        let mut context: Vec<u32> = last.collect();
        context.reverse();
        let mut context_text = tokenizer.decode_whole(&context)?;
        // Cut in the middle of a character, the context would spoil the bytes that follow.
        while context.len() > 1 && context_text.starts_with(char::REPLACEMENT_CHARACTER) {
            context.remove(0);
            context_text = tokenizer.decode_whole(&context)?;
        }
        Ok(Self { tokenizer, context, context_text, held: Vec::new() })
    }

    /// Takes the next token. Gives the text that is complete now, if any: never empty, never a part of a character.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn push(&mut self, id: u32) -> Result<Option<String>, TokenizerError> {
        if !self.tokenizer.has_text(id) {
            return Ok(None);
        }
        self.held.push(id);
        let text = self.held_text()?;
        let complete = !text.is_empty() && !text.ends_with(char::REPLACEMENT_CHARACTER);
        if complete || self.held.len() >= MAX_HELD_TOKENS { self.give(text) } else { Ok(None) }
    }

    /// The sequence has ended: gives what is held back, incomplete characters as U+FFFD.
    ///
    /// # Errors
    /// [`TokenizerError::Failed`].
    pub fn finish(&mut self) -> Result<Option<String>, TokenizerError> {
        if self.held.is_empty() {
            return Ok(None);
        }
        let text = self.held_text()?;
        self.give(text)
    }

    /// The text that the held tokens add.
    fn held_text(&self) -> Result<String, TokenizerError> {
        let both = self.tokenizer.decode_whole(&[&self.context[..], &self.held].concat())?;
        match both.strip_prefix(&self.context_text) {
            Some(text) => Ok(text.to_owned()),
            // Bytes that are no UTF-8 spoil those before them, whose text is out already.
            None => self.tokenizer.decode_whole(&self.held),
        }
    }

    fn give(&mut self, text: String) -> Result<Option<String>, TokenizerError> {
        self.context = std::mem::take(&mut self.held);
        self.context_text = self.tokenizer.decode_whole(&self.context)?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}
