//! Holds logits to what Hugging Face transformers computes for the same prompts.

use super::fixture::{Fixture, Prompt, breeze, cases};
use super::model::Model;
use super::steps::Logits;

/// The cases there are.
pub(crate) const CASES: [&str; 13] = [
    "experts16_top4",
    "f16",
    "gqa",
    "head_dim",
    "long",
    "mha",
    "qwen3moe",
    "qwen3moe_bf16",
    "qwen3moe_tied",
    "sharded",
    "tied",
    "top1",
    "window",
];
/// Positions of all cases and of the demo model's prompts.
pub(crate) const POSITIONS: usize = 2719;
/// Of these, positions with a margin above [`F32_RULE`]'s, and above [`F16_RULE`]'s.
pub(crate) const DECIDED: [usize; 2] = [2589, 2257];

/// What a computation is held to.
#[derive(Clone, Copy)]
pub(crate) struct Rule {
    /// The greedy token must be the reference's where its first logit exceeds its second by more.
    pub(crate) margin: f64,
    /// How far a log-probability may be off.
    pub(crate) tolerance: f64,
}

/// Exact keys and values.
pub(crate) const F32_RULE: Rule = Rule { margin: 0.05, tolerance: 2e-3 };
/// Keys and values rounded to f16. Where two experts are nearly even the rounding chooses the other one, and then that
/// position's probabilities are others, so no tolerance would say anything.
pub(crate) const F16_RULE: Rule = Rule { margin: 0.2, tolerance: f64::INFINITY };

/// All weights of the demo model rounded to four bits and more.
pub(crate) const QUANTIZED_RULE: Rule = Rule { margin: 2.0, tolerance: f64::INFINITY };
/// Positions of the demo model with a larger margin.
pub(crate) const CLEAR: usize = 195;

/// How a computation fared against the reference.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) positions: usize,
    /// Positions whose greedy token was compared.
    pub(crate) decided: usize,
    /// The largest deviation of a log-probability.
    pub(crate) worst: f64,
    pub(crate) wrong: Vec<String>,
}

impl Verdict {
    /// Compares the logits of all prompts of `fixture`.
    pub(crate) fn of(fixture: &Fixture, computed: &[Logits], rule: Rule) -> Self {
        assert_eq!(computed.len(), fixture.prompts.len());
        let mut verdict = Self::default();
        for (i, (prompt, logits)) in fixture.prompts.iter().zip(computed).enumerate() {
            verdict.judge(&format!("{}, prompt {i}", fixture.case), prompt, logits, rule);
        }
        verdict
    }

    /// Compares one prompt's `logits`.
    pub(crate) fn judge(&mut self, name: &str, prompt: &Prompt, logits: &Logits, rule: Rule) {
        assert_eq!(logits.len(), prompt.ids.len(), "{name}: logits of every position");
        for (position, row) in logits.iter().enumerate() {
            self.positions += 1;
            if prompt.margin[position] > rule.margin {
                self.decided += 1;
                let (found, expected) = (greedy(row), prompt.argmax[position]);
                if found != expected {
                    self.wrong.push(format!("{name}, position {position}: token {found}, not {expected}"));
                }
            }
            let top = prompt.top[position].iter().copied().zip(prompt.top_logprobs[position]);
            let next = prompt.ids.get(position + 1).copied().zip(prompt.next_logprob.get(position).copied());
            let log_sum = log_sum(row);
            for (token, expected) in top.chain(next) {
                let found = f64::from(row[token as usize]) - log_sum;
                let deviation = (found - expected).abs();
                self.worst = self.worst.max(deviation);
                if deviation.is_nan() || deviation > rule.tolerance {
                    let at = format!("{name}, position {position}, token {token}");
                    self.wrong.push(format!("{at}: log-probability {found}, not {expected}"));
                }
            }
        }
    }
}

/// The likeliest token, the lowest of equals.
pub(crate) fn greedy(row: &[f32]) -> u32 {
    let best =
        row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &l)| if l > best.1 { (i, l) } else { best });
    best.0 as u32
}

/// ln Σ exp, in f64 and with the platform's functions: not the engine's own arithmetic.
pub(crate) fn log_sum(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(max) + row.iter().map(|&l| f64::from(l - max).exp()).sum::<f64>().ln()
}

/// Runs `compute` (prompts to logits) on every case and on the demo model, and says how it fared by `rule`.
pub(crate) fn fared(who: &str, rule: Rule, compute: impl Fn(&Model, &[Vec<u32>]) -> Vec<Logits>) -> Verdict {
    let cases = cases();
    assert_eq!(cases.iter().map(|case| case.case.as_str()).collect::<Vec<_>>(), CASES);
    let cases = cases.into_iter().map(|case| (Model::golden(&case.case), case));
    let mut total = Verdict::default();
    for (model, fixture) in cases.chain([(Model::breeze(), breeze())]) {
        let (case, verdict) = (&fixture.case, Verdict::of(&fixture, &compute(&model, &fixture.ids()), rule));
        println!(
            "{who}: {case}: {} positions, {} decided, worst log-probability off by {:.1e}",
            verdict.positions, verdict.decided, verdict.worst
        );
        total.positions += verdict.positions;
        total.decided += verdict.decided;
        total.worst = total.worst.max(verdict.worst);
        total.wrong.extend(verdict.wrong);
    }
    total
}

/// The same, held to `rule` everywhere, and to as many positions `decided`.
pub(crate) fn hold(who: &str, rule: Rule, decided: usize, compute: impl Fn(&Model, &[Vec<u32>]) -> Vec<Logits>) {
    let total = fared(who, rule, compute);
    assert!(total.wrong.is_empty(), "{who}: {} wrong:\n  {}", total.wrong.len(), total.wrong.join("\n  "));
    assert_eq!((total.positions, total.decided), (POSITIONS, decided), "{who}: something was not compared");
}
