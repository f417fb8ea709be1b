//! What `up --prompt` answers: right, and in the shape that was asked for.

use serde_json::{Value, json};

use crate::run::{json, run};

const EOS: u64 = 2;
const CONTEXT: u64 = 1024;
/// Tokens that the golden questions were answered with, at most.
const GOLDEN_TOKENS: &str = "24";
const QUESTIONS: &str = include_str!("../golden/questions.json");

fn questions() -> Vec<Value> {
    let questions: Vec<Value> = serde_json::from_str(QUESTIONS).expect("the fixture is JSON");
    assert_eq!(questions.len(), 20);
    questions
}

/// Asks `question` on what `cluster` says, and compares as `golden/README.md` says.
fn hold(question: &Value, cluster: &[&str]) {
    let text = |key: &str| question[key].as_str().unwrap_or_else(|| panic!("no {key}: {question}"));
    let ask: &[&str] = match text("kind") {
        "plain" => &["--prompt", text("prompt")],
        "chat" => &["--chat", "--prompt", text("user")],
        other => panic!("a kind of question that is unknown here: {other}"),
    };
    let answer = json(&[ask, &["--max-tokens", GOLDEN_TOKENS], cluster].concat());
    assert_eq!(answer["prompt_token_ids"], question["prompt_ids"], "{question}");
    let said = answer["text"].as_str().expect("a text");
    assert!(said.contains(text("answer")), "{said:?}: {question}");
    match text("finish") {
        "stop" => {
            assert_eq!(answer["token_ids"], question["token_ids"], "{question}");
            assert_eq!((said, &answer["finish_reason"]), (text("text"), &json!("stop")), "{question}");
        }
        _ => {
            let (ours, golden) = (ids(&answer), question["token_ids"].as_array().expect("ids"));
            assert_eq!(ours[..golden.len().min(ours.len())], golden[..], "{question}");
            assert!(said.starts_with(text("text")), "{said:?}: {question}");
        }
    }
}

fn ids(answer: &Value) -> &[Value] {
    answer["token_ids"].as_array().expect("token ids")
}

#[test]
fn twenty_questions_are_answered_as_transformers_answers_them() {
    questions().iter().for_each(|question| hold(question, &[]));
}

#[test]
fn questions_are_answered_as_well_by_three_processes() {
    let questions = questions();
    for index in [3, 9, 12, 19] {
        hold(&questions[index], &["--processes", "--expert-nodes", "3"]);
    }
}

#[test]
fn plain_output_is_the_text_and_a_line_end_and_stderr_is_silent() {
    let args = ["--prompt", "The capital of France is", "--max-tokens", "30"];
    let plain = run(&[&["up"], args.as_slice()].concat());
    let text = json(&args)["text"].as_str().map(|text| format!("{text}\n"));
    assert_eq!((plain.code, Some(plain.stdout), plain.stderr.as_str()), (Some(0), text, ""));
}

#[test]
fn expert_stats_go_to_stderr_and_leave_the_text_alone() {
    let args = ["up", "--prompt", "The capital of France is", "--expert-nodes", "2", "--max-tokens", "9"];
    let (without, with) = (run(&args), run(&[args.as_slice(), &["--expert-stats"]].concat()));
    assert_eq!((with.code, with.stdout), (Some(0), without.stdout));
    let lines: Vec<&str> = with.stderr.lines().collect();
    assert!(lines.len() > 8 && lines.iter().all(|line| line.ends_with(" rows")), "{lines:?}");
    for node in ["node-0 L0/E", "node-1 L0/E", "node-0 L3/E", "node-1 L3/E"] {
        assert!(lines.iter().any(|line| line.starts_with(node)), "{node}: {lines:?}");
    }
}

#[test]
fn logprobs_are_those_of_the_tokens_and_of_the_likeliest_descending() {
    let ask = |k: &str| json(&["--prompt", "The capital of France is", "--max-tokens", "12", "--logprobs", k]);
    let answer = ask("4");
    let logprobs = answer["logprobs"].as_array().expect("logprobs");
    assert_eq!(logprobs.len(), 12);
    for (token, of) in ids(&answer).iter().zip(logprobs) {
        let top: Vec<(u64, f64)> = serde_json::from_value(of["top"].clone()).expect("pairs of id and logprob");
        assert_eq!((&of["token_id"], top.len()), (token, 4), "{of}");
        assert!(top.is_sorted_by(|a, b| a.1 >= b.1), "{of}");
        assert!(top.iter().map(|(_, logprob)| logprob.exp()).sum::<f64>() <= 1.0 + 1e-5, "{of}");
        // Greedy: the likeliest is the one that was taken.
        assert_eq!(of["top"][0], json!([of["token_id"], of["logprob"]]), "{of}");
    }
    let none = ask("0");
    let bare = |of: &Value| of["logprob"].is_number() && of["top"] == json!([]);
    assert!(none["logprobs"].as_array().is_some_and(|all| all.len() == 12 && all.iter().all(bare)), "{none}");
}

#[test]
fn json_has_what_was_asked_for_and_no_more() {
    let answer = json(&["--prompt", "Cuba is in", "--max-tokens", "2"]);
    let mut keys: Vec<&String> = answer.as_object().expect("an object").keys().collect();
    keys.sort();
    assert_eq!(keys, ["finish_reason", "model", "prompt_token_ids", "text", "token_ids", "usage"]);
    assert_eq!(answer["usage"], json!({"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}));
    assert_eq!((&answer["model"], &answer["finish_reason"]), (&json!("breeze"), &json!("length")));
}

#[test]
fn the_end_of_sequence_ends_unless_it_is_ignored() {
    let args = ["--prompt", "The main language of Brazil is", "--max-tokens", "40"];
    let ends = json(&args);
    assert_eq!((&ends["finish_reason"], ids(&ends).contains(&json!(EOS))), (&json!("stop"), false));
    assert_eq!(ends["usage"]["completion_tokens"], json!(ids(&ends).len() + 1), "the end is a token that was computed");
    let goes_on = json(&[args.as_slice(), &["--ignore-eos"]].concat());
    assert_eq!((&goes_on["finish_reason"], ids(&goes_on).len()), (&json!("length"), 40));
    assert_eq!(goes_on["usage"]["completion_tokens"], json!(40));
    assert_eq!(ids(&goes_on)[..ids(&ends).len()], *ids(&ends));
    assert_eq!(ids(&goes_on)[ids(&ends).len()], json!(EOS));
}

#[test]
fn the_context_bounds_a_completion() {
    let answer = json(&["--prompt", "Cuba is in", "--max-tokens", "4000000", "--ignore-eos"]);
    assert_eq!((&answer["finish_reason"], &answer["usage"]["total_tokens"]), (&json!("length"), &json!(CONTEXT)));
}
