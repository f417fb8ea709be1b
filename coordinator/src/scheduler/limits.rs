//! The bounds of a scheduler's work, and why it turns sequences away.

use crate::sequence::SequenceId;

/// The bounds of a scheduler's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that hold blocks at the same time.
    pub max_running: usize,
    /// Tokens computed in one step, all sequences together; at least `max_running`.
    pub step_tokens: usize,
    /// Tokens of one sequence computed in one step.
    pub chunk: usize,
    /// Sequences that wait, each counted as often as it has choices. Preempted ones, and forks that found no room, come on top: at
    /// most as many as have been let in.
    pub max_waiting: usize,
}

impl Limits {
    /// The limits, if they can work.
    ///
    /// # Errors
    /// [`LimitsError`].
    pub(super) fn checked(self) -> Result<Self, LimitsError> {
        let Self { max_running, step_tokens, chunk, max_waiting } = self;
        let bounds = [("max_running", max_running), ("chunk", chunk), ("max_waiting", max_waiting)];
        if let Some((name, _)) = bounds.into_iter().find(|(_, bound)| *bound == 0) {
            return Err(LimitsError::Zero(name));
        }
        if step_tokens < max_running {
            return Err(LimitsError::StepTooSmall { step_tokens, max_running });
        }
        Ok(self)
    }
}

/// The limits cannot work: change the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// A bound of 0 lets nothing through.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Running sequences could eat the budget and leave nothing for the oldest prompt.
    #[error("step_tokens ({step_tokens}) must be at least max_running ({max_running})")]
    StepTooSmall {
        /// The token budget asked for.
        step_tokens: usize,
        /// The sequences asked for.
        max_running: usize,
    },
}

/// Why a sequence was turned away at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The queue is full: try again later.
    #[error("{sequence}: {bound} sequences wait already")]
    QueueFull {
        /// The refused sequence.
        sequence: SequenceId,
        /// The queue's bound, in sequences.
        bound: usize,
    },
    /// The tenant has its share of the queue: try again later.
    #[error("{sequence}: {waiting} sequences of its tenant wait already")]
    ShareFull {
        /// The refused sequence.
        sequence: SequenceId,
        /// Those of its tenant.
        waiting: usize,
    },
    /// Prompt and completion can never fit in the KV cache: ask for less.
    #[error("{sequence}: needs {needed} KV blocks, there are {total}")]
    TooLong {
        /// The refused sequence.
        sequence: SequenceId,
        /// Blocks it would hold at its end.
        needed: usize,
        /// Blocks there are.
        total: usize,
    },
    /// There is no prompt to compute a first token from: send one.
    #[error("{sequence}: empty prompt")]
    EmptyPrompt {
        /// The refused sequence.
        sequence: SequenceId,
    },
    /// The name is taken: choose another.
    #[error("{sequence}: is here already")]
    Duplicate {
        /// The refused sequence.
        sequence: SequenceId,
    },
}
