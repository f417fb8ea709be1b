//! Breeze's tokenizer (Llama's kind: BPE with byte fallback), small ones of other kinds, and published ones.

pub(super) mod published;

use proptest::prelude::*;
use serde_json::json;

use super::*;

const BREEZE: &[u8] = include_bytes!("../../../models/breeze/tokenizer.json");
const TEXTS: [&str; 9] = [
    "The capital of France is",
    "",
    " leading and  double   spaces ",
    "\n\n\tlines\r\n",
    "naïve café, 東京, Ω",
    "🙂👨‍👩‍👧‍👦🇫🇷 emoji",
    "</s> and <s> and [INST] and <unk>",
    "<0x41> is no byte",
    "\u{fffd}\u{0}\u{e000}",
];

fn breeze() -> Tokenizer {
    Tokenizer::from_json(BREEZE).unwrap()
}

/// The text that a detokenizer gives for `ids` after `prompt`.
fn stream(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> String {
    let mut detokenizer = tokenizer.detokenizer(prompt).unwrap();
    let mut pieces: Vec<String> = Vec::new();
    for &id in ids {
        pieces.extend(detokenizer.push(id).unwrap());
    }
    pieces.extend(detokenizer.finish().unwrap());
    assert!(pieces.iter().all(|piece| !piece.is_empty()));
    assert_eq!(detokenizer.finish().unwrap(), None);
    pieces.concat()
}

#[test]
fn ids_are_those_of_the_library() {
    let (tokenizer, library) = (breeze(), tokenizers::Tokenizer::from_bytes(BREEZE).unwrap());
    for text in TEXTS.iter().filter(|text| tokenizer.find_control(text).is_empty()) {
        let ids = |add| library.encode(*text, add).unwrap().get_ids().to_vec();
        assert_eq!(tokenizer.encode(text, Special::Add).unwrap(), ids(true), "{text:?}");
        assert_eq!(tokenizer.encode(text, Special::None).unwrap(), ids(false), "{text:?}");
        assert_eq!(tokenizer.encode_trusted(text).unwrap(), ids(false), "{text:?}");
    }
    let prompt = tokenizer.encode("The capital of France is", Special::Add).unwrap();
    assert_eq!(prompt[0], 1);
    assert!(prompt.len() > 4 && !prompt[1..].contains(&1));
}

#[test]
fn text_goes_and_comes_back() {
    let tokenizer = breeze();
    for text in TEXTS {
        for special in [Special::Add, Special::None] {
            assert_eq!(tokenizer.decode(&tokenizer.encode(text, special).unwrap()).unwrap(), text);
        }
    }
}

#[test]
fn control_tokens_in_text_are_text() {
    let tokenizer = breeze();
    let ids = tokenizer.encode("a</s>b<s>", Special::None).unwrap();
    assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{ids:?}");
    let trusted = tokenizer.encode_trusted("a</s>b<s>").unwrap();
    assert_eq!(trusted.iter().filter(|&&id| tokenizer.is_control(id)).collect::<Vec<_>>(), [&2, &1]);
    assert_eq!(tokenizer.control_texts().collect::<Vec<_>>(), ["<unk>", "<s>", "</s>"]);
}

#[test]
fn control_tokens_are_found_by_spelling() {
    let tokenizer = breeze();
    assert_eq!(tokenizer.find_control("é</s><s><<unk>"), [(2..6, 2), (6..9, 1), (10..15, 0)]);
    assert_eq!(tokenizer.find_control("no < such / thing > here"), []);
}

/// A tokenizer of whole words, in whose vocabulary a control token's text is an ordinary word.
fn words() -> Tokenizer {
    let json = json!({
        "version": "1.0", "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null, "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null,
        "decoder": null,
        "added_tokens": [{"id": 1, "content": "<end>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "model": {"type": "WordLevel", "vocab": {"a": 0, "<end>": 1, "b": 2, "?": 3}, "unk_token": "?"}
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn a_text_that_would_become_a_control_token_all_the_same_is_refused() {
    for special in [Special::None, Special::Add] {
        let error = words().encode("a <end> b", special).unwrap_err();
        assert!(matches!(error, TokenizerError::ControlToken { token } if token == "<end>"));
    }
    assert_eq!(words().encode_trusted("a <end> b").unwrap(), [0, 1, 2]);
}

#[test]
fn a_truncation_setting_is_ignored() {
    assert_eq!(words().encode("a b a b a", Special::Add).unwrap().len(), 5);
}

#[test]
fn sizes_and_names() {
    let tokenizer = breeze();
    assert_eq!(tokenizer.vocab_size(), 2048);
    tokenizer.check_fits(2048).unwrap();
    assert!(matches!(tokenizer.check_fits(2047), Err(TokenizerError::DoesNotFit { tokens: 2048, vocab: 2047 })));
    assert_eq!(tokenizer.token_to_id("</s>"), Some(2));
    assert_eq!(tokenizer.id_to_token(2).as_deref(), Some("</s>"));
    assert_eq!((tokenizer.token_to_id("no such token"), tokenizer.id_to_token(9999)), (None, None));
}

#[test]
fn bad_files_are_refused() {
    for bad in [&b""[..], b"{}", b"[]", &BREEZE[..BREEZE.len() / 2], &[0xff; 10]] {
        assert!(matches!(Tokenizer::from_json(bad), Err(TokenizerError::Malformed { .. })));
    }
    let large = vec![b' '; MAX_TOKENIZER_BYTES + 1];
    assert!(matches!(Tokenizer::from_json(&large), Err(TokenizerError::TooLarge { .. })));
}

#[test]
fn a_merge_that_makes_the_loader_panic_is_refused() {
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null, "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    });
    let refused = Tokenizer::from_json(json.to_string().as_bytes());
    assert!(matches!(refused, Err(TokenizerError::Malformed { file: "tokenizer.json", .. })));
}

#[test]
fn characters_of_several_byte_tokens_come_whole() {
    let tokenizer = breeze();
    let byte = |b: u8| tokenizer.token_to_id(&format!("<0x{b:02X}>")).unwrap();
    let mut detokenizer = tokenizer.detokenizer(&[]).unwrap();
    let pieces: Vec<_> = "🙂é".bytes().map(|b| detokenizer.push(byte(b)).unwrap()).collect();
    let expected = [None, None, None, Some("🙂"), None, Some("é")];
    assert_eq!(pieces, expected.map(|piece| piece.map(str::to_owned)));
    assert_eq!(detokenizer.finish().unwrap(), None);
}

#[test]
fn bytes_that_are_no_utf8_come_as_replacements_and_spoil_nothing() {
    let tokenizer = breeze();
    let byte = |b: u8| tokenizer.token_to_id(&format!("<0x{b:02X}>")).unwrap();
    let mut ids: Vec<u32> = "🙂".bytes().map(byte).collect();
    ids.push(byte(0xff));
    ids.extend(tokenizer.encode("the end", Special::None).unwrap());
    assert_eq!(stream(&tokenizer, &[], &ids), "🙂\u{fffd} the end");
    assert_eq!(stream(&tokenizer, &[], &[byte(0xf0), byte(0x9f)]), "\u{fffd}\u{fffd}");
    let many = vec![byte(0xff); MAX_HELD_TOKENS * 3 + 1];
    let mut detokenizer = tokenizer.detokenizer(&[]).unwrap();
    let given: Vec<_> = many.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
    assert_eq!(given.iter().flatten().count(), 3, "held back within the bound");
    assert_eq!(tokenizer.decode(&many).unwrap().chars().count(), many.len());
}

#[test]
fn control_tokens_and_unknown_ids_have_no_text_and_keep_spaces() {
    let tokenizer = breeze();
    let words = tokenizer.encode("one two", Special::None).unwrap();
    let mixed: Vec<u32> = words.iter().flat_map(|&id| [2, id, 9999, 1, 0]).collect();
    assert_eq!(stream(&tokenizer, &[], &mixed), "one two");
    assert_eq!(stream(&tokenizer, &[1], &words), "one two", "after the beginning the first space is dropped");
    let prompt: Vec<u32> = [&words[..], &[2; 20]].concat();
    assert_eq!(stream(&tokenizer, &prompt, &words), " one two");
}

proptest! {
    #[test]
    fn any_text_goes_and_comes_back(text in "\\PC{0,40}|[ a-z▁<>/s🙂é\n]{0,40}") {
        let tokenizer = breeze();
        let library = tokenizers::Tokenizer::from_bytes(BREEZE).unwrap();
        let ids = tokenizer.encode(&text, Special::Add).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), text.replace('▁', " "));
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), library.decode(&ids, true).unwrap());
    }

    #[test]
    fn pieces_after_a_prompt_continue_its_text(text in "[ a-z🙂é東\n]{0,40}", cut in any::<prop::sample::Index>()) {
        let tokenizer = breeze();
        let ids = tokenizer.encode(&text, Special::Add).unwrap();
        let (prompt, rest) = ids.split_at(cut.index(ids.len() + 1));
        let before = tokenizer.decode(prompt).unwrap();
        prop_assume!(!before.ends_with(char::REPLACEMENT_CHARACTER));
        prop_assert_eq!(before + &stream(&tokenizer, prompt, rest), text);
    }

    #[test]
    fn any_ids_decode_as_in_the_library(ids in prop::collection::vec(0u32..2050, 0..12)) {
        let library = tokenizers::Tokenizer::from_bytes(BREEZE).unwrap();
        let (ours, expected) = (breeze().decode(&ids).unwrap(), library.decode(&ids, true).unwrap());
        // Where bytes are no UTF-8 the library also spoils the characters before them.
        if expected.contains(char::REPLACEMENT_CHARACTER) {
            prop_assert!(ours.contains(char::REPLACEMENT_CHARACTER));
        } else {
            prop_assert_eq!(ours, expected);
        }
    }
}
