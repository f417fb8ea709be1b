//! Sends the load, and notes when what came.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{LoadArgs, plan};
use crate::client::{ClientError, Endpoint};
use crate::progress::Progress;

/// What a reader saw of one answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// Until the first text.
    pub(super) first: Duration,
    /// Between two pieces of text, each time.
    pub(super) gaps: Vec<Duration>,
    /// Until the end.
    pub(super) whole: Duration,
    pub(super) prompt_tokens: u64,
    pub(super) output_tokens: u64,
}

/// What came of a run.
pub(super) struct Run {
    /// One a request, in the order in which they ended; an error by its name.
    pub(super) outcomes: Vec<Result<Seen, String>>,
    /// From the first request to the last end.
    pub(super) took: Duration,
}

/// Makes all requests.
pub(super) async fn run(args: &Arc<LoadArgs>, endpoint: &Endpoint, model: &str) -> Run {
    let progress = Progress::start("requests", args.requests as u64);
    let begun = Instant::now();
    let arrivals = args.rate.map(|rate| plan::arrivals(args.seed, args.requests, rate));
    let mut running = JoinSet::new();
    let mut outcomes = Vec::with_capacity(args.requests);
    let mut sent = 0;
    while outcomes.len() < args.requests {
        let due = match &arrivals {
            _ if sent == args.requests => None,
            Some(times) => Some(begun + times[sent]),
            None if running.len() < args.concurrency => Some(begun),
            None => None,
        };
        tokio::select! {
            () = sleep_until(due.unwrap_or(begun)), if due.is_some() => {
                let body = plan::request(args, model, sent as u64);
                let endpoint = endpoint.clone();
                running.spawn(async move { one(&endpoint, &body).await });
                sent += 1;
            }
            Some(outcome) = running.join_next(), if !running.is_empty() => {
                outcomes.push(match outcome {
                    Ok(outcome) => outcome.map_err(|error| error.name()),
                    Err(_) => Err("panicked".to_owned()),
                });
                progress.set(outcomes.len() as u64);
            }
        }
    }
    Run { outcomes, took: begun.elapsed() }
}

/// Makes one request.
async fn one(endpoint: &Endpoint, body: &serde_json::Value) -> Result<Seen, ClientError> {
    let begun = Instant::now();
    let mut stream = endpoint.stream("/v1/completions", body).await?;
    let (mut seen, mut last) = (Seen::default(), None);
    while let Some(event) = stream.next().await? {
        let now = Instant::now();
        if event["usage"].is_object() {
            seen.prompt_tokens = event["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
            seen.output_tokens = event["usage"]["completion_tokens"].as_u64().unwrap_or(0);
        }
        if event["choices"][0]["text"].as_str().is_none_or(str::is_empty) {
            continue;
        }
        match last.replace(now) {
            None => seen.first = now - begun,
            Some(before) => seen.gaps.push(now - before),
        }
    }
    seen.whole = begun.elapsed();
    if last.is_none() {
        // Nothing but tokens without text.
        seen.first = seen.whole;
    }
    Ok(seen)
}
