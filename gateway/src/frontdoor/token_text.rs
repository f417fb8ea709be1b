//! The text of a single token, for log-probabilities: its bytes, which need not be whole characters.

use tramontane_model::tokenizer::{TokenBytes, Tokenizer};

/// SentencePiece writes a space as this.
const SPACE: char = '\u{2581}';

/// Knows the texts of a tokenizer's tokens.
pub struct TokenText(Tokenizer);

impl TokenText {
    /// For the tokens of `tokenizer`.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        Self(tokenizer.clone())
    }

    /// The bytes that a token stands for in the middle of a text; of a control token, those of its name; none if there is no
    /// such token.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        match self.0.token_bytes(id) {
            TokenBytes::Text(bytes) => bytes,
            TokenBytes::Control(name) => name.into_bytes(),
            TokenBytes::Nothing => Vec::new(),
            // What most such vocabularies mean.
            TokenBytes::Unknown => self.0.id_to_token(id).unwrap_or_default().replace(SPACE, " ").into_bytes(),
        }
    }

    /// The same as text, bytes that are no UTF-8 as U+FFFD.
    pub fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.bytes(id)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_bytes_it_adds_to_a_text() {
        let tokenizer = Tokenizer::from_json(include_bytes!("../../../models/breeze/tokenizer.json")).unwrap();
        let texts = TokenText::of(&tokenizer);
        let ids = tokenizer.encode("Paris 🙂 é", tramontane_model::tokenizer::Special::None).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| texts.bytes(id)).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), " Paris 🙂 é");
        assert_eq!((texts.text(2), texts.bytes(99_999)), ("</s>".to_owned(), Vec::new()));
    }
}
