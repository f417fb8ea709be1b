//! Whole requests through an engine, and what its scheduler did with them.

use tramontane_cluster::engine::{
    Engine, EngineInfo, EventStream, FinishReason, Generation, Sampling, Task, Token, Usage, ValidRequest, in_process,
};
use tramontane_coordinator::{
    EngineLoop, EngineOptions, KvPool, Limits, Logits, Progress, Scheduler, Sequence, SequenceId,
};

use super::cluster::{Cluster, Setup};
use super::model::Model;

/// Log-probabilities asked for with each token.
pub(crate) const TOP: u32 = 3;

/// A completion with every float as its bits, so that `==` means bit for bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Completion {
    pub(crate) tokens: Vec<TokenBits>,
    pub(crate) reason: FinishReason,
    pub(crate) usage: Usage,
}

/// A [`Token`] with its log-probabilities as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenBits {
    pub(crate) id: u32,
    pub(crate) logprob: u32,
    pub(crate) top: Vec<(u32, u32)>,
}

impl From<Token> for TokenBits {
    fn from(token: Token) -> Self {
        let top = token.top.into_iter().map(|(id, logprob)| (id, logprob.to_bits())).collect();
        Self { id: token.id, logprob: token.logprob.to_bits(), top }
    }
}

impl Completion {
    /// The ids of its tokens.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

/// Requests for `prompts`, `max_tokens` tokens each, with seeds that differ. Every other one ends at the model's eos.
pub(crate) fn requests(model: &Model, prompts: &[Vec<u32>], max_tokens: usize, temperature: f32) -> Vec<ValidRequest> {
    let request = |(id, prompt): (u64, &Vec<u32>)| {
        let generation = Generation {
            max_tokens,
            sampling: Sampling { temperature, seed: 1000 + id, ..Sampling::default() },
            stop_tokens: if id % 2 == 0 { model.config.eos.clone() } else { Vec::new() },
            logprobs: Some(TOP),
            ..Generation::default()
        };
        ValidRequest::generate(id, prompt.clone(), generation)
    };
    (0..).zip(prompts).map(request).collect()
}

/// What a request to generate asks for.
pub(crate) fn generation(request: &ValidRequest) -> &Generation {
    let Task::Generate(generation) = &request.task else { panic!("a request to generate") };
    generation
}

/// What an engine for `model` says of itself.
pub(crate) fn info(model: &Model) -> EngineInfo {
    let config = &model.config;
    EngineInfo { model: "m".into(), context: config.context, vocab: config.vocab, fingerprint: "f".to_owned() }
}

/// The completions of `requests`, all of which wait before the engine's first step. The engine runs on this thread, so
/// that a run is the same every time.
///
/// # Panics
/// When a request fails.
pub(crate) fn complete(model: &Model, setup: &Setup, limits: Limits, requests: &[ValidRequest]) -> Vec<Completion> {
    let Cluster { forward, nodes, .. } = Cluster::start(model, setup);
    let (engine, inbox) = in_process(info(model), requests.len());
    let streams: Vec<EventStream> =
        requests.iter().flat_map(|request| engine.submit(request.clone()).expect("the inbox has room")).collect();
    // The loop ends when nobody can submit any more and all requests have ended.
    drop(engine);
    let options = EngineOptions { limits, kv_blocks: setup.kv_blocks as u32 };
    EngineLoop::new(inbox, forward, options).expect("limits that go together").run();
    drop(nodes);
    streams.into_iter().map(read).collect()
}

fn read(events: EventStream) -> Completion {
    let output = super::engine::read(events);
    assert!(output.prompt.is_none() && output.embedding.is_none(), "no completion: {output:?}");
    let (reason, usage) = output.finished();
    Completion { tokens: output.tokens, reason, usage }
}

/// Which sequences lose their blocks in [`complete`], by their requests' places, as often as they do. The engine's scheduler
/// decides by lengths alone, so a scheduler that is told the lengths decides the same.
pub(crate) fn preemptions(
    setup: &Setup,
    limits: Limits,
    requests: &[ValidRequest],
    completions: &[Completion],
) -> Vec<usize> {
    let (mut scheduler, mut pool) =
        (Scheduler::new(limits).expect("limits that go together"), KvPool::new(setup.kv_blocks as u32));
    for (place, request) in requests.iter().enumerate() {
        let sequence = Sequence::new(SequenceId(place as u64), request.prompt.clone(), generation(request).max_tokens);
        scheduler.submit(sequence, &pool).expect("the scheduler takes it");
    }
    let mut preempted = Vec::new();
    while scheduler.running() + scheduler.waiting() > 0 {
        let plan = scheduler.plan(&mut pool);
        assert!(!plan.chunks.is_empty(), "the scheduler stands still");
        preempted.extend(plan.preempted.iter().map(|id| id.0 as usize));
        for chunk in &plan.chunks {
            let sampled = (chunk.logits == Logits::Last).then_some(0);
            let progress = scheduler.advance(chunk, sampled, &mut pool).expect("a chunk of the latest plan");
            let generated = scheduler.get(chunk.sequence).map_or(0, |sequence| sequence.generated().len());
            let stopped = generated == completions[chunk.sequence.0 as usize].usage.completion_tokens;
            if stopped || progress == Progress::Ended {
                scheduler.remove(chunk.sequence, &mut pool);
            }
        }
    }
    preempted
}
