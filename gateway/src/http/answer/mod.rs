//! What clients get: OpenAI's answers, whole and as streams.

pub(super) mod chat;
pub(super) mod completions;
mod events;
mod logprobs;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use utoipa::ToSchema;

use super::request::StreamOptions;
use crate::frontdoor::{FrontDoor, UsageSoFar, alphanumeric};

pub(super) use events::{Render, stream};

/// How an answer comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) stream: bool,
    pub(crate) options: StreamOptions,
    pub(crate) token_ids: bool,
}

/// Tokens that a request took.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct UsageBody {
    /// Of the prompts.
    pub prompt_tokens: usize,
    /// Generated.
    pub completion_tokens: usize,
    /// Together.
    pub total_tokens: usize,
    /// Of the prompts, where they came from; absent when nothing had to be computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptDetails>,
}

/// Where a prompt's tokens came from.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub(crate) struct PromptDetails {
    /// From the prefix cache.
    pub cached_tokens: usize,
}

impl From<UsageSoFar> for UsageBody {
    fn from(usage: UsageSoFar) -> Self {
        Self {
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.prompt + usage.completion,
            prompt_tokens_details: usage.cached.map(|cached_tokens| PromptDetails { cached_tokens }),
        }
    }
}

/// What all pieces of one answer begin with.
#[derive(Clone, Debug)]
pub(super) struct Heading {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
}

impl Heading {
    /// For an answer whose id begins with `prefix`.
    pub(super) fn new(prefix: &str, front: &FrontDoor) -> Self {
        /// Letters of an id: as many as OpenAI's have.
        const LETTERS: usize = 29;
        Self {
            id: format!("{prefix}-{}", alphanumeric(LETTERS)),
            created: now(),
            model: front.model().id().to_owned(),
            fingerprint: front.engine_info().fingerprint.clone(),
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
