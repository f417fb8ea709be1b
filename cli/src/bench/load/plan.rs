//! What is asked and when: prompts and times of arrival out of a seed. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::LoadArgs;

/// Words of prompts: short and common, so that most tokenizers have one token for each.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "was", "for", "on", "that", "with", "as", "it", "by", "from", "are", "this",
    "be", "or", "at", "one", "have", "not", "but", "all", "they", "he", "his", "had", "new", "more", "time", "year",
    "first", "two", "would", "who", "about", "when", "we", "can", "has", "out", "people", "after", "world", "city",
    "water", "house", "day", "where", "over", "most", "well", "way", "life", "work", "long", "small", "large", "found",
    "river", "north", "wind",
];

/// The body of request `number`.
pub(super) fn request(args: &LoadArgs, model: &str, number: u64) -> Value {
    let mut dice = Dice::new(args.seed, number, Use::Words);
    let words: Vec<&str> = (0..args.prompt_words).map(|_| WORDS[(dice.next() >> 58) as usize]).collect();
    let seed = Dice::new(args.seed, number, Use::Sampling).next() >> 33;
    let mut body = json!({"model": model, "prompt": words.join(" "), "max_tokens": args.output_tokens, "seed": seed,
        "stream": true, "stream_options": {"include_usage": true}});
    if !args.allow_eos {
        body["ignore_eos"] = json!(true);
    }
    body
}

/// When each of `requests` arrives after the first, `rate` a second on average: times between them are exponentially distributed.
pub(super) fn arrivals(seed: u64, requests: usize, rate: f64) -> Vec<Duration> {
    let mut at = 0.0;
    let gap = |number| -Dice::new(seed, number, Use::Arrivals).unit().ln() / rate;
    (0..requests as u64)
        .map(|number| {
            let now = at;
            at += gap(number);
            Duration::from_secs_f64(now)
        })
        .collect()
}

/// What random numbers are for: each use has its own.
#[derive(Clone, Copy)]
enum Use {
    Words,
    Sampling,
    Arrivals,
}

/// Random numbers of one use in one request (SplitMix64, Steele et al., OOPSLA 2014).
struct Dice(u64);

impl Dice {
    fn new(seed: u64, number: u64, purpose: Use) -> Self {
        let mut dice = Self(seed);
        dice.0 = dice.next() ^ number;
        dice.0 = dice.next() ^ purpose as u64;
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::bench::args::{BenchArgs, BenchCommand};

    fn args(more: &[&str]) -> LoadArgs {
        match Cli::try_parse_from([&["tramontane", "bench", "serve"], more].concat()).map(|cli| cli.command) {
            Ok(Command::Bench(BenchArgs { command: BenchCommand::Serve(args) })) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_as_long_as_asked_for_and_differ() {
        let args = args(&["--prompt-words", "30", "--output-tokens", "7"]);
        let bodies: Vec<Value> = (0..50).map(|number| request(&args, "m", number)).collect();
        for body in &bodies {
            let prompt = body["prompt"].as_str().expect("a prompt");
            assert_eq!(prompt.split(' ').count(), 30);
            assert_eq!(
                (&body["max_tokens"], &body["ignore_eos"], &body["stream"]),
                (&json!(7), &json!(true), &json!(true))
            );
        }
        assert_eq!(request(&args, "m", 3), bodies[3], "again");
        assert!(bodies.iter().enumerate().all(|(at, body)| bodies[..at].iter().all(|b| b["prompt"] != body["prompt"])));
        assert!(request(&self::args(&["--allow-eos"]), "m", 0).get("ignore_eos").is_none());
    }

    #[test]
    fn arrivals_ascend_at_their_rate() {
        let times = arrivals(1, 20_000, 50.0);
        assert!(times[0].is_zero() && times.is_sorted());
        let mean = times.last().expect("times").as_secs_f64() / 19_999.0;
        assert!((mean - 0.02).abs() < 0.001, "{mean}");
        assert_eq!(arrivals(1, 3, 50.0), times[..3]);
        assert_ne!(arrivals(2, 3, 50.0), times[..3]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            &["--requests", "0"][..],
            &["--concurrency", "0"],
            &["--rate", "0"],
            &["--rate", "NaN"],
            &["--rate", "1", "--concurrency", "2"],
            &["--ttft", "-1"],
            &["--endpoint", "localhost"],
        ] {
            let parsed = Cli::try_parse_from([&["tramontane", "bench", "serve"], bad].concat());
            assert_eq!(parsed.map(drop).expect_err("refused").exit_code(), 2, "{bad:?}");
        }
    }
}
