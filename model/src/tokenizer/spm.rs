//! SentencePiece's BPE (Llama's and Mistral's tokenizer), from a `tokenizer.model` or from GGUF.
//!
//! Ours, for the ids are SentencePiece's in every corner: which pair merges next is decided by the *score of the merged piece*
//! (ties: the leftmost), not by a list of merges, from which pieces of equal score or with several splits cannot be told.
//! Source: sentencepiece, `src/bpe_model.cc`, `src/normalizer.cc`, `src/sentencepiece_processor.cc`.
//!
//! One thing differs by intent: text never becomes a control token, not even one whose spelling is a single character.

mod merge;
pub(super) mod proto;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use super::spellings::Spellings;
use super::{MAX_TOKEN_BYTES, MAX_TOKENS, TokenizerError, malformed};

/// What stands for a space within pieces.
pub(super) const SPACE: char = '\u{2581}';

/// What a piece is for. The numbers are those of `sentencepiece_model.proto` and of GGUF's `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text.
    Normal,
    /// Stands for what the vocabulary cannot express.
    Unknown,
    /// Steers the model; has no text.
    Control,
    /// Text that is one piece wherever it stands.
    UserDefined,
    /// Takes part in merging, then comes apart again; a character of this kind is as good as none.
    Unused,
    /// One byte of a character without a piece.
    Byte,
}

impl Kind {
    /// The kind with a number.
    pub(super) fn from_number(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::Normal,
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => return None,
        })
    }
}

/// An entry of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// The higher, the earlier it is merged.
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// Whether a text is encoded as if a space stood before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DummyPrefix {
    /// It is. (Decoding drops it.)
    Add,
    /// It is taken as it stands.
    Omit,
}

/// Where a text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// By itself.
    Alone,
    /// After a control token: a dummy prefix is added if there is no space already.
    AfterControl,
}

/// Pieces that text can become.
#[derive(Debug, Default)]
struct Lexicon {
    entries: HashMap<String, Entry>,
    user_defined: Spellings,
    /// The longest piece, in bytes.
    longest: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: u32,
    score: f32,
    kind: Kind,
}

/// What a character without a piece becomes.
#[derive(Debug)]
enum Fallback {
    /// The pieces of its UTF-8 bytes, by byte.
    Bytes(Box<[u32; 256]>),
    /// This piece, once for several such characters in a row.
    Unknown(u32),
}

/// A SentencePiece BPE tokenizer.
#[derive(Debug)]
pub(super) struct SentencePiece {
    pieces: Vec<Piece>,
    lexicon: Lexicon,
    /// Pieces that text never becomes.
    reserved: HashMap<String, u32>,
    fallback: Fallback,
    dummy_prefix: DummyPrefix,
}

impl SentencePiece {
    /// A tokenizer of `pieces`, whose index is their id. Pieces without text are never found.
    pub(super) fn new(
        pieces: Vec<Piece>,
        dummy_prefix: DummyPrefix,
        file: &'static str,
    ) -> Result<Self, TokenizerError> {
        if pieces.len() > MAX_TOKENS {
            return Err(malformed(file, format!("{} tokens, at most {MAX_TOKENS}", pieces.len())));
        }
        let mut lexicon = Lexicon::default();
        let mut reserved = HashMap::new();
        for (id, piece) in (0u32..).zip(&pieces).filter(|(_, piece)| !piece.text.is_empty()) {
            if piece.text.len() > MAX_TOKEN_BYTES || !piece.score.is_finite() {
                return Err(malformed(file, format!("token {id} is too long or its score is no number")));
            }
            let before = match piece.kind {
                Kind::Unknown | Kind::Control | Kind::Byte => reserved.insert(piece.text.clone(), id),
                kind => {
                    lexicon.longest = lexicon.longest.max(piece.text.len());
                    // Adding zero makes -0 equal to 0, as comparing does.
                    let entry = Entry { id, score: piece.score + 0.0, kind };
                    lexicon.entries.insert(piece.text.clone(), entry).map(|entry| entry.id)
                }
            };
            if let Some(before) = before {
                return Err(malformed(file, format!("tokens {before} and {id} have the same text")));
            }
        }
        let user_defined = (0u32..).zip(&pieces).filter(|(_, piece)| piece.kind == Kind::UserDefined);
        lexicon.user_defined = user_defined.map(|(id, piece)| (piece.text.clone(), id)).collect();
        let fallback = Fallback::of(&pieces, file)?;
        Ok(Self { pieces, lexicon, reserved, fallback, dummy_prefix })
    }

    /// Control tokens by id, among them the unknown one: neither has a text of its own.
    pub(super) fn control(&self) -> BTreeMap<u32, String> {
        let control = (0u32..).zip(&self.pieces).filter(|(_, p)| matches!(p.kind, Kind::Control | Kind::Unknown));
        control.map(|(id, piece)| (id, piece.text.clone())).collect()
    }

    /// The number of pieces.
    pub(super) fn tokens(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a piece by its text.
    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        let ordinary = || self.lexicon.entries.get(token).map(|entry| entry.id);
        self.reserved.get(token).copied().or_else(ordinary)
    }

    /// The text of a piece.
    pub(super) fn id_to_token(&self, id: u32) -> Option<&str> {
        Some(&self.pieces.get(id as usize)?.text)
    }

    /// The ids of `text`, in which nothing is a control token.
    pub(super) fn encode(&self, text: &str, place: Place) -> Vec<u32> {
        let mut ids = Vec::new();
        if text.is_empty() {
            return ids;
        }
        let begins_with_space = place == Place::AfterControl && text.starts_with([' ', SPACE]);
        let mut normalized = String::with_capacity(text.len() + text.len() / 2);
        if self.dummy_prefix == DummyPrefix::Add && !begins_with_space {
            normalized.push(SPACE);
        }
        normalized.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        for piece in merge::segment(&normalized, &self.lexicon) {
            let used = self.lexicon.entries.get(piece).filter(|entry| entry.kind != Kind::Unused);
            match (used, &self.fallback) {
                (Some(entry), _) => ids.push(entry.id),
                (None, Fallback::Bytes(bytes)) => ids.extend(piece.bytes().map(|byte| bytes[usize::from(byte)])),
                (None, Fallback::Unknown(unknown)) if ids.last() == Some(unknown) => {}
                (None, Fallback::Unknown(unknown)) => ids.push(*unknown),
            }
        }
        ids
    }

    /// The text of `ids`; control tokens, unknown ones and unknown ids have none. Bytes that are no UTF-8 become U+FFFD each.
    pub(super) fn decode(&self, ids: &[u32]) -> String {
        let mut text = String::new();
        let mut bytes = Vec::new();
        let mut prefix = self.dummy_prefix;
        for piece in ids.iter().filter_map(|&id| self.pieces.get(id as usize)) {
            match piece.kind {
                Kind::Control | Kind::Unknown => {}
                Kind::Byte => bytes.extend(byte_value(&piece.text)),
                Kind::Normal | Kind::UserDefined | Kind::Unused => {
                    push_lossy(&mut text, &mut bytes);
                    let dropped =
                        piece.text.strip_prefix(SPACE).filter(|_| prefix == DummyPrefix::Add && text.is_empty());
                    if dropped.is_some() || !text.is_empty() {
                        prefix = DummyPrefix::Omit;
                    }
                    text.extend(dropped.unwrap_or(&piece.text).chars().map(|c| if c == SPACE { ' ' } else { c }));
                }
            }
        }
        push_lossy(&mut text, &mut bytes);
        text
    }
}

impl Fallback {
    fn of(pieces: &[Piece], file: &'static str) -> Result<Self, TokenizerError> {
        let mut unknown = None;
        let mut bytes = [None; 256];
        for (id, piece) in (0u32..).zip(pieces) {
            let place = match piece.kind {
                Kind::Unknown => &mut unknown,
                Kind::Byte => match byte_value(&piece.text) {
                    Some(byte) => &mut bytes[usize::from(byte)],
                    None => return Err(malformed(file, format!("token {id} names no byte"))),
                },
                _ => continue,
            };
            if place.replace(id).is_some() {
                return Err(malformed(file, format!("token {id}: there is one of its kind already")));
            }
        }
        let found = bytes.iter().flatten().count();
        match (unknown, found) {
            (_, 256) => Ok(Self::Bytes(Box::new(bytes.map(Option::unwrap_or_default)))),
            (Some(unknown), 0) => Ok(Self::Unknown(unknown)),
            (None, 0) => Err(malformed(file, "no token for what the vocabulary cannot express".to_owned())),
            (_, found) => Err(malformed(file, format!("{found} byte tokens, not 256"))),
        }
    }
}

/// The byte that a byte piece's text names: `<0x0A>`, in capitals.
fn byte_value(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let hex = digits.len() == 2 && digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'A'..=b'F'));
    if hex { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// Moves `bytes` to the end of `text`; each that is no part of UTF-8 becomes U+FFFD.
fn push_lossy(text: &mut String, bytes: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    bytes.clear();
}
