//! What is shown of requests in traces: their stages, and of each stage its first steps, of which the very first show what is
//! dispatched. A step serves many requests, so each has a span of its own for it; dispatches stand under one of these, the leading
//! one, and the others say which that is.
//!
//! Only requests whose trace is recorded have any of this; for the others it is a branch a sequence and step.

use tramontane_cluster::engine::{EngineError, FinishReason, Mark, Usage};
use tramontane_cluster::trace::{Kind, TraceContext, TraceSpan};

use crate::forward::StepError;
use crate::{Chunk, StepPlan};

/// Steps that are shown of one stage of a request; later ones are only counted.
const MAX_STEPS: usize = 64;
/// Of these, the first ones show what is dispatched: a step has a dispatch a layer and node.
const MAX_DETAILED_STEPS: usize = 2;

/// Names of spans: a request at the engine, its stages, and a step of them.
const REQUEST: &str = "engine";
const STEP: &str = "step";

/// Names of what spans say.
mod names {
    /// Tokens of the sequence that a step computes.
    pub(super) const TOKENS: &str = "tramontane.step.tokens";
    /// Tokens that the step computes in all, others' included.
    pub(super) const BATCH_TOKENS: &str = "tramontane.step.batch_tokens";
    /// Sequences in the step.
    pub(super) const BATCH_SEQUENCES: &str = "tramontane.step.batch_sequences";
    /// Steps of a stage, those that are not shown included.
    pub(super) const STEPS: &str = "tramontane.steps";
    /// Why the first choice has ended.
    pub(super) const FINISH_REASON: &str = "tramontane.finish_reason";
    /// Tokens of the prompt.
    pub(super) const PROMPT_TOKENS: &str = "tramontane.prompt_tokens";
    /// Of these, found in the prefix cache.
    pub(super) const CACHED_TOKENS: &str = "tramontane.cached_tokens";
    /// Tokens generated of the first choice.
    pub(super) const COMPLETION_TOKENS: &str = "tramontane.completion_tokens";
}

/// Where a request is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ShownStage {
    /// Its constraint is compiled.
    Grammar,
    /// It waits for its first step.
    Queue,
    /// Its prompt is computed.
    Prefill,
    /// Its tokens are generated.
    Decode,
}

impl ShownStage {
    const fn name(self) -> &'static str {
        match self {
            Self::Grammar => "grammar",
            Self::Queue => "queue",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What is shown of a sequence: of a request's first choice everything, of the others that they are there.
pub(super) struct Shown {
    request: TraceSpan,
    stage: TraceSpan,
    /// Steps of the stage; `None` where none is shown.
    steps: Option<usize>,
}

impl Shown {
    /// A request that has come in; `None` where its trace is not recorded.
    pub(super) fn request(mark: &Mark, prompt: usize) -> Option<Box<Self>> {
        let parent = mark.trace.as_ref()?;
        let request = TraceSpan::begin(REQUEST, Kind::under(parent), Some(parent));
        request.count(names::PROMPT_TOKENS, prompt);
        Some(Box::new(Self { request, stage: TraceSpan::default(), steps: Some(0) }))
    }

    /// A choice beside the first one. The request lasts as long as any.
    pub(super) fn sibling(&self) -> Box<Self> {
        Box::new(Self { request: self.request.clone(), stage: TraceSpan::default(), steps: None })
    }

    /// It comes to `stage`.
    pub(super) fn enter(&mut self, stage: ShownStage) {
        self.leave();
        if self.steps.is_some() {
            self.stage = TraceSpan::begin(stage.name(), Kind::Internal, self.request.context());
            self.steps = Some(0);
        }
    }

    fn leave(&mut self) {
        if let Some(steps @ 1..) = self.steps {
            self.stage.count(names::STEPS, steps);
        }
    }

    /// A step of it begins: its span, and its place where dispatches may be shown under it.
    fn step(&mut self) -> Option<(TraceSpan, Option<TraceContext>)> {
        let number = self.steps?;
        self.steps = Some(number + 1);
        if number >= MAX_STEPS {
            return None;
        }
        let span = TraceSpan::begin(STEP, Kind::Internal, self.stage.context());
        let detailed = span.context().filter(|_| number < MAX_DETAILED_STEPS).cloned();
        Some((span, detailed))
    }

    /// It has ended well.
    pub(super) fn finish(&mut self, reason: FinishReason, usage: Usage) {
        if self.steps.is_some() {
            self.request.set(names::FINISH_REASON, word(reason));
            self.request.count(names::CACHED_TOKENS, usage.cached_tokens);
            self.request.count(names::COMPLETION_TOKENS, usage.completion_tokens);
        }
    }

    /// It has failed.
    pub(super) fn fail(&mut self, error: &EngineError) {
        self.request.fail(error_word(error));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A step, as it is shown in the traces of those that it serves.
#[derive(Default)]
pub(super) struct ShownStep {
    spans: Vec<TraceSpan>,
    /// What is dispatched is shown here.
    pub(super) lead: Option<TraceContext>,
}

impl ShownStep {
    /// It computes `chunk` of `plan`, whose sequence is `shown`.
    pub(super) fn serves(&mut self, shown: &mut Shown, chunk: &Chunk, plan: &StepPlan) {
        let Some((span, detailed)) = shown.step() else { return };
        span.count(names::TOKENS, chunk.len);
        span.count(names::BATCH_TOKENS, plan.tokens());
        span.count(names::BATCH_SEQUENCES, plan.chunks.len());
        self.lead = self.lead.take().or(detailed);
        self.spans.push(span);
    }

    /// It serves nobody else: all say where they find what is dispatched.
    pub(super) fn link(&self) {
        let Some(lead) = &self.lead else { return };
        self.spans.iter().filter(|span| span.context() != Some(lead)).for_each(|span| span.link(lead));
    }

    /// It could not be computed.
    pub(super) fn fail(&self, error: &StepError) {
        let why = match error {
            StepError::NotFinite { .. } => "not_finite",
            StepError::Embed(_) => "embedding",
            StepError::Experts { .. } => "experts_unavailable",
            StepError::Gate(_) => "gate",
            StepError::Device { .. } => "device",
        };
        self.spans.iter().for_each(|span| span.fail(why));
    }
}

const fn word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop { .. } => "stop",
        FinishReason::Length => "length",
        FinishReason::Embedded => "embedded",
    }
}

const fn error_word(error: &EngineError) -> &'static str {
    match error {
        EngineError::Overloaded { .. } => "overloaded",
        EngineError::Draining => "draining",
        EngineError::DeadlineExceeded => "deadline_exceeded",
        EngineError::InvalidConstraint { .. } => "invalid_constraint",
        EngineError::InvalidRequest { .. } => "invalid_request",
        EngineError::ExpertsUnavailable { .. } => "experts_unavailable",
        EngineError::Numeric { .. } => "numeric_error",
        EngineError::SlowReader => "slow_reader",
        EngineError::Stopped => "engine_stopped",
    }
}
