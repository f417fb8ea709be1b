//! Traces: the context that goes with a request from process to process, and spans under it. OpenTelemetry's crates stand behind
//! this; no other crate but `cli`, which exports spans, knows them.
//!
//! Work whose trace is not recorded has no context, and its spans are none: a branch is all that it costs. Exported are the spans
//! made here, which have the target [`TARGET`], and they alone; logs leave them out.
//!
//! What a span says is bounded by who calls [`TraceSpan::set`]: numbers, names and reasons, never what was asked or answered.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tramontane_router::TraceIds;

pub use opentelemetry::{Array, StringValue, Value};

/// The target of all spans that are exported.
pub const TARGET: &str = "tramontane::trace";
/// Longest `tracestate` that goes on, in bytes; the standard asks for 512 at least. A longer one is dropped, its request's place in
/// the trace is not.
const MAX_STATE: usize = 512;
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// Names of what spans say, where no convention of OpenTelemetry has one; and of the one that all say when they fail.
pub mod names {
    /// Why it failed, as a word.
    pub const ERROR_TYPE: &str = "error.type";
    /// The expert node.
    pub const NODE: &str = "tramontane.node";
    /// The decoder layer.
    pub const LAYER: &str = "tramontane.layer";
    /// Rows that experts compute: one a token and expert.
    pub const ROWS: &str = "tramontane.rows";
    /// Experts that compute them.
    pub const EXPERTS: &str = "tramontane.experts";
    /// Batches, of one coordinator or several, that a node has computed together.
    pub const MERGED: &str = "tramontane.merged_batches";
}

/// A place in a trace, here or in another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext(SpanContext);

impl TraceContext {
    /// What `headers` carry (W3C Trace Context), recorded or not; `None` where that is nothing, or not sound.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let read = TraceContextPropagator::new().extract_with_context(&Context::new(), &Read(headers));
        let context = read.span().span_context().clone();
        context.is_valid().then_some(Self(context))
    }

    /// Writes it to `headers`.
    pub fn write(&self, headers: &mut HeaderMap) {
        TraceContextPropagator::new().inject_context(&self.context(), &mut Write(headers));
    }

    /// What goes with rows: the ids of what is recorded.
    pub fn ids(&self) -> TraceIds {
        let mut ids = [0; TraceIds::BYTES];
        ids[..16].copy_from_slice(&self.0.trace_id().to_bytes());
        ids[16..].copy_from_slice(&self.0.span_id().to_bytes());
        TraceIds(ids)
    }

    /// Whether what happens there is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.is_sampled()
    }

    /// Whether it is in another process.
    pub fn is_remote(&self) -> bool {
        self.0.is_remote()
    }

    fn context(&self) -> Context {
        Context::new().with_remote_span_context(self.0.clone())
    }
}

impl From<TraceIds> for TraceContext {
    fn from(TraceIds(ids): TraceIds) -> Self {
        let (mut trace, mut span) = ([0; 16], [0; 8]);
        trace.copy_from_slice(&ids[..16]);
        span.copy_from_slice(&ids[16..]);
        let (trace, span) = (TraceId::from_bytes(trace), SpanId::from_bytes(span));
        Self(SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE))
    }
}

/// Which end of a call a span is, for whoever draws who asks whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The one that asks.
    Client,
    /// The one that is asked.
    Server,
    /// Neither.
    Internal,
}

impl Kind {
    /// The kind of a span that begins under `parent`: the far end of a call where that is in another process.
    pub fn under(parent: &TraceContext) -> Self {
        if parent.is_remote() { Self::Server } else { Self::Internal }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Internal => "internal",
        }
    }
}

/// Something that is shown in a trace, until the last clone is dropped; nothing where its trace is not recorded.
#[derive(Clone, Debug)]
pub struct TraceSpan {
    span: Span,
    context: Option<TraceContext>,
}

impl Default for TraceSpan {
    /// Nothing.
    fn default() -> Self {
        Self { span: Span::none(), context: None }
    }
}

impl TraceSpan {
    /// The first span of a request in this cluster, whose caller may have been at `caller` in a trace. Whether it is recorded, the
    /// caller decides if he has one, else this process's sampler.
    pub fn root(name: &str, caller: Option<&TraceContext>) -> Self {
        Self::open(name, Kind::Server, caller)
    }

    /// Something under `parent`; nothing where that is nothing.
    pub fn begin(name: &str, kind: Kind, parent: Option<&TraceContext>) -> Self {
        match parent {
            None => Self::default(),
            Some(parent) => Self::open(name, kind, Some(parent)),
        }
    }

    fn open(name: &str, kind: Kind, parent: Option<&TraceContext>) -> Self {
        let span = tracing::info_span!(target: TARGET, parent: None, "span", otel.name = name, otel.kind = kind.name());
        if span.is_disabled() {
            // Nothing is exported here. What is recorded elsewhere hangs together all the same.
            let context = parent.filter(|parent| parent.is_recorded()).cloned();
            return Self { span: Span::none(), context };
        }
        if let Some(parent) = parent {
            // Fails only for a span that is disabled, or has begun.
            _ = span.set_parent(parent.context());
        }
        let context = TraceContext(span.context().span().span_context().clone());
        if context.is_recorded() { Self { span, context: Some(context) } } else { Self::default() }
    }

    /// Where it is in its trace; `None` where that is not recorded.
    pub fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Whether it is shown.
    pub fn is_shown(&self) -> bool {
        !self.span.is_disabled()
    }

    /// Says something of it. What takes time to find out, ask [`TraceSpan::is_shown`] first.
    pub fn set(&self, name: &'static str, value: impl Into<Value>) {
        if self.is_shown() {
            self.span.set_attribute(name, value);
        }
    }

    /// Says a number of it.
    pub fn count(&self, name: &'static str, count: usize) {
        self.set(name, i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Calls it otherwise.
    pub fn rename(&self, name: String) {
        if self.is_shown() {
            self.span.context().span().update_name(name);
        }
    }

    /// It has failed, and `why` is the word for it.
    pub fn fail(&self, why: &'static str) {
        if self.is_shown() {
            self.span.set_attribute(names::ERROR_TYPE, why);
            self.span.set_status(Status::Error { description: Cow::Borrowed("") });
        }
    }

    /// It has to do with what is at `other`, which may be another trace.
    pub fn link(&self, other: &TraceContext) {
        if self.is_shown() {
            self.span.add_link(other.0.clone());
        }
    }
}

struct Read<'a>(&'a HeaderMap);

impl Extractor for Read<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?.to_str().ok()?;
        (key != STATE.as_str() || value.len() <= MAX_STATE).then_some(value)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Write<'a>(&'a mut HeaderMap);

impl Injector for Write<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes()).ok();
        if let (Some(name), Ok(value), false) = (name, HeaderValue::try_from(&value), value.is_empty()) {
            self.0.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(parent: &str, state: &str) -> HeaderMap {
        let value = |text: &str| HeaderValue::try_from(text).expect("a header's value");
        HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value(parent)), (STATE, value(state))])
    }

    #[test]
    fn a_context_survives_headers_and_what_is_no_context_is_none() {
        let read = TraceContext::read(&headers(PARENT, "congo=t61")).expect("a context");
        assert!(read.is_recorded() && read.is_remote());
        let mut written = HeaderMap::new();
        read.write(&mut written);
        assert_eq!(written, headers(PARENT, "congo=t61"));
        let unrecorded = TraceContext::read(&headers(&PARENT.replace("-01", "-00"), "")).expect("a context");
        assert!(!unrecorded.is_recorded());
        for bad in ["", "00", &PARENT.replace("b7ad6b7169203331", "0000000000000000"), &PARENT.replace("0af", "0AG")] {
            assert_eq!(TraceContext::read(&headers(bad, "")), None, "{bad}");
        }
        assert_eq!(TraceContext::read(&HeaderMap::new()), None);
    }

    #[test]
    fn a_state_that_is_too_long_is_left_behind() {
        let read = TraceContext::read(&headers(PARENT, &format!("a={}", "x".repeat(MAX_STATE)))).expect("a context");
        let mut written = HeaderMap::new();
        read.write(&mut written);
        assert_eq!(written.len(), 1, "{written:?}");
    }

    #[test]
    fn ids_are_those_of_the_context() {
        let read = TraceContext::read(&headers(PARENT, "")).expect("a context");
        assert_eq!(TraceContext::from(read.ids()), read);
    }

    #[test]
    fn where_nothing_is_exported_spans_are_nothing_and_the_context_goes_on() {
        let read = TraceContext::read(&headers(PARENT, "")).expect("a context");
        let span = TraceSpan::begin("step", Kind::Internal, Some(&read));
        assert_eq!((span.is_shown(), span.context()), (false, Some(&read)));
        assert_eq!(TraceSpan::begin("step", Kind::Internal, None).context(), None);
        assert_eq!(TraceSpan::root("request", None).context(), None);
    }
}
