//! What stands beside the weights: configuration, tokenizer, chat template. In files of their own, or in GGUF metadata; beside a
//! GGUF model no file is looked at.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Checkpoint, CheckpointError, gguf};
use crate::config::ModelConfig;
use crate::tokenizer::MAX_SENTENCEPIECE_BYTES;

/// Largest JSON or template beside the weights, but for the tokenizer, in bytes.
pub const MAX_SIDECAR_BYTES: usize = 4 << 20;
/// Largest `tokenizer.json`, in bytes.
pub const MAX_TOKENIZER_BYTES: usize = 64 << 20;

/// A checkpoint's chat template, with the texts of the special tokens it may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatSource {
    /// The template, in Jinja.
    pub template: String,
    /// By the names under which templates know them (`bos_token`, `eos_token`, …).
    pub special_tokens: BTreeMap<String, String>,
}

impl Checkpoint {
    /// The model's configuration: `config.json`, with the ends of sequence of `generation_config.json` added, or GGUF metadata.
    ///
    /// # Errors
    /// A file cannot be read, or does not describe a model that we compute.
    pub fn config(&self) -> Result<ModelConfig, CheckpointError> {
        if let Some(metadata) = &self.metadata {
            return gguf::config(metadata, self);
        }
        let mut config = ModelConfig::from_json(&self.config_json()?, "config.json")?;
        if let Some(generation) = self.generation_config_json()? {
            config.merge_generation(&generation, "generation_config.json")?;
        }
        Ok(config)
    }

    /// The bytes of `config.json`.
    ///
    /// # Errors
    /// It is missing (always so in GGUF), too large or cannot be read.
    pub fn config_json(&self) -> Result<Vec<u8>, CheckpointError> {
        self.required("config.json", MAX_SIDECAR_BYTES)
    }

    /// The bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// It is missing (always so in GGUF), too large or cannot be read.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, CheckpointError> {
        self.required("tokenizer.json", MAX_TOKENIZER_BYTES)
    }

    /// The bytes of `tokenizer.model` (SentencePiece); `None` when there is none.
    ///
    /// # Errors
    /// It is too large or cannot be read.
    pub fn sentencepiece_model(&self) -> Result<Option<Vec<u8>>, CheckpointError> {
        self.sidecar("tokenizer.model", MAX_SENTENCEPIECE_BYTES)
    }

    /// The bytes of `tokenizer_config.json`; `None` when there is none.
    ///
    /// # Errors
    /// It is too large or cannot be read.
    pub fn tokenizer_config_json(&self) -> Result<Option<Vec<u8>>, CheckpointError> {
        self.sidecar("tokenizer_config.json", MAX_SIDECAR_BYTES)
    }

    /// The bytes of `generation_config.json`; `None` when there is none.
    ///
    /// # Errors
    /// It is too large or cannot be read.
    pub fn generation_config_json(&self) -> Result<Option<Vec<u8>>, CheckpointError> {
        self.sidecar("generation_config.json", MAX_SIDECAR_BYTES)
    }

    /// The chat template: the file `chat_template.jinja`, else `chat_template` in `tokenizer_config.json` (of several the one
    /// called `default`), or in GGUF metadata; `None` when the model has none.
    ///
    /// # Errors
    /// A file is too large, cannot be read, or is not what it should be.
    pub fn chat_template(&self) -> Result<Option<ChatSource>, CheckpointError> {
        if let Some(metadata) = &self.metadata {
            return gguf::chat_source(metadata);
        }
        let json = self.tokenizer_config_json()?.unwrap_or_else(|| b"{}".to_vec());
        let config: TokenizerConfig = serde_json::from_slice(&json)
            .map_err(|source| CheckpointError::Json { file: "tokenizer_config.json".to_owned(), source })?;
        let template = match self.sidecar("chat_template.jinja", MAX_SIDECAR_BYTES)? {
            Some(bytes) => Some(String::from_utf8(bytes).map_err(|_| CheckpointError::Io {
                file: "chat_template.jinja".to_owned(),
                source: std::io::Error::new(std::io::ErrorKind::InvalidData, "not UTF-8"),
            })?),
            None => config.template(),
        };
        Ok(template.map(|template| ChatSource { template, special_tokens: config.special_tokens() }))
    }

    /// A copy of a small file; `None` when there is none.
    pub(super) fn sidecar(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, CheckpointError> {
        if self.metadata.is_some() {
            return Ok(None);
        }
        let Some(bytes) = self.files.open(name)? else { return Ok(None) };
        if bytes.len() > limit {
            let (found, limit) = (bytes.len() as u64, limit as u64);
            return Err(CheckpointError::TooLarge { file: name.to_owned(), found, limit, unit: "bytes" });
        }
        Ok(Some(bytes.to_vec()))
    }

    fn required(&self, name: &str, limit: usize) -> Result<Vec<u8>, CheckpointError> {
        self.sidecar(name, limit)?.ok_or_else(|| CheckpointError::MissingFile { file: name.to_owned() })
    }
}

#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Several(Vec<NamedTemplate>),
}

#[derive(Clone, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl TokenizerConfig {
    fn template(&self) -> Option<String> {
        match self.chat_template.as_ref()? {
            Templates::One(template) => Some(template.clone()),
            Templates::Several(templates) => {
                templates.iter().find(|named| named.name == "default").map(|named| named.template.clone())
            }
        }
    }

    /// The fields `…_token`: a text, or an object that holds it as `content`.
    fn special_tokens(&self) -> BTreeMap<String, String> {
        let named = self.rest.iter().filter(|(name, _)| name.ends_with("_token"));
        let texts = named.filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((name.clone(), text.to_owned()))
        });
        texts.collect()
    }
}
