//! The engine's loop: admit → plan → forward → sample → emit. One thread runs it and owns everything in it.

use std::collections::BTreeMap;
use std::time::Duration;

use tramontane_cluster::engine::{
    EngineError, EngineInbox, EventSender, FinishReason, Generation, Submission, Task, Token, Usage,
};
use tramontane_kernels::QueryRow;
use tramontane_model::decoder::EmbedError;

use crate::forward::{Forward, Step, StepError};
use crate::sampler::{logprobs, sample};
use crate::{Chunk, KvPool, Limits, LimitsError, Logits, Progress, Refused, Scheduler, Sequence, SequenceId, StepPlan};

/// How long whoever finds the waiting queue full should wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Sizes of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// The scheduler's bounds.
    pub limits: Limits,
    /// Blocks in the KV cache; as many as the [`Forward`] has.
    pub kv_blocks: u32,
}

/// An engine: requests from an inbox, tokens to their readers.
pub struct EngineLoop {
    inbox: EngineInbox,
    forward: Forward,
    scheduler: Scheduler,
    pool: KvPool,
    live: BTreeMap<SequenceId, Live>,
    next_id: u64,
}

/// A request on its way.
struct Live {
    generation: Generation,
    events: EventSender,
    completion_tokens: usize,
}

impl EngineLoop {
    /// An engine without requests.
    ///
    /// # Errors
    /// [`LimitsError`] when the bounds contradict each other.
    pub fn new(inbox: EngineInbox, forward: Forward, options: EngineOptions) -> Result<Self, LimitsError> {
        let scheduler = Scheduler::new(options.limits)?;
        Ok(Self { inbox, forward, scheduler, pool: KvPool::new(options.kv_blocks), live: BTreeMap::new(), next_id: 0 })
    }

    /// Runs until every front door is gone and all requests have ended.
    pub fn run(mut self) {
        while self.admit() {
            self.step();
        }
    }

    /// Takes in what waits at the door; with nothing to do, waits for it. False when there is nothing and never will be.
    fn admit(&mut self) -> bool {
        if self.live.is_empty() {
            match self.inbox.recv() {
                Some(submission) => self.submit(submission),
                None => return false,
            }
        }
        while let Some(submission) = self.inbox.try_recv() {
            self.submit(submission);
        }
        true
    }

    fn submit(&mut self, submission: Submission) {
        let Submission { request, mut events } = submission;
        let (Task::Generate(generation), 1, Some(events)) = (request.task, events.len(), events.pop()) else { return };
        let context = self.forward.decoder().config().context;
        let prompt = request.prompt.len();
        if prompt >= context {
            let why = format!("{prompt} prompt tokens, and the context has room for {context}");
            return events.fail(EngineError::InvalidRequest { why });
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let max_tokens = generation.max_tokens.min(context - prompt);
        let sequence = Sequence::new(id, request.prompt, max_tokens);
        if let Err(refused) = self.scheduler.submit(sequence, &self.pool) {
            return events.fail(match refused {
                Refused::QueueFull { .. } => EngineError::Overloaded { retry_after: RETRY_AFTER },
                refused => EngineError::InvalidRequest { why: refused.to_string() },
            });
        }
        self.live.insert(id, Live { generation: *generation, events, completion_tokens: 0 });
    }

    /// One step over everything that is running.
    fn step(&mut self) {
        let gone: Vec<_> = self.live.iter().filter(|(_, l)| l.events.is_closed()).map(|(&id, _)| id).collect();
        for id in gone {
            self.leave(id);
        }
        let plan = self.scheduler.plan(&mut self.pool);
        let tables: Vec<Vec<u32>> = plan.chunks.iter().map(|c| self.sequence(c).block_table()).collect();
        let step = self.rows(&plan, &tables);
        // The logits are copied out so that the sequences may change while they are read: a row a sequence.
        match self.forward.run(&step).map(<[f32]>::to_vec) {
            Ok(logits) => self.commit(&plan, &logits),
            Err(error) => self.fail(&plan, &error),
        }
    }

    fn sequence(&self, chunk: &Chunk) -> &Sequence {
        // A plan's chunks are of running sequences; nothing leaves between planning and stepping.
        self.scheduler.get(chunk.sequence).expect("a planned sequence is scheduled")
    }

    fn rows<'a>(&self, plan: &StepPlan, tables: &'a [Vec<u32>]) -> Step<'a> {
        let mut step = Step::default();
        for (chunk, blocks) in plan.chunks.iter().zip(tables) {
            let positions = chunk.start..chunk.start + chunk.len;
            step.tokens.extend(&self.sequence(chunk).tokens()[positions.clone()]);
            step.rows.extend(positions.map(|position| QueryRow { position, blocks }));
            if chunk.logits == Logits::Last {
                step.wanted.push(step.rows.len() - 1);
            }
        }
        step
    }

    fn commit(&mut self, plan: &StepPlan, logits: &[f32]) {
        let mut rows = logits.chunks_exact(self.forward.decoder().config().vocab);
        for chunk in &plan.chunks {
            let row = if chunk.logits == Logits::Last { rows.next() } else { None };
            self.advance(chunk, row);
        }
    }

    /// Moves one sequence past its chunk, with a token sampled from `logits` where it has them.
    fn advance(&mut self, chunk: &Chunk, logits: Option<&[f32]>) {
        let id = chunk.sequence;
        let Some(live) = self.live.get_mut(&id) else { return };
        let mut token = None;
        if let Some(logits) = logits {
            match sample(logits, &live.generation.sampling, (chunk.start + chunk.len) as u64) {
                Ok(sampled) => token = Some(sampled.token),
                Err(error) => return self.end_badly(id, EngineError::Numeric { why: error.to_string() }),
            }
        }
        let progress = self.scheduler.advance(chunk, token);
        let (Some(token), Some(logits)) = (token, logits) else { return };
        live.completion_tokens += 1;
        if live.generation.stop_tokens.contains(&token) {
            return self.end_well(id, FinishReason::Stop { token: Some(token) });
        }
        let of = logprobs(logits, token, live.generation.logprobs.unwrap_or(0) as usize);
        if live.events.send(Token { id: token, logprob: of.logprob, top: of.top }).is_err() {
            self.leave(id);
        } else if progress != Ok(Progress::Continues) {
            self.end_well(id, FinishReason::Length);
        }
    }

    fn fail(&mut self, plan: &StepPlan, error: &StepError) {
        tracing::error!(%error, tokens = plan.tokens(), "a step failed");
        let why = error.to_string();
        match error {
            StepError::NotFinite { row, .. } => {
                let mut end = 0;
                let at_fault = plan.chunks.iter().find(|chunk| {
                    end += chunk.len;
                    *row < end
                });
                if let Some(chunk) = at_fault {
                    self.end_badly(chunk.sequence, EngineError::Numeric { why });
                }
            }
            StepError::Embed(EmbedError::UnknownToken { token, .. }) => {
                let has = |chunk: &&Chunk| self.sequence(chunk).tokens().contains(token);
                let at_fault: Vec<_> = plan.chunks.iter().filter(has).map(|chunk| chunk.sequence).collect();
                for id in at_fault {
                    self.end_badly(id, EngineError::InvalidRequest { why: why.clone() });
                }
            }
            StepError::Embed(_) | StepError::Experts { .. } | StepError::Gate(_) => {
                for chunk in &plan.chunks {
                    self.end_badly(chunk.sequence, EngineError::ExpertsUnavailable { why: why.clone() });
                }
            }
        }
    }

    fn leave(&mut self, id: SequenceId) -> Option<(Live, Sequence)> {
        Some((self.live.remove(&id)?, self.scheduler.remove(id, &mut self.pool)?))
    }

    fn end_well(&mut self, id: SequenceId, reason: FinishReason) {
        if let Some((live, sequence)) = self.leave(id) {
            let usage = Usage {
                prompt_tokens: sequence.prompt_len(),
                completion_tokens: live.completion_tokens,
                cached_tokens: 0,
            };
            live.events.finish(reason, usage);
        }
    }

    fn end_badly(&mut self, id: SequenceId, error: EngineError) {
        if let Some((live, _)) = self.leave(id) {
            live.events.fail(error);
        }
    }
}
