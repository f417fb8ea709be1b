//! The body of `/v1/completions`.

use super::common::{Prompts, request};
use crate::error::ApiError;
use crate::frontdoor::{CompletionRequest, Named};

/// Most log-probabilities a token that OpenAI's completions know.
const MAX_LOGPROBS: i64 = 5;

request! {
    /// Texts to go on with.
    pub struct CompletionBody {
        /// A text, texts, token ids, or lists of token ids
        prompt: Prompts,
        /// Choices generated, of which the best `n` are answered: at most 20, not with `stream`
        best_of: Option<i64>,
        /// Whether the answer begins with the prompt [default: false]
        echo: Option<bool>,
        /// Log-probabilities: 0 to 5 likeliest a token
        logprobs: Option<i64>,
        /// What comes after the completion: not supported
        suffix: Option<String>,
    }
}

impl CompletionBody {
    /// The request that it means.
    pub(crate) fn into_request(mut self) -> Result<CompletionRequest, ApiError> {
        let mut parameters = self.shared(("max_tokens", None))?;
        if self.suffix.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::param("suffix", "the model does not fill in the middle"));
        }
        let fewer = self.best_of.is_some_and(|best_of| best_of > self.n.unwrap_or(1));
        if fewer && self.stream == Some(true) {
            return Err(ApiError::param("best_of", "the best choice is known at the end: not with `stream`"));
        }
        parameters.best_of = self.best_of.filter(|&best_of| best_of != 0);
        parameters.logprobs = match self.logprobs {
            Some(value @ 0..=MAX_LOGPROBS) => Some(Named { name: "logprobs", value }),
            Some(_) => return Err(ApiError::param("logprobs", format!("`logprobs` must be from 0 to {MAX_LOGPROBS}"))),
            None => None,
        };
        Ok(CompletionRequest { prompts: self.prompt.into_vec(), parameters, echo: self.echo.unwrap_or(false) })
    }
}
