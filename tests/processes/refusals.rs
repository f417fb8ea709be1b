//! What is refused, with which exit code, and that the message names the object; and the help.

use std::net::TcpListener;

use crate::checkpoint;
use crate::run::{Outcome, run};

/// Nobody listens there.
const NOBODY: &str = "tramontane://127.0.0.1:1";

/// `args` end with `code`, nothing on stdout, and a message with every one of `words`.
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let Outcome { code: ended, stdout, stderr } = run(args);
    assert_eq!((ended, stdout.as_str()), (Some(code), ""), "{args:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: no {word:?} in {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
}

#[test]
fn a_node_whose_registry_is_out_of_reach_or_of_no_kind() {
    refused(&["expert-node", "--registry", NOBODY], 3, &[NOBODY, "refused"]);
    refused(&["expert-node", "--registry", "etcd://x"], 1, &["etcd://x", "is no host:port"]);
    refused(&["expert-node", "--registry", "http://x:1"], 1, &["http://x:1", "neither etcd:// nor tramontane://"]);
}

#[test]
fn a_node_whose_address_is_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("its address").to_string();
    refused(&["expert-node", "--registry", NOBODY, "--listen", &addr], 1, &["cannot listen on", &addr, "in use"]);
}

#[test]
fn addresses_and_keys_that_cannot_be_served_with() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("its address").to_string();
    refused(&["up", "--http", &addr], 1, &["cannot listen on", &addr, "in use"]);
    refused(&["up", "--http", "0.0.0.0:0"], 1, &["0.0.0.0:0", "--api-keys-file", "--insecure"]);
    refused(&["up", "--http", "127.0.0.1:0", "--api-keys-file", "/nowhere"], 1, &["cannot use the keys in /nowhere"]);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, "alice:sk-0123456789abcdef\nnot-a-line-but-perhaps-a-key\n").expect("the file of keys");
    let path = file.to_str().expect("a path in UTF-8");
    let outcome = run(&["up", "--http", "127.0.0.1:0", "--api-keys-file", path]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    assert!(outcome.stderr.contains("line 2") && !outcome.stderr.contains("perhaps"), "{}", outcome.stderr);
}

#[test]
fn a_checkpoint_that_lacks_a_tensor() {
    let tensor = "model.layers.2.block_sparse_moe.experts.5.w2.weight";
    let folder = checkpoint::without_tensor(tensor);
    let path = folder.path().to_str().expect("a path in UTF-8");
    let named = ["layer 2", "expert 5", tensor, "missing"];
    refused(&["up", "--prompt", "x", "--model", path], 1, &named);
    refused(&["up", "--prompt", "x", "--model", path, "--processes"], 1, &named);
    refused(&["expert-node", "--registry", NOBODY, "--model", path], 1, &named);
}

#[test]
fn a_checkpoint_that_is_cut_off_or_absent() {
    for length in [0, 100, 8_000_000] {
        let folder = checkpoint::truncated(length);
        let path = folder.path().to_str().expect("a path in UTF-8");
        refused(&["up", "--prompt", "x", "--model", path], 1, &[path, "model.safetensors", "truncated"]);
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().to_str().expect("a path in UTF-8");
    refused(&["up", "--prompt", "x", "--model", path], 1, &[path]);
    let gone = format!("{path}/gone");
    refused(&["up", "--prompt", "x", "--model", &gone], 1, &["cannot open the model", &gone]);
}

#[test]
fn a_prompt_longer_than_the_context() {
    let prompt = "The capital of France is Paris. ".repeat(300);
    refused(&["up", "--prompt", &prompt], 1, &["the prompt has", "tokens, the model's context 1024"]);
}

#[test]
fn a_cache_too_small_for_any_token() {
    refused(&["up", "--prompt", "x", "--kv-memory", "100"], 1, &["--kv-memory 100", "one block"]);
}

#[test]
fn usage_errors() {
    let up = |more: &[&'static str]| [&["up", "--prompt", "x"], more].concat();
    for (args, words) in [
        (vec![], &["Usage"]),
        (vec!["up", "--chat"], &["--prompt"]),
        (vec!["up", "--http", "here"], &["--http"]),
        (vec!["down"], &["down"]),
        (up(&["--temprature", "1"]), &["--temperature"]),
        (up(&["--temperature", "hot"]), &["--temperature"]),
        (up(&["--top-p", "1.5"]), &["--top-p"]),
        (up(&["--max-tokens", "0"]), &["--max-tokens"]),
        (up(&["--expert-nodes", "257"]), &["--expert-nodes"]),
        (up(&["--threads", "0"]), &["--threads"]),
        (up(&["--seed", "1.5"]), &["--seed"]),
        (up(&["--logprobs", "3"]), &["--json"]),
        (up(&["--json", "--logprobs", "21"]), &["--logprobs"]),
        (up(&["--quantize", "q3_0"]), &["q8_0"]),
        (vec!["expert-node"], &["--registry"]),
        (vec!["expert-node", "--registry", NOBODY, "--listen", "here"], &["--listen"]),
    ] {
        refused(&args, 2, words);
    }
}

/// `args` print help that begins with examples and mentions every one of `flags`.
fn helps(args: &[&str], flags: &[&str]) {
    let Outcome { code, stdout, stderr } = run(args);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
    assert!(stdout.starts_with("Examples:\n"), "{args:?}: {stdout}");
    assert!(stdout.find("Examples:") < stdout.find("Usage:"), "{args:?}: {stdout}");
    for flag in flags {
        assert!(stdout.split_whitespace().any(|word| word == *flag), "{args:?}: no {flag} in {stdout}");
    }
}

#[test]
fn help_begins_with_examples_and_names_everything() {
    helps(&["--help"], &["up", "expert-node", "--help", "--version"]);
    let cluster = ["--expert-nodes", "--processes", "--threads", "--kv-type", "--kv-memory"];
    let prompt = ["--prompt", "--chat", "--max-tokens", "--ignore-eos"];
    let sampling = ["--temperature", "--top-k", "--top-p", "--seed"];
    let output = ["--json", "--logprobs", "--expert-stats"];
    let model = ["--config", "--model", "--quantize"];
    let serving = ["--http", "--api-keys-file", "--insecure"];
    helps(&["up", "--help"], &[&model, cluster.as_slice(), &prompt, &sampling, &output, &serving].concat());
    let node = ["--registry", "--cluster", "--listen", "--id", "--capacity", "--threads"];
    helps(&["expert-node", "--help"], &[&model, node.as_slice()].concat());
}

#[test]
fn every_example_of_the_help_is_accepted() {
    let help = run(&["up", "--help"]).stdout;
    // Those that need no model of the reader's own, and end by themselves.
    let examples: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tramontane "))
        .filter(|example| !example.contains("--model") && example.contains("--prompt"))
        .collect();
    assert!(examples.len() >= 3, "{help}");
    for example in examples {
        let words: Vec<&str> = example.split('"').collect();
        // Odd pieces stood in quotes.
        let args: Vec<&str> = words
            .iter()
            .enumerate()
            .flat_map(|(i, &piece)| if i % 2 == 1 { vec![piece] } else { piece.split_whitespace().collect() })
            .collect();
        let outcome = run(&args);
        assert_eq!(outcome.code, Some(0), "{example}: {}", outcome.stderr);
        assert!(!outcome.stdout.trim().is_empty(), "{example}");
    }
}
