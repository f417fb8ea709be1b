//! The engine seam: a checked request goes in, a stream of events comes out. Front doors (async) reach engines (threads
//! of their own) through [`Engine`] alone.

mod events;
pub mod grpc;
mod in_process;
mod request;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tramontane_router::{CPU_ARITHMETIC, ModelId, NumericProfile};

pub use events::{EventSender, EventStream, ReaderGone, event_channel};
pub use in_process::{EngineInbox, EnginesGone, InProcessEngine, Submission, in_process};
pub use request::{CacheScope, Constraint, Generation, Mark, Sampling, Task, Tenant, ValidRequest};

/// Token events a reader may be behind. One that is further behind loses its request: it gets the events before, then
/// [`EngineError::SlowReader`]. The engine waits for nobody.
pub const MAX_EVENTS_BEHIND: usize = 1024;

/// Runs requests. Cheap to share between threads and tasks.
pub trait Engine: Send + Sync {
    /// What it serves.
    fn info(&self) -> &EngineInfo;

    /// How it fares now.
    fn status(&self) -> EngineStatus;

    /// Starts `request`: a stream of events for each of its choices, in order. Dropping a stream cancels that choice.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`], [`EngineError::Draining`] or [`EngineError::Stopped`]; all later errors, and these too where the
    /// engine is not asked before this returns, come as [`Event::Failed`], in each stream.
    fn submit(&self, request: ValidRequest) -> Result<Vec<EventStream>, EngineError>;
}

/// What an engine serves. It never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// The model.
    pub model: ModelId,
    /// Tokens a sequence may have.
    pub context: usize,
    /// Token ids there are.
    pub vocab: usize,
    /// Hash of everything that decides the bits of its answers: weights, quantisation, KV type, numeric contract.
    pub fingerprint: String,
}

impl EngineInfo {
    /// What `system_fingerprint` says of an engine whose experts have `profile`, and whose attention is computed by `arithmetic` (as in a
    /// profile) with keys and values stored as `kv`: `fp_` and 16 hex digits of a BLAKE3 hash. Engines with equal fingerprints answer with
    /// equal bits, if both arithmetics are the contract's.
    pub fn fingerprint(profile: &NumericProfile, arithmetic: &str, kv: &str) -> String {
        let NumericProfile { contract, weights, quantization, arithmetic: experts } = profile;
        let mut what = format!("{contract}|{weights}|{quantization}|{kv}");
        if !profile.is_exact() || arithmetic != CPU_ARITHMETIC {
            what += &format!("|{experts}|{arithmetic}");
        }
        let hash = blake3::hash(what.as_bytes());
        format!("fp_{}", &hash.to_hex()[..16])
    }
}

/// How an engine fares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// What it does with requests.
    pub phase: Phase,
    /// Sequences that hold KV blocks.
    pub running: usize,
    /// Sequences that wait.
    pub waiting: usize,
    /// KV blocks that sequences hold; those that only the prefix cache keeps are free.
    pub kv_used: usize,
    /// KV blocks there are.
    pub kv_total: usize,
    /// Sequences that have lost their blocks to older ones, since the start.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache, since the start.
    pub prefix_queries: u64,
    /// Prompt tokens found there, since the start.
    pub prefix_hits: u64,
    /// Tokens generated, since the start.
    pub generated: u64,
}

/// What an engine does with requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Takes them.
    #[default]
    Ready,
    /// Finishes those it has, takes no more.
    Draining,
    /// Has stopped; what it had has failed.
    Stopped,
}

/// One thing that happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The prompt is computed. Comes once, before all that follows from it; not where nothing had to be computed.
    Started {
        /// Of the prompt, found in the prefix cache when the request was first run.
        cached_tokens: usize,
    },
    /// The prompt is computed, and its log-probabilities were asked for: one entry a position. The first position has
    /// nothing before it, and so no entry.
    Prompt(Vec<Option<Token>>),
    /// The prompt is computed, and its embedding was asked for.
    Embedding(Vec<f32>),
    /// A token was chosen.
    Token(Token),
    /// The completion is whole; the last event.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// What it took.
        usage: Usage,
    },
    /// The request has failed; the last event.
    Failed(EngineError),
}

impl Event {
    /// Whether nothing follows it.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed(_))
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Natural logarithm of its probability before temperature and truncation.
    pub logprob: f32,
    /// The most likely tokens with theirs, descending; as many as the request's `logprobs`.
    pub top: Vec<(u32, f32)>,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was chosen, or the constraint is fulfilled and allows nothing more.
    Stop {
        /// The token, where one was chosen.
        token: Option<u32>,
    },
    /// It has `max_tokens` tokens, or the context is full.
    Length,
    /// The prompt is computed, and nothing was to be generated.
    Embedded,
}

/// Tokens a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In the prompt.
    pub prompt_tokens: usize,
    /// Generated for this choice, a stop token included.
    pub completion_tokens: usize,
    /// Of the prompt, found in the prefix cache when the request was first run.
    pub cached_tokens: usize,
}

/// Why a request brings no (more) tokens. The variant is what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Ask again later, or another engine.
    #[error("too many requests wait")]
    Overloaded {
        /// When there may be room.
        retry_after: Duration,
    },
    /// Ask another engine: this one finishes what it has.
    #[error("the engine is draining")]
    Draining,
    /// Ask again with more time: the deadline has passed.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// Do not ask again unchanged: the constraint is malformed, or too large to compile.
    #[error("invalid constraint: {why}")]
    InvalidConstraint {
        /// What is wrong with it.
        why: String,
    },
    /// Do not ask again unchanged: this engine's model cannot run it.
    #[error("invalid request: {why}")]
    InvalidRequest {
        /// What is wrong with it.
        why: String,
    },
    /// Ask again when nodes are back: some experts are held nowhere.
    #[error("experts are unavailable: {why}")]
    ExpertsUnavailable {
        /// Which, and what was tried.
        why: String,
    },
    /// Do not ask again: this request's numbers overflow, whoever computes them. Tell the operator; the weights may be damaged.
    #[error("the computation of this request failed: {why}")]
    Numeric {
        /// Where.
        why: String,
    },
    /// Read faster, and ask again.
    #[error("the reader fell more than {MAX_EVENTS_BEHIND} tokens behind")]
    SlowReader,
    /// Ask another engine; this one ends.
    #[error("the engine has stopped")]
    Stopped,
}
