//! The engine seam: a checked request goes in, a stream of events comes out. Front doors (async) reach engines (threads
//! of their own) through [`Engine`] alone.

mod in_process;

use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::sync::mpsc;

pub use in_process::{EngineInbox, EventSender, InProcessEngine, ReaderGone, Submission, in_process};

/// Token events a reader may be behind. One that is further behind loses its request: it gets the events before, then
/// [`EngineError::SlowReader`]. The engine waits for nobody.
pub const MAX_EVENTS_BEHIND: usize = 1024;

/// Runs requests. Cheap to share between threads and tasks.
pub trait Engine: Send + Sync {
    /// Starts `request`. Dropping the stream cancels it.
    ///
    /// # Errors
    /// [`EngineError::Overloaded`] or [`EngineError::Stopped`]; all later errors come as [`Event::Failed`].
    fn submit(&self, request: ValidRequest) -> Result<EventStream, EngineError>;
}

/// A request whose parts are known to make sense together: the front door has checked it.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidRequest {
    /// The front door's number for it, unique there: for traces and for resuming.
    pub id: u64,
    /// The prompt's token ids, at least one.
    pub prompt: Vec<u32>,
    /// Tokens to generate, at most; at least 1.
    pub max_tokens: usize,
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Tokens that end the completion (empty with `ignore_eos`). The token itself is not an event.
    pub stop_tokens: Vec<u32>,
    /// With each token, the log-probabilities of this many most likely ones; `None` when none are wanted.
    pub logprobs: Option<u32>,
}

/// How a token is chosen from the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 chooses the most likely token.
    pub temperature: f32,
    /// Only this many most likely tokens (at least 1) are candidates; `None` for all.
    pub top_k: Option<u32>,
    /// Only the most likely tokens that together reach this probability are candidates; 1 for all.
    pub top_p: f32,
    /// The same seed chooses the same tokens.
    pub seed: u64,
}

/// One thing that happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
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
    /// A stop token was chosen.
    Stop,
    /// It has `max_tokens` tokens, or the context is full.
    Length,
}

/// Tokens a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In the prompt.
    pub prompt_tokens: usize,
    /// Generated, a stop token included.
    pub completion_tokens: usize,
}

/// Why a request brings no (more) tokens. The variant is what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// Ask again later, or another engine.
    #[error("too many requests wait")]
    Overloaded,
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

/// A request's events, to their end: after [`Event::Finished`] or [`Event::Failed`] there are none. Dropping it cancels
/// the request. Read it from a task as a [`Stream`], or with [`EventStream::blocking_next`] from a thread.
#[derive(Debug)]
pub struct EventStream(mpsc::Receiver<Event>);

impl EventStream {
    /// The next event, for a thread of its own; `None` after the last.
    ///
    /// # Panics
    /// Inside an async context, where it would block the runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        self.0.blocking_recv()
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.0.poll_recv(context)
    }
}
