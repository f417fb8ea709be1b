//! `plan`: what it says, and what it refuses. Its arithmetic is tested beside it.

use serde_json::{Value, json};

use crate::run::{Outcome, run};

fn plan(args: &[&str]) -> Value {
    let Outcome { code, stdout, stderr } = run(&[&["plan", "--json"], args].concat());
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    serde_json::from_str(&stdout).expect("one object")
}

#[test]
fn plan_says_what_a_cluster_holds_does_and_survives() {
    let report = plan(&["--type", "q4_0", "--nodes", "400", "--replicas", "3", "--simulate", "--batch", "1,64"]);
    assert_eq!((&report["model"]["name"], &report["model"]["types"]), (&json!("mixtral-8x7b"), &json!("q4_0")));
    // 3 × 4096 × 14336 weights at 18 bytes for 32.
    assert_eq!(report["memory"]["expert_bytes"], json!(99_090_432));
    let cases: Vec<&Value> = report["rates"].as_array().expect("rates").iter().map(|rate| &rate["case"]).collect();
    assert_eq!(cases, [&json!("pp512"), &json!("tg x 1 @ d1024"), &json!("tg x 64 @ d1024")]);
    let lost: Vec<(&Value, &Value)> =
        report["failures"].as_array().expect("failures").iter().map(|f| (&f["lost"], &f["outcome"])).collect();
    assert!(lost.contains(&(&json!("a rack of 40"), &json!("unnoticed"))), "{lost:?}");
    let found = &report["simulation"];
    assert_eq!(
        [
            &found["nodes"],
            &found["racks"],
            &found["experts"],
            &found["least"],
            &found["most"],
            &found["sharing_a_rack"]
        ],
        [&json!(400), &json!(10), &json!(256), &json!(1), &json!(2), &json!(0)]
    );
    let changes = found["changes"].as_array().expect("changes");
    assert_eq!(changes.len(), 3);
    for change in changes {
        assert_eq!(change["moved_bytes"], change["least_bytes"], "{change}");
    }
}

#[test]
fn plan_of_a_checkpoint_counts_what_bench_counts() {
    let whole = ["--read-share", "1", "--compute-share", "1", "--gops", "1e9"];
    let report = plan(&[&["--model", "demo", "--embedded", "--batch", "1", "--depth", "0"], &whole[..]].concat());
    let rate = report["rates"][1]["tokens_per_second"].as_f64().expect("a rate");
    let tiny = [
        "--prompt-tokens",
        "0",
        "--tokens",
        "1",
        "--depth",
        "0",
        "--batch",
        "1",
        "--repeats",
        "1",
        "--read-buffer",
        "0",
    ];
    let Outcome { stdout, .. } = run(&[&["bench", "engine", "--json"], &tiny[..]].concat());
    let bench: Value = serde_json::from_str(&stdout).expect("one object");
    let cost = &bench["cases"][0]["cost"]["decode"];
    let [weights, kv] = ["weight_bytes_per_token", "kv_bytes_per_token"].map(|key| cost[key].as_f64().expect("bytes"));
    assert!((rate * (weights + kv) / 100e9 - 1.0).abs() < 1e-9, "{rate} tokens/s at 100 GB/s; {cost}");
    assert_eq!((&report["failures"], &report["network"]), (&json!([]), &Value::Null));
}

#[test]
fn plan_refuses_what_makes_no_sense() {
    let refused = |args: &[&str], code: i32, word: &str| {
        let Outcome { code: ended, stdout, stderr } = run(&[&["plan"], args].concat());
        assert_eq!((ended, stdout.as_str()), (Some(code), ""), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    };
    refused(&["--model", "nowhere.gguf"], 1, "nowhere.gguf");
    refused(&["--model", "nowhere.json"], 1, "nowhere.json");
    refused(&["--model", "demo", "--type", "q4_0"], 1, "--quantize");
    refused(&["--quantize", "q4_0"], 1, "--type");
    refused(&["--embedded", "--nodes", "3"], 2, "--nodes");
    refused(&["--measure", "--gops", "3"], 2, "--gops");
    refused(&["--bandwidth", "0"], 2, "above 0");
    refused(&["--simulate", "--nodes", "2", "--node-memory", "1000"], 1, "no node has room");
}
