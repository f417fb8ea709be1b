//! The scheduler: which tokens of which sequences are computed in the next step.
//!
//! Running and waiting sequences, read one after the other, always stand in the order in which they were submitted.
//! Budget goes first to sequences that lack a single token (so that long prompts do not stretch the gap between other
//! requests' tokens), blocks go to the oldest first, and a sequence takes blocks only from younger ones. So nobody
//! is overtaken for good: the oldest sequence computes at least one token in every step, whatever the others do.
//!
//! A preempted sequence is computed anew from position 0 later, with the same result, for a token never depends on
//! how the computation was cut.

use std::collections::VecDeque;

use crate::kv_pool::{KvPool, blocks_for};
use crate::sequence::{Sequence, SequenceId};

#[cfg(test)]
mod tests;

/// The bounds of a scheduler's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that hold blocks at the same time.
    pub max_running: usize,
    /// Tokens computed in one step, all sequences together; at least `max_running`.
    pub step_tokens: usize,
    /// Tokens of one sequence computed in one step.
    pub chunk: usize,
    /// Sequences that wait. Preempted ones come on top, at most `max_running` of them.
    pub max_waiting: usize,
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

/// A result for a chunk that the scheduler no longer waits for (its sequence has left, or the chunk was committed):
/// drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sequence}: nothing is expected at position {start}")]
pub struct Stale {
    /// The chunk's sequence.
    pub sequence: SequenceId,
    /// The chunk's first position.
    pub start: usize,
}

/// Which of a chunk's positions go through lm_head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// The last one: a token is sampled after it.
    Last,
    /// None: more of the sequence's tokens follow, or none is to be generated.
    None,
}

/// Consecutive tokens of one sequence, computed in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose tokens.
    pub sequence: SequenceId,
    /// Absolute position of the first; everything before it is in the cache.
    pub start: usize,
    /// How many, at least 1. The sequence holds blocks for positions up to `start + len`.
    pub len: usize,
    /// What is sampled.
    pub logits: Logits,
}

/// One step's work. A step that cannot finish may be dropped: plan again, and the same positions are computed again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// The work, oldest sequence first, at most one chunk a sequence.
    pub chunks: Vec<Chunk>,
    /// Sequences that lost their blocks to older ones, youngest first; none has a chunk.
    pub preempted: Vec<SequenceId>,
}

impl StepPlan {
    /// Tokens computed in this step.
    pub fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len).sum()
    }
}

/// Where a sequence stands after a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has tokens to compute: it will be in a later plan.
    Continues,
    /// It has nothing left to compute: [`Scheduler::remove`] it.
    Ended,
}

/// Decides each step's work. Pure: it neither computes nor waits. It must be the only user of its pool.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// Oldest first.
    running: Vec<Sequence>,
    /// Oldest first, all younger than those that run. They hold no blocks.
    waiting: VecDeque<Sequence>,
}

impl Scheduler {
    /// A scheduler without sequences.
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        let Limits { max_running, step_tokens, chunk, max_waiting } = limits;
        let bounds = [("max_running", max_running), ("chunk", chunk), ("max_waiting", max_waiting)];
        if let Some((name, _)) = bounds.into_iter().find(|(_, bound)| *bound == 0) {
            return Err(LimitsError::Zero(name));
        }
        if step_tokens < max_running {
            return Err(LimitsError::StepTooSmall { step_tokens, max_running });
        }
        Ok(Self { limits, running: Vec::new(), waiting: VecDeque::new() })
    }

    /// Queues `sequence`, or says why it cannot be served.
    pub fn submit(&mut self, sequence: Sequence, pool: &KvPool) -> Result<(), Refused> {
        let id = sequence.id();
        let (needed, total) = (blocks_for(sequence.max_cached()), pool.total());
        if sequence.tokens().is_empty() {
            return Err(Refused::EmptyPrompt { sequence: id });
        }
        if needed > total {
            return Err(Refused::TooLong { sequence: id, needed, total });
        }
        if self.get(id).is_some() {
            return Err(Refused::Duplicate { sequence: id });
        }
        if self.waiting.len() >= self.limits.max_waiting {
            return Err(Refused::QueueFull { sequence: id, bound: self.limits.max_waiting });
        }
        self.waiting.push_back(sequence);
        Ok(())
    }

    /// The next step's work. Blocks for it are taken from `pool` here; nothing else changes hands until
    /// [`Scheduler::advance`].
    pub fn plan(&mut self, pool: &mut KvPool) -> StepPlan {
        let mut plan = StepPlan::default();
        let shares = self.shares();
        self.plan_running(&shares, pool, &mut plan);
        if plan.preempted.is_empty() {
            self.admit(pool, &mut plan);
        }
        plan
    }

    /// Commits a chunk of the latest plan: its keys and values are in the cache, and `sampled` is the token that
    /// follows, where the chunk asked for logits.
    pub fn advance(&mut self, chunk: &Chunk, sampled: Option<u32>) -> Result<Progress, Stale> {
        debug_assert!(sampled.is_none() || chunk.logits == Logits::Last, "a token sampled without logits");
        let sequence = self.running.iter_mut().find(|s| s.id() == chunk.sequence && s.computed() == chunk.start);
        let sequence = sequence.ok_or(Stale { sequence: chunk.sequence, start: chunk.start })?;
        sequence.advance(chunk.start + chunk.len, sampled);
        Ok(if sequence.pending() > 0 { Progress::Continues } else { Progress::Ended })
    }

    /// Takes a sequence out, wherever it is and for whatever reason (ended, stopped, cancelled, expired), and frees its
    /// blocks. `None` when it is not here.
    pub fn remove(&mut self, id: SequenceId, pool: &mut KvPool) -> Option<Sequence> {
        let mut sequence = if let Some(at) = self.running.iter().position(|s| s.id() == id) {
            self.running.remove(at)
        } else {
            let at = self.waiting.iter().position(|s| s.id() == id)?;
            self.waiting.remove(at)?
        };
        pool.free(sequence.evict());
        Some(sequence)
    }

    /// The sequence called `id`, running or waiting.
    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().chain(&self.waiting).find(|s| s.id() == id)
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait, preempted ones among them.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Tokens each running sequence may compute: one each for those that lack just one, then chunks, oldest first,
    /// as far as the budget goes. It goes as far as the oldest, for there are no more sequences than budget.
    fn shares(&self) -> Vec<usize> {
        let mut left = self.limits.step_tokens;
        let mut shares: Vec<usize> = self.running.iter().map(|s| usize::from(s.pending() == 1)).collect();
        left -= shares.iter().sum::<usize>();
        for (sequence, share) in self.running.iter().zip(&mut shares).filter(|(_, share)| **share == 0) {
            *share = sequence.pending().min(self.limits.chunk).min(left);
            left -= *share;
        }
        shares
    }

    /// Finds blocks for the running sequences' shares, oldest first, preempting from the young end. A sequence that no
    /// longer has a younger one to preempt keeps what it holds and waits for older ones to leave.
    fn plan_running(&mut self, shares: &[usize], pool: &mut KvPool, plan: &mut StepPlan) {
        let mut at = 0;
        while at < self.running.len() {
            if shares[at] > 0 {
                let lacks = self.running[at].lacks(self.running[at].computed() + shares[at]);
                while pool.free_blocks() < lacks && at + 1 < self.running.len() {
                    plan.preempted.extend(self.preempt_youngest(pool));
                }
                plan.chunks.extend(take_chunk(&mut self.running[at], shares[at], pool));
            }
            at += 1;
        }
    }

    fn preempt_youngest(&mut self, pool: &mut KvPool) -> Option<SequenceId> {
        let mut youngest = self.running.pop()?;
        let id = youngest.id();
        pool.free(youngest.evict());
        self.waiting.push_front(youngest);
        Some(id)
    }

    /// Lets waiting sequences run, oldest first, while there is budget, and blocks for all their tokens besides
    /// those that the running ones still lack for theirs: who would soon be preempted again is not admitted.
    fn admit(&mut self, pool: &mut KvPool, plan: &mut StepPlan) {
        let mut left = self.limits.step_tokens - plan.tokens();
        let owed = self.running.iter().map(|s| s.lacks(s.goal())).sum();
        let mut room = pool.free_blocks().saturating_sub(owed);
        while left > 0 && self.running.len() < self.limits.max_running {
            let Some(needed) = self.waiting.front().map(|s| s.lacks(s.goal())).filter(|n| *n <= room) else { break };
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            let share = sequence.pending().min(self.limits.chunk).min(left);
            plan.chunks.extend(take_chunk(&mut sequence, share, pool));
            self.running.push(sequence);
            room -= needed;
            left -= share;
        }
    }
}

/// The next `len` tokens of `sequence`, with blocks for them; `None` when the pool has too few.
fn take_chunk(sequence: &mut Sequence, len: usize, pool: &mut KvPool) -> Option<Chunk> {
    let (start, end) = (sequence.computed(), sequence.computed() + len);
    sequence.hold(pool.alloc(sequence.lacks(end))?);
    let logits = if sequence.samples_at(end) { Logits::Last } else { Logits::None };
    Some(Chunk { sequence: sequence.id(), start, len, logits })
}
