//! What the front door and the engine behind it are counted by. Names, meanings and buckets are vLLM's
//! (<https://docs.vllm.ai/en/latest/usage/metrics.html>) under the prefix `tramontane_`. No label names a key, a user or anything
//! that a request says.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tramontane_cluster::engine::{Engine, Event};
use tramontane_cluster::metrics::REQUEST_TIMES;

/// The metrics' names, without their prefix; of counters without `_total`.
pub mod names {
    /// Choices that have ended well, by `finished_reason`.
    pub const REQUEST_SUCCESS: &str = "request_success";
    /// Requests that were refused or failed, by `reason`: the error's code.
    pub const REQUESTS_REJECTED: &str = "requests_rejected";
    /// Prompt tokens.
    pub const PROMPT_TOKENS: &str = "prompt_tokens";
    /// Generated tokens.
    pub const GENERATION_TOKENS: &str = "generation_tokens";
    /// From a request's submission to its first token.
    pub const TIME_TO_FIRST_TOKEN: &str = "time_to_first_token_seconds";
    /// Between two tokens of a choice.
    pub const INTER_TOKEN_LATENCY: &str = "inter_token_latency_seconds";
    /// From a request's submission to a choice's end.
    pub const E2E_REQUEST_LATENCY: &str = "e2e_request_latency_seconds";
    /// From a choice's first token to its last.
    pub const REQUEST_DECODE_TIME: &str = "request_decode_time_seconds";
    /// Tokens of a prompt.
    pub const REQUEST_PROMPT_TOKENS: &str = "request_prompt_tokens";
    /// Tokens of a completion.
    pub const REQUEST_GENERATION_TOKENS: &str = "request_generation_tokens";
    /// Sequences that hold KV blocks.
    pub const NUM_REQUESTS_RUNNING: &str = "num_requests_running";
    /// Sequences that wait.
    pub const NUM_REQUESTS_WAITING: &str = "num_requests_waiting";
    /// Share of the KV blocks that sequences hold, 0 to 1.
    pub const KV_CACHE_USAGE: &str = "kv_cache_usage_perc";
    /// Sequences that have lost their blocks to older ones.
    pub const NUM_PREEMPTIONS: &str = "num_preemptions";
    /// Prompt tokens looked up in the prefix cache.
    pub const PREFIX_CACHE_QUERIES: &str = "prefix_cache_queries";
    /// Prompt tokens found there.
    pub const PREFIX_CACHE_HITS: &str = "prefix_cache_hits";
}

const FIRST_TOKEN: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
const BETWEEN_TOKENS: [f64; 19] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const TOKENS: [f64; 15] =
    [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejected {
    reason: &'static str,
}

/// Counts of a front door's requests. Clones count together.
#[derive(Clone, Debug)]
pub struct FrontMetrics {
    success: Family<Finished, Counter>,
    rejected: Family<Rejected, Counter>,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    first_token: Histogram,
    between_tokens: Histogram,
    whole: Histogram,
    decode: Histogram,
    prompts: Histogram,
    completions: Histogram,
}

impl Default for FrontMetrics {
    fn default() -> Self {
        Self {
            success: Family::default(),
            rejected: Family::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            first_token: Histogram::new(FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            whole: Histogram::new(REQUEST_TIMES),
            decode: Histogram::new(REQUEST_TIMES),
            prompts: Histogram::new(TOKENS),
            completions: Histogram::new(TOKENS),
        }
    }
}

impl FrontMetrics {
    /// Shows them in `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(names::REQUEST_SUCCESS, "Choices that have ended well", self.success.clone());
        registry.register(names::REQUESTS_REJECTED, "Requests refused or failed", self.rejected.clone());
        registry.register(names::PROMPT_TOKENS, "Prompt tokens", self.prompt_tokens.clone());
        registry.register(names::GENERATION_TOKENS, "Generated tokens", self.generation_tokens.clone());
        for (name, help, histogram) in [
            (names::TIME_TO_FIRST_TOKEN, "From submission to the first token", &self.first_token),
            (names::INTER_TOKEN_LATENCY, "Between two tokens of a choice", &self.between_tokens),
            (names::E2E_REQUEST_LATENCY, "From submission to the end", &self.whole),
            (names::REQUEST_DECODE_TIME, "From the first token to the last", &self.decode),
            (names::REQUEST_PROMPT_TOKENS, "Tokens of a prompt", &self.prompts),
            (names::REQUEST_GENERATION_TOKENS, "Tokens of a completion", &self.completions),
        ] {
            registry.register(name, help, histogram.clone());
        }
    }

    /// A request was refused, or has failed, for this reason.
    pub(crate) fn reject(&self, reason: &'static str) {
        self.rejected.get_or_create(&Rejected { reason }).inc();
    }

    /// A prompt of so many tokens goes to the engine.
    pub(crate) fn prompt(&self, tokens: usize) {
        self.prompt_tokens.inc_by(tokens as u64);
        self.prompts.observe(tokens as f64);
    }

    /// A choice that is submitted at `now`.
    pub(crate) fn choice(&self, now: Instant) -> ChoiceMetrics {
        ChoiceMetrics { metrics: self.clone(), submitted: now, first: None, last: now, tokens: 0 }
    }
}

/// One choice on its way.
#[derive(Debug)]
pub(crate) struct ChoiceMetrics {
    metrics: FrontMetrics,
    submitted: Instant,
    first: Option<Instant>,
    last: Instant,
    tokens: u64,
}

impl ChoiceMetrics {
    /// `event` has come at `now`.
    pub(crate) fn on(&mut self, event: &Event, now: Instant) {
        if let Event::Token(_) = event {
            match self.first {
                None => self.metrics.first_token.observe((now - self.submitted).as_secs_f64()),
                Some(_) => self.metrics.between_tokens.observe((now - self.last).as_secs_f64()),
            }
            self.first.get_or_insert(now);
            self.last = now;
            self.tokens += 1;
            self.metrics.generation_tokens.inc();
        }
    }

    /// It has ended well at `now`, for this reason: perhaps before the engine said so, by a stop string.
    pub(crate) fn end(&self, finished_reason: &'static str, now: Instant) {
        let metrics = &self.metrics;
        metrics.success.get_or_create(&Finished { finished_reason }).inc();
        metrics.whole.observe((now - self.submitted).as_secs_f64());
        metrics.completions.observe(self.tokens as f64);
        if let Some(first) = self.first {
            metrics.decode.observe((self.last - first).as_secs_f64());
        }
    }
}

/// How an engine fares, asked whenever somebody looks.
pub struct EngineCollector(pub Arc<dyn Engine>);

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EngineCollector({})", self.0.info().model)
    }
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let status = self.0.status();
        let used = if status.kv_total == 0 { 0.0 } else { status.kv_used as f64 / status.kv_total as f64 };
        for (name, help, value) in [
            (names::NUM_REQUESTS_RUNNING, "Sequences that hold KV blocks", status.running as f64),
            (names::NUM_REQUESTS_WAITING, "Sequences that wait", status.waiting as f64),
            (names::KV_CACHE_USAGE, "Share of the KV blocks that sequences hold", used),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        for (name, help, value) in [
            (names::NUM_PREEMPTIONS, "Sequences that have lost their blocks to older ones", status.preemptions),
            (names::PREFIX_CACHE_QUERIES, "Prompt tokens looked up in the prefix cache", status.prefix_queries),
            (names::PREFIX_CACHE_HITS, "Prompt tokens found in the prefix cache", status.prefix_hits),
        ] {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text;
    use tramontane_cluster::engine::Token;

    use super::*;

    #[test]
    fn a_choice_is_counted_once_with_its_times() {
        let metrics = FrontMetrics::default();
        let mut registry = Registry::with_prefix("tramontane");
        metrics.register(&mut registry);
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        metrics.prompt(7);
        let mut choice = metrics.choice(start);
        for milliseconds in [300, 330, 390] {
            choice.on(&Event::Token(Token { id: 1, logprob: 0.0, top: vec![] }), at(milliseconds));
        }
        choice.end("stop", at(400));
        metrics.reject("overloaded");
        let mut shown = String::new();
        text::encode(&mut shown, &registry).expect("a text");
        for line in [
            "tramontane_request_success_total{finished_reason=\"stop\"} 1",
            "tramontane_requests_rejected_total{reason=\"overloaded\"} 1",
            "tramontane_prompt_tokens_total 7",
            "tramontane_generation_tokens_total 3",
            "tramontane_time_to_first_token_seconds_bucket{le=\"0.25\"} 0",
            "tramontane_time_to_first_token_seconds_bucket{le=\"0.5\"} 1",
            "tramontane_inter_token_latency_seconds_bucket{le=\"0.05\"} 1",
            "tramontane_inter_token_latency_seconds_count 2",
            "tramontane_e2e_request_latency_seconds_bucket{le=\"0.5\"} 1",
            "tramontane_request_decode_time_seconds_count 1",
            "tramontane_request_generation_tokens_sum 3.0",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
        }
    }
}
