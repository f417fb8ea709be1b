//! Log-probabilities, in the forms of chat, of completions, and of vLLM's prompts.

use std::collections::BTreeMap;

use serde::Serialize;
use tramontane_cluster::engine::Token;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::frontdoor::{FrontDoor, SpokenToken, TokenText};

/// JSON has no infinity: OpenAI writes this for it.
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

/// Log-probabilities of a chat's answer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ChatLogprobs {
    /// Of each token.
    pub content: Vec<TokenLogprob>,
    /// Always absent: nothing refuses.
    pub refusal: Option<()>,
}

/// A token's.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenLogprob {
    /// The chosen token.
    #[serde(flatten)]
    pub token: Alternative,
    /// The likeliest tokens there.
    pub top_logprobs: Vec<Alternative>,
}

/// A token that could stand there.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Alternative {
    /// Its text.
    pub token: String,
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// Its text's bytes, which need not be whole characters.
    pub bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(super) fn of(tokens: &[SpokenToken], texts: &TokenText) -> Self {
        let alternative = |id: u32, logprob: f32| {
            let bytes = texts.bytes(id);
            Alternative { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: finite(logprob), bytes }
        };
        let content = tokens.iter().map(|SpokenToken { token, .. }| TokenLogprob {
            token: alternative(token.id, token.logprob),
            top_logprobs: token.top.iter().map(|&(id, logprob)| alternative(id, logprob)).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

/// Log-probabilities of a completion: lists side by side.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct CompletionLogprobs {
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// Theirs; the first token of an echoed prompt has none.
    pub token_logprobs: Vec<Option<f32>>,
    /// The likeliest tokens' there, the chosen one's among them.
    pub top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    /// Characters of the text before each token.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Of generated tokens, before which the text has `before` characters.
    pub(super) fn of(tokens: &[SpokenToken], before: usize, texts: &TokenText) -> Self {
        let mut logprobs = Self::default();
        for SpokenToken { token, offset } in tokens {
            logprobs.push(texts.text(token.id), Some(token), before + offset, texts);
        }
        logprobs
    }

    /// Of a prompt.
    pub(super) fn of_prompt(prompt: &[u32], tokens: &[Option<Token>], front: &FrontDoor) -> Result<Self, ApiError> {
        let mut logprobs = Self::default();
        let mut detokenizer = front.tokenizer().detokenizer(&[])?;
        let mut offset = 0;
        for (index, &id) in prompt.iter().enumerate() {
            let token = tokens.get(index).and_then(Option::as_ref);
            logprobs.push(front.token_text().text(id), token, offset, front.token_text());
            offset += detokenizer.push(id)?.map_or(0, |text| text.chars().count());
        }
        Ok(logprobs)
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.tokens.extend(other.tokens);
        self.token_logprobs.extend(other.token_logprobs);
        self.top_logprobs.extend(other.top_logprobs);
        self.text_offset.extend(other.text_offset);
    }

    fn push(&mut self, text: String, token: Option<&Token>, offset: usize, texts: &TokenText) {
        let top = token.filter(|token| !token.top.is_empty()).map(|token| {
            let mut top = BTreeMap::new();
            for &(id, logprob) in &token.top {
                top.entry(texts.text(id)).or_insert_with(|| finite(logprob));
            }
            top.entry(text.clone()).or_insert_with(|| finite(token.logprob));
            top
        });
        self.tokens.push(text);
        self.token_logprobs.push(token.map(|token| finite(token.logprob)));
        self.top_logprobs.push(top);
        self.text_offset.push(offset);
    }
}

/// A prompt's log-probabilities in vLLM's form: for each position the token ids there; the first position has none.
pub(super) type PromptLogprobs = Vec<Option<BTreeMap<u32, PromptLogprob>>>;

/// A token's of a prompt.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PromptLogprob {
    /// The natural logarithm of its probability.
    pub logprob: f32,
    /// Its place among the likeliest, from 1, where it is one of those asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// Its text.
    pub decoded_token: String,
}

pub(super) fn of_prompt(tokens: &[Option<Token>], texts: &TokenText) -> PromptLogprobs {
    let position = |token: &Token| {
        let mut all = BTreeMap::new();
        for (place, &(id, logprob)) in token.top.iter().enumerate() {
            let rank = Some(place + 1);
            all.insert(id, PromptLogprob { logprob: finite(logprob), rank, decoded_token: texts.text(id) });
        }
        let (logprob, decoded_token) = (finite(token.logprob), texts.text(token.id));
        all.entry(token.id).or_insert(PromptLogprob { logprob, rank: None, decoded_token });
        all
    };
    tokens.iter().map(|token| token.as_ref().map(position)).collect()
}
