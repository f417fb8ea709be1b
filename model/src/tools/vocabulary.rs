//! A `tokenizer.json` as GGUF metadata, and a vocabulary of placeholders. Two kinds of BPE are known: Llama's, here, and byte-level ones
//! (GPT-2's kind), in `byte_level`.
//!
//! llama.cpp's tokenizer for `llama` (`llm_tokenizer_spm` in `src/llama-vocab.cpp`) joins, of all neighbours whose text together is a
//! token, those whose token has the highest score. BPE joins by the rank of a merge, so a token's score is minus the rank of the
//! first merge that makes it; tokens that no merge makes come after all others.

mod byte_level;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::ToolError;
use super::metadata::Keys;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::gguf::Value;
use crate::config::ModelConfig;

/// Kinds of tokens (ggml's `llama_token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// What stands for a space in tokens.
const SPACE: &str = "\u{2581}";

/// Tokens by id, as two columns.
struct Columns {
    tokens: Vec<String>,
    types: Vec<i32>,
}

impl Columns {
    /// Adds the columns of a tokenizer of the kind `model`.
    fn put(self, model: &str, keys: &mut Keys) {
        keys.insert("tokenizer.ggml.model".to_owned(), model.into());
        keys.insert("tokenizer.ggml.tokens".to_owned(), self.tokens.into());
        keys.insert("tokenizer.ggml.token_type".to_owned(), Value::from(&self.types[..]));
    }
}

#[derive(Deserialize)]
struct TokenizerJson {
    model: Bpe,
    #[serde(default)]
    added_tokens: Vec<Added>,
    #[serde(default)]
    normalizer: Json,
    #[serde(default)]
    pre_tokenizer: Json,
    #[serde(default)]
    post_processor: Json,
}

#[derive(Deserialize)]
struct Bpe {
    #[serde(rename = "type")]
    ty: Option<String>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    unk_token: Option<String>,
    vocab: BTreeMap<String, u32>,
    merges: Vec<Merge>,
}

/// Two tokens that are joined: `["a", "b"]`, in older files `"a b"`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    special: bool,
}

/// Adds the tokenizer and chat template of `checkpoint`, a model of `config`.
pub(super) fn put(checkpoint: &Checkpoint, config: &ModelConfig, keys: &mut Keys) -> Result<(), ToolError> {
    let refused = |reason: String| ToolError::Tokenizer { reason };
    let json: TokenizerJson =
        serde_json::from_slice(&checkpoint.tokenizer_json()?).map_err(|error| refused(error.to_string()))?;
    if let Some(ty) = json.model.ty.as_deref().filter(|ty| *ty != "BPE") {
        return Err(refused(format!("its model is {ty}, not BPE")));
    }
    let settings = checkpoint.tokenizer_config_json()?.unwrap_or_else(|| b"{}".to_vec());
    let settings: Json = serde_json::from_slice(&settings).map_err(|error| refused(error.to_string()))?;
    let put_kind = if json.model.byte_fallback { put_llama } else { byte_level::put };
    put_kind(&json, &settings, config, keys).map_err(refused)?;
    if let Some(unknown) = json.model.unk_token.as_ref().and_then(|token| json.model.vocab.get(token)) {
        keys.insert("tokenizer.ggml.unknown_token_id".to_owned(), (*unknown).into());
    }
    if let Some(source) = checkpoint.chat_template()? {
        keys.insert("tokenizer.chat_template".to_owned(), source.template.as_str().into());
    }
    Ok(())
}

/// Adds a tokenizer of Llama's make.
fn put_llama(json: &TokenizerJson, settings: &Json, config: &ModelConfig, keys: &mut Keys) -> Result<(), String> {
    let columns = columns(json, config.vocab)?;
    let scores = scores(&columns, &json.model.merges)?;
    keys.insert("tokenizer.ggml.scores".to_owned(), Value::from(&scores[..]));
    columns.put("llama", keys);
    keys.insert("tokenizer.ggml.add_space_prefix".to_owned(), adds_space(json).into());
    for (key, default) in [("add_bos_token", true), ("add_eos_token", false)] {
        let value = settings[key].as_bool().unwrap_or(default);
        keys.insert(format!("tokenizer.ggml.{key}"), value.into());
    }
    Ok(())
}

/// Whether a text's first word gets a space before it.
fn adds_space(json: &TokenizerJson) -> bool {
    let prepends = |step: &Json| step["type"] == "Prepend" && step["prepend"] == SPACE;
    let normalizers = json.normalizer["normalizers"].as_array().into_iter().flatten();
    let metaspace = json.pre_tokenizer["type"] == "Metaspace" && json.pre_tokenizer["prepend_scheme"] != "never";
    metaspace || normalizers.chain([&json.normalizer]).any(prepends)
}

fn columns(json: &TokenizerJson, vocab: usize) -> Result<Columns, String> {
    let mut tokens: Vec<Option<(String, i32)>> = vec![None; vocab];
    let mut set = |text: &str, id: u32, ty: i32| match tokens.get_mut(id as usize) {
        Some(slot) => {
            *slot = Some((text.to_owned(), ty));
            Ok(())
        }
        None => Err(format!("token {id} is not among the model's {vocab}")),
    };
    for (text, &id) in &json.model.vocab {
        set(text, id, if json.model.byte_fallback && is_byte(text) { BYTE } else { NORMAL })?;
    }
    for added in &json.added_tokens {
        let ty = match added.special {
            _ if json.model.unk_token.as_ref() == Some(&added.content) => UNKNOWN,
            true => CONTROL,
            false => USER_DEFINED,
        };
        set(&added.content, added.id, ty)?;
    }
    // Texts must differ; these cannot be spelt by accident, and the kind keeps them from being used.
    let named = tokens.into_iter().enumerate();
    let (tokens, types) = named.map(|(id, token)| token.unwrap_or_else(|| (format!("[unused {id}]"), UNUSED))).unzip();
    Ok(Columns { tokens, types })
}

/// By id, what joins a token before others: minus the rank of its merge.
fn scores(columns: &Columns, merges: &[Merge]) -> Result<Vec<f32>, String> {
    let ranks = ranks(merges)?;
    let after_all = |id: usize| merges.len() + id;
    let score = |(id, (text, ty)): (usize, (&String, &i32))| match *ty {
        NORMAL => -(ranks.get(text).copied().unwrap_or_else(|| after_all(id)) as f32),
        _ => 0.0,
    };
    Ok(columns.tokens.iter().zip(&columns.types).enumerate().map(score).collect())
}

impl Merge {
    /// Its two tokens; `rank` is its place, for the error.
    fn pair(&self, rank: usize) -> Result<(&str, &str), String> {
        match self {
            Self::Pair(left, right) => Ok((left, right)),
            Self::Text(text) => text.split_once(' ').ok_or_else(|| format!("merge {rank} is not of two tokens")),
        }
    }
}

/// The rank of the first merge that makes a token.
fn ranks(merges: &[Merge]) -> Result<BTreeMap<String, usize>, String> {
    let mut ranks = BTreeMap::new();
    for (rank, merge) in merges.iter().enumerate() {
        let (left, right) = merge.pair(rank)?;
        ranks.entry([left, right].concat()).or_insert(rank);
    }
    Ok(ranks)
}

/// `<0x00>` … `<0xFF>`: a byte of a character that the vocabulary lacks.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Adds a vocabulary of `vocab` tokens (at least 259) that mean nothing: unknown, begin, end, the bytes, and placeholders.
pub(super) fn put_placeholders(vocab: usize, keys: &mut Keys) {
    let token = |id: usize| match id {
        0 => ("<unk>".to_owned(), UNKNOWN),
        1 => ("<s>".to_owned(), CONTROL),
        2 => ("</s>".to_owned(), CONTROL),
        3..259 => (format!("<0x{:02X}>", id - 3), BYTE),
        _ => (format!("{SPACE}w{id}"), NORMAL),
    };
    let (tokens, types) = (0..vocab).map(token).unzip();
    Columns { tokens, types }.put("llama", keys);
    let scores: Vec<f32> = (0..vocab).map(|id| -(id as f32)).collect();
    keys.insert("tokenizer.ggml.scores".to_owned(), Value::from(&scores[..]));
    keys.insert("tokenizer.ggml.unknown_token_id".to_owned(), 0.into());
    keys.insert("tokenizer.ggml.add_bos_token".to_owned(), true.into());
    keys.insert("tokenizer.ggml.add_eos_token".to_owned(), false.into());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed() -> TokenizerJson {
        let json = json!({
            "model": {
                "type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
                "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "aba": 5},
                "merges": [["a", "b"], ["ab", "a"], ["a", "ba"]]
            },
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"}]},
            "added_tokens": [
                {"id": 0, "content": "<unk>", "special": true}, {"id": 6, "content": "<s>", "special": true},
                {"id": 7, "content": "<tool>", "special": false}
            ]
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn scores_fall_with_the_rank_of_the_merge() {
        let columns = columns(&parsed(), 9).unwrap();
        assert_eq!(columns.tokens, ["<unk>", "<0x0A>", "a", "b", "ab", "aba", "<s>", "<tool>", "[unused 8]"]);
        let kinds = [UNKNOWN, BYTE, NORMAL, NORMAL, NORMAL, NORMAL, CONTROL, USER_DEFINED, UNUSED];
        assert_eq!(columns.types, kinds);
        let scores = scores(&columns, &parsed().model.merges).unwrap();
        assert_eq!(scores, [0.0, 0.0, -5.0, -6.0, -0.0, -1.0, 0.0, 0.0, 0.0]);
        assert!(super::columns(&parsed(), 7).is_err(), "token 7 of 7");
    }

    #[test]
    fn merges_of_older_files_are_read_too() {
        let merges: Vec<Merge> = serde_json::from_value(json!(["a b", ["b", "a"]])).unwrap();
        assert_eq!(ranks(&merges).unwrap(), BTreeMap::from([("ab".to_owned(), 0), ("ba".to_owned(), 1)]));
        assert!(ranks(&[Merge::Text("ab".to_owned())]).is_err());
    }

    #[test]
    fn a_space_is_added_where_the_tokenizer_says_so() {
        let mut json = parsed();
        assert!(adds_space(&json));
        json.normalizer = Json::Null;
        assert!(!adds_space(&json));
        json.pre_tokenizer = json!({"type": "Metaspace", "prepend_scheme": "first"});
        assert!(adds_space(&json));
        json.pre_tokenizer["prepend_scheme"] = json!("never");
        assert!(!adds_space(&json));
    }
}
