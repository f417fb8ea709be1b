//! What a step has computed is taken in: tokens sampled, events sent, sequences forked and ended.

use std::sync::Arc;

use tramontane_cluster::engine::{EngineError, FinishReason, Token, Usage};

use super::live::{Generating, Job, Live, Stage};
use super::shown::ShownStage;
use super::{Share, Work};
use crate::grammar::Refusal;
use crate::sampler::{Draw, SampleError, logprobs, sample};
use crate::{BlockCopy, Chunk, Fork, Logits, Sequence, SequenceId, StepPlan};

/// One chunk's results.
#[derive(Clone, Copy)]
struct Computed<'a> {
    /// Rows × vocab: those of positions whose successors are the prompt's, then, if a token is sampled, the last one's.
    logits: &'a [f32],
    /// Rows × hidden.
    hidden: &'a [f32],
}

impl Work {
    /// Commits `plan`, whose chunks have `shares` of the results. Returns the blocks that have to be copied, in order, before the
    /// next step.
    pub(super) fn commit(
        &mut self,
        plan: &StepPlan,
        shares: &[Share],
        logits: &[f32],
        hidden: &[f32],
    ) -> Vec<BlockCopy> {
        let rows: usize = shares.iter().map(|share| share.hidden).sum();
        let width = hidden.len().checked_div(rows).unwrap_or(0);
        let (mut logits, mut hidden, mut copies) = (logits, hidden, Vec::new());
        for (chunk, share) in plan.chunks.iter().zip(shares) {
            let (mine, rest) = logits.split_at(share.logits * self.bounds.vocab);
            logits = rest;
            let (states, rest) = hidden.split_at(share.hidden * width);
            hidden = rest;
            self.take(chunk, Computed { logits: mine, hidden: states }, width, &mut copies);
        }
        copies
    }

    fn take(&mut self, chunk: &Chunk, computed: Computed<'_>, width: usize, copies: &mut Vec<BlockCopy>) {
        let id = chunk.sequence;
        let vocab = self.bounds.vocab;
        let sampled = usize::from(chunk.logits == Logits::Last) * vocab;
        let (of_prompt, last) = computed.logits.split_at(computed.logits.len().saturating_sub(sampled));
        let Some((live, sequence)) = self.live.get_mut(&id).zip(self.scheduler.get(id)) else { return };
        let (end, prompt_len) = (chunk.start + chunk.len, sequence.prompt_len());
        match &mut live.job {
            Job::Embed(mean) => mean.add(chunk.start, computed.hidden, width),
            Job::Generate(generating) => {
                if let Err(error) = take_prompt(generating, sequence, chunk.start, of_prompt.chunks_exact(vocab)) {
                    return self.end_badly(id, error);
                }
            }
        }
        if end >= prompt_len {
            for choice in &mut live.choices {
                // A reader who has gone is noticed at the next step.
                let _ = choice.events.start(sequence.found());
            }
            send_prompt(live);
            if let Stage::Prefill(since) = live.stage {
                self.metrics.prefilled(since.elapsed());
                live.stage = Stage::Decode;
                live.shown.iter_mut().for_each(|shown| shown.enter(ShownStage::Decode));
            }
        }
        if sampled > 0 {
            self.sample(chunk, last, copies);
        } else if self.scheduler.advance(chunk, None, &mut self.pool).is_ok() && end == prompt_len {
            self.end_embedding(id);
        }
    }

    /// Samples the token after `chunk` for each of the sequence's choices, and gives each a sequence of its own.
    fn sample(&mut self, chunk: &Chunk, logits: &[f32], copies: &mut Vec<BlockCopy>) {
        let id = chunk.sequence;
        let Some((live, sequence)) = self.live.get_mut(&id).zip(self.scheduler.get(id)) else { return };
        let Job::Generate(generating) = &mut live.job else { return };
        let numbers = live.choices.iter().map(|choice| choice.number);
        let tokens = match draw(generating, sequence, logits, numbers) {
            Ok(tokens) => tokens,
            Err(Undrawn::Ended) => return self.end_well(id, FinishReason::Stop { token: None }),
            Err(Undrawn::Failed(error)) => return self.end_badly(id, error),
        };
        let Some(first) = tokens.first().copied() else { return };
        if self.scheduler.advance(chunk, Some(first), &mut self.pool).is_err() {
            return;
        }
        let (generation, deadline) = (generating.generation.clone(), live.deadline);
        let (request, shown) = (live.request.clone(), live.shown.as_ref().map(|shown| shown.sibling()));
        let others = live.choices.split_off(1);
        let follower = &generating.follower;
        let followers: Vec<_> = others.iter().map(|_| follower.as_ref().map(|f| Box::new(f.fork()))).collect();
        for ((choice, follower), token) in others.into_iter().zip(followers).zip(&tokens[1..]) {
            let fork = self.new_id();
            match self.scheduler.fork(id, fork, *token, &mut self.pool) {
                Ok(Fork::Runs(copy)) => copies.extend(copy),
                Ok(Fork::Waits) => {}
                // Not so: a token of the trunk has just been committed.
                Err(_) => continue,
            }
            let job = Job::Generate(Generating { generation: Arc::clone(&generation), follower, prompt: None });
            let shown = shown.as_ref().map(|shown| shown.sibling());
            let (stage, choices, request) = (Stage::Decode, vec![choice], request.clone());
            self.live.insert(fork, Live { job, deadline, stage, choices, request, shown });
            self.emit(fork, *token, logits);
        }
        self.emit(id, first, logits);
    }

    /// Sends the token just committed to sequence `id`, and ends it if that was the last.
    fn emit(&mut self, id: SequenceId, token: u32, logits: &[f32]) {
        let Some((live, sequence)) = self.live.get_mut(&id).zip(self.scheduler.get(id)) else { return };
        let Job::Generate(Generating { generation, follower, .. }) = &mut live.job else { return };
        self.generated += 1;
        let ends = generation.stop_tokens.contains(&token) || follower.is_some() && self.bounds.eos.contains(&token);
        if ends {
            return self.end_well(id, FinishReason::Stop { token: Some(token) });
        }
        if let Some(Err(Refusal(why))) = follower.as_mut().map(|follower| follower.push(token)) {
            return self.end_badly(id, EngineError::InvalidConstraint { why });
        }
        let whole = follower.as_ref().is_some_and(|follower| follower.is_finished());
        let full = sequence.generated().len() >= sequence.max_tokens();
        let of = logprobs(logits, token, generation.logprobs.unwrap_or(0) as usize);
        let token = Token { id: token, logprob: of.logprob, top: of.top };
        let sent = live.choices.iter_mut().all(|choice| choice.events.send(token.clone()).is_ok());
        if !sent {
            self.leave(id);
        } else if whole {
            self.end_well(id, FinishReason::Stop { token: None });
        } else if full {
            self.end_well(id, FinishReason::Length);
        }
    }

    /// Sends what was to be computed of a prompt after which nothing is generated.
    fn end_embedding(&mut self, id: SequenceId) {
        let Some((live, sequence)) = self.live.get_mut(&id).zip(self.scheduler.get(id)) else { return };
        let Job::Embed(mean) = &live.job else { return };
        let mean = mean.of(sequence.prompt_len());
        for choice in &mut live.choices {
            // A reader who has gone misses nothing.
            let _ = choice.events.send_embedding(mean.clone());
        }
        self.end_well(id, FinishReason::Embedded);
    }

    fn end_well(&mut self, id: SequenceId, reason: FinishReason) {
        if let Some((mut live, sequence)) = self.leave(id) {
            let usage = Usage {
                prompt_tokens: sequence.prompt_len(),
                completion_tokens: sequence.generated().len(),
                cached_tokens: sequence.found(),
            };
            live.shown.iter_mut().for_each(|shown| shown.finish(reason, usage));
            live.choices.into_iter().for_each(|choice| choice.events.finish(reason, usage));
        }
    }
}

/// Why there is no next token.
enum Undrawn {
    /// The completion is whole.
    Ended,
    Failed(EngineError),
}

/// The tokens that follow `sequence` by `logits`, one for each choice.
fn draw(
    generating: &mut Generating,
    sequence: &Sequence,
    logits: &[f32],
    choices: impl Iterator<Item = u32>,
) -> Result<Vec<u32>, Undrawn> {
    let generation = &generating.generation;
    let allowed = match &mut generating.follower {
        Some(follower) => match follower.allowed() {
            Ok(allowed) => Some(allowed),
            Err(Refusal(why)) => return Err(Undrawn::Failed(EngineError::InvalidConstraint { why })),
        },
        None => None,
    };
    let early = sequence.generated().len() < generation.min_tokens;
    let draw = Draw {
        banned: if early { &generation.stop_tokens } else { &[] },
        allowed: allowed.as_ref().map(|allowed| allowed.as_slice()),
        ..Draw::new(&generation.sampling, sequence.prompt(), sequence.generated())
    };
    let tokens: Result<Vec<u32>, SampleError> =
        choices.map(|choice| sample(logits, &Draw { choice, ..draw })).collect();
    tokens.map_err(|error| match error {
        SampleError::NotFinite { .. } => Undrawn::Failed(EngineError::Numeric { why: error.to_string() }),
        SampleError::NothingAllowed => {
            if generating.follower.as_mut().is_none_or(|follower| follower.may_end()) {
                return Undrawn::Ended;
            }
            let why = "what the constraint allows next is banned".to_owned();
            Undrawn::Failed(EngineError::InvalidConstraint { why })
        }
    })
}

/// Notes the log-probabilities of the prompt's tokens behind positions `start`, `start + 1`, …, whose logits are `rows`.
fn take_prompt<'a>(
    generating: &mut Generating,
    sequence: &Sequence,
    start: usize,
    rows: impl Iterator<Item = &'a [f32]>,
) -> Result<(), EngineError> {
    let Some(prompt) = &mut generating.prompt else { return Ok(()) };
    for (position, row) in (start + 1..).zip(rows) {
        if let Some(at) = row.iter().position(|logit| !logit.is_finite()) {
            return Err(EngineError::Numeric { why: SampleError::NotFinite { index: at }.to_string() });
        }
        prompt.put(position, sequence.tokens()[position], row);
    }
    Ok(())
}

/// Sends the log-probabilities of a prompt that is computed to the first choice, once.
fn send_prompt(live: &mut Live) {
    let Job::Generate(generating) = &mut live.job else { return };
    let Some(prompt) = generating.prompt.take() else { return };
    let first = generating.generation.first_choice;
    if let Some(choice) = live.choices.iter_mut().find(|choice| choice.number == first) {
        // A reader who has gone is noticed at the next step.
        let _ = choice.events.send_prompt(prompt.entries());
    }
}
