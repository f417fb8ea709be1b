//! What GGUF metadata means, and what is refused.

use crate::tokenizer::{GgufTokenizer, MAX_TOKEN_BYTES, Special, Tokenizer, TokenizerError};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// SentencePiece's kind.
fn llama() -> GgufTokenizer {
    GgufTokenizer {
        model: "llama".to_owned(),
        tokens: texts(&["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "ab"]),
        scores: vec![0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -1.0, -2.0],
        token_types: vec![2, 3, 3, 1, 1, 1, 1, 1],
        bos: Some(1),
        unknown: Some(0),
        ..GgufTokenizer::default()
    }
}

/// GPT-2's kind.
fn gpt2() -> GgufTokenizer {
    GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens: texts(&["a", "b", "ab", "Ġ", "Ġab", "<end>", "<tool>", "abab"]),
        token_types: vec![1, 1, 1, 1, 1, 3, 4, 1],
        merges: texts(&["a b", "Ġ ab"]),
        bos: Some(5),
        ..GgufTokenizer::default()
    }
}

fn load(gguf: GgufTokenizer) -> Tokenizer {
    Tokenizer::from_gguf(gguf).unwrap()
}

#[test]
fn llama_adds_a_beginning_and_a_space_unless_told_otherwise() {
    let tokenizer = load(llama());
    assert_eq!(tokenizer.encode("ab a", Special::Add).unwrap(), [1, 6, 5, 6]);
    assert_eq!(tokenizer.encode("ab a", Special::None).unwrap(), [6, 5, 6]);
    let bare = load(GgufTokenizer { add_bos: Some(false), add_space_prefix: Some(false), ..llama() });
    assert_eq!(bare.encode("ab a", Special::Add).unwrap(), [7, 6]);
    assert_eq!(bare.decode(&[6, 7]).unwrap(), " aab");
    assert_eq!(bare.encode("é</s>", Special::None).unwrap(), [0]);
    assert_eq!(tokenizer.encode_trusted("<s>a</s>").unwrap(), [1, 6, 2]);
}

#[test]
fn gpt2_merges_words_and_begins_a_prompt_if_told_to() {
    let tokenizer = load(gpt2());
    assert_eq!(tokenizer.encode("ab ab", Special::Add).unwrap(), [2, 4]);
    assert_eq!(tokenizer.encode("abab", Special::None).unwrap(), [2, 2]);
    assert_eq!(
        tokenizer.encode("a<tool>b", Special::None).unwrap(),
        [0, 6, 1],
        "user-defined tokens are found in text"
    );
    assert_eq!(tokenizer.encode_trusted("ab<end>a").unwrap(), [2, 5, 0]);
    assert_eq!(tokenizer.decode(&[2, 4, 5, 6]).unwrap(), "ab ab<tool>");
    let begun = load(GgufTokenizer { add_bos: Some(true), ..gpt2() });
    assert_eq!(begun.encode("ab", Special::Add).unwrap(), [5, 2]);
    assert_eq!(begun.encode("ab", Special::None).unwrap(), [2]);
}

#[test]
fn some_pre_tokenizers_begin_prompts_and_take_whole_words() {
    for pre in ["llama-bpe", "tekken"] {
        let tokenizer = load(GgufTokenizer { pre: Some(pre.to_owned()), ..gpt2() });
        assert_eq!(tokenizer.encode("abab", Special::Add).unwrap(), [5, 7], "{pre}");
    }
}

#[test]
fn a_control_token_does_not_come_from_text() {
    let tokenizer = load(gpt2());
    let ids = tokenizer.encode("ab<end>", Special::None);
    assert!(ids.is_ok_and(|ids| !ids.contains(&5)));
    let word = GgufTokenizer { pre: Some("llama-bpe".to_owned()), token_types: vec![1, 1, 1, 1, 1, 3, 4, 3], ..gpt2() };
    let refused = load(word).encode("abab", Special::None);
    assert!(matches!(refused, Err(TokenizerError::ControlToken { token }) if token == "abab"));
}

/// Why a tokenizer is refused.
fn refusal(change: impl FnOnce(&mut GgufTokenizer), mut gguf: GgufTokenizer) -> String {
    change(&mut gguf);
    match Tokenizer::from_gguf(gguf) {
        Err(error @ (TokenizerError::Malformed { .. } | TokenizerError::Unsupported { .. })) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(tokenizer) => panic!("{tokenizer:?}"),
    }
}

#[test]
fn kinds_that_we_do_not_compute_are_refused_by_name() {
    let kind = "GGUF metadata: a tokenizer of another kind: tokenizer.ggml.";
    assert_eq!(refusal(|t| t.model = "t5".into(), llama()), format!("{kind}model is \"t5\""));
    assert_eq!(refusal(|t| t.pre = Some("kimi-k2".into()), gpt2()), format!("{kind}pre is \"kimi-k2\""));
    assert_eq!(refusal(|t| t.pre = None, gpt2()), format!("{kind}pre is absent"));
}

#[test]
fn metadata_that_contradicts_itself_is_refused() {
    type Change = fn(&mut GgufTokenizer);
    let both: [(Change, &str); 6] = [
        (|t| t.tokens.clear(), "0 tokens, but 1 to"),
        (|t| t.token_types.truncate(3), "8 tokens, but 3 token types"),
        (|t| t.token_types[7] = 9, "token 7 is of the unknown type 9"),
        (|t| t.bos = Some(8), "a special token has the id 8 of 8"),
        (|t| (t.bos, t.add_bos) = (None, Some(true)), "bos_token_id, which is absent"),
        (|t| t.tokens[7] = "x".repeat(MAX_TOKEN_BYTES + 1), "too long"),
    ];
    for (change, reason) in both {
        for gguf in [llama(), gpt2()] {
            let refused = refusal(change, gguf);
            assert!(refused.contains(reason), "{refused}");
        }
    }
    assert!(refusal(|t| t.scores.clear(), llama()).contains("8 tokens, but 0 scores"));
    assert!(refusal(|t| t.tokens[4] = "b".into(), llama()).contains("tokens 4 and 5 have the same text"));
    assert!(refusal(|t| t.tokens[0] = "b".into(), gpt2()).contains("1 tokens have the same text as others"));
    for merge in ["ab", "a x", "b a", "", "a  b", "abab abab"] {
        let refused = refusal(|t| t.merges[1] = merge.into(), gpt2());
        assert!(refused.contains("merge 1 is not of tokens"), "{merge:?}: {refused}");
    }
}
