//! The same bytes, whatever the cluster is made of; and that all of it works for them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::checkpoint;
use crate::run::{json, json_text, run};

const LAYERS: u64 = 4;
const EXPERTS: u64 = 8;
const EXPERTS_PER_TOKEN: u64 = 2;
/// Tokens of a prompt that one step computes, at most.
const CHUNK: u64 = 256;
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
    // The first fills the cache, the others find it full; one process and several.
    let cache = tempfile::tempdir().expect("a folder");
    let dir = cache.path().join("packed");
    let dir = dir.to_str().expect("a path in UTF-8");
    let mut held = Vec::new();
    for cluster in [&[][..], &["--threads", "1"], &["--processes", "--expert-nodes", "2"]] {
        assert_eq!(ask(&[&["--cache-dir", dir], cluster].concat()), usual, "{cluster:?}");
        held.push(std::fs::read_dir(dir).expect("the cache").count());
    }
    // In each layer q, k, v, o, the gate and three matrices an expert; and the output head.
    let matrices = LAYERS * (5 + 3 * EXPERTS) + 1;
    assert_eq!(held, [matrices as usize; 3]);
}

/// A node, one of its experts as (layer, expert), the rows that this received.
type ExpertRows<'a> = (&'a str, (u64, u64), u64);

/// What `--expert-stats` says.
fn expert_rows(answer: &Value) -> Vec<ExpertRows<'_>> {
    fn entry(row: &Value) -> ExpertRows<'_> {
        let number = |key: &str| row[key].as_u64().unwrap_or_else(|| panic!("no {key}: {row}"));
        (row["node"].as_str().expect("a node"), (number("layer"), number("expert")), number("rows"))
    }
    answer["expert_rows"].as_array().expect("rows of the experts").iter().map(entry).collect()
}

#[test]
fn every_expert_works_on_its_node_alike_in_one_process_and_in_nine() {
    let args = [&PROMPT, ["--max-tokens", "400", "--ignore-eos", "--expert-stats"].as_slice()].concat();
    let (alone, apart) = (json(&args), json(&[args.as_slice(), &PROCESSES].concat()));
    assert_eq!(alone, apart);
    let rows = expert_rows(&alone);
    let experts: BTreeSet<_> = rows.iter().filter(|(.., count)| *count > 0).map(|(_, expert, _)| *expert).collect();
    let all = (0..LAYERS).flat_map(|layer| (0..EXPERTS).map(move |expert| (layer, expert)));
    assert_eq!(experts, all.collect());
    assert_eq!(rows.len(), experts.len(), "an expert on two nodes: {rows:?}");
    let nodes: BTreeSet<String> = rows.iter().map(|(node, ..)| (*node).to_owned()).collect();
    assert_eq!(nodes, (0..8).map(|i| format!("node-{i}")).collect());
}

#[test]
fn experts_receive_no_more_rows_than_they_must() {
    // Two chunks of the prefill.
    let long = "The capital of France is Paris. ".repeat(50);
    for args in [["--prompt", "Cuba is in", "--max-tokens", "60"], ["--prompt", &long, "--max-tokens", "20"]] {
        let answer = json(&[args.as_slice(), &["--expert-stats"]].concat());
        let usage = |key: &str| answer["usage"][key].as_u64().unwrap_or_else(|| panic!("no {key}: {answer}"));
        let (prompt, completion) = (usage("prompt_tokens"), usage("completion_tokens"));
        assert_eq!(prompt > CHUNK, args[1] == long, "{prompt} tokens");
        let mut by_layer: BTreeMap<u64, u64> = BTreeMap::new();
        for (_, (layer, _), rows) in expert_rows(&answer) {
            *by_layer.entry(layer).or_default() += rows;
        }
        // The last token sampled is never computed; the last layer computes only rows that a token is sampled from.
        let tokens = |layer| if layer == LAYERS - 1 { completion } else { prompt + completion - 1 };
        assert_eq!(by_layer, (0..LAYERS).map(|layer| (layer, EXPERTS_PER_TOKEN * tokens(layer))).collect());
    }
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
