//! Byte-level BPE (GPT-2's kind) from a vocabulary and merges: text is divided into words by regular expressions, then each
//! word's bytes, spelled as printable characters, are merged.
//!
//! GGUF names the expressions only. Here they are as the models' own `tokenizer.json` have them, or, where there is none
//! (`default`), llama.cpp (`src/llama-vocab.cpp`); so is whether text is normalised first, which GGUF does not say at all.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

use super::gguf::FILE;
use super::spm::Kind;
use super::{MAX_TOKEN_BYTES, TokenizerError, malformed};

/// What becomes of text before it is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Normal {
    /// Nothing.
    AsIs,
    /// Unicode's composed form.
    Nfc,
}

/// How a word that is a token as a whole is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WholeWords {
    /// By merging, which may end elsewhere.
    Merge,
    /// As that token.
    Take,
}

/// What goes before the merging.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scheme {
    /// Each divides what the ones before it left; what lies between matches is a word too.
    splits: &'static [&'static str],
    normal: Normal,
    whole_words: WholeWords,
    /// Whether a prompt begins with a bos token if the file does not say.
    pub(super) adds_bos: bool,
}

/// GPT-2's. Source: `tokenizers`' ByteLevel.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Source: Llama-3's `tokenizer.json`.
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Source: Qwen2's and Qwen3's `tokenizer.json`.
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Source: Mistral-Nemo's `tokenizer.json`.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Names under which [`scheme`] knows what a `tokenizer.json` can say; of synonyms one.
const NAMES: [&str; 5] = ["gpt-2", "smollm", "qwen2", "llama-bpe", "tekken"];

/// What `tokenizer.ggml.pre` calls the scheme that divides text by `splits`, one after the other; `None` when it has no name.
pub(crate) fn name(splits: &[&str], normal: Normal, whole_words: WholeWords) -> Option<&'static str> {
    let is_it = |scheme: Scheme| (scheme.splits, scheme.normal, scheme.whole_words) == (splits, normal, whole_words);
    NAMES.into_iter().find(|name| scheme(name).is_some_and(is_it))
}

/// The scheme that `tokenizer.ggml.pre` names.
pub(super) fn scheme(pre: &str) -> Option<Scheme> {
    use {Normal::*, WholeWords::*};
    let (splits, normal, whole_words, adds_bos): (&[&str], _, _, _) = match pre {
        "default" => (&[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"], AsIs, Merge, false),
        "gpt-2" => (&[GPT2], AsIs, Merge, false),
        "smollm" => (&[r"\p{N}", GPT2], AsIs, Merge, false),
        "qwen2" => (&[QWEN2], Nfc, Merge, false),
        "llama-bpe" | "llama3" | "llama-v3" => (&[LLAMA3], AsIs, Take, true),
        "tekken" => (&[TEKKEN], AsIs, Take, true),
        _ => return None,
    };
    Some(Scheme { splits, normal, whole_words, adds_bos })
}

/// A tokenizer under `scheme`: `tokens` by id with their `kinds`, `merges` first things first.
pub(super) fn build(
    scheme: &Scheme,
    tokens: &[String],
    kinds: &[Kind],
    merges: &[String],
) -> Result<tokenizers::Tokenizer, TokenizerError> {
    if let Some(long) = tokens.iter().position(|token| token.len() > MAX_TOKEN_BYTES) {
        return Err(malformed(FILE, format!("token {long} is too long")));
    }
    let vocab: Vocab = tokens.iter().cloned().zip(0..).collect();
    if vocab.len() != tokens.len() {
        return Err(malformed(FILE, format!("{} tokens have the same text as others", tokens.len() - vocab.len())));
    }
    let refused = |error: tokenizers::Error| malformed(FILE, error.to_string());
    let builder = BPE::builder().vocab_and_merges(vocab, pairs(merges, tokens)?);
    let bpe = builder.ignore_merges(scheme.whole_words == WholeWords::Take).build().map_err(refused)?;
    let mut tokenizer = tokenizers::Tokenizer::new(bpe);
    tokenizer.with_normalizer(Some(NFC).filter(|_| scheme.normal == Normal::Nfc)).map_err(refused)?;
    let mut steps: Vec<PreTokenizerWrapper> = Vec::with_capacity(scheme.splits.len() + 1);
    for &split in scheme.splits {
        let pattern = SplitPattern::Regex(split.to_owned());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(refused)?.into());
    }
    let bytes = ByteLevel::new(false, false, false);
    steps.push(bytes.into());
    tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
    tokenizer.with_decoder(Some(bytes));
    let added = tokens.iter().zip(kinds).filter_map(|(token, kind)| match kind {
        Kind::Control | Kind::Unknown => Some(AddedToken::from(token.clone(), true)),
        Kind::UserDefined => Some(AddedToken::from(token.clone(), false).normalized(false)),
        Kind::Normal | Kind::Unused | Kind::Byte => None,
    });
    tokenizer.add_tokens(added).map_err(refused)?;
    Ok(tokenizer)
}

/// The merges as pairs. Both halves and the whole must be tokens: the library counts on it.
fn pairs(merges: &[String], tokens: &[String]) -> Result<Vec<(String, String)>, TokenizerError> {
    let known: HashSet<&str> = tokens.iter().map(String::as_str).collect();
    let pair = |merge: &String| {
        let (left, right) = merge.split_once(' ')?;
        let whole = [left, right].concat();
        let all_known = [left, right, &whole].into_iter().all(|token| known.contains(token));
        all_known.then(|| (left.to_owned(), right.to_owned()))
    };
    let pairs = (0..).zip(merges).map(|(index, merge): (usize, _)| {
        pair(merge).ok_or_else(|| malformed(FILE, format!("merge {index} is not of tokens")))
    });
    pairs.collect()
}
