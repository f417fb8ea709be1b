//! What single tokens stand for, in bytes: for whoever matches text token by token.

use tokenizers::DecoderWrapper;

use super::spm::SPACE;
use super::{Codec, Tokenizer};

/// What a token adds to a text that goes on before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenBytes {
    /// These bytes, which need not be whole characters.
    Text(Vec<u8>),
    /// Nothing: it is the control token of this name.
    Control(String),
    /// Nothing: there is no such token.
    Nothing,
    /// The tokenizer decodes by rules that are not known here.
    Unknown,
}

/// How a vocabulary spells bytes. Sources: GPT-2's `encoder.py` (`bytes_to_unicode`); SentencePiece's byte pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Every byte as a printable character.
    ByteLevel,
    /// `▁` for a space, `<0x0A>` for a byte.
    SentencePiece,
}

impl Tokenizer {
    /// What token `id` stands for in the middle of a text.
    pub fn token_bytes(&self, id: u32) -> TokenBytes {
        if self.is_control(id) {
            return self.id_to_token(id).map_or(TokenBytes::Nothing, TokenBytes::Control);
        }
        let spelling = match &self.0.codec {
            Codec::SentencePiece(_) => Some(Spelling::SentencePiece),
            Codec::Library(library) => library.spelling(),
        };
        match (self.id_to_token(id), spelling) {
            (None, _) => TokenBytes::Nothing,
            (Some(_), None) => TokenBytes::Unknown,
            // Added tokens are spelled as they are.
            (Some(token), Some(Spelling::ByteLevel)) => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                TokenBytes::Text(bytes.unwrap_or_else(|| token.into_bytes()))
            }
            (Some(token), Some(Spelling::SentencePiece)) => {
                TokenBytes::Text(byte_piece(&token).unwrap_or_else(|| token.replace(SPACE, " ").into_bytes()))
            }
        }
    }
}

/// How the vocabulary that `decoder` decodes spells bytes, if it is one of the known ways.
pub(super) fn spelling(decoder: Option<&DecoderWrapper>) -> Option<Spelling> {
    match decoder? {
        DecoderWrapper::ByteLevel(_) => Some(Spelling::ByteLevel),
        DecoderWrapper::ByteFallback(_) | DecoderWrapper::Metaspace(_) => Some(Spelling::SentencePiece),
        DecoderWrapper::Sequence(steps) => steps.get_decoders().iter().find_map(|step| spelling(Some(step))),
        _ => None,
    }
}

/// The byte that `<0x0A>` stands for.
fn byte_piece(token: &str) -> Option<Vec<u8>> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    // A number may have a sign; a byte has none.
    let digits = Some(digits).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
    Some(vec![u8::from_str_radix(digits, 16).ok()?])
}

/// The byte that a character of a byte-level vocabulary stands for: printable ones of Latin-1 for themselves, the others, in
/// ascending order, for those from U+0100 on.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u8::try_from(u32::from(character)) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => {
            let place = u32::from(character).checked_sub(0x100)? as usize;
            (0..=255).filter(|byte| !printable(*byte)).nth(place)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_of_a_byte_level_vocabulary_are_bytes() {
        let found = ['A', 'Ġ', 'Ċ', '\u{100}', 'ÿ', '\u{143}', ' ', '\u{144}', '▁'].map(byte_of);
        let bytes = [Some(b'A'), Some(b' '), Some(b'\n'), Some(0), Some(0xFF), Some(0xAD), None, None, None];
        assert_eq!(found, bytes);
        let all: std::collections::BTreeSet<u8> = ('\0'..'\u{200}').filter_map(byte_of).collect();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn byte_pieces_are_bytes_and_others_are_not() {
        assert_eq!(
            ["<0x0A>", "<0xff>", "<0x0>", "<0xA>", "<0x+A>", "0x0A", "<0xzz>", "a"].map(byte_piece),
            [Some(vec![10]), Some(vec![255]), None, None, None, None, None, None]
        );
    }
}
