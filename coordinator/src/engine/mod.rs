//! The engine's loop: admit → plan → forward → sample → emit. One thread runs it and owns everything in it.
//!
//! A request is one sequence until its first token, then one for each of its choices. It leaves from any state, within one
//! step, when its reader has gone or its deadline has passed. A panic in the loop fails what is there as
//! [`EngineError::Stopped`](tramontane_cluster::engine::EngineError::Stopped), for every sender of events says so when it is dropped.

mod admit;
mod commit;
mod live;
mod outage;
mod pace;
mod shown;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::thread;
use std::time::{Duration, Instant};

use tramontane_cluster::engine::{EngineError, EngineInbox, EngineStatus, Phase};
use tramontane_kernels::QueryRow;
use tramontane_model::decoder::EmbedError;

use crate::forward::{Forward, Step, StepError};
use crate::grammar::{Grammars, Vocabulary};
use crate::metrics::EngineMetrics;
use crate::{KvPool, Limits, LimitsError, Scheduler, Sequence, SequenceId, StepPlan};
use admit::Compiling;
use live::{Live, Stage, Want};
use outage::Outage;
use pace::Pace;
use shown::{ShownStage, ShownStep};

/// How long the loop waits for a grammar when it has nothing else to do, before it looks for requests and for readers that have
/// gone.
const GRAMMAR_PATIENCE: Duration = Duration::from_millis(2);
/// How long the loop waits before it runs a step again that found no experts. It takes requests in and lets readers go meanwhile.
const RERUN_PAUSE: Duration = Duration::from_millis(10);
/// Requests that a log line about a step names.
const MAX_LOGGED: usize = 16;
/// Requests taken in between two steps.
const MAX_SUBMISSIONS: usize = 1024;

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
    work: Work,
}

/// Everything but the model and the inbox.
struct Work {
    scheduler: Scheduler,
    pool: KvPool,
    live: BTreeMap<SequenceId, Live>,
    /// Requests whose constraints are not compiled yet.
    compiling: VecDeque<Compiling>,
    grammars: Grammars,
    pace: Pace,
    outage: Outage,
    next_id: u64,
    /// Tokens generated, since the start.
    generated: u64,
    bounds: Bounds,
    metrics: EngineMetrics,
}

/// What requests have to keep within.
struct Bounds {
    context: usize,
    vocab: usize,
    /// The model's end tokens.
    eos: Vec<u32>,
    max_waiting: usize,
}

/// How many rows of each kind of result a chunk has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Share {
    logits: usize,
    hidden: usize,
}

impl EngineLoop {
    /// An engine without requests, which can match no constraints.
    ///
    /// # Errors
    /// [`LimitsError`] when the bounds contradict each other.
    pub fn new(inbox: EngineInbox, forward: Forward, options: EngineOptions) -> Result<Self, LimitsError> {
        let config = forward.config();
        let bounds = Bounds {
            context: config.context,
            vocab: config.vocab,
            eos: config.eos.clone(),
            max_waiting: options.limits.max_waiting,
        };
        let work = Work {
            scheduler: Scheduler::new(options.limits)?,
            pool: KvPool::new(options.kv_blocks),
            live: BTreeMap::new(),
            compiling: VecDeque::new(),
            grammars: Grammars::new(None),
            pace: Pace::default(),
            outage: Outage::default(),
            next_id: 0,
            generated: 0,
            bounds,
            metrics: EngineMetrics::default(),
        };
        let engine = Self { inbox, forward, work };
        engine.publish();
        Ok(engine)
    }

    /// The same engine, counted by `metrics`.
    #[must_use]
    pub fn counted_by(mut self, metrics: EngineMetrics) -> Self {
        self.work.metrics = metrics;
        self
    }

    /// The same engine, which matches constraints with the tokens of `vocabulary`.
    #[must_use]
    pub fn with_vocabulary(mut self, vocabulary: Vocabulary) -> Self {
        self.work.grammars = Grammars::new(Some(vocabulary));
        self
    }

    /// Runs until every front door is gone and all requests have ended.
    pub fn run(mut self) {
        while self.admit() {
            self.step(Instant::now());
        }
    }

    /// Takes in what waits at the door; with nothing to do, waits for it. False when there is nothing and never will be.
    fn admit(&mut self) -> bool {
        if self.work.live.is_empty() {
            if self.work.compiling.is_empty() {
                match self.inbox.recv() {
                    Some(submission) => self.work.submit(submission, Instant::now()),
                    None => return false,
                }
            } else {
                self.work.grammars.wait(GRAMMAR_PATIENCE);
            }
        }
        let now = Instant::now();
        for submission in (0..MAX_SUBMISSIONS).map_while(|_| self.inbox.try_recv()) {
            self.work.submit(submission, now);
        }
        self.work.compiled(now);
        true
    }

    /// One step over everything that is running.
    fn step(&mut self, now: Instant) {
        self.work.sweep(now);
        let plan = self.work.scheduler.plan(&mut self.work.pool);
        let shown = self.work.begin(&plan, now);
        if !plan.chunks.is_empty() {
            self.compute(&plan, shown, now);
        }
        let counts = self.work.scheduler.counts();
        self.work.pace.observe(now, counts.admitted, self.work.scheduler.waiting());
        self.publish();
    }

    fn compute(&mut self, plan: &StepPlan, shown: ShownStep, now: Instant) {
        let tables: Vec<Vec<u32>> = plan
            .chunks
            .iter()
            .map(|chunk| self.work.scheduler.get(chunk.sequence).map(Sequence::block_table).unwrap_or_default())
            .collect();
        let (mut step, shares) = self.work.rows(plan, &tables);
        step.trace.clone_from(&shown.lead);
        let computed = self.forward.compute(&step).inspect_err(|error| shown.fail(error));
        // What comes of it is no part of it.
        drop(shown);
        match computed {
            Ok((logits, hidden)) => {
                self.work.outage.end();
                let copies = self.work.commit(plan, &shares, logits, hidden);
                copies.into_iter().for_each(|copy| self.forward.copy_block(copy.from, copy.to));
            }
            // The same positions are planned again, without those who have left by then.
            Err(error) if error.may_run_again() && self.work.bears(plan, &error, now) => thread::sleep(RERUN_PAUSE),
            Err(error) => self.work.fail(plan, &error),
        }
    }

    fn publish(&self) {
        let Work { scheduler, pool, compiling, .. } = &self.work;
        let counts = scheduler.counts();
        self.inbox.publish(EngineStatus {
            phase: Phase::Ready,
            running: scheduler.running(),
            waiting: scheduler.waiting() + compiling.len(),
            kv_used: pool.used(),
            kv_total: pool.total(),
            preemptions: counts.preemptions,
            prefix_queries: counts.prefix_queries,
            prefix_hits: counts.prefix_hits,
            generated: self.work.generated,
        });
    }
}

impl Work {
    /// Sequences of `plan` that have waited until `now` wait no more. What the step is shown as, in the traces that are recorded.
    fn begin(&mut self, plan: &StepPlan, now: Instant) -> ShownStep {
        let mut step = ShownStep::default();
        for chunk in &plan.chunks {
            let Some(live) = self.live.get_mut(&chunk.sequence) else { continue };
            if let Stage::Queued(since) = live.stage {
                live.stage = Stage::Prefill(now);
                live.shown.iter_mut().for_each(|shown| shown.enter(ShownStage::Prefill));
                self.metrics.queued(now.saturating_duration_since(since));
            }
            live.shown.iter_mut().for_each(|shown| step.serves(shown, chunk, plan));
        }
        step.link();
        step
    }

    /// Lets go of everybody whose reader has gone, and fails those whose deadline has passed at `now`.
    fn sweep(&mut self, now: Instant) {
        let mut leaving = Vec::new();
        for (id, live) in &mut self.live {
            live.choices.retain(|choice| !choice.events.is_closed());
            if live.choices.is_empty() || live.is_late(now) {
                leaving.push(*id);
            }
        }
        for id in leaving {
            self.end_badly(id, EngineError::DeadlineExceeded);
        }
    }

    /// The rows of `plan`, whose sequences have their blocks in `tables`, and each chunk's share of the results.
    fn rows<'a>(&self, plan: &StepPlan, tables: &'a [Vec<u32>]) -> (Step<'a>, Vec<Share>) {
        let mut step = Step::default();
        let mut shares = Vec::with_capacity(plan.chunks.len());
        for (chunk, blocks) in plan.chunks.iter().zip(tables) {
            let mut share = Share::default();
            // Whoever is planned is here: nobody leaves between planning and stepping.
            let planned = self.scheduler.get(chunk.sequence).zip(self.live.get(&chunk.sequence));
            for position in chunk.start..chunk.start + chunk.len {
                let Some((sequence, live)) = planned else { break };
                let row = step.rows.len();
                step.tokens.push(sequence.tokens()[position]);
                step.rows.push(QueryRow { position, blocks });
                match live.wants(position, sequence.prompt_len(), chunk) {
                    Want::Nothing => {}
                    Want::Logits => {
                        step.wanted.push(row);
                        share.logits += 1;
                    }
                    Want::Hidden => {
                        step.embedded.push(row);
                        share.hidden += 1;
                    }
                }
            }
            shares.push(share);
        }
        (step, shares)
    }

    /// Whether a step that failed at `now` for want of experts is to be run again, rather than to fail its requests.
    fn bears(&mut self, plan: &StepPlan, error: &StepError, now: Instant) -> bool {
        if self.outage.begins(now) {
            let requests = self.requests_of(plan);
            tracing::warn!(%error, tokens = plan.tokens(), requests, "a step found no experts and will be run again");
        }
        !self.outage.is_over_long(now)
    }

    /// The ids of the requests in `plan`, as far as they have any, for the log.
    fn requests_of(&self, plan: &StepPlan) -> String {
        let lives = plan.chunks.iter().filter_map(|chunk| self.live.get(&chunk.sequence));
        let ids: BTreeSet<&str> = lives.filter_map(|live| live.request.as_deref()).collect();
        ids.into_iter().take(MAX_LOGGED).collect::<Vec<_>>().join(",")
    }

    /// Fails whom a step's error concerns. The others' positions are computed again.
    fn fail(&mut self, plan: &StepPlan, error: &StepError) {
        tracing::error!(%error, tokens = plan.tokens(), requests = self.requests_of(plan), "a step failed");
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
                let tokens = |id| self.scheduler.get(id).map(Sequence::tokens).unwrap_or_default();
                let ids = plan.chunks.iter().map(|chunk| chunk.sequence);
                let at_fault: Vec<_> = ids.filter(|id| tokens(*id).contains(token)).collect();
                for id in at_fault {
                    self.end_badly(id, EngineError::InvalidRequest { why: why.clone() });
                }
            }
            StepError::Embed(_) | StepError::Experts { .. } | StepError::Gate(_) | StepError::Device { .. } => {
                for chunk in &plan.chunks {
                    self.end_badly(chunk.sequence, EngineError::ExpertsUnavailable { why: why.clone() });
                }
            }
        }
    }

    fn leave(&mut self, id: SequenceId) -> Option<(Live, Sequence)> {
        Some((self.live.remove(&id)?, self.scheduler.remove(id, &mut self.pool)?))
    }

    /// Ends a sequence, whatever choices it has, with `error`; readers who have gone do not hear of it.
    fn end_badly(&mut self, id: SequenceId, error: EngineError) {
        if let Some((mut live, _)) = self.leave(id) {
            live.shown.iter_mut().for_each(|shown| shown.fail(&error));
            live.choices.into_iter().for_each(|choice| choice.events.fail(error.clone()));
        }
    }
}
