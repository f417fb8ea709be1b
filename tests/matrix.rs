//! One result, whoever computes it: the same bits on any number of nodes, over any transport, in any chunks, alone or beside
//! others, with any instruction set and any number of threads; and the same tokens out of an engine that is short of room.
//!
//! Not all combinations are tried, but any two values of different axes meet (any three on the small models); with
//! `TRAMONTANE_LONG` set, any three (four).

mod support;

use std::collections::BTreeSet;
use std::fmt;

use support::cluster::{Cluster, KV_BLOCKS, Reach, Setup};
use support::completions::{Completion, TOP, TokenBits, complete, generation, preemptions, requests};
use support::covering::covering;
use support::fixture;
use support::gguf::{Form, Layout};
use support::model::{Model, corpus};
use support::steps::{Logits, WHOLE, difference, logits};
use tramontane_cluster::engine::{FinishReason, ValidRequest};
use tramontane_coordinator::Limits;
use tramontane_coordinator::sampler::{Draw, logprobs, sample};
use tramontane_kernels::{Isa, KvType, WeightType};
use tramontane_model::config::QkNorm;
use tramontane_model::device::DeviceName;
use tramontane_model::weights::Quantize;

/// How a float model's experts, and keys and values, are held: the two that decide bits.
const HELD: [(Quantize, KvType); 6] = [
    (Quantize::AsStored, KvType::F32),
    (Quantize::AsStored, KvType::F16),
    (Quantize::Q8_0, KvType::F32),
    (Quantize::Q8_0, KvType::F16),
    (Quantize::Q4_0, KvType::F32),
    (Quantize::Q4_0, KvType::F16),
];
/// The types of w1, w2 and w3 in the demo model's GGUF files, and of its other matrices. The last is what llama.cpp's `q4_k_m`
/// is made of.
const STORED: [([WeightType; 3], Option<WeightType>); 7] = [
    ([WeightType::Q4_1; 3], None),
    ([WeightType::Q5_0; 3], Some(WeightType::Q5_0)),
    ([WeightType::Q5_1; 3], None),
    ([WeightType::Q4K; 3], None),
    ([WeightType::Q5K; 3], None),
    ([WeightType::Q6K; 3], Some(WeightType::Q6K)),
    ([WeightType::Q4K, WeightType::Q6K, WeightType::Q4K], Some(WeightType::Q4K)),
];
const NODES: [usize; 4] = [1, 2, 4, 8];
const REACH: [Reach; 2] = [Reach::InProcess, Reach::Grpc];
const CHUNKS: [usize; 4] = [WHOLE, 1, 7, 64];
const COMPANY: [Company; 2] = [Company::Alone, Company::Batch];
const THREADS: [usize; 2] = [1, 2];

/// Lengths of the prompts beside the one compared: around the sizes of blocks and chunks.
const BESIDE: [usize; 15] = [1, 2, 31, 32, 33, 5, 4, 7, 64, 3, 1, 2, 9, 6, 3];
/// Where in the batch the prompt compared stands.
const PLACE: usize = 5;

/// Who else is in the steps.
#[derive(Clone, Copy, Debug)]
enum Company {
    Alone,
    /// [`BESIDE`], the prompt compared at [`PLACE`].
    Batch,
}

/// What decides bits.
struct Held<'a> {
    model: &'a Model,
    quantize: Quantize,
    kv: KvType,
}

impl<'a> Held<'a> {
    /// Everything in [`HELD`], of `model`.
    fn all(model: &'a Model) -> Vec<Self> {
        HELD.map(|(quantize, kv)| Self { model, quantize, kv }).into()
    }

    /// The plainest logits of `prompt`.
    fn plain(&self, prompt: &[u32]) -> Logits {
        let way = Way { setup: Setup::plain(self.quantize, self.kv), chunk: WHOLE, company: Company::Alone };
        compute(self.model, prompt, &way)
    }
}

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, quantize, kv } = self;
        write!(f, "{} ({}, {quantize:?}, {kv:?})", model.id, model.experts(*quantize).name)
    }
}

/// One way to compute a prompt's logits.
#[derive(Clone, Copy, Debug)]
struct Way {
    setup: Setup,
    chunk: usize,
    company: Company,
}

/// Ways, each with its place in `held`, such that any `strength` axes meet in all their values.
fn ways(held: &[Held<'_>], strength: usize) -> Vec<(usize, Way)> {
    let isas = Isa::available();
    let levels = [held.len(), NODES.len(), REACH.len(), CHUNKS.len(), COMPANY.len(), isas.len(), THREADS.len()];
    let way = |row: Vec<usize>| {
        let Held { quantize, kv, .. } = held[row[0]];
        let (nodes, reach, isa, threads) = (NODES[row[1]], REACH[row[2]], isas[row[5]], THREADS[row[6]]);
        let setup = Setup { quantize, kv, kv_blocks: KV_BLOCKS, nodes, reach, isa, threads, device: DeviceName::Cpu };
        (row[0], Way { setup, chunk: CHUNKS[row[3]], company: COMPANY[row[4]] })
    };
    covering(&levels, strength).into_iter().map(way).collect()
}

/// The logits of `prompt`'s positions, computed `way`.
fn compute(model: &Model, prompt: &[u32], way: &Way) -> Logits {
    let mut cluster = Cluster::start(model, &way.setup);
    let (prompts, place) = match way.company {
        Company::Alone => (vec![prompt.to_vec()], 0),
        Company::Batch => {
            let mut prompts: Vec<_> = (0..).zip(BESIDE).map(|(seed, len)| model.random_ids(len, seed)).collect();
            prompts.insert(PLACE, prompt.to_vec());
            (prompts, PLACE)
        }
    };
    let computed = logits(&mut cluster, &prompts, way.chunk).swap_remove(place);
    let received = cluster.nodes.received();
    assert!(received.len() == way.setup.nodes && received.iter().all(|rows| *rows > 0), "idle nodes: {received:?}");
    computed
}

/// Holds ways in which any `strength` axes meet to the plainest one of what is held.
fn hold(held: &[Held<'_>], prompt: &[u32], strength: usize) {
    let plain: Vec<Logits> = held.iter().map(|held| held.plain(prompt)).collect();
    assert!(plain.iter().all(|logits| logits.len() == prompt.len()));
    for (i, j) in (0..held.len()).flat_map(|j| (0..j).map(move |i| (i, j))) {
        assert!(difference(&plain[i], &plain[j]).is_some(), "{} and {} are the same", held[i], held[j]);
    }
    let strength = strength + usize::from(std::env::var_os("TRAMONTANE_LONG").is_some());
    let ways = ways(held, strength);
    println!("{}: {} ways", held[0], ways.len());
    for (place, way) in ways {
        let found = compute(held[place].model, prompt, &way);
        if let Some(difference) = difference(&plain[place], &found) {
            panic!("{}: {way:?}: {difference}", held[place]);
        }
    }
}

/// The longest prompt of a golden case.
fn longest(case: &str) -> Vec<u32> {
    let prompts = fixture::case(case).prompts.into_iter().map(|prompt| prompt.ids);
    prompts.max_by_key(Vec::len).expect("a case has prompts")
}

#[test]
fn all_ways_on_the_demo_model() {
    let model = Model::breeze();
    let prompt = corpus(&model, 20).concat()[..150].to_vec();
    hold(&Held::all(&model), &prompt, 2);
}

#[test]
fn all_ways_with_four_of_sixteen_experts() {
    let model = Model::golden("experts16_top4");
    assert_eq!((model.config.experts, model.config.experts_per_token), (16, 4));
    hold(&Held::all(&model), &longest("experts16_top4"), 3);
}

#[test]
fn all_ways_with_normed_heads() {
    let model = Model::golden("qwen3moe");
    assert_eq!(model.config.qk_norm, QkNorm::PerHead);
    hold(&Held::all(&model), &longest("qwen3moe"), 2);
}

#[test]
fn all_ways_with_the_types_of_gguf() {
    let floats = Model::breeze();
    let prompt = corpus(&floats, 20).concat()[..70].to_vec();
    let layouts = [Layout::Stacked, Layout::Separate].into_iter().cycle();
    let forms = STORED.into_iter().zip(layouts).map(|((experts, others), layout)| Form {
        layout,
        experts: Some(experts),
        others,
    });
    let models: Vec<Model> = forms.map(|form| floats.as_gguf(form)).collect();
    let kv = [KvType::F16, KvType::F32].into_iter().cycle();
    let held = models.iter().zip(kv).map(|(model, kv)| Held { model, quantize: Quantize::AsStored, kv });
    hold(&held.collect::<Vec<_>>(), &prompt, 2);
}

#[test]
fn all_ways_with_a_sliding_window() {
    let model = Model::golden("window");
    let prompt = longest("window");
    assert!(model.config.sliding_window.is_some_and(|window| window < prompt.len() / 2));
    hold(&Held::all(&model), &prompt, 3);
}

/// Requests in one engine.
const REQUESTS: usize = 16;
/// Tokens that each may generate.
const MAX_TOKENS: usize = 40;
/// Blocks of keys and values in the crowded engine: less than half of what its requests hold at their ends.
const FEW_BLOCKS: usize = 12;
/// Requests that lose their blocks there, at least.
const MIN_PREEMPTED: usize = 4;
/// Bounds under which each request computes alone, in the largest chunks.
const ALONE: Limits = Limits { max_running: 1, step_tokens: 512, chunk: 512, max_waiting: REQUESTS };
/// Bounds under which all compute beside each other, in small chunks.
const CROWDED: Limits = Limits { max_running: REQUESTS, step_tokens: 24, chunk: 7, max_waiting: REQUESTS };

/// The beginnings of texts of the corpus, one of them long.
fn prompts(model: &Model) -> Vec<Vec<u32>> {
    let mut texts = corpus(model, REQUESTS + 20);
    let long = texts.split_off(REQUESTS).concat();
    texts.iter_mut().for_each(|text| text.truncate(text.len() * 2 / 3));
    texts[PLACE + 3] = long[..150].to_vec();
    texts
}

/// Holds requests that compete for blocks to the same requests alone, and those to teacher-forced logits.
fn hold_engine(quantize: Quantize, kv: KvType, temperature: f32) -> Vec<Completion> {
    let model = Model::breeze();
    let requests = requests(&model, &prompts(&model), MAX_TOKENS, temperature);
    let setup = Setup { isa: Isa::detect(), ..Setup::plain(quantize, kv) };
    let expected = complete(&model, &setup, ALONE, &requests);
    assert!(preemptions(&setup, ALONE, &requests, &expected).is_empty(), "nobody competes");
    replay(&model, &setup, &requests, &expected);

    let crowded = Setup { kv_blocks: FEW_BLOCKS, nodes: 4, reach: Reach::Grpc, threads: 2, ..setup };
    let found = complete(&model, &crowded, CROWDED, &requests);
    for (place, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert_eq!(found, expected, "request {place}");
    }
    let preempted = preemptions(&crowded, CROWDED, &requests, &found);
    println!("preempted: {preempted:?}");
    let distinct: BTreeSet<usize> = preempted.iter().copied().collect();
    assert!(distinct.len() >= MIN_PREEMPTED, "there was room: {preempted:?}");
    // One of them in an engine of its own, which computes nothing else before or after.
    let place = preempted[0];
    assert_eq!(complete(&model, &setup, ALONE, &requests[place..=place]), expected[place..=place], "request {place}");
    expected
}

/// Holds the tokens of `completions` to what the sampler makes of the logits of all positions, computed in one pass.
fn replay(model: &Model, setup: &Setup, requests: &[ValidRequest], completions: &[Completion]) {
    let texts: Vec<Vec<u32>> =
        requests.iter().zip(completions).map(|(r, c)| [r.prompt.as_slice(), &c.ids()].concat()).collect();
    let all = logits(&mut Cluster::start(model, setup), &texts, WHOLE);
    for ((request, completion), (text, logits)) in requests.iter().zip(completions).zip(texts.iter().zip(&all)) {
        let sampling = &generation(request).sampling;
        let next = |position: usize| {
            let draw = Draw::new(sampling, &text[..position], &[]);
            sample(&logits[position - 1], &draw).expect("finite logits")
        };
        for (position, token) in (request.prompt.len()..).zip(&completion.tokens) {
            let of = logprobs(&logits[position - 1], next(position), TOP as usize);
            let top = of.top.into_iter().map(|(id, logprob)| (id, logprob.to_bits())).collect();
            assert_eq!(*token, TokenBits { id: next(position), logprob: of.logprob.to_bits(), top });
        }
        let stops = model.config.eos.contains(&next(text.len()));
        match completion.reason {
            FinishReason::Stop { .. } => assert!(stops, "it stopped before a token that is no end"),
            FinishReason::Length => assert_eq!(completion.tokens.len(), MAX_TOKENS),
            FinishReason::Embedded => panic!("nothing was generated"),
        }
    }
}

#[test]
fn greedy_completions_in_a_crowded_engine() {
    let completions = hold_engine(Quantize::AsStored, KvType::F16, 0.0);
    let reasons = completions.iter().map(|completion| completion.reason);
    let stopped = reasons.filter(|reason| matches!(reason, FinishReason::Stop { .. })).count();
    assert!((1..REQUESTS).contains(&stopped), "{stopped} of {REQUESTS} requests end by a stop token");
}

#[test]
fn sampled_completions_in_a_crowded_engine() {
    let completions = hold_engine(Quantize::Q4_0, KvType::F32, 0.8);
    let texts: BTreeSet<Vec<u32>> = completions.iter().map(Completion::ids).collect();
    assert_eq!(texts.len(), REQUESTS, "requests that say the same");
}
