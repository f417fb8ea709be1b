//! What clients send: OpenAI's parameters, vLLM's and Mistral's extensions. A field that is not here is refused, by name.

mod chat;
mod common;
mod completions;
mod other;

pub(crate) use chat::ChatBody;
pub(crate) use common::{StreamOptions, Unsupported};
pub(crate) use completions::CompletionBody;
pub(super) use other::Source;
pub(crate) use other::{DetokenizeBody, EmbeddingBody, EncodingFormat, TokenizeBody};
