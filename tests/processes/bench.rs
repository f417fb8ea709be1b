//! `bench engine` on the demo model, and `bench serve` on a server of it, with numbers so small that only the shape of what it says counts.

use serde_json::{Value, json};

use crate::run::{Outcome, run, until};
use crate::serving::Serving;

/// A prompt in two steps, two tokens, two rounds; a buffer of one piece.
const TINY: [&str; 12] = [
    "--prompt-tokens",
    "6",
    "--chunk",
    "4",
    "--tokens",
    "2",
    "--depth",
    "5",
    "--repeats",
    "2",
    "--read-buffer",
    "1048576",
];

fn bench(args: &[&str]) -> Outcome {
    run(&[&["bench", "engine"], args].concat())
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// `summary` has a median between its ends, all above 0.
fn hold_summary(summary: &Value) {
    assert_eq!(keys(summary), ["max", "median", "min"]);
    let [min, median, max] = ["min", "median", "max"].map(|key| summary[key].as_f64().expect("a number"));
    assert!(0.0 < min && min <= median && median <= max, "{summary}");
}

#[test]
fn bench_engine_prints_one_object_with_every_case() {
    let args =
        [&TINY[..], &["--model", "demo", "--batch", "1,3", "--threads", "2", "--isa", "portable", "--json"]].concat();
    let Outcome { code, stdout, stderr } = bench(&args);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    let report: Value = serde_json::from_str(&stdout).expect("one object");
    assert_eq!(keys(&report), ["build", "cases", "engine", "machine", "memory", "model", "version"]);
    let engine = json!({
        "isa": "portable", "threads": 2, "expert_nodes": 8, "kv_type": "f16", "repeats": 2, "seed": 0, "chunk": 4
    });
    assert_eq!(report["engine"], engine);
    assert_eq!((&report["model"]["name"], &report["model"]["experts_per_token"]), (&json!("breeze"), &json!(2)));
    assert_eq!(report["machine"]["read_bandwidth"]["buffer_bytes"], json!(1 << 20));
    hold_summary(&report["machine"]["read_bandwidth"]["gigabytes_per_second"]);
    let [peak, now] = ["peak_rss_bytes", "rss_bytes"].map(|key| report["memory"][key].as_u64().expect("bytes"));
    // The weights of 8 million parameters in bf16 are held.
    assert!(peak >= now && now > 16 << 20, "{}", report["memory"]);

    let cases = report["cases"].as_array().expect("cases");
    let what = |case: &Value| ["case", "sequences", "depth", "tokens"].map(|key| case[key].clone());
    let expected = [
        [json!("pp6"), json!(1), json!(0), json!(6)],
        [json!("tg2"), json!(1), json!(0), json!(2)],
        [json!("tg2 x 3"), json!(3), json!(0), json!(2)],
        [json!("tg2 @ d5"), json!(1), json!(5), json!(2)],
    ];
    assert_eq!(cases.iter().map(what).collect::<Vec<_>>(), expected);
    for case in cases {
        hold_summary(&case["tokens_per_second"]);
        assert_eq!((case["samples"].as_array().map(Vec::len), &case["others"]), (Some(2), &json!([])), "{case}");
    }
    assert_eq!(keys(&cases[0]["cost"]["prefill"]), ["gigaoperations_per_second", "operations"]);
    let decode = ["gigabytes_per_second", "kv_bytes_per_token", "share_of_read_bandwidth", "weight_bytes_per_token"];
    assert_eq!(keys(&cases[1]["cost"]["decode"]), decode);
    assert_eq!((cases[2].get("cost"), keys(&cases[3]["cost"]["decode"])), (None, decode.to_vec()));
    hold_summary(&cases[1]["cost"]["decode"]["share_of_read_bandwidth"]);
    // A step at depth 5 sees 6 positions, the next one 7: 4 layers of 2 × 4 × 32 values in f16.
    assert_eq!(cases[3]["cost"]["decode"]["kv_bytes_per_token"].as_f64(), Some(6.5 * 2048.0));
}

#[test]
fn bench_engine_prints_tables_without_what_was_left_out() {
    let nothing = ["--prompt-tokens", "0", "--depth", "0", "--batch", "1", "--tokens", "2", "--repeats", "1"];
    let Outcome { code, stdout, stderr } =
        bench(&[&nothing[..], &["--read-buffer", "0", "--expert-nodes", "1"]].concat());
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(stdout.contains("1 expert nodes in process") && stdout.contains(" GB/s"), "{stdout}");
    let absent = ["pp", "@ d", "of what the memory gave", "reads ", "OTHER ENGINE"];
    assert!(absent.iter().all(|text| !stdout.contains(text)), "{stdout}");
}

#[test]
fn bench_engine_refuses_what_cannot_be_measured() {
    let refused = |args: &[&str], code: i32, word: &str| {
        let Outcome { code: ended, stdout, stderr } = bench(args);
        assert_eq!((ended, stdout.as_str()), (Some(code), ""), "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?}: {stderr}");
    };
    refused(&["--prompt-tokens", "1025"], 1, "pp1025 needs 1025 positions");
    refused(&["--kv-memory", "1000"], 1, "--kv-memory allows 1000");
    refused(&["--isa", "mmx"], 2, "portable");
    refused(&["--model", "demo", "--llama-bench", "nowhere"], 1, "GGUF");
}

/// `bench serve` with `args` on `server`: its report.
fn load(server: &Serving, args: &[&str]) -> Value {
    let endpoint = format!("http://{}", server.addr());
    let Outcome { code, stdout, stderr } =
        run(&[&["bench", "serve", "--endpoint", &endpoint, "--json"], args].concat());
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    serde_json::from_str(&stdout).expect("one object")
}

#[test]
fn bench_serve_counts_every_request_and_token() {
    let server = Serving::start(&[]);
    let report =
        load(&server, &["--requests", "12", "--concurrency", "4", "--prompt-words", "9", "--output-tokens", "5"]);
    assert_eq!((&report["requests"], &report["completed"], &report["errors"]), (&json!(12), &json!(12), &json!({})));
    assert_eq!((&report["output_tokens"], &report["model"]), (&json!(60), &json!("breeze")));
    assert!(report["prompt_tokens"].as_u64().is_some_and(|tokens| tokens >= 12 * 9), "{report}");
    assert_eq!(
        report["load"],
        json!({"concurrency": 4, "rate": null, "prompt_words": 9, "output_tokens": 5, "seed": 0})
    );
    for times in ["ttft_ms", "itl_ms", "e2e_ms"] {
        let [p50, p90, p99, max] =
            ["p50", "p90", "p99", "max"].map(|key| report[times][key].as_f64().expect("a number"));
        assert!(0.0 <= p50 && p50 <= p90 && p90 <= p99 && p99 <= max, "{report}");
    }
    assert!(report["ttft_ms"]["p50"].as_f64() <= report["e2e_ms"]["p50"].as_f64(), "{report}");
    assert_eq!(report["goodput"], Value::Null);
    until("nothing is left of it", || server.is_idle());

    // At a rate, with bounds that everything keeps and that nothing does.
    let rate = ["--requests", "10", "--rate", "40", "--output-tokens", "3", "--allow-eos"];
    let all = load(&server, &[&rate[..], &["--ttft", "60000"]].concat());
    assert_eq!((&all["goodput"]["requests"], &all["load"]["rate"]), (&json!(10), &json!(40.0)));
    let none = load(&server, &[&rate[..], &["--ttft", "0.001"]].concat());
    assert_eq!((&none["goodput"]["requests"], &none["completed"]), (&json!(0), &json!(10)));
}

#[test]
fn bench_serve_says_what_failed() {
    let server = Serving::start(&[]);
    let endpoint = format!("http://{}", server.addr());
    let ask = |args: &[&str]| run(&[&["bench", "serve", "--endpoint", &endpoint, "--requests", "3"], args].concat());
    let Outcome { code, stdout, stderr } = ask(&["--output-tokens", "5000"]);
    assert_eq!(code, Some(1), "{stdout}");
    assert!(
        stdout.contains("3: 400 context_length_exceeded") && stderr.contains("no request was answered"),
        "{stdout}{stderr}"
    );
    server.signal("KILL");
    server.outcome();
    let Outcome { code, stdout, stderr } = ask(&[]);
    assert_eq!((code, stdout.as_str()), (Some(3), ""), "{stderr}");
}
