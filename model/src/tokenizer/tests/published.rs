//! Ids against those of SentencePiece, mistral-common and Hugging Face's `tokenizers`, from `tests/tokenizers/` (see its
//! README): 10,000 strings in many languages, code, emoji, broken UTF-8, long runs of spaces; and 50 chats.

use std::sync::LazyLock;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::chat::{ChatTemplate, GenerationPrompt, Message, Role};
use crate::checkpoint::ChatSource;

const STRINGS: &str = include_str!("../../../../tests/tokenizers/strings.jsonl");
pub(in crate::tokenizer) const MISTRAL: &[u8] = include_bytes!("../../../../tests/tokenizers/mistral-v1.model");
const MISTRAL_IDS: &str = include_str!("../../../../tests/tokenizers/mistral-v1.json");
const ODD: &[u8] = include_bytes!("../../../../tests/tokenizers/odd.model");
const ODD_BYTES: &[u8] = include_bytes!("../../../../tests/tokenizers/odd-bytes.model");
const ODD_IDS: &str = include_str!("../../../../tests/tokenizers/odd.json");
const BYTE_LEVEL_JSON: &[u8] = include_bytes!("../../../../tests/tokenizers/byte-level.tokenizer.json");
const BYTE_LEVEL_GGUF: &str = include_str!("../../../../tests/tokenizers/byte-level.gguf.json");
const BYTE_LEVEL_IDS: &str = include_str!("../../../../tests/tokenizers/byte-level.json");
/// Strings that share a folded hash.
const BLOCK: usize = 20;

/// What is expected of the 10,000 strings.
#[derive(Deserialize)]
struct Expected {
    /// Of the first strings, the ids.
    ids: Vec<Vec<u32>>,
    /// A hash a string.
    hashes: Vec<String>,
}

#[derive(Deserialize)]
struct Chats {
    chats: Vec<Chat>,
    template: String,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    ids: Vec<u32>,
}

pub(in crate::tokenizer) static TEXTS: LazyLock<Vec<String>> = LazyLock::new(|| STRINGS.lines().map(text).collect());

/// A line's text: what is no UTF-8 stands there in hexadecimal, and is read as the product reads it.
fn text(line: &str) -> String {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Line {
        Text(String),
        Bytes { hex: String },
    }
    match serde_json::from_str(line).unwrap() {
        Line::Text(text) => text,
        Line::Bytes { hex } => {
            let digits = hex.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).unwrap());
            let bytes: Vec<u8> = digits.map(|two| u8::from_str_radix(two, 16).unwrap()).collect();
            assert!(std::str::from_utf8(&bytes).is_err() || bytes.is_empty());
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }
}

fn json<T: DeserializeOwned>(text: &str, key: &str) -> T {
    let value: serde_json::Value = serde_json::from_str(text).unwrap();
    let value = if key.is_empty() { value } else { value[key].clone() };
    serde_json::from_value(value).unwrap()
}

/// FNV-1a over the ids as little-endian bytes.
fn hash(ids: impl IntoIterator<Item = u32>) -> String {
    let bytes = ids.into_iter().flat_map(u32::to_le_bytes);
    let state =
        bytes.fold(0xcbf2_9ce4_8422_2325, |state: u64, byte| (state ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    format!("{state:016x}")
}

fn encode(tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    TEXTS.iter().map(|text| tokenizer.encode(text, Special::None).unwrap()).collect()
}

#[track_caller]
fn assert_ids(tokenizer: &Tokenizer, expected: &Expected) {
    let found = encode(tokenizer);
    assert_eq!((found.len(), expected.hashes.len(), expected.ids.len()), (10_000, 10_000, 300));
    for ((ids, expected), text) in found.iter().zip(&expected.ids).zip(TEXTS.iter()) {
        assert_eq!(ids, expected, "{text:?}");
    }
    for ((ids, expected), text) in found.iter().zip(&expected.hashes).zip(TEXTS.iter()) {
        assert_eq!(hash(ids.iter().copied()), *expected, "{text:?}: {ids:?}");
    }
}

#[track_caller]
fn assert_folded(tokenizer: &Tokenizer, expected: &[String]) {
    let found = encode(tokenizer);
    assert_eq!(expected.len() * BLOCK, found.len());
    for (block, (ids, expected)) in found.chunks(BLOCK).zip(expected).enumerate() {
        let counted = ids.iter().flat_map(|ids| [&[ids.len() as u32][..], ids].concat());
        assert_eq!(hash(counted), *expected, "strings {} and on", block * BLOCK);
    }
}

fn mistral() -> Tokenizer {
    Tokenizer::from_sentencepiece(MISTRAL).unwrap()
}

#[test]
fn mistrals_ids_are_those_of_mistral_common() {
    let tokenizer = mistral();
    assert_ids(&tokenizer, &json(MISTRAL_IDS, ""));
    assert_eq!(tokenizer.vocab_size(), 32_000);
    assert_eq!(tokenizer.encode("Hello world", Special::Add).unwrap(), [1, 22557, 1526]);
}

#[test]
fn rare_kinds_of_pieces_are_encoded_as_in_sentencepiece() {
    assert_folded(&Tokenizer::from_sentencepiece(ODD).unwrap(), &json::<Vec<_>>(ODD_IDS, "odd"));
    assert_folded(&Tokenizer::from_sentencepiece(ODD_BYTES).unwrap(), &json::<Vec<_>>(ODD_IDS, "odd-bytes"));
}

#[test]
fn mistrals_text_goes_and_comes_back() {
    let tokenizer = mistral();
    for text in TEXTS.iter() {
        let ids = tokenizer.encode(text, Special::Add).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace('▁', " "));
    }
}

/// The byte-level vocabulary in GGUF's form under a pre-tokenizer's name.
fn byte_level(pre: &str) -> Tokenizer {
    let gguf = GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        tokens: json(BYTE_LEVEL_GGUF, "tokens"),
        token_types: json(BYTE_LEVEL_GGUF, "token_types"),
        merges: json(BYTE_LEVEL_GGUF, "merges"),
        add_bos: Some(false),
        ..GgufTokenizer::default()
    };
    Tokenizer::from_gguf(gguf).unwrap()
}

#[test]
fn byte_level_ids_are_those_of_hugging_face() {
    let expected: Expected = json(BYTE_LEVEL_IDS, "qwen2");
    assert_ids(&Tokenizer::from_json(BYTE_LEVEL_JSON).unwrap(), &expected);
    assert_ids(&byte_level("qwen2"), &expected);
}

#[test]
fn every_pre_tokenizer_divides_as_in_hugging_face() {
    for pre in ["default", "gpt-2", "smollm", "llama-bpe", "tekken"] {
        assert_folded(&byte_level(pre), &json::<Vec<_>>(BYTE_LEVEL_IDS, pre));
    }
}

#[test]
fn both_forms_of_a_byte_level_tokenizer_decode_alike() {
    let (from_json, from_gguf) = (Tokenizer::from_json(BYTE_LEVEL_JSON).unwrap(), byte_level("qwen2"));
    assert_eq!(from_json.vocab_size(), from_gguf.vocab_size());
    assert!(from_json.control_texts().eq(from_gguf.control_texts()));
    for text in TEXTS.iter().take(2000) {
        let ids = from_gguf.encode_trusted(text).unwrap();
        assert_eq!(ids, from_json.encode_trusted(text).unwrap(), "{text:?}");
        assert_eq!(from_gguf.decode(&ids).unwrap(), from_json.decode(&ids).unwrap(), "{text:?}");
    }
}

fn template(template: String) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")].map(|(name, text)| (name.to_owned(), text.to_owned()));
    ChatTemplate::compile(&ChatSource { template, special_tokens: tokens.into() }).unwrap()
}

#[test]
fn chats_have_the_ids_of_mistral_common() {
    let (tokenizer, expected): (_, Chats) = (mistral(), json(MISTRAL_IDS, ""));
    assert_eq!(expected.chats.len(), 50);
    let template = template(expected.template);
    for Chat { messages, ids } in expected.chats {
        assert_eq!(template.encode(&tokenizer, &messages, GenerationPrompt::Add).unwrap(), ids, "{messages:?}");
    }
}

/// As Mixtral 8x7B had it at first, without the spaces after control tokens.
const FIRST_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}\
    {{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}";

#[test]
fn the_older_template_agrees_on_a_single_turn() {
    let (tokenizer, expected): (_, Chats) = (mistral(), json(MISTRAL_IDS, ""));
    let template = template(FIRST_TEMPLATE.to_owned());
    let single = |chat: &&Chat| matches!(&chat.messages[..], [Message { role: Role::User, .. }]);
    let chats: Vec<&Chat> = expected.chats.iter().filter(single).collect();
    assert!(chats.len() >= 5);
    for Chat { messages, ids } in chats {
        assert_eq!(template.encode(&tokenizer, messages, GenerationPrompt::Add).unwrap(), *ids, "{messages:?}");
    }
}
