//! The chat template in GGUF metadata, with the texts of the special tokens it may use.

use super::Metadata;
use crate::checkpoint::{ChatSource, CheckpointError};

/// The special tokens, as templates know them, and the keys of their numbers.
const SPECIAL_TOKENS: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];

/// The template under `tokenizer.chat_template`; `None` when there is none. A special token outside the list of tokens has no
/// text.
pub(crate) fn chat_source(metadata: &Metadata) -> Result<Option<ChatSource>, CheckpointError> {
    let Some(template) = metadata.string("tokenizer.chat_template")? else { return Ok(None) };
    let tokens = metadata.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
    let mut source = ChatSource { template: template.to_owned(), special_tokens: Default::default() };
    for (name, key) in SPECIAL_TOKENS {
        if let Some(text) = metadata.u32(key)?.and_then(|id| tokens.get(id as usize)) {
            source.special_tokens.insert(name.to_owned(), text.clone());
        }
    }
    Ok(Some(source))
}

#[cfg(test)]
mod tests {
    use super::super::Value;
    use super::*;

    #[test]
    fn the_template_comes_with_the_texts_of_its_tokens() {
        let tokens = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
        let mut values = std::collections::BTreeMap::from([
            ("tokenizer.ggml.tokens".to_owned(), Value::from(tokens)),
            ("tokenizer.ggml.bos_token_id".to_owned(), Value::from(1)),
            ("tokenizer.ggml.eos_token_id".to_owned(), Value::from(2)),
            ("tokenizer.ggml.padding_token_id".to_owned(), Value::from(3)),
        ]);
        assert_eq!(chat_source(&Metadata::new("m", values.clone())).unwrap(), None);
        values.insert("tokenizer.chat_template".to_owned(), Value::from("hello"));
        let source = chat_source(&Metadata::new("m", values)).unwrap().unwrap();
        assert_eq!(source.template, "hello");
        let tokens: Vec<_> = source.special_tokens.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(tokens, [("bos_token", "<s>"), ("eos_token", "</s>")]);
    }
}
