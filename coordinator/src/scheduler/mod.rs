//! The scheduler: which tokens of which sequences are computed in the next step.
//!
//! Who waits is let in by fair turns ([`queue`]); from then on sequences have a *rank*, the order in which they were let in. Budget
//! goes first to sequences that lack a single token (so that long prompts do not stretch the gap between other requests' tokens),
//! blocks go to the highest rank first, and a sequence takes blocks only from lower ones. Nobody is let in while one that was
//! before waits for its blocks. So nobody is overtaken for good: of those that run, the first computes at least one token in every step, whatever
//! the others do, and those that lost their blocks come back, in order of rank, as it and its successors end.
//!
//! A preempted sequence is computed anew later, from position 0 or from what the prefix cache still has, with the same result, for a
//! token never depends on how the computation was cut.

mod limits;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::kv_pool::{KV_BLOCK, KvPool, blocks_for};
use crate::sequence::{Rank, Reuse, Sequence, SequenceId};
use queue::Queue;

pub use limits::{Limits, LimitsError, Refused};

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
    /// The work, at most one chunk a sequence.
    pub chunks: Vec<Chunk>,
    /// Sequences that lost their blocks to those before them, last first; none has a chunk.
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

/// What became of a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// It runs. Before the next step the contents of a block, if one is named, have to be copied, in all layers.
    Runs(Option<BlockCopy>),
    /// There was no room: it waits, and computes what it does not find in the prefix cache.
    Waits,
}

/// A block's contents that a fork needs for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block copied, by its place in the KV cache.
    pub from: u32,
    /// The block that is to hold the same.
    pub to: u32,
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sequences that lost their blocks to others.
    pub preemptions: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_queries: u64,
    /// Of these, found.
    pub prefix_hits: u64,
    /// Sequences let in.
    pub admitted: u64,
}

/// Decides each step's work. Pure: it neither computes nor waits. It must be the only user of its pool.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// By rank.
    running: Vec<Sequence>,
    /// Let in, but without blocks, by rank: preempted ones, and forks that found no room.
    displaced: VecDeque<Sequence>,
    queue: Queue,
    forks: u64,
    counts: Counts,
}

impl Scheduler {
    /// A scheduler without sequences.
    ///
    /// # Errors
    /// [`LimitsError`].
    pub fn new(limits: Limits) -> Result<Self, LimitsError> {
        Ok(Self {
            limits: limits.checked()?,
            running: Vec::new(),
            displaced: VecDeque::new(),
            queue: Queue::default(),
            forks: 0,
            counts: Counts::default(),
        })
    }

    /// Queues `sequence`, or says why it cannot be served.
    ///
    /// # Errors
    /// [`Refused`].
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
        self.queue.push(sequence, self.limits.max_waiting)
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

    /// Commits a chunk of the latest plan, whose step has finished: its keys and values are in the cache, and `sampled` is the
    /// token that follows, where the chunk asked for logits. Blocks that are full now can be found by others.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn advance(&mut self, chunk: &Chunk, sampled: Option<u32>, pool: &mut KvPool) -> Result<Progress, Stale> {
        debug_assert!(sampled.is_none() || chunk.logits == Logits::Last, "a token sampled without logits");
        let sequence = self.running.iter_mut().find(|s| s.id() == chunk.sequence && s.computed() == chunk.start);
        let sequence = sequence.ok_or(Stale { sequence: chunk.sequence, start: chunk.start })?;
        sequence.advance(chunk.start + chunk.len, sampled, pool);
        if sampled.is_some() {
            self.queue.charge(&sequence.origin().tenant, 1);
        }
        Ok(if sequence.pending() > 0 { Progress::Continues } else { Progress::Ended })
    }

    /// Forks `trunk`, of which a token has just been committed, into a sequence `id` that has `token` in that place. It shares
    /// the full blocks before it, and gets a copy of the one that is not full.
    ///
    /// # Errors
    /// [`Stale`] when `trunk` is not at that point.
    pub fn fork(&mut self, trunk: SequenceId, id: SequenceId, token: u32, pool: &mut KvPool) -> Result<Fork, Stale> {
        let stale = Stale { sequence: trunk, start: 0 };
        let from = self.running.iter().find(|s| s.id() == trunk).ok_or(stale)?;
        let end = from.computed();
        if from.generated().is_empty() || from.tokens().len() != end + 1 {
            return Err(stale);
        }
        self.forks += 1;
        let mut fork = from.forked(id, token, Rank(from.rank.0, self.forks));
        self.queue.joined(&fork.origin().tenant);
        self.queue.charge(&fork.origin().tenant, 1);
        let partial = usize::from(!end.is_multiple_of(KV_BLOCK));
        let own = (self.running.len() < self.limits.max_running).then(|| pool.alloc(partial)).flatten();
        let Some(own) = own else {
            insert_displaced(&mut self.displaced, fork);
            return Ok(Fork::Waits);
        };
        let from = from.blocks();
        fork.hold(from[..end / KV_BLOCK].iter().map(|block| pool.share(block)).collect());
        let copy = own.first().zip(from.get(end / KV_BLOCK));
        let copy = copy.map(|(to, from)| BlockCopy { from: from.index(), to: to.index() });
        fork.hold(own);
        fork.begin_at(end);
        insert_running(&mut self.running, fork);
        Ok(Fork::Runs(copy))
    }

    /// Takes a sequence out, wherever it is and for whatever reason (ended, stopped, cancelled, expired), and frees its
    /// blocks. `None` when it is not here.
    pub fn remove(&mut self, id: SequenceId, pool: &mut KvPool) -> Option<Sequence> {
        let mut sequence = if let Some(at) = self.running.iter().position(|s| s.id() == id) {
            self.running.remove(at)
        } else if let Some(at) = self.displaced.iter().position(|s| s.id() == id) {
            self.displaced.remove(at)?
        } else {
            return self.queue.remove(id);
        };
        pool.free(sequence.evict());
        self.queue.left(&sequence.origin().tenant);
        Some(sequence)
    }

    /// The sequence called `id`, running or waiting.
    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.running.iter().chain(&self.displaced).chain(self.queue.iter()).find(|s| s.id() == id)
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait, preempted ones among them.
    pub fn waiting(&self) -> usize {
        self.displaced.len() + self.queue.len()
    }

    /// What has happened since the start.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Tokens each running sequence may compute: one each for those that lack just one, then chunks, by rank,
    /// as far as the budget goes. It goes as far as the first, for there are no more sequences than budget.
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

    /// Finds blocks for the running sequences' shares, by rank, preempting from the other end. A sequence that no
    /// longer has one after it to preempt keeps what it holds and waits for those before it to leave.
    fn plan_running(&mut self, shares: &[usize], pool: &mut KvPool, plan: &mut StepPlan) {
        let mut at = 0;
        while at < self.running.len() {
            if shares[at] > 0 {
                let lacks = self.running[at].lacks(self.running[at].computed() + shares[at]);
                while pool.free_blocks() < lacks && at + 1 < self.running.len() {
                    plan.preempted.extend(self.preempt_last(pool));
                }
                plan.chunks.extend(take_chunk(&mut self.running[at], shares[at], pool));
            }
            at += 1;
        }
    }

    fn preempt_last(&mut self, pool: &mut KvPool) -> Option<SequenceId> {
        let mut last = self.running.pop()?;
        let id = last.id();
        pool.free(last.evict());
        insert_displaced(&mut self.displaced, last);
        self.counts.preemptions += 1;
        Some(id)
    }

    /// Lets waiting sequences run while there is budget, and blocks for all their tokens besides those that the running ones
    /// still lack for theirs: who would soon be preempted again is not admitted. Displaced ones first, then by turns.
    fn admit(&mut self, pool: &mut KvPool, plan: &mut StepPlan) {
        let mut left = self.limits.step_tokens - plan.tokens();
        let owed = self.running.iter().map(|s| s.lacks(s.goal())).sum();
        let mut room = pool.free_blocks().saturating_sub(owed);
        while left > 0 && self.running.len() < self.limits.max_running {
            let displaced = !self.displaced.is_empty();
            let Some(next) = self.displaced.front_mut().or_else(|| self.queue.head()) else { break };
            let cached = next.cached_blocks(pool);
            let needed = blocks_for(next.goal()) - cached.count + cached.cost;
            if needed > room {
                break;
            }
            let next = if displaced { self.displaced.pop_front() } else { self.queue.pop() };
            let Some(mut sequence) = next else { break };
            sequence.begin(cached.count, pool);
            if !displaced {
                self.count_admitted(&sequence);
            }
            let share = sequence.pending().min(self.limits.chunk).min(left);
            plan.chunks.extend(take_chunk(&mut sequence, share, pool));
            insert_running(&mut self.running, sequence);
            room -= needed;
            left -= share;
        }
    }

    fn count_admitted(&mut self, sequence: &Sequence) {
        self.queue.charge(&sequence.origin().tenant, sequence.pending());
        self.counts.admitted += 1;
        if sequence.origin().reuse == Reuse::Cached {
            self.counts.prefix_queries += sequence.prompt_len() as u64;
            self.counts.prefix_hits += sequence.found() as u64;
        }
    }
}

fn insert_running(running: &mut Vec<Sequence>, sequence: Sequence) {
    running.insert(running.partition_point(|s| s.rank < sequence.rank), sequence);
}

fn insert_displaced(displaced: &mut VecDeque<Sequence>, sequence: Sequence) {
    displaced.insert(displaced.partition_point(|s| s.rank < sequence.rank), sequence);
}

/// The next `len` tokens of `sequence`, with blocks for them; `None` when the pool has too few.
fn take_chunk(sequence: &mut Sequence, len: usize, pool: &mut KvPool) -> Option<Chunk> {
    let (start, end) = (sequence.computed(), sequence.computed() + len);
    sequence.hold(pool.alloc(sequence.lacks(end))?);
    let logits = if sequence.samples_at(end) { Logits::Last } else { Logits::None };
    Some(Chunk { sequence: sequence.id(), start, len, logits })
}
