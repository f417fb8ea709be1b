//! An engine on a thread of its own, and what comes out of its streams.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tramontane_cluster::engine::{
    Engine, EngineError, EngineStatus, Event, EventStream, FinishReason, Generation, InProcessEngine, Usage,
    ValidRequest, in_process,
};
use tramontane_coordinator::{EngineLoop, EngineOptions, Limits, Vocabulary};
use tramontane_model::tokenizer::Tokenizer;

use super::cluster::{Cluster, Nodes, Setup};
use super::completions::{TokenBits, info};
use super::model::Model;

/// How long anything may take before a test is given up.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(120);
/// Requests between the test and the loop.
const INBOX: usize = 256;

/// Bounds with room for everything a test does.
pub(crate) const ROOMY: Limits = Limits { max_running: 16, step_tokens: 512, chunk: 512, max_waiting: 256 };

/// A running engine.
pub(crate) struct Running {
    engine: Option<InProcessEngine>,
    thread: Option<JoinHandle<()>>,
    _nodes: Nodes,
}

/// Everything that came out of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Output {
    pub(crate) tokens: Vec<TokenBits>,
    pub(crate) prompt: Option<Vec<Option<TokenBits>>>,
    pub(crate) embedding: Option<Vec<u32>>,
    pub(crate) end: Result<(FinishReason, Usage), EngineError>,
}

impl Output {
    /// The ids of its tokens.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    /// How it ended.
    ///
    /// # Panics
    /// When it failed.
    pub(crate) fn finished(&self) -> (FinishReason, Usage) {
        self.end.clone().expect("it finishes")
    }

    /// The same without what the prefix cache may change: how many tokens it had.
    pub(crate) fn uncached(mut self) -> Self {
        if let Ok((_, usage)) = &mut self.end {
            usage.cached_tokens = 0;
        }
        self
    }
}

impl Running {
    /// An engine for `model`, which matches constraints if the model has a tokenizer.
    pub(crate) fn start(model: &Model, setup: &Setup, limits: Limits) -> Self {
        Self::start_after(model, setup, limits, Vec::new()).0
    }

    /// The same, with `requests` submitted before its first step, and their streams.
    pub(crate) fn start_after(
        model: &Model,
        setup: &Setup,
        limits: Limits,
        requests: Vec<ValidRequest>,
    ) -> (Self, Vec<Vec<EventStream>>) {
        let Cluster { forward, nodes, .. } = Cluster::start(model, setup);
        let (engine, inbox) = in_process(info(model), INBOX);
        let options = EngineOptions { limits, kv_blocks: setup.kv_blocks as u32 };
        let mut engine_loop = EngineLoop::new(inbox, forward, options).expect("limits that go together");
        if let Ok(tokenizer) = Tokenizer::of(&model.checkpoint) {
            let vocabulary = Vocabulary::of(&tokenizer, model.config.vocab, &model.config.eos);
            engine_loop = engine_loop.with_vocabulary(vocabulary.expect("a known spelling"));
        }
        let streams = requests.into_iter().map(|request| engine.submit(request).expect("the inbox has room")).collect();
        let thread = std::thread::spawn(move || engine_loop.run());
        (Self { engine: Some(engine), thread: Some(thread), _nodes: nodes }, streams)
    }

    fn engine(&self) -> &InProcessEngine {
        self.engine.as_ref().expect("it is dropped with this")
    }

    pub(crate) fn submit(&self, request: ValidRequest) -> Vec<EventStream> {
        self.engine().submit(request).expect("the inbox has room")
    }

    /// All choices of `request`.
    pub(crate) fn outputs(&self, request: ValidRequest) -> Vec<Output> {
        self.submit(request).into_iter().map(read).collect()
    }

    /// The only choice of `request`.
    pub(crate) fn output(&self, request: ValidRequest) -> Output {
        let mut outputs = self.outputs(request);
        assert_eq!(outputs.len(), 1);
        outputs.remove(0)
    }

    pub(crate) fn status(&self) -> EngineStatus {
        self.engine().status()
    }

    /// The engine's status as soon as it is what `is_so` says.
    pub(crate) fn status_when(&self, what: &str, is_so: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
        let start = Instant::now();
        loop {
            let status = self.status();
            if is_so(&status) {
                return status;
            }
            assert!(start.elapsed() < WATCHDOG, "never {what}: {status:?}");
            std::thread::yield_now();
        }
    }

    /// Fails unless, with nobody there any more, nothing is held.
    pub(crate) fn assert_empty(&self) {
        self.status_when("empty", |s| (s.running, s.waiting, s.kv_used) == (0, 0, 0));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.engine = None;
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the loop panicked");
    }
}

/// Reads a stream to its end.
pub(crate) fn read(mut stream: EventStream) -> Output {
    let (mut tokens, mut prompt, mut embedding, mut started) = (Vec::new(), None, None, None);
    let end = loop {
        match stream.blocking_next().expect("a stream has an end") {
            Event::Started { cached_tokens } => {
                assert!(tokens.is_empty() && prompt.is_none() && embedding.is_none(), "before anything else");
                assert_eq!(started.replace(cached_tokens), None, "once");
            }
            Event::Token(token) => tokens.push(token.into()),
            Event::Prompt(entries) => {
                assert!(tokens.is_empty() && prompt.is_none(), "once, before the tokens");
                prompt = Some(entries.into_iter().map(|entry| entry.map(TokenBits::from)).collect());
            }
            Event::Embedding(values) => embedding = Some(values.into_iter().map(f32::to_bits).collect()),
            Event::Finished { reason, usage } => {
                assert!(tokens.is_empty() || started == Some(usage.cached_tokens), "{started:?}: {usage:?}");
                break Ok((reason, usage));
            }
            Event::Failed(error) => break Err(error),
        }
    };
    assert_eq!(stream.blocking_next(), None, "nothing follows the end");
    Output { tokens, prompt, embedding, end }
}

/// A request for tokens after `prompt`.
pub(crate) fn generate(prompt: &[u32], generation: Generation) -> ValidRequest {
    ValidRequest::generate(0, prompt.to_vec(), generation)
}
