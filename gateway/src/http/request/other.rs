//! The bodies of `/v1/embeddings`, `/tokenize` and `/detokenize`.

use serde::Deserialize;
use utoipa::ToSchema;

use super::Unsupported;
use super::chat::MessageBody;
use super::common::{Prompts, unsupported};
use crate::error::ApiError;
use crate::frontdoor::{ChatRequest, ChatTurn, Prompt};

/// How numbers are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EncodingFormat {
    /// As a list.
    #[default]
    Float,
    /// As little-endian f32 in base64.
    Base64,
}

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EmbeddingBody {
    /// A text, texts, token ids, or lists of token ids
    input: Prompts,
    /// The model [default: the one that is served]
    model: Option<String>,
    /// `float` or `base64` [default: float]
    encoding_format: Option<EncodingFormat>,
    /// The model's own length only: not supported
    #[schema(value_type = Option<Object>)]
    dimensions: Unsupported,
    /// Mistral's: the same
    #[schema(value_type = Option<Object>)]
    output_dimension: Unsupported,
    /// Mistral's: only `float`
    #[schema(value_type = Option<Object>)]
    output_dtype: Unsupported,
    /// Who asks, for the operator: of no effect
    #[allow(dead_code, reason = "of no effect")]
    user: Option<String>,
    /// For the client's own books: of no effect
    #[schema(value_type = Option<Object>)]
    #[allow(dead_code, reason = "of no effect")]
    metadata: Unsupported,
    /// Only the last so many tokens count (vLLM)
    truncate_prompt_tokens: Option<i64>,
}

/// What is to be embedded.
pub(crate) struct EmbeddingRequest {
    pub(crate) inputs: Vec<Prompt>,
    pub(crate) format: EncodingFormat,
    pub(crate) truncate: Option<i64>,
}

impl EmbeddingBody {
    pub(crate) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    pub(crate) fn into_request(self) -> Result<EmbeddingRequest, ApiError> {
        unsupported("dimensions", &self.dimensions, &[])?;
        unsupported("output_dimension", &self.output_dimension, &[])?;
        unsupported("output_dtype", &self.output_dtype, &["float".into()])?;
        Ok(EmbeddingRequest {
            inputs: self.input.into_vec(),
            format: self.encoding_format.unwrap_or_default(),
            truncate: self.truncate_prompt_tokens,
        })
    }
}

/// A text, or a conversation, whose token ids are wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenizeBody {
    /// The model [default: the one that is served]
    model: Option<String>,
    /// The text
    prompt: Option<String>,
    /// The conversation
    messages: Option<Vec<MessageBody>>,
    /// Whether a text's tokens that begin a sequence are added [default: true]
    add_special_tokens: Option<bool>,
    /// Whether the tokens' names are wanted too
    return_token_strs: Option<bool>,
}

/// What is to be tokenised.
pub(crate) enum Source {
    Text { text: String, special: bool },
    Chat(Box<ChatRequest>),
}

impl TokenizeBody {
    pub(crate) fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    pub(crate) fn wants_names(&self) -> bool {
        self.return_token_strs.unwrap_or(false)
    }

    pub(crate) fn into_source(self) -> Result<Source, ApiError> {
        match (self.prompt, self.messages) {
            (Some(text), None) => Ok(Source::Text { text, special: self.add_special_tokens.unwrap_or(true) }),
            (None, Some(messages)) => {
                let turns: Result<Vec<ChatTurn>, _> =
                    messages.into_iter().enumerate().map(|(index, message)| message.into_turn(index)).collect();
                Ok(Source::Chat(Box::new(ChatRequest { turns: turns?, ..ChatRequest::default() })))
            }
            _ => Err(ApiError::param("prompt", "one of `prompt` and `messages` is wanted")),
        }
    }
}

/// Token ids whose text is wanted.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct DetokenizeBody {
    /// The model [default: the one that is served]
    pub(crate) model: Option<String>,
    /// The ids
    pub(crate) tokens: Vec<i64>,
}
