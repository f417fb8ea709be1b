//! Holds the engine and the oracle to what Hugging Face transformers computes, teacher-forced: the greedy token wherever the
//! reference is decided, and log-probabilities within a tolerance. Another implementation's sums differ in their last bits,
//! so nothing here is `==` but one model's two file formats; `matrix.rs` is.

mod support;

use support::cluster::{Cluster, Setup};
use support::fixture::{Fixture, Prompt, breeze, case, cases};
use support::gguf::{Form, Layout};
use support::model::Model;
use support::steps::{Logits, WHOLE, difference, logits};
use tramontane_kernels::{Isa, KvType, WeightType};
use tramontane_model::reference;
use tramontane_model::weights::Quantize;

/// The cases there are.
const CASES: [&str; 13] = [
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
const POSITIONS: usize = 2719;
/// Of these, positions with a margin above [`F32_RULE`]'s, and above [`F16_RULE`]'s.
const DECIDED: [usize; 2] = [2589, 2257];

/// What a computation is held to.
#[derive(Clone, Copy)]
struct Rule {
    /// The greedy token must be the reference's where its first logit exceeds its second by more.
    margin: f64,
    /// How far a log-probability may be off.
    tolerance: f64,
}

/// Exact keys and values.
const F32_RULE: Rule = Rule { margin: 0.05, tolerance: 2e-3 };
/// Keys and values rounded to f16. Where two experts are nearly even the rounding chooses the other one, and then that
/// position's probabilities are others, so no tolerance would say anything.
const F16_RULE: Rule = Rule { margin: 0.2, tolerance: f64::INFINITY };

/// All weights of the demo model rounded to four bits and more.
const QUANTIZED_RULE: Rule = Rule { margin: 2.0, tolerance: f64::INFINITY };
/// Positions of the demo model with a larger margin.
const CLEAR: usize = 195;

/// How a computation fared against the reference.
#[derive(Debug, Default)]
struct Verdict {
    positions: usize,
    /// Positions whose greedy token was compared.
    decided: usize,
    /// The largest deviation of a log-probability.
    worst: f64,
    wrong: Vec<String>,
}

impl Verdict {
    /// Compares the logits of all prompts of `fixture`.
    fn of(fixture: &Fixture, computed: &[Logits], rule: Rule) -> Self {
        assert_eq!(computed.len(), fixture.prompts.len());
        let mut verdict = Self::default();
        for (i, (prompt, logits)) in fixture.prompts.iter().zip(computed).enumerate() {
            verdict.judge(&format!("{}, prompt {i}", fixture.case), prompt, logits, rule);
        }
        verdict
    }

    /// Compares one prompt's `logits`.
    fn judge(&mut self, name: &str, prompt: &Prompt, logits: &Logits, rule: Rule) {
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
fn greedy(row: &[f32]) -> u32 {
    let best =
        row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, &l)| if l > best.1 { (i, l) } else { best });
    best.0 as u32
}

/// ln Σ exp, in f64 and with the platform's functions: not the engine's own arithmetic.
fn log_sum(row: &[f32]) -> f64 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(max) + row.iter().map(|&l| f64::from(l - max).exp()).sum::<f64>().ln()
}

/// Runs `compute` (prompts to logits) on every case and on the demo model, and holds it to `rule`.
fn hold(who: &str, rule: Rule, decided: usize, compute: impl Fn(&Model, &[Vec<u32>]) -> Vec<Logits>) {
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
        total.wrong.extend(verdict.wrong);
    }
    assert!(total.wrong.is_empty(), "{who}: {} wrong:\n  {}", total.wrong.len(), total.wrong.join("\n  "));
    assert_eq!((total.positions, total.decided), (POSITIONS, decided), "{who}: something was not compared");
}

/// All prompts side by side, on two nodes.
fn engine(isa: Isa, kv: KvType) -> impl Fn(&Model, &[Vec<u32>]) -> Vec<Logits> {
    move |model, prompts| {
        let setup = Setup { isa, nodes: 2, ..Setup::plain(Quantize::AsStored, kv) };
        logits(&mut Cluster::start(model, &setup), prompts, WHOLE)
    }
}

#[test]
fn the_engine_computes_what_the_reference_does() {
    for isa in Isa::available() {
        hold(&format!("{isa}, f32 KV"), F32_RULE, DECIDED[0], engine(isa, KvType::F32));
    }
}

#[test]
fn keys_and_values_in_f16_leave_decided_tokens_alone() {
    let isa = Isa::detect();
    hold(&format!("{isa}, f16 KV"), F16_RULE, DECIDED[1], engine(isa, KvType::F16));
}

#[test]
fn the_oracle_computes_what_the_reference_does() {
    hold("oracle", F32_RULE, DECIDED[0], |model, prompts| {
        let logits = |ids: &Vec<u32>| reference::logits(&model.checkpoint, &model.config, ids);
        prompts.iter().map(|ids| logits(ids).expect("the oracle computes")).collect()
    });
}

/// Fails where the logits of two forms of `case` differ in a bit.
fn same(case: &str, expected: &[Logits], found: &[Logits]) {
    let differences = expected.iter().zip(found).filter_map(|(expected, found)| difference(expected, found));
    assert_eq!(differences.collect::<Vec<_>>(), [""; 0], "{case}");
}

#[test]
fn a_model_in_gguf_computes_what_it_computes_in_safetensors() {
    let compute = engine(Isa::detect(), KvType::F32);
    let (mut permuted, mut as_it_was) = (Vec::new(), Vec::new());
    // GGUF cannot say that a token's weights do not add up to 1.
    let models = cases().into_iter().map(|fixture| (Model::golden(&fixture.case), fixture));
    for (model, fixture) in models.filter(|(model, _)| model.config.renormalise) {
        let [stacked, separate] = [Layout::Stacked, Layout::Separate].map(|layout| {
            let gguf = model.as_gguf(Form::exact(layout));
            assert_eq!(gguf.config.qk_norm, model.config.qk_norm);
            (compute(&gguf, &fixture.ids()), gguf)
        });
        same(&fixture.case, &stacked.0, &separate.0);
        let verdict = Verdict::of(&fixture, &stacked.0, F32_RULE);
        assert!(verdict.wrong.is_empty(), "{} in GGUF:\n  {}", fixture.case, verdict.wrong.join("\n  "));
        // A permuted head's products are added in another order.
        if stacked.1.config.rope_pairs == model.config.rope_pairs {
            same(&fixture.case, &compute(&model, &fixture.ids()), &stacked.0);
            as_it_was.push(fixture.case);
        } else {
            permuted.push(fixture.case);
        }
    }
    // Heads of Qwen3-MoE are as they were, in float32 and in bfloat16.
    assert_eq!(
        (permuted.len(), as_it_was),
        (CASES.len() - 3, ["qwen3moe", "qwen3moe_bf16"].map(str::to_owned).to_vec())
    );
}

#[test]
fn the_types_of_gguf_leave_clear_tokens_alone() {
    let (model, fixture) = (Model::breeze(), breeze());
    for (experts, others) in [
        ([WeightType::Q5_0; 3], WeightType::Q5_1),
        ([WeightType::Q4K, WeightType::Q6K, WeightType::Q4K], WeightType::Q5K),
    ] {
        let form = Form { layout: Layout::Stacked, experts: Some(experts), others: Some(others) };
        let computed = engine(Isa::detect(), KvType::F16)(&model.as_gguf(form), &fixture.ids());
        let verdict = Verdict::of(&fixture, &computed, QUANTIZED_RULE);
        assert!(verdict.wrong.is_empty(), "{}:\n  {}", others.name(), verdict.wrong.join("\n  "));
        assert_eq!(verdict.decided, CLEAR);
    }
}

#[test]
fn the_oracle_reads_gguf_too() {
    for fixture in ["gqa", "qwen3moe"].map(case) {
        let model = Model::golden(&fixture.case).as_gguf(Form::exact(Layout::Stacked));
        let logits = |ids: &Vec<u32>| reference::logits(&model.checkpoint, &model.config, ids);
        let computed: Vec<_> = fixture.ids().iter().map(|ids| logits(ids).expect("the oracle computes")).collect();
        let verdict = Verdict::of(&fixture, &computed, F32_RULE);
        assert!(verdict.wrong.is_empty(), "{}:\n  {}", fixture.case, verdict.wrong.join("\n  "));
    }
}

#[test]
fn a_wrong_token_and_a_wrong_probability_are_seen() {
    let certain = |logit: f32| vec![vec![0.0, logit, 0.0, 0.0, 0.0]];
    let logprobs = |logit: f64| [logit, 0.0, 0.0, 0.0, 0.0].map(|l| l - (logit.exp() + 4.0).ln());
    let prompt = Prompt {
        ids: vec![3],
        argmax: vec![1],
        margin: vec![2.0],
        top: vec![[1, 0, 2, 3, 4]],
        top_logprobs: vec![logprobs(2.0)],
        next_logprob: Vec::new(),
    };
    let wrong = |logits: Logits| {
        let mut verdict = Verdict::default();
        verdict.judge("a", &prompt, &logits, F32_RULE);
        verdict.wrong.len()
    };
    assert_eq!(wrong(certain(2.0)), 0);
    assert!(wrong(certain(2.01)) > 0, "probabilities are off");
    assert!(wrong(certain(f32::NAN)) > 0, "nothing is computed");
    assert_eq!(wrong(vec![vec![2.0, 0.0, 0.0, 0.0, 0.0]]), 3, "another token is the likeliest, and two probabilities");
}
