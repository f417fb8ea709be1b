//! What is shown of a request to whoever watches: its lines in the log, which carry its id, and its span in a trace, in the words of
//! OpenTelemetry's conventions for HTTP, gRPC and generative AI (<https://opentelemetry.io/docs/specs/semconv/gen-ai/>). Numbers,
//! names and reasons; never what was asked or answered, nor who asked.

use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use tracing::Span;
use tramontane_cluster::engine::Mark;
use tramontane_cluster::trace::{Array, TraceContext, TraceSpan, Value};

use crate::frontdoor::{End, Parameters, Piece, Step, UsageSoFar};

/// Names of what a request's span says.
pub mod names {
    /// `chat`, `text_completion` or `embeddings`.
    pub const OPERATION: &str = "gen_ai.operation.name";
    /// Whose model serving this is.
    pub const PROVIDER: &str = "gen_ai.provider.name";
    /// The model that was asked for.
    pub const REQUEST_MODEL: &str = "gen_ai.request.model";
    /// Tokens to generate, at most.
    pub const REQUEST_MAX_TOKENS: &str = "gen_ai.request.max_tokens";
    /// Randomness.
    pub const REQUEST_TEMPERATURE: &str = "gen_ai.request.temperature";
    /// Of the likeliest tokens, those that together have this probability.
    pub const REQUEST_TOP_P: &str = "gen_ai.request.top_p";
    /// The seed.
    pub const REQUEST_SEED: &str = "gen_ai.request.seed";
    /// Choices.
    pub const REQUEST_CHOICES: &str = "gen_ai.request.choice.count";
    /// Whether the answer comes in pieces.
    pub const REQUEST_STREAM: &str = "gen_ai.request.stream";
    /// The answer's id.
    pub const RESPONSE_ID: &str = "gen_ai.response.id";
    /// The model that answered.
    pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
    /// Why each choice ended, in the order in which they did.
    pub const RESPONSE_FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
    /// Seconds from the engine's being asked to the first piece of an answer.
    pub const RESPONSE_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
    /// Tokens of all prompts.
    pub const USAGE_INPUT: &str = "gen_ai.usage.input_tokens";
    /// Tokens generated.
    pub const USAGE_OUTPUT: &str = "gen_ai.usage.output_tokens";
    /// Of the prompts' tokens, those found in the prefix cache.
    pub const USAGE_CACHED: &str = "gen_ai.usage.cache_read.input_tokens";
    /// HTTP's method.
    pub const HTTP_METHOD: &str = "http.request.method";
    /// The route.
    pub const HTTP_ROUTE: &str = "http.route";
    /// HTTP's status.
    pub const HTTP_STATUS: &str = "http.response.status_code";
    /// `grpc`.
    pub const RPC_SYSTEM: &str = "rpc.system";
    /// The service that was called.
    pub const RPC_SERVICE: &str = "rpc.service";
    /// The method that was called.
    pub const RPC_METHOD: &str = "rpc.method";
    /// An engine that was asked to run a request.
    pub const ENGINE: &str = "tramontane.engine";
    /// Tokens that an engine which is gone had generated before.
    pub const RESUMED_AFTER: &str = "tramontane.resumed_after_tokens";
}

const PROVIDER: &str = "tramontane";
/// HTTP's routes whose requests have a span.
const ROUTES: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];
const METHOD: &str = "POST";

/// What a request wants done, in OpenTelemetry's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Chat,
    Completion,
    Embeddings,
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "text_completion",
            Self::Embeddings => "embeddings",
        }
    }
}

/// What is shown of one request. Its span ends with the last clone.
#[derive(Clone, Debug)]
pub struct Shown {
    id: Option<Arc<str>>,
    log: Span,
    span: TraceSpan,
}

impl Default for Shown {
    /// Nothing.
    fn default() -> Self {
        Self { id: None, log: Span::none(), span: TraceSpan::default() }
    }
}

impl Shown {
    /// A request with this id, which is in the log alone so far.
    pub(crate) fn logged(id: &str) -> Self {
        // The level of errors, so that at every level lines of it have its id.
        Self { id: Some(id.into()), log: tracing::error_span!("request", id), span: TraceSpan::default() }
    }

    /// The same, whose caller may come in: over HTTP, to `path`, with `headers`.
    pub(crate) fn over_http(mut self, path: &str, method: &str, headers: &HeaderMap) -> Self {
        if let Some(route) = ROUTES.into_iter().find(|&route| route == path && method == METHOD) {
            self.span = TraceSpan::root(&format!("{METHOD} {route}"), TraceContext::read(headers).as_ref());
            self.span.set(names::HTTP_METHOD, METHOD);
            self.span.set(names::HTTP_ROUTE, route);
        }
        self
    }

    /// The same, whose caller may come in: over gRPC, calling `method` of `service` with `metadata`.
    pub(crate) fn over_grpc(mut self, service: &'static str, method: &'static str, metadata: &HeaderMap) -> Self {
        self.span = TraceSpan::root(&format!("{service}/{method}"), TraceContext::read(metadata).as_ref());
        self.span.set(names::RPC_SYSTEM, "grpc");
        self.span.set(names::RPC_SERVICE, service);
        self.span.set(names::RPC_METHOD, method);
        self
    }

    /// What goes with the request to engines.
    pub(crate) fn mark(&self) -> Mark {
        Mark { id: self.id.clone(), trace: self.span.context().cloned() }
    }

    /// Around what is done for it: what is logged then has its id.
    pub(crate) fn log(&self) -> &Span {
        &self.log
    }

    /// It asks for this, of `model`.
    pub(crate) fn asks(&self, operation: Operation, model: &str) {
        if self.span.is_shown() {
            self.span.rename(format!("{} {model}", operation.name()));
            self.span.set(names::OPERATION, operation.name());
            self.span.set(names::PROVIDER, PROVIDER);
            self.span.set(names::REQUEST_MODEL, model.to_owned());
        }
    }

    /// It asks for it in this way.
    pub(crate) fn parameters(&self, parameters: &Parameters) {
        if self.span.is_shown() {
            let whole = [
                (names::REQUEST_MAX_TOKENS, parameters.max_tokens.as_ref().map(|named| named.value)),
                (names::REQUEST_SEED, parameters.seed),
                (names::REQUEST_CHOICES, parameters.n),
            ];
            let real = [(names::REQUEST_TEMPERATURE, parameters.temperature), (names::REQUEST_TOP_P, parameters.top_p)];
            whole.into_iter().filter_map(|(name, value)| Some((name, value?))).for_each(|(n, v)| self.span.set(n, v));
            real.into_iter().filter_map(|(name, value)| Some((name, value?))).for_each(|(n, v)| self.span.set(n, v));
        }
    }

    /// Its answer has this id, and comes in pieces or whole.
    pub(crate) fn answers(&self, id: &str, stream: bool) {
        if self.span.is_shown() {
            self.span.set(names::RESPONSE_ID, id.to_owned());
            self.streams(stream);
        }
    }

    /// Its answer comes in pieces or whole.
    pub(crate) fn streams(&self, stream: bool) {
        self.span.set(names::REQUEST_STREAM, stream);
    }

    /// It is answered with this status of HTTP's; what is streamed follows.
    pub(crate) fn answered(&self, status: u16) {
        self.log.in_scope(|| tracing::debug!(status, "answered"));
        self.span.set(names::HTTP_STATUS, i64::from(status));
    }

    /// It is refused, or has failed, for this reason.
    pub(crate) fn fail(&self, reason: &'static str) {
        self.span.fail(reason);
    }

    /// `model` has answered it with so many tokens.
    pub(crate) fn used(&self, model: &str, usage: UsageSoFar) {
        if self.span.is_shown() {
            self.span.set(names::RESPONSE_MODEL, model.to_owned());
            self.span.count(names::USAGE_INPUT, usage.prompt);
            self.span.count(names::USAGE_OUTPUT, usage.completion);
            usage.cached.into_iter().for_each(|cached| self.span.count(names::USAGE_CACHED, cached));
        }
    }

    /// An answer to it begins to be read now; nothing where nobody is shown that.
    pub(crate) fn answer(&self, model: &str) -> Option<Box<ShownAnswer>> {
        let answer = || ShownAnswer {
            request: self.clone(),
            model: model.to_owned(),
            since: Instant::now(),
            begun: false,
            reasons: Vec::new(),
        };
        self.span.is_shown().then(|| Box::new(answer()))
    }
}

/// An answer on its way, as it is shown.
pub(crate) struct ShownAnswer {
    request: Shown,
    model: String,
    since: Instant,
    begun: bool,
    /// Why choices have ended.
    reasons: Vec<&'static str>,
}

impl ShownAnswer {
    /// `step` has come.
    pub(crate) fn step(&mut self, step: &Step) {
        if !std::mem::replace(&mut self.begun, true) {
            self.request.span.set(names::RESPONSE_FIRST_CHUNK, self.since.elapsed().as_secs_f64());
        }
        let ends = step.pieces.iter().filter_map(|piece| match piece {
            Piece::End(End { reason, .. }) => Some(reason.name()),
            _ => None,
        });
        self.reasons.extend(ends);
    }

    /// It has failed, for this reason.
    pub(crate) fn fail(&self, reason: &'static str) {
        self.request.fail(reason);
    }

    /// It is over, or nobody reads it any more.
    pub(crate) fn end(&mut self, usage: UsageSoFar) {
        let reasons = self.reasons.iter().map(|&reason| reason.into()).collect();
        self.request.span.set(names::RESPONSE_FINISH_REASONS, Value::Array(Array::String(reasons)));
        self.request.used(&self.model, usage);
    }
}
