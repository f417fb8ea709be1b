//! The text of a single token, for log-probabilities: its bytes, which need not be whole characters.

use std::collections::BTreeMap;

use tramontane_model::tokenizer::Tokenizer;

/// SentencePiece writes a space as this.
const SPACE: char = '\u{2581}';
/// Byte-level BPE (GPT-2's) writes a space as this.
const BYTE_LEVEL_SPACE: &str = "\u{120}";

/// Knows how a vocabulary spells bytes.
pub struct TokenText {
    tokenizer: Tokenizer,
    /// Byte-level BPE's letters, each a byte; `None` for SentencePiece's spelling.
    byte_level: Option<BTreeMap<char, u8>>,
}

impl TokenText {
    /// For the tokens of `tokenizer`.
    pub(super) fn of(tokenizer: &Tokenizer) -> Self {
        let byte_level =
            tokenizer.token_to_id(BYTE_LEVEL_SPACE).is_some() && tokenizer.token_to_id(&SPACE.to_string()).is_none();
        Self { tokenizer: tokenizer.clone(), byte_level: byte_level.then(byte_letters) }
    }

    /// The bytes that a token stands for in the middle of a text; of a control token, those of its name; none if there is no
    /// such token.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let Some(name) = self.tokenizer.id_to_token(id) else { return Vec::new() };
        if self.tokenizer.is_control(id) {
            return name.into_bytes();
        }
        match &self.byte_level {
            Some(letters) => {
                let bytes: Option<Vec<u8>> = name.chars().map(|c| letters.get(&c).copied()).collect();
                // An added token is spelled as it is.
                bytes.unwrap_or_else(|| name.into_bytes())
            }
            None => match byte_token(&name) {
                Some(byte) => vec![byte],
                None => name.replace(SPACE, " ").into_bytes(),
            },
        }
    }

    /// The same as text, bytes that are no UTF-8 as U+FFFD.
    pub fn text(&self, id: u32) -> String {
        String::from_utf8_lossy(&self.bytes(id)).into_owned()
    }
}

/// The byte of `<0x0A>`.
fn byte_token(name: &str) -> Option<u8> {
    let hex = name.strip_prefix("<0x")?.strip_suffix('>')?;
    let digits = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    if digits { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// GPT-2's letters: printable Latin-1 stands for itself, the other bytes, ascending, for the letters from U+0100.
fn byte_letters() -> BTreeMap<char, u8> {
    let printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let others = (0..=u8::MAX).filter(|byte| !printable(byte));
    let shifted = others.zip('\u{100}'..).map(|(byte, letter)| (letter, byte));
    (0..=u8::MAX).filter(printable).map(|byte| (char::from(byte), byte)).chain(shifted).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpt2s_letters_cover_all_bytes_once() {
        let letters = byte_letters();
        assert_eq!(letters.len(), 256);
        assert_eq!((letters[&'\u{120}'], letters[&'\u{10a}'], letters[&'A']), (b' ', b'\n', b'A'));
    }

    #[test]
    fn a_token_has_the_bytes_it_adds_to_a_text() {
        let tokenizer = Tokenizer::from_json(include_bytes!("../../../models/breeze/tokenizer.json")).unwrap();
        let texts = TokenText::of(&tokenizer);
        let ids = tokenizer.encode("Paris 🙂 é", tramontane_model::tokenizer::Special::None).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| texts.bytes(id)).collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), " Paris 🙂 é");
        assert_eq!((texts.text(2), texts.bytes(99_999)), ("</s>".to_owned(), Vec::new()));
    }

    #[test]
    fn only_two_hex_digits_are_a_byte() {
        assert_eq!(
            (byte_token("<0x0A>"), byte_token("<0xA>"), byte_token("<0x+A>"), byte_token("0x0A")),
            (Some(10), None, None, None)
        );
    }
}
