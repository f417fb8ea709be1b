//! A byte-level BPE (GPT-2's kind; Qwen's, Llama-3's) as GGUF metadata: model `gpt2`, tokens, types, merges, and the name of the
//! expressions that divide text into words. GGUF can only name them, so a tokenizer whose steps have no name is refused.
//!
//! Keys: ggml's `docs/gguf.md`. Spelling of the steps: the crate `tokenizers`, `serialize` of each step.

use serde_json::Value as Json;

use super::super::metadata::{self, Keys};
use super::{TokenizerJson, columns};
use crate::config::ModelConfig;
use crate::tokenizer::byte_level::{self, GPT2, Normal, WholeWords};

/// Every numeric character a word of its own: what the step `Digits` means by `individual_digits`.
const DIGITS: &str = r"\p{N}";

/// Adds the tokenizer `json`, with the special tokens that `settings` (`tokenizer_config.json`) names.
pub(super) fn put(json: &TokenizerJson, settings: &Json, config: &ModelConfig, keys: &mut Keys) -> Result<(), String> {
    let splits = splits(&json.pre_tokenizer)?;
    let whole_words = if json.model.ignore_merges { WholeWords::Take } else { WholeWords::Merge };
    let pre = byte_level::name(&splits, normal(&json.normalizer)?, whole_words)
        .ok_or("GGUF has no name for how it divides text into words")?;
    let begins = begins_with(&json.post_processor)?;
    columns(json, config.vocab)?.put("gpt2", keys);
    keys.insert("tokenizer.ggml.pre".to_owned(), pre.into());
    keys.insert("tokenizer.ggml.merges".to_owned(), merges(json)?.into());
    keys.insert("tokenizer.ggml.add_bos_token".to_owned(), begins.is_some().into());
    keys.insert("tokenizer.ggml.add_eos_token".to_owned(), false.into());
    if let Some(bos) = begins {
        keys.insert("tokenizer.ggml.bos_token_id".to_owned(), bos.into());
    }
    if let Some(pad) = special(json, settings, "pad_token") {
        keys.insert("tokenizer.ggml.padding_token_id".to_owned(), pad.into());
    }
    if let Some(eos) = special(json, settings, "eos_token").filter(|eos| config.eos.contains(eos)) {
        let others = config.eos.iter().copied().filter(|&other| other != eos);
        metadata::put_eos(&[eos].into_iter().chain(others).collect::<Vec<_>>(), keys);
    }
    Ok(())
}

/// The id of the token that `settings` calls `name`: a text, or an object that holds it as `content`.
fn special(json: &TokenizerJson, settings: &Json, name: &str) -> Option<u32> {
    let text = settings[name].as_str().or_else(|| settings[name]["content"].as_str())?;
    let added = json.added_tokens.iter().find(|added| added.content == text).map(|added| added.id);
    added.or_else(|| json.model.vocab.get(text).copied())
}

/// The steps of a pipeline that is one step, a `Sequence` of them under `key`, or null.
fn steps<'a>(pipeline: &'a Json, key: &str) -> Vec<&'a Json> {
    match pipeline {
        Json::Null => Vec::new(),
        step if step["type"] == "Sequence" => step[key].as_array().into_iter().flatten().collect(),
        step => vec![step],
    }
}

/// The expressions that divide text, before its bytes are spelled.
fn splits(pre_tokenizer: &Json) -> Result<Vec<&str>, String> {
    let steps = steps(pre_tokenizer, "pretokenizers");
    let Some((last, before)) = steps.split_last().filter(|(last, _)| last["type"] == "ByteLevel") else {
        return Err("it has neither a byte fallback nor byte-level words".to_owned());
    };
    if last["add_prefix_space"] != false {
        return Err("it puts a space before a text".to_owned());
    }
    let own = (last["use_regex"] != false).then_some(Some(GPT2));
    let splits: Option<Vec<&str>> = before.iter().map(|step| split(step)).chain(own).collect();
    splits.ok_or_else(|| "it divides text by steps that GGUF does not know".to_owned())
}

/// The expression of one step, if GGUF's names can mean such a step.
fn split(step: &Json) -> Option<&str> {
    match step["type"].as_str()? {
        "Split" if step["behavior"] == "Isolated" && step["invert"] == false => step["pattern"]["Regex"].as_str(),
        "Digits" if step["individual_digits"] == true => Some(DIGITS),
        _ => None,
    }
}

fn normal(normalizer: &Json) -> Result<Normal, String> {
    let steps = steps(normalizer, "normalizers");
    match steps.as_slice() {
        [] => Ok(Normal::AsIs),
        [step] if step["type"] == "NFC" => Ok(Normal::Nfc),
        _ => Err("it normalises text in a way that GGUF does not know".to_owned()),
    }
}

/// The token that a text is begun with, if any. A template's `single` lists the tokens and the text.
fn begins_with(post_processor: &Json) -> Result<Option<u32>, String> {
    let steps = steps(post_processor, "processors");
    let templates: Vec<&Json> = steps.into_iter().filter(|step| step["type"] != "ByteLevel").collect();
    let single = match templates.as_slice() {
        [] => return Ok(None),
        [template] => template["single"].as_array().map_or(&[][..], Vec::as_slice),
        _ => &[],
    };
    let is_text = |part: &Json| part.get("Sequence").is_some();
    let begins = match single {
        [text] if is_text(text) => return Ok(None),
        [token, text] if is_text(text) => {
            let name = token["SpecialToken"]["id"].as_str().unwrap_or_default();
            match templates[0]["special_tokens"][name]["ids"].as_array().map(Vec::as_slice) {
                Some([id]) => id.as_u64().and_then(|id| u32::try_from(id).ok()),
                _ => None,
            }
        }
        _ => None,
    };
    begins.map(Some).ok_or_else(|| "it adds tokens to a text in a way that GGUF does not know".to_owned())
}

/// The merges, first things first. No token has a space in it: a byte-level BPE spells it otherwise.
fn merges(json: &TokenizerJson) -> Result<Vec<String>, String> {
    let text = |(rank, merge): (usize, &super::Merge)| {
        let (left, right) = merge.pair(rank)?;
        Ok(format!("{left} {right}"))
    };
    json.model.merges.iter().enumerate().map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::synth::Like;
    use super::*;
    use crate::checkpoint::gguf::Metadata;
    use crate::tokenizer::{GgufTokenizer, Special, Tokenizer};

    const JSON: &[u8] = include_bytes!("../../../../tests/tokenizers/byte-level.tokenizer.json");
    const STRINGS: &str = include_str!("../../../../tests/tokenizers/strings.jsonl");
    /// A vocabulary with rows that no token has, as Qwen's.
    const VOCAB: usize = 2010;

    /// The fixture's tokenizer, changed by `change`.
    fn parsed(change: impl FnOnce(&mut Json)) -> TokenizerJson {
        let mut json = serde_json::from_slice(JSON).unwrap();
        change(&mut json);
        serde_json::from_value(json).unwrap()
    }

    fn written(json: &TokenizerJson, settings: &Json) -> Result<Metadata, String> {
        let config =
            ModelConfig { vocab: VOCAB, eos: vec![2000, 2002], bos: Some(2000), ..Like::Qwen3_30bA3b.config() };
        let mut keys = Keys::new();
        put(json, settings, &config, &mut keys)?;
        Ok(Metadata::new("m.gguf", keys))
    }

    fn tokenizer(metadata: &Metadata) -> Tokenizer {
        Tokenizer::from_gguf(GgufTokenizer::from_metadata(metadata).unwrap()).unwrap()
    }

    #[test]
    fn the_tokenizer_in_gguf_gives_the_ids_of_the_one_it_was_made_from() {
        let (first, second) =
            (Tokenizer::from_json(JSON).unwrap(), tokenizer(&written(&parsed(|_| ()), &json!({})).unwrap()));
        // Each line as it stands, in JSON, and with a control token spelled in it.
        for line in STRINGS.lines().step_by(5) {
            let text = format!("{line}<|im_end|>{line}");
            assert_eq!(
                second.encode(&text, Special::Add).unwrap(),
                first.encode(&text, Special::Add).unwrap(),
                "{line}"
            );
            assert_eq!(second.encode_trusted(&text).unwrap(), first.encode_trusted(&text).unwrap(), "{line}");
        }
    }

    #[test]
    fn special_tokens_have_their_keys() {
        let settings = json!({"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"}, "bos_token": null});
        let metadata = written(&parsed(|_| ()), &settings).unwrap();
        let id = |key: &str| metadata.u32(&format!("tokenizer.ggml.{key}_token_id")).unwrap();
        assert_eq!(["eos", "eot", "eom", "padding"].map(id), [Some(2002), Some(2000), None, Some(2000)]);
        assert_eq!(metadata.string("tokenizer.ggml.pre").unwrap(), Some("qwen2"));
        assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(false));
        let types = metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap();
        assert_eq!(types[1999..2006], [1, 3, 3, 3, 4, 4, 5]);
    }

    #[test]
    fn a_text_begins_as_the_template_says() {
        let begun = parsed(|json| {
            json["post_processor"] = json!({"type": "Sequence", "processors": [
                {"type": "ByteLevel"},
                {"type": "TemplateProcessing",
                 "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                 "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [2001], "tokens": ["<|im_start|>"]}}}
            ]});
        });
        let ids = tokenizer(&written(&begun, &json!({})).unwrap()).encode("a", Special::Add).unwrap();
        assert_eq!(ids.first(), Some(&2001));
    }

    #[test]
    fn steps_have_the_names_of_the_models_that_take_them() {
        let name = |pre: Json, ignore: bool| {
            let changed = parsed(|json| {
                (json["pre_tokenizer"], json["normalizer"]) = (pre, Json::Null);
                json["model"]["ignore_merges"] = ignore.into();
            });
            let metadata = written(&changed, &json!({}))?;
            Ok::<_, String>(metadata.string("tokenizer.ggml.pre").unwrap().unwrap().to_owned())
        };
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(name(bytes.clone(), false).unwrap(), "gpt-2");
        assert_eq!(name(json!({"type": "Sequence", "pretokenizers": [digits, bytes]}), false).unwrap(), "smollm");
        assert!(name(bytes, true).unwrap_err().contains("no name"), "GPT-2 merges whole words too");
    }

    #[test]
    fn what_gguf_cannot_say_is_refused() {
        let end = json!({"type": "TemplateProcessing", "special_tokens": {},
            "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|im_end|>"}}]});
        let own_words = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]});
        let changes = [
            ("post_processor", end, "adds tokens"),
            ("normalizer", json!({"type": "Lowercase"}), "normalises"),
            ("pre_tokenizer", json!({"type": "Whitespace"}), "neither a byte fallback nor byte-level"),
            ("pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": true}), "puts a space"),
            ("pre_tokenizer", own_words, "no name"),
        ];
        for (step, value, reason) in changes {
            let refused = written(&parsed(|json| json[step] = value), &json!({})).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
    }
}
