//! Files that llama.cpp made and files that we made, held to the tokens that llama.cpp computes from both (`llama_cpp/README.md`).

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;
use support::cluster::{Cluster, Setup};
use support::model::Model;
use support::steps::{WHOLE, logits};
use tramontane_kernels::{Isa, KvType, WeightType};
use tramontane_model::tokenizer::{Special, Tokenizer};
use tramontane_model::weights::Quantize;

/// Our greedy token must be llama.cpp's where its first logit exceeds its second by more: the two round activations differently.
const MARGIN: f64 = 0.2;
/// Positions of each file with a larger margin.
const DECIDED: usize = 177;

/// What llama.cpp makes of a text.
#[derive(Deserialize)]
struct Recorded {
    text: String,
    /// Its token ids, with bos.
    ids: Vec<u32>,
    /// The greedy continuation, to eos.
    tokens: Vec<u32>,
    /// First minus second logit, for each of `tokens`.
    margins: Vec<f64>,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/llama_cpp").join(name)
}

fn recorded(name: &str) -> Vec<Recorded> {
    let json = std::fs::read(path(&format!("{name}.json"))).expect("what was recorded can be read");
    serde_json::from_slice(&json).expect("what was recorded is JSON")
}

fn types(model: &Model) -> BTreeSet<&'static str> {
    let tensor = |name| model.checkpoint.tensor(name).expect("a listed tensor is there").ty.name();
    model.checkpoint.tensor_names().map(tensor).collect()
}

/// Holds the file `name`, whose tensors have these `types`, to what llama.cpp computes from it.
fn hold(name: &str, expected_types: &[WeightType]) {
    let (model, recorded) = (Model::open(name, &path(&format!("{name}.gguf"))), recorded(name));
    assert_eq!(types(&model), expected_types.iter().map(|ty| ty.name()).collect());
    let tokenizer = Tokenizer::of(&model.checkpoint).expect("its tokenizer is sound");
    let forced = |case: &Recorded| [&case.ids[..], &case.tokens[..case.tokens.len() - 1]].concat();
    let forced: Vec<Vec<u32>> = recorded.iter().map(forced).collect();
    for isa in Isa::available() {
        let setup = Setup { isa, nodes: 2, ..Setup::plain(Quantize::AsStored, KvType::F16) };
        let computed = logits(&mut Cluster::start(&model, &setup), &forced, WHOLE);
        let mut decided = 0;
        for (case, rows) in recorded.iter().zip(computed) {
            let ids = tokenizer.encode(&case.text, Special::Add).expect("a text has tokens");
            assert_eq!(ids, case.ids, "{name}: {:?}", case.text);
            let answers = rows.iter().skip(case.ids.len() - 1).zip(case.tokens.iter().zip(&case.margins));
            for (at, (row, (&token, &margin))) in answers.enumerate().filter(|(_, (_, (_, margin)))| **margin > MARGIN)
            {
                let greedy = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
                assert_eq!(greedy, Some(token as usize), "{name}, {isa}: {:?}, {at} ({margin})", case.text);
                decided += 1;
            }
        }
        assert_eq!(decided, DECIDED, "{name}, {isa}: something was not compared");
    }
}

#[test]
fn a_file_that_llama_cpp_converted_and_quantised_gives_its_tokens() {
    use WeightType::{F32, Q4K, Q5_0, Q6K, Q8_0};
    hold("llama_cpp-q4_k_m", &[F32, Q4K, Q5_0, Q6K, Q8_0]);
}

#[test]
fn a_file_of_ours_gives_the_tokens_that_llama_cpp_computes_from_it() {
    use WeightType::{F32, Q4_0, Q6K};
    hold("tramontane-q4_0", &[F32, Q4_0, Q6K]);
}
