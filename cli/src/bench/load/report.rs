//! What a run comes to: percentiles, rates, goodput; as a table or as JSON. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::LoadArgs;
use super::measure::{Run, Seen};

/// What is printed.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    endpoint: String,
    model: String,
    load: Load,
    requests: usize,
    completed: usize,
    /// How many failed, by what they failed with.
    errors: BTreeMap<String, usize>,
    seconds: f64,
    prompt_tokens: u64,
    output_tokens: u64,
    output_tokens_per_second: f64,
    requests_per_second: f64,
    /// Milliseconds until the first text; `null` where nothing completed.
    ttft_ms: Option<Percentiles>,
    /// Milliseconds between two pieces of text.
    itl_ms: Option<Percentiles>,
    /// Milliseconds until the end.
    e2e_ms: Option<Percentiles>,
    /// Where bounds were given.
    goodput: Option<Goodput>,
}

/// What was sent.
#[derive(Debug, Serialize)]
struct Load {
    concurrency: Option<usize>,
    rate: Option<f64>,
    prompt_words: usize,
    output_tokens: usize,
    seed: u64,
}

/// Requests within the bounds.
#[derive(Debug, PartialEq, Serialize)]
struct Goodput {
    ttft_ms: Option<f64>,
    itl_ms: Option<f64>,
    requests: usize,
    requests_per_second: f64,
}

/// Some numbers in a few.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Percentiles {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    /// Of durations in any order, in milliseconds; each percentile is one of them (nearest rank). `None` of none.
    fn of(durations: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut sorted: Vec<f64> = durations.map(|duration| duration.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let max = *sorted.last()?;
        let rank = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1];
        let mean = sorted.iter().sum::<f64>() / sorted.len() as f64;
        Some(Self { mean, p50: rank(50), p90: rank(90), p99: rank(99), max })
    }
}

/// The report of `run`.
pub(super) fn report(args: &LoadArgs, endpoint: String, model: String, run: &Run) -> Report {
    let seen: Vec<&Seen> = run.outcomes.iter().flatten().collect();
    let mut errors = BTreeMap::new();
    for error in run.outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        *errors.entry(error.clone()).or_insert(0) += 1;
    }
    let seconds = run.took.as_secs_f64();
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(|seen| of(seen)).sum::<u64>();
    let output_tokens = sum(|seen| seen.output_tokens);
    Report {
        endpoint,
        model,
        load: Load {
            concurrency: args.rate.is_none().then_some(args.concurrency),
            rate: args.rate,
            prompt_words: args.prompt_words,
            output_tokens: args.output_tokens,
            seed: args.seed,
        },
        requests: run.outcomes.len(),
        completed: seen.len(),
        errors,
        seconds,
        prompt_tokens: sum(|seen| seen.prompt_tokens),
        output_tokens,
        output_tokens_per_second: output_tokens as f64 / seconds,
        requests_per_second: seen.len() as f64 / seconds,
        ttft_ms: Percentiles::of(seen.iter().map(|seen| seen.first)),
        itl_ms: Percentiles::of(seen.iter().flat_map(|seen| seen.gaps.iter().copied())),
        e2e_ms: Percentiles::of(seen.iter().map(|seen| seen.whole)),
        goodput: goodput(args, &seen, seconds),
    }
}

fn goodput(args: &LoadArgs, seen: &[&Seen], seconds: f64) -> Option<Goodput> {
    if args.ttft.is_none() && args.itl.is_none() {
        return None;
    }
    let within = |time: Duration, bound: Option<f64>| bound.is_none_or(|bound| time.as_secs_f64() * 1e3 <= bound);
    let apart = |seen: &Seen| seen.gaps.iter().sum::<Duration>() / seen.gaps.len().max(1) as u32;
    let good = seen.iter().filter(|seen| within(seen.first, args.ttft) && within(apart(seen), args.itl)).count();
    let requests_per_second = good as f64 / seconds;
    Some(Goodput { ttft_ms: args.ttft, itl_ms: args.itl, requests: good, requests_per_second })
}

/// For people.
pub(super) fn table(report: &Report) -> String {
    let Report { requests, completed, seconds, prompt_tokens, output_tokens, .. } = report;
    let how = match (report.load.rate, report.load.concurrency) {
        (Some(rate), _) => format!("{rate} a second"),
        (None, at_once) => format!("{} at once", at_once.unwrap_or(0)),
    };
    // Writing to a string does not fail.
    let mut text = format!("{} at {}: {requests} requests, {how}\n\n", report.model, report.endpoint);
    _ = writeln!(text, "completed  {completed} in {seconds:.2} s ({:.2} a second)", report.requests_per_second);
    for (error, count) in &report.errors {
        _ = writeln!(text, "failed     {count}: {error}");
    }
    let rate = report.output_tokens_per_second;
    _ = writeln!(text, "tokens     {prompt_tokens} of prompts, {output_tokens} generated ({rate:.1} a second)");
    if let Some(Goodput { requests, requests_per_second, .. }) = &report.goodput {
        _ = writeln!(text, "goodput    {requests} ({requests_per_second:.2} a second)");
    }
    _ = writeln!(text, "\n{:<22} {:>9} {:>9} {:>9} {:>9} {:>9}", "ms", "mean", "p50", "p90", "p99", "max");
    let rows =
        [("to the first token", report.ttft_ms), ("between tokens", report.itl_ms), ("to the end", report.e2e_ms)];
    for (name, Percentiles { mean, p50, p90, p99, max }) in rows.into_iter().filter_map(|(name, of)| Some((name, of?)))
    {
        _ = writeln!(text, "{name:<22} {mean:>9.1} {p50:>9.1} {p90:>9.1} {p99:>9.1} {max:>9.1}");
    }
    text
}

impl Report {
    /// Whether anything was answered.
    pub(super) fn has_completed(&self) -> bool {
        self.completed > 0
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;
    use crate::args::{Cli, Command};
    use crate::bench::args::{BenchArgs, BenchCommand};

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn percentiles_are_numbers_that_were_there() {
        let of = |range: std::ops::RangeInclusive<u64>| Percentiles::of(range.rev().map(ms));
        assert_eq!(of(1..=100), Some(Percentiles { mean: 50.5, p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 }));
        assert_eq!(of(7..=7), Some(Percentiles { mean: 7.0, p50: 7.0, p90: 7.0, p99: 7.0, max: 7.0 }));
        assert_eq!(of(1..=2).map(|of| (of.p50, of.p90)), Some((1.0, 2.0)));
        assert_eq!(Percentiles::of(std::iter::empty()), None);
    }

    #[test]
    fn a_report_counts_what_ended_well_and_what_did_not() {
        let args = ["tramontane", "bench", "serve", "--ttft", "100", "--itl", "10"];
        let Ok(Command::Bench(BenchArgs { command: BenchCommand::Serve(args) })) =
            Cli::try_parse_from(args).map(|cli| cli.command)
        else {
            panic!("a command line")
        };
        let seen = |first, gaps: &[u64]| Seen {
            first: ms(first),
            gaps: gaps.iter().copied().map(ms).collect(),
            whole: ms(first + gaps.iter().sum::<u64>()),
            prompt_tokens: 5,
            output_tokens: 1 + gaps.len() as u64,
        };
        let outcomes = vec![
            Ok(seen(50, &[5, 15])),
            Err("503 overloaded".to_owned()),
            Ok(seen(101, &[5, 5])),
            Ok(seen(50, &[20, 2])),
            Err("503 overloaded".to_owned()),
        ];
        let report = report(&args, "http://x".to_owned(), "m".to_owned(), &Run { outcomes, took: ms(2000) });
        let json: Value = serde_json::to_value(&report).expect("JSON");
        assert_eq!((&json["requests"], &json["completed"]), (&json!(5), &json!(3)));
        assert_eq!(json["errors"], json!({"503 overloaded": 2}));
        assert_eq!((&json["output_tokens"], &json["output_tokens_per_second"]), (&json!(9), &json!(4.5)));
        assert_eq!(
            (&json["ttft_ms"]["p50"], &json["itl_ms"]["max"], &json["e2e_ms"]["max"]),
            (&json!(50.0), &json!(20.0), &json!(111.0))
        );
        assert_eq!((&json["goodput"]["requests"], &json["goodput"]["requests_per_second"]), (&json!(1), &json!(0.5)));
        let table = table(&report);
        for words in [
            "3 in 2.00 s (1.50 a second)",
            "2: 503 overloaded",
            "15 of prompts, 9 generated (4.5 a second)",
            "8 at once",
        ] {
            assert!(table.contains(words), "{words}: {table}");
        }
    }
}
