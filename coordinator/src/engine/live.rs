//! What the loop knows of a sequence: who reads it, and what is wanted of it.

use std::sync::Arc;
use std::time::Instant;

use tramontane_cluster::engine::{EventSender, Generation, Token};

use super::shown::Shown;
use crate::grammar::Follower;
use crate::sampler::logprobs;
use crate::{Chunk, Logits};

/// A sequence on its way.
pub(super) struct Live {
    pub(super) job: Job,
    pub(super) deadline: Option<Instant>,
    pub(super) stage: Stage,
    /// All of the request's choices until the first token; then one.
    pub(super) choices: Vec<Choice>,
    /// The request's id, for the log.
    pub(super) request: Option<Arc<str>>,
    /// What is shown of it in a trace, if that is recorded.
    pub(super) shown: Option<Box<Shown>>,
}

/// How far a sequence is on its way to its first token, and since when, for whoever counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has not been computed yet.
    Queued(Instant),
    /// Its prompt is being computed.
    Prefill(Instant),
    /// Its prompt was computed once. (A sequence that loses its blocks does not go back.)
    Decode,
}

/// Who reads a completion.
pub(super) struct Choice {
    pub(super) number: u32,
    pub(super) events: EventSender,
}

/// What is wanted of a sequence.
pub(super) enum Job {
    Generate(Generating),
    Embed(Mean),
}

/// Tokens.
pub(super) struct Generating {
    pub(super) generation: Arc<Generation>,
    /// Where the completion stands in the grammar of its constraint.
    pub(super) follower: Option<Box<Follower>>,
    /// The prompt's log-probabilities, until they are sent.
    pub(super) prompt: Option<PromptLogprobs>,
}

/// What is wanted of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Nothing,
    Logits,
    Hidden,
}

impl Live {
    /// What is wanted of `position` of `chunk`, in a sequence whose prompt has `prompt_len` tokens.
    pub(super) fn wants(&self, position: usize, prompt_len: usize, chunk: &Chunk) -> Want {
        match &self.job {
            Job::Embed(_) => Want::Hidden,
            Job::Generate(generating) if generating.prompt.is_some() && position + 1 < prompt_len => Want::Logits,
            Job::Generate(_) if chunk.logits == Logits::Last && position + 1 == chunk.start + chunk.len => Want::Logits,
            Job::Generate(_) => Want::Nothing,
        }
    }

    /// Whether its deadline has passed.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}

/// Log-probabilities of a prompt's tokens, as far as they are computed.
pub(super) struct PromptLogprobs {
    top: usize,
    entries: Vec<Option<Token>>,
}

impl PromptLogprobs {
    /// Of `prompt_len` tokens, each with the `top` likeliest.
    pub(super) fn new(prompt_len: usize, top: u32) -> Self {
        Self { top: top as usize, entries: vec![None; prompt_len] }
    }

    /// Notes what `logits`, of the position before, say of `token` at `position`. A position computed again gets the same entry.
    pub(super) fn put(&mut self, position: usize, token: u32, logits: &[f32]) {
        let of = logprobs(logits, token, self.top);
        if let Some(entry) = self.entries.get_mut(position) {
            *entry = Some(Token { id: token, logprob: of.logprob, top: of.top });
        }
    }

    /// All of them.
    pub(super) fn entries(self) -> Vec<Option<Token>> {
        self.entries
    }
}

/// The mean of hidden states: a sum in f64, in ascending order of positions, so that how the prompt is cut changes no bit.
#[derive(Default)]
pub(super) struct Mean {
    sum: Vec<f64>,
}

impl Mean {
    /// Adds the states (rows × width) of consecutive positions, the first of which is `start`. From position 0 it starts anew.
    pub(super) fn add(&mut self, start: usize, hidden: &[f32], width: usize) {
        if start == 0 {
            self.sum.clear();
        }
        self.sum.resize(width, 0.0);
        for row in hidden.chunks_exact(width) {
            self.sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
        }
    }

    /// The mean over `positions` positions.
    pub(super) fn of(&self, positions: usize) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / positions as f64) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_the_same_however_it_is_cut_and_begins_anew() {
        let hidden = [0.1_f32, 1e8, 0.3, -1e8, 7.0, 3.0];
        let mut whole = Mean::default();
        whole.add(0, &hidden, 2);
        let mut cut = Mean::default();
        cut.add(0, &hidden[..4], 2);
        cut.add(0, &hidden[..2], 2);
        cut.add(1, &hidden[2..], 2);
        assert_eq!(whole.of(3), cut.of(3));
        assert_eq!(whole.of(3)[1], 1.0);
    }
}
