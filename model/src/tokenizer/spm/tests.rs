//! SentencePiece's BPE on small vocabularies, and `tokenizer.model` files that are wrong.

use proptest::prelude::*;

use super::*;
use crate::tokenizer::tests::published::{MISTRAL, TEXTS};
use crate::tokenizer::{GgufTokenizer, Special, Tokenizer};

fn piece(text: &str, score: f32, kind: Kind) -> Piece {
    Piece { text: text.to_owned(), score, kind }
}

/// `<unk>`, `<s>`, and then pieces of 'a', 'b', 'c'.
fn small(more: &[(&str, f32, Kind)]) -> SentencePiece {
    let mut pieces = vec![piece("<unk>", 0.0, Kind::Unknown), piece("<s>", 0.0, Kind::Control)];
    pieces.extend(more.iter().map(|&(text, score, kind)| piece(text, score, kind)));
    SentencePiece::new(pieces, DummyPrefix::Omit, "test").unwrap()
}

/// The pieces of `text`, joined by '|'.
fn pieces(tokenizer: &SentencePiece, text: &str) -> String {
    let ids = tokenizer.encode(text, Place::Alone);
    ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect::<Vec<_>>().join("|")
}

#[test]
fn the_highest_score_merges_first_and_of_equal_ones_the_leftmost() {
    use Kind::Normal;
    let letters = [("a", -9.0, Normal), ("b", -9.0, Normal), ("c", -9.0, Normal)];
    let with = |more: &[(&str, f32, Kind)]| small(&[&letters, more].concat());
    assert_eq!(pieces(&with(&[("ab", -2.0, Normal), ("bc", -1.0, Normal)]), "abcab"), "a|bc|ab");
    assert_eq!(pieces(&with(&[("ab", -1.0, Normal), ("bc", -1.0, Normal)]), "abc"), "ab|c");
    assert_eq!(pieces(&with(&[("ab", 0.0, Normal), ("bc", -0.0, Normal)]), "abc"), "ab|c");
    assert_eq!(pieces(&with(&[("ab", -0.0, Normal), ("bc", 0.0, Normal)]), "abc"), "ab|c");
    assert_eq!(pieces(&with(&[("aa", -1.0, Normal)]), "aaaaa"), "aa|aa|a");
    let several_splits = with(&[("ab", -1.0, Normal), ("bc", -2.0, Normal), ("abc", -3.0, Normal)]);
    assert_eq!(pieces(&several_splits, "abcabc"), "abc|abc");
}

#[test]
fn unused_pieces_come_apart_and_user_defined_ones_stay_whole() {
    use Kind::{Normal, Unused, UserDefined};
    let letters = [("a", -9.0, Normal), ("b", -9.0, Normal), ("c", -9.0, Normal)];
    let with = |more: &[(&str, f32, Kind)]| small(&[&letters, more].concat());
    let unused = with(&[("ab", -1.0, Unused), ("abc", -2.0, Unused), ("abca", -3.0, Normal)]);
    assert_eq!((pieces(&unused, "abc"), pieces(&unused, "abca")), ("a|b|c".to_owned(), "abca".to_owned()));
    let alone = small(&[("a", 0.0, Unused), ("b", 0.0, Normal)]);
    assert_eq!(pieces(&alone, "ab"), "<unk>|b", "an unused character is as good as none");
    let user_defined = with(&[("bc", -1.0, UserDefined), ("ab", 9.0, Normal)]);
    assert_eq!(pieces(&user_defined, "abcab"), "a|bc|ab");
}

#[test]
fn what_has_no_piece_becomes_one_unknown_or_its_bytes() {
    let unknown = small(&[("a", 0.0, Kind::Normal)]);
    assert_eq!(unknown.encode("é東aé", Place::Alone), [0, 2, 0]);
    let hex: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
    let bytes: Vec<_> = hex.iter().map(|text| (text.as_str(), 0.0, Kind::Byte)).collect();
    let with_bytes = small(&bytes);
    assert_eq!(with_bytes.encode("é", Place::Alone), [2 + 0xc3, 2 + 0xa9]);
    assert_eq!(
        with_bytes.decode(&[2 + 0xc3, 2 + 0xa9, 2 + 0xff, 2 + 0xf0, 2 + 0x9f, 2 + 0x41]),
        "é\u{fffd}\u{fffd}\u{fffd}A"
    );
}

#[test]
fn text_never_becomes_a_control_token_even_of_one_character() {
    let tokenizer = small(&[("x", 0.0, Kind::Control), ("a", 0.0, Kind::Normal)]);
    assert_eq!(tokenizer.encode("axa", Place::Alone), [3, 0, 3]);
    assert_eq!(tokenizer.decode(&[1, 3, 2, 0, 99]), "a");
}

#[test]
fn a_space_stands_before_a_text_and_once_after_a_control_token() {
    let tokenizer = Tokenizer::from_sentencepiece(MISTRAL).unwrap();
    let names = |ids: Vec<u32>| ids.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect::<Vec<_>>().join(" ");
    let plain = |text| names(tokenizer.encode(text, Special::None).unwrap());
    assert_eq!((plain("the"), plain(" the"), plain("")), ("▁the".into(), "▁ ▁the".into(), String::new()));
    let after = |text| names(tokenizer.encode_after_control(text).unwrap());
    assert_eq!((after("the"), after(" the"), after("  the")), ("▁the".into(), "▁the".into(), "▁ ▁the".into()));
    let trusted = |text| names(tokenizer.encode_trusted(text).unwrap());
    assert_eq!(trusted("<s> the</s>the"), "<s> ▁the </s> ▁the");
    assert_eq!(trusted(" the<s>"), "▁ ▁the <s>");
}

#[test]
fn gguf_and_tokenizer_model_agree() {
    let (sentencepiece, bos) = proto::read(MISTRAL).unwrap();
    let (pieces, from_model) = (&sentencepiece.pieces, Tokenizer::from_sentencepiece(MISTRAL).unwrap());
    let gguf = GgufTokenizer {
        model: "llama".to_owned(),
        tokens: pieces.iter().map(|piece| piece.text.clone()).collect(),
        scores: pieces.iter().map(|piece| piece.score).collect(),
        token_types: pieces
            .iter()
            .map(|piece| (1..=6).find(|&n| Kind::from_number(n) == Some(piece.kind)).unwrap())
            .collect(),
        bos,
        ..GgufTokenizer::default()
    };
    let from_gguf = Tokenizer::from_gguf(gguf).unwrap();
    for text in TEXTS.iter().take(1000) {
        assert_eq!(from_gguf.encode(text, Special::Add).unwrap(), from_model.encode(text, Special::Add).unwrap());
    }
}

#[test]
fn control_tokens_in_text_are_text() {
    let tokenizer = Tokenizer::from_sentencepiece(MISTRAL).unwrap();
    let ids = tokenizer.encode("a</s>b<s><unk>", Special::None).unwrap();
    assert!(ids.iter().all(|&id| !tokenizer.is_control(id)), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a</s>b<s><unk>");
    assert_eq!(tokenizer.control_texts().collect::<Vec<_>>(), ["<unk>", "<s>", "</s>"]);
    assert_eq!((tokenizer.token_to_id("</s>"), tokenizer.token_to_id("▁the")), (Some(2), Some(272)));
}

#[test]
fn decoding_drops_the_dummy_prefix_alone() {
    let tokenizer = Tokenizer::from_sentencepiece(MISTRAL).unwrap();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let decode = |tokens: &[&str]| tokenizer.decode(&tokens.iter().map(|token| id(token)).collect::<Vec<_>>()).unwrap();
    assert_eq!(decode(&["▁the", "▁the"]), "the the");
    assert_eq!(decode(&["▁▁", "▁the"]), "  the");
    assert_eq!(decode(&["▁", "▁the"]), " the");
    assert_eq!(decode(&["<0x20>", "▁the"]), "  the", "a byte is no prefix");
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused() {
    let refused = |pieces: &[Piece]| {
        let error = SentencePiece::new(pieces.to_vec(), DummyPrefix::Add, "test").unwrap_err();
        assert!(matches!(error, TokenizerError::Malformed { file: "test", .. }), "{error}");
    };
    let (unknown, a) = (piece("<unk>", 0.0, Kind::Unknown), piece("a", 0.0, Kind::Normal));
    refused(&[]);
    refused(std::slice::from_ref(&a));
    refused(&[unknown.clone(), a.clone(), a.clone()]);
    refused(&[unknown.clone(), piece("other", 0.0, Kind::Unknown)]);
    refused(&[unknown.clone(), piece("a", f32::NAN, Kind::Normal)]);
    refused(&[unknown.clone(), piece("<0x41>", 0.0, Kind::Byte)]);
    for no_byte in ["<0x4a>", "<0x+4>", "<0x041>", "41"] {
        refused(&[unknown.clone(), piece(no_byte, 0.0, Kind::Byte)]);
    }
    refused(&[unknown.clone(), piece(&"a".repeat(MAX_TOKEN_BYTES + 1), 0.0, Kind::Normal)]);
    refused(&vec![unknown; MAX_TOKENS + 1]);
}

/// A file of two pieces, with these bytes for its trainer's and normaliser's settings.
fn file(trainer: &[u8], normalizer: &[u8]) -> Vec<u8> {
    let field = |tag: u8, bytes: &[u8]| [&[tag << 3 | 2, bytes.len() as u8][..], bytes].concat();
    let unknown = [&field(1, b"<unk>")[..], &[3 << 3, 2]].concat();
    [field(1, &unknown), field(1, &field(1, b"a")), field(2, trainer), field(3, normalizer)].concat()
}

#[test]
fn models_of_other_kinds_are_refused_with_the_reason() {
    let reason = |trainer: &[u8], normalizer: &[u8]| match proto::read(&file(trainer, normalizer)) {
        Ok((tokenizer, bos)) => {
            format!("{:?} {bos:?} {:?}", tokenizer.encode("a", Place::Alone), tokenizer.dummy_prefix)
        }
        Err(TokenizerError::Unsupported { reason, .. }) => reason,
        Err(other) => panic!("{other}"),
    };
    let (bpe, as_is) = ([3 << 3, 2], [4 << 3, 0]);
    assert_eq!(reason(&bpe, &as_is), "[0, 1] None Add");
    assert_eq!(reason(&bpe, &[4 << 3, 0, 3 << 3, 0]), "[1] None Omit");
    assert_eq!(reason(&[], &as_is), "its model type is not BPE");
    assert_eq!(reason(&[3 << 3, 3], &as_is), "its model type is not BPE");
    assert_eq!(reason(&bpe, &[]), "it removes repeated spaces");
    assert_eq!(reason(&bpe, &[4 << 3, 0, 2 << 3 | 2, 1, 7]), "it normalises text by a table of characters");
    assert_eq!(reason(&bpe, &[4 << 3, 0, 5 << 3, 0]), "it does not escape spaces");
    assert_eq!(reason(&[3 << 3, 2, 0xc0, 0x01, 1], &as_is), "its spaces end words");
}

#[test]
fn bad_files_are_refused() {
    let malformed = |bytes: &[u8]| {
        let error = Tokenizer::from_sentencepiece(bytes).unwrap_err();
        assert!(matches!(error, TokenizerError::Malformed { file: "tokenizer.model", .. }), "{error}");
    };
    malformed(&MISTRAL[..MISTRAL.len() / 2]);
    malformed(&[0xff; 40]);
    malformed(&[&file(&[3 << 3, 2], &[4 << 3, 0])[..], &[1 << 3 | 2, 2, 3 << 3, 9]].concat());
    assert!(matches!(Tokenizer::from_sentencepiece(b""), Err(TokenizerError::Unsupported { .. })));
    let large = vec![0; proto::MAX_SENTENCEPIECE_BYTES + 1];
    assert!(matches!(Tokenizer::from_sentencepiece(&large), Err(TokenizerError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn no_two_neighbours_are_left_that_make_a_piece(text in "[abc]{0,60}", scores in prop::collection::vec(-3i8..0, 6)) {
        let texts = ["a", "b", "c", "ab", "bc", "abc"];
        let more: Vec<_> = texts.iter().zip(&scores).map(|(t, s)| (*t, f32::from(*s), Kind::Normal)).collect();
        let tokenizer = small(&more);
        let ids = tokenizer.encode(&text, Place::Alone);
        prop_assert_eq!(tokenizer.decode(&ids), text);
        for two in ids.windows(2) {
            let joined = two.iter().map(|&id| tokenizer.id_to_token(id).unwrap()).collect::<String>();
            prop_assert_eq!(tokenizer.token_to_id(&joined), None);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>()) {
        let _ = proto::read(&bytes);
        let mut model = file(&[3 << 3, 2], &[4 << 3, 0]);
        let at = at.index(model.len());
        model[at] ^= bytes.first().copied().unwrap_or(1);
        if let Ok((tokenizer, _)) = proto::read(&model) {
            tokenizer.encode("a b", Place::Alone);
        }
    }
}
