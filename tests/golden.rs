//! Holds the engine and the oracle to what Hugging Face transformers computes, teacher-forced: the greedy token wherever the
//! reference is decided, and log-probabilities within a tolerance. Another implementation's sums differ in their last bits,
//! so nothing here is `==` but one model's two file formats; `matrix.rs` is.

mod support;

use support::cluster::{Cluster, Setup};
use support::fixture::{Prompt, breeze, case, cases};
use support::gguf::{Form, Layout};
use support::judge::{CASES, CLEAR, DECIDED, F16_RULE, F32_RULE, QUANTIZED_RULE, Verdict, hold};
use support::model::Model;
use support::steps::{Logits, WHOLE, difference, logits};
use tramontane_kernels::{Isa, KvType, WeightType};
use tramontane_model::reference;
use tramontane_model::weights::Quantize;

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
