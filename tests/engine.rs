//! Whole requests through an engine on the demo model: what they may ask for, what they share, and how they end. No processes.

mod support;

#[path = "engine/constraints.rs"]
mod constraints;
#[path = "engine/ends.rs"]
mod ends;
#[path = "engine/sharing.rs"]
mod sharing;
#[path = "engine/stress.rs"]
mod stress;

use support::cluster::{Cluster, Setup};
use support::completions::TokenBits;
use support::engine::{ROOMY, Running, generate};
use support::model::{Model, corpus};
use support::steps::{WHOLE, logits};
use tramontane_cluster::engine::{FinishReason, Generation, Sampling, Task, ValidRequest};
use tramontane_coordinator::sampler::logprobs;
use tramontane_coordinator::{Limits, Step, blocks_for};
use tramontane_kernels::{Isa, KvType, QueryRow};
use tramontane_model::weights::Quantize;

/// The demo model's cluster in these tests.
fn setup() -> Setup {
    Setup { isa: Isa::detect(), ..Setup::plain(Quantize::AsStored, KvType::F16) }
}

/// Texts of the corpus, over and over, `len` tokens long.
fn text(model: &Model, len: usize) -> Vec<u32> {
    corpus(model, 40).concat().into_iter().cycle().take(len).collect()
}

/// Everything that may be said of sampling, a little of each.
fn spiced(seed: u64) -> Sampling {
    Sampling {
        temperature: 0.9,
        top_k: Some(200),
        top_p: 0.95,
        min_p: 0.001,
        typical_p: 0.98,
        repetition_penalty: 1.1,
        presence_penalty: 0.2,
        frequency_penalty: 0.1,
        logit_bias: vec![(300, 2.0), (301, -5.0)],
        bad_words: vec![vec![310], vec![311, 312]],
        seed,
    }
}

#[test]
fn a_resumed_request_goes_on_with_the_same_tokens() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), ROOMY);
    let generation = Generation {
        max_tokens: 24,
        min_tokens: 24,
        first_choice: 3,
        sampling: spiced(5),
        stop_tokens: model.config.eos.clone(),
        logprobs: Some(2),
        ..Generation::default()
    };
    let prompt = text(&model, 40);
    let whole = engine.output(generate(&prompt, generation.clone()));
    assert_eq!(whole.tokens.len(), 24);
    for cut in [1, 7, 23] {
        let resume_after = whole.ids()[..cut].to_vec();
        let rest = engine.output(generate(&prompt, Generation { resume_after, ..generation.clone() }));
        assert_eq!(rest.tokens, whole.tokens[cut..], "after {cut}");
        assert_eq!(rest.finished().1.completion_tokens, 24);
    }
    let resume_after = whole.ids();
    let nothing = engine.output(generate(&prompt, Generation { resume_after, ..generation }));
    assert_eq!((nothing.tokens.len(), nothing.finished().0), (0, FinishReason::Length));
}

#[test]
fn min_tokens_holds_stop_tokens_back_and_the_context_ends_what_does_not() {
    let model = Model::breeze();
    let engine = Running::start(&model, &setup(), ROOMY);
    let prompt = text(&model, 30);
    let free = engine.output(generate(&prompt, Generation { max_tokens: 12, ..Generation::default() }));
    // What it would say third ends it, but not before there are four.
    let stop_tokens = vec![free.ids()[2]];
    let early = Generation { max_tokens: 12, stop_tokens: stop_tokens.clone(), ..Generation::default() };
    let stopped = engine.output(generate(&prompt, early.clone()));
    let first = free.ids().iter().position(|id| *id == stop_tokens[0]).expect("it is among them");
    assert_eq!(stopped.ids(), free.ids()[..first]);
    let (reason, usage) = stopped.finished();
    assert_eq!((reason, usage.completion_tokens), (FinishReason::Stop { token: Some(stop_tokens[0]) }, first + 1));
    let later = engine.output(generate(&prompt, Generation { min_tokens: 4, ..early }));
    assert!(later.tokens.len() >= 4 && !later.ids()[..4].contains(&stop_tokens[0]));

    let context = model.config.context;
    let long =
        engine.output(generate(&text(&model, context - 3), Generation { max_tokens: 100, ..Generation::default() }));
    assert_eq!((long.tokens.len(), long.finished().0), (3, FinishReason::Length));
}

#[test]
fn prompt_logprobs_are_those_of_the_prompts_logits_however_it_is_cut() {
    let model = Model::breeze();
    let prompt = text(&model, 70);
    let all = logits(&mut Cluster::start(&model, &setup()), std::slice::from_ref(&prompt), WHOLE);
    let expected: Vec<Option<TokenBits>> = std::iter::once(None)
        .chain(prompt[1..].iter().zip(&all[0]).map(|(&id, row)| {
            let of = logprobs(row, id, 2);
            let top = of.top.into_iter().map(|(id, logprob)| (id, logprob.to_bits())).collect();
            Some(TokenBits { id, logprob: of.logprob.to_bits(), top })
        }))
        .collect();
    for chunk in [512, 7] {
        let engine = Running::start(&model, &setup(), Limits { chunk, ..ROOMY });
        let plain = engine.output(generate(&prompt, Generation::default()));
        let generation = Generation { prompt_logprobs: Some(2), choices: 2, ..Generation::default() };
        let outputs = engine.outputs(generate(&prompt, generation));
        assert_eq!(outputs[0].prompt.as_ref(), Some(&expected), "in chunks of {chunk}");
        assert_eq!((outputs[0].ids(), outputs[1].ids()), (plain.ids(), plain.ids()));
        assert_eq!((outputs[1].prompt.clone(), outputs[0].finished().1.cached_tokens), (None, 0));
    }
}

#[test]
fn an_embedding_is_the_mean_of_the_last_hidden_states_however_it_is_cut() {
    let model = Model::breeze();
    let prompt = text(&model, 70);
    let embed = || ValidRequest { task: Task::Embed, ..generate(&prompt, Generation::default()) };
    let expected = mean_hidden(&model, &prompt);
    assert!(expected.iter().any(|bits| f32::from_bits(*bits) != 0.0));
    for chunk in [512, 7] {
        let engine = Running::start(&model, &setup(), Limits { chunk, ..ROOMY });
        // In company, and where the prefix cache could have the prompt.
        let company = engine.submit(generate(&prompt, Generation { max_tokens: 40, ..Generation::default() }));
        let outputs = [engine.output(embed()), engine.output(embed())];
        for output in outputs {
            let (reason, usage) = output.finished();
            assert_eq!((reason, usage.prompt_tokens, usage.completion_tokens), (FinishReason::Embedded, 70, 0));
            assert_eq!((usage.cached_tokens, output.embedding.as_ref()), (0, Some(&expected)), "in chunks of {chunk}");
        }
        drop(company);
        engine.assert_empty();
    }
}

/// The bits of the mean of `prompt`'s last hidden states, out of one forward pass.
fn mean_hidden(model: &Model, prompt: &[u32]) -> Vec<u32> {
    let mut cluster = Cluster::start(model, &setup());
    let blocks: Vec<u32> = (0..blocks_for(prompt.len()) as u32).collect();
    let step = Step {
        tokens: prompt.to_vec(),
        rows: (0..prompt.len()).map(|position| QueryRow { position, blocks: &blocks }).collect(),
        wanted: vec![3],
        embedded: (0..prompt.len()).filter(|row| *row != 3).collect(),
        trace: None,
    };
    let with_logits = cluster.forward.compute(&step).map(|(_, hidden)| hidden.to_vec()).expect("the step succeeds");
    let alone = Step { wanted: Vec::new(), embedded: (0..prompt.len()).collect(), ..step };
    let hidden = cluster.forward.compute(&alone).map(|(_, hidden)| hidden.to_vec()).expect("the step succeeds");
    let width = model.config.hidden;
    assert_eq!((hidden.len(), with_logits.len()), (70 * width, 69 * width));
    assert_eq!([&with_logits[..3 * width], &hidden[3 * width..4 * width], &with_logits[3 * width..]].concat(), hidden);
    let sum = |column: usize| hidden.iter().skip(column).step_by(width).fold(0.0, |sum, value| sum + f64::from(*value));
    (0..width).map(|column| ((sum(column) / prompt.len() as f64) as f32).to_bits()).collect()
}
