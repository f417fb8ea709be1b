//! Prompts: text or ids, cut if so asked, and whether the context has room for them.

use super::FrontDoor;
use super::numbers::{token, whole};
use super::params::{Named, of_param};
use crate::error::ApiError;
use tramontane_model::tokenizer::Special;

/// A prompt as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Text, in which control tokens are text like any other.
    Text(String),
    /// Token ids, not checked yet.
    Tokens(Vec<i64>),
}

/// How many of a prompt's last tokens count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// All.
    No,
    /// So many.
    To(usize),
}

impl Truncate {
    /// As clients say it: −1 for what leaves room for one token to generate.
    pub(super) fn read(value: Option<i64>, context: usize) -> Result<Self, ApiError> {
        match value {
            None => Ok(Self::No),
            Some(-1) => Ok(Self::To(context - 1)),
            Some(value) => Ok(Self::To(whole("truncate_prompt_tokens", value, 1..=context as i64 - 1)? as usize)),
        }
    }

    /// The last tokens of `ids` that count.
    pub(super) fn apply(self, mut ids: Vec<u32>) -> Vec<u32> {
        match self {
            Self::To(count) if ids.len() > count => ids.split_off(ids.len() - count),
            _ => ids,
        }
    }
}

impl FrontDoor {
    /// The ids of a prompt, which is the parameter `param`.
    pub(super) fn ids(&self, param: &'static str, prompt: &Prompt) -> Result<Vec<u32>, ApiError> {
        let ids = match prompt {
            Prompt::Text(text) if text.is_empty() => return Err(ApiError::param(param, format!("`{param}` is empty"))),
            Prompt::Text(text) => self.tokenizer.encode(text, Special::Add).map_err(|error| of_param(param, error))?,
            Prompt::Tokens(ids) => {
                ids.iter().map(|&id| token(param, id, self.model.vocab)).collect::<Result<_, _>>()?
            }
        };
        if ids.is_empty() { Err(ApiError::param(param, format!("`{param}` is empty"))) } else { Ok(ids) }
    }

    /// How many tokens may be generated after a prompt of `prompt` tokens: what was asked for, or `default`, or all that the
    /// context has room for.
    pub(super) fn room(
        &self,
        param: &'static str,
        prompt: usize,
        asked: Option<&Named<usize>>,
        default: Option<usize>,
    ) -> Result<usize, ApiError> {
        let context = self.model.context;
        let least = asked.map_or(1, |named| named.value);
        match context.checked_sub(prompt) {
            Some(room) if room >= least => Ok(asked.map_or(default.unwrap_or(room).min(room), |named| named.value)),
            _ => Err(ApiError::ContextLength { param, prompt, completion: least, context }),
        }
    }
}
