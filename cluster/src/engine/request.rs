//! What a front door asks of an engine. Its parts are known to make sense together: whoever builds one has checked them.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::trace::TraceContext;

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidRequest {
    /// The front door's number for it, unique there: for traces and for resuming.
    pub id: u64,
    /// The prompt's token ids, at least one, each below the model's vocabulary.
    pub prompt: Vec<u32>,
    /// Who pays: waiting requests of different tenants are served in turn.
    pub tenant: Tenant,
    /// Among one tenant's waiting requests, lower runs earlier; 0 is usual.
    pub priority: i32,
    /// Requests of different scopes never share cached keys and values, so that nobody can find out by timing what
    /// others have asked.
    pub cache_scope: CacheScope,
    /// After it the request fails as [`super::EngineError::DeadlineExceeded`], wherever it is.
    pub deadline: Option<Instant>,
    /// What to do with the prompt.
    pub task: Task,
    /// How whoever watches finds it again.
    pub mark: Mark,
}

impl ValidRequest {
    /// A request to generate after `prompt`, of the anonymous tenant, without a deadline.
    pub fn generate(id: u64, prompt: Vec<u32>, generation: Generation) -> Self {
        let task = Task::Generate(Box::new(generation));
        Self {
            id,
            prompt,
            tenant: Tenant::default(),
            priority: 0,
            cache_scope: CacheScope::default(),
            deadline: None,
            task,
            mark: Mark::default(),
        }
    }

    /// Streams of events it has: one a choice, or one.
    pub fn streams(&self) -> usize {
        match &self.task {
            Task::Generate(generation) => generation.choices as usize,
            Task::Embed => 1,
        }
    }
}

/// What a request is called in logs, and where it stands in a trace. Nothing is decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The request's id, which its client knows.
    pub id: Option<Arc<str>>,
    /// Its place in a trace, if that is recorded.
    pub trace: Option<TraceContext>,
}

/// Whose request it is: the name of a key, never the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(pub Option<Arc<str>>);

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_deref().unwrap_or("anonymous"))
    }
}

/// Who may share cached keys and values: a hash of whatever separates them (a salt, a tenant), 0 for everybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheScope(pub u128);

/// What a request wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    /// Tokens after the prompt.
    Generate(Box<Generation>),
    /// The mean over the prompt's positions of the last hidden states (after the last norm): `hidden` values, not normalised.
    Embed,
}

/// How to go on after a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// What an engine that is gone has generated already (choice [`Generation::first_choice`], and then the only one): it counts
    /// as generated in every respect, but is not sent again.
    pub resume_after: Vec<u32>,
    /// Tokens to generate a choice, at most, those of [`Generation::resume_after`] included; at least 1.
    pub max_tokens: usize,
    /// No stop token may be chosen before this many tokens are generated.
    pub min_tokens: usize,
    /// Completions of the same prompt, at least 1. They share its keys and values.
    pub choices: u32,
    /// The number of the first choice: a choice's random stream is that of (seed, number).
    pub first_choice: u32,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Tokens that end a completion (with `ignore_eos`, none of the model's). The token itself is not an event.
    pub stop_tokens: Vec<u32>,
    /// With each token, the log-probabilities of this many most likely ones; `None` when none are wanted.
    pub logprobs: Option<u32>,
    /// The same for each token of the prompt, as [`super::Event::Prompt`] of the first choice. Such a request computes its whole prompt.
    pub prompt_logprobs: Option<u32>,
    /// What the completion has to match.
    pub constraint: Option<Constraint>,
}

impl Default for Generation {
    /// One greedy choice of 16 tokens, without stop tokens.
    fn default() -> Self {
        Self {
            resume_after: Vec::new(),
            max_tokens: 16,
            min_tokens: 0,
            choices: 1,
            first_choice: 0,
            sampling: Sampling::default(),
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            constraint: None,
        }
    }
}

/// How a token is chosen from the logits. The default is greedy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 chooses the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens (at least 1) are candidates; `None` for all.
    pub top_k: Option<u32>,
    /// Only the most likely tokens that together reach this probability are candidates; 1 for all.
    pub top_p: f32,
    /// Only tokens at least this times as likely as the likeliest are candidates; 0 for all.
    pub min_p: f32,
    /// Only the tokens whose surprise is nearest the expected one, that together reach this probability, are candidates; 1 for all.
    pub typical_p: f32,
    /// Logits of tokens seen in prompt or completion are divided by it if positive, else multiplied; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken from the logit of each token the completion has already.
    pub presence_penalty: f32,
    /// Taken from it once for each time the completion has it.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Sequences of tokens, none empty, that must not appear in the completion.
    pub bad_words: Vec<Vec<u32>>,
    /// The same seed chooses the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            bad_words: Vec::new(),
            seed: 0,
        }
    }
}

/// What a completion has to match. The engine compiles it, under bounds of time and size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema (JSON text) accepts.
    JsonSchema(Arc<str>),
    /// Text that this regular expression matches as a whole.
    Regex(Arc<str>),
    /// Text that this grammar (llguidance's Lark variant) derives.
    Lark(Arc<str>),
}
