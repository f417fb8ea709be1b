//! The same bytes, whatever the cluster is made of; and that all of it works for them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::checkpoint;
use crate::run::{json, json_text, run};

const LAYERS: u64 = 4;
const EXPERTS: usize = 8;
const EXPERTS_PER_TOKEN: u64 = 2;
const PROMPT: [&str; 2] = ["--prompt", "The capital of France is"];
const PROCESSES: [&str; 3] = ["--processes", "--expert-nodes", "8"];

#[test]
fn the_text_is_the_same_in_one_process_and_in_nine() {
    let up = [&["up"], PROMPT.as_slice()].concat();
    let (alone, apart) = (run(&up), run(&[up.as_slice(), &PROCESSES].concat()));
    assert!(alone.stdout.contains("Paris"), "{}", alone.stdout);
    assert_eq!((alone.code, alone.stderr.as_str()), (Some(0), ""));
    assert_eq!((apart.code, apart.stderr.as_str(), apart.stdout), (Some(0), "", alone.stdout));
}

#[test]
fn nodes_threads_and_where_the_model_lies_change_no_bit() {
    let ask = |cluster: &[&str]| {
        json_text(&[&PROMPT, ["--max-tokens", "30", "--logprobs", "5"].as_slice(), cluster].concat())
    };
    let usual = ask(&[]);
    for cluster in [
        ["--expert-nodes", "1", "--threads", "1"].as_slice(),
        &["--expert-nodes", "5", "--threads", "3"],
        &["--expert-nodes", "2", "--processes", "--threads", "2"],
    ] {
        assert_eq!(ask(cluster), usual, "{cluster:?}");
    }
    let folder = checkpoint::unchanged();
    let path = folder.path().to_str().expect("a path in UTF-8");
    let name = folder.path().file_name().expect("a name").to_string_lossy();
    for cluster in [["--model", path].as_slice(), &["--model", path, "--processes", "--expert-nodes", "2"]] {
        assert_eq!(ask(cluster).replace(&*name, "breeze"), usual, "{cluster:?}");
    }
}

#[test]
fn every_expert_works_and_for_no_more_rows_than_it_must() {
    // Longer than a chunk of the prefill, and of many subjects, so that every expert has something to say.
    let prompt =
        "The capital of France is Paris. The currency of Japan is the yen. Cuba is in the Caribbean. ".repeat(12);
    let args = ["--prompt", &prompt, "--max-tokens", "120", "--ignore-eos", "--expert-stats"];
    let (alone, apart) = (json(&args), json(&[args.as_slice(), &PROCESSES].concat()));
    assert_eq!(alone, apart);

    let rows = alone["expert_rows"].as_array().expect("rows of the experts");
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("a count: {value}"));
    let mut experts = BTreeSet::new();
    let mut by_layer: BTreeMap<u64, u64> = BTreeMap::new();
    for row in rows {
        assert!(number(&row["rows"]) > 0, "{row}");
        experts.insert((number(&row["layer"]), number(&row["expert"])));
        *by_layer.entry(number(&row["layer"])).or_default() += number(&row["rows"]);
    }
    assert_eq!((experts.len(), rows.len()), (LAYERS as usize * EXPERTS, LAYERS as usize * EXPERTS), "{rows:?}");
    let nodes: BTreeSet<&str> = rows.iter().filter_map(|row| row["node"].as_str()).collect();
    assert_eq!(nodes.into_iter().collect::<Vec<_>>(), (0..8).map(|i| format!("node-{i}")).collect::<Vec<_>>());

    let usage = |key: &str| number(&alone["usage"][key]);
    let (prompt, completion) = (usage("prompt_tokens"), usage("completion_tokens"));
    assert!(prompt > 256, "{prompt} tokens are one chunk");
    // The last token sampled is never computed; the last layer computes only the rows that a token is sampled from.
    let (computed, sampled) = (prompt + completion - 1, completion);
    let expected = (0..LAYERS).map(|layer| {
        let tokens = if layer == LAYERS - 1 { sampled } else { computed };
        (layer, EXPERTS_PER_TOKEN * tokens)
    });
    assert_eq!(by_layer, expected.collect());
}

#[test]
fn quantised_experts_say_the_same_wherever_they_are() {
    let ask =
        |more: &[&str]| json_text(&[&PROMPT, ["--max-tokens", "40", "--logprobs", "3"].as_slice(), more].concat());
    let stored = ask(&[]);
    let mut texts = BTreeSet::from([stored]);
    for quantize in ["q8_0", "q4_0"] {
        let alone = ask(&["--quantize", quantize]);
        assert_eq!(ask(&["--quantize", quantize, "--processes"]), alone, "{quantize}");
        assert!(alone.contains("Paris"), "{quantize}: {alone}");
        texts.insert(alone);
    }
    assert_eq!(texts.len(), 3, "each type has log-probabilities of its own");
}

#[test]
fn a_seed_gives_one_text_and_another_seed_another() {
    let ask = |more: &[&str]| {
        let sampled = ["--max-tokens", "60", "--ignore-eos", "--temperature", "0.8"];
        json_text(&[&PROMPT, sampled.as_slice(), more].concat())
    };
    let seven = ask(&["--seed", "7"]);
    assert_eq!(ask(&["--seed", "7"]), seven);
    assert_eq!(ask(&["--seed", "7", "--processes"]), seven);
    assert_ne!(ask(&["--seed", "8"]), seven);
}
