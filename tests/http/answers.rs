//! Answers whole and streamed: the same text, in the shape that OpenAI's clients expect.

use serde_json::{Value, json};

use crate::run::until;
use crate::serving::Serving;

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

fn question(changes: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0});
    let (Value::Object(fields), Value::Object(changes)) = (&mut body, changes) else { panic!("objects") };
    fields.extend(changes);
    body
}

/// The texts of a stream's pieces, joined.
fn said(events: &[Value]) -> String {
    let pieces = events.iter().filter_map(|event| {
        let choice = event["choices"].get(0)?;
        choice["delta"]["content"].as_str().or(choice["text"].as_str())
    });
    pieces.collect()
}

#[test]
fn a_stream_begins_with_the_role_and_ends_with_reason_and_usage() {
    let server = Serving::start(&[]);
    let whole = server.ask(CHAT, &question(json!({})));
    let events = server.events(CHAT, &question(json!({"stream": true, "stream_options": {"include_usage": true}})));
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let [.., finish, usage] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((&finish["choices"][0]["finish_reason"], &finish["choices"][0]["delta"]), (&json!("stop"), &json!({})));
    assert_eq!((&usage["choices"], &usage["usage"]), (&json!([]), &whole["usage"]));
    assert!(events[..events.len() - 1].iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert_eq!(said(&events), whole["choices"][0]["message"]["content"].as_str().expect("a text"));
    for field in ["id", "created", "model", "system_fingerprint"] {
        assert!(events.iter().all(|event| event[field] == events[0][field]), "{field}");
    }
    assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
    assert_eq!(whole["system_fingerprint"], events[0]["system_fingerprint"]);
}

#[test]
fn without_include_usage_no_chunk_has_one_and_with_continuous_stats_each_has() {
    let server = Serving::start(&[]);
    let events = server.events(CHAT, &question(json!({"stream": true})));
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let events = server.events(CHAT, &question(json!({"stream": true, "stream_options": options})));
    let counts: Vec<u64> =
        events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().expect("a count")).collect();
    assert!(counts.is_sorted() && counts.last() > counts.first(), "{counts:?}");
}

#[test]
fn a_stop_string_across_tokens_is_never_said() {
    let server = Serving::start(&[]);
    let body = |stop: Value, more: Value| {
        let mut body = json!({"prompt": "The capital of France is", "temperature": 0, "max_tokens": 40, "stop": stop});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let free = server.ask(TEXT, &body(json!(null), json!({})));
    let free = free["choices"][0]["text"].as_str().expect("a text");
    // Cut in the middle of words, so that the string begins and ends inside tokens.
    for (from, to) in [(3, 9), (8, 20), (12, 13)] {
        let stop = &free[from..to];
        let expected = &free[..free.find(stop).expect("it is in there")];
        let answer = server.ask(TEXT, &body(json!([stop, "never said"]), json!({})));
        let choice = &answer["choices"][0];
        assert_eq!(
            (choice["text"].as_str(), choice["finish_reason"].as_str()),
            (Some(expected), Some("stop")),
            "{stop:?}"
        );
        let events = server.events(TEXT, &body(json!(stop), json!({"stream": true})));
        assert_eq!(said(&events), expected, "{stop:?}");
        let answer = server.ask(TEXT, &body(json!(stop), json!({"include_stop_str_in_output": true})));
        assert_eq!(answer["choices"][0]["text"], format!("{expected}{stop}"));
    }
}

#[test]
fn what_was_cached_is_told_also_when_a_stop_string_ends_the_answer() {
    let server = Serving::start(&[]);
    let prompt: Vec<u64> = (0..100).map(|n| 300 + n).collect();
    let body = |more: Value| {
        let mut body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 40, "ignore_eos": true});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        body
    };
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    let first = server.ask(TEXT, &body(json!({})));
    assert_eq!(cached(&first), 0);
    let text = first["choices"][0]["text"].as_str().expect("a text");
    let stop: String = text.chars().skip(4).take(6).collect();
    let again = server.ask(TEXT, &body(json!({"n": 2})));
    // Three blocks of 32.
    assert_eq!(cached(&again), 96);
    let stopped = server.ask(TEXT, &body(json!({"stop": stop})));
    assert_eq!((&stopped["choices"][0]["finish_reason"], cached(&stopped)), (&json!("stop"), json!(96)), "{stopped}");
    let options = json!({"stop": stop, "stream": true, "stream_options": {"include_usage": true}});
    let events = server.events(TEXT, &body(options));
    assert_eq!(cached(events.last().expect("events")), 96);
}

#[test]
fn an_error_in_mid_stream_is_an_event_and_the_end() {
    let server = Serving::start(&[]);
    // So ambiguous that the work for a token grows with those before it, until it is too much.
    let grammar = "start: e\ne: \"a\" | e e | e e e";
    let body = json!({"prompt": "a a a", "max_tokens": 900, "min_tokens": 890, "stream": true,
        "structured_outputs": {"grammar": grammar}});
    let reply = server.post(TEXT, body.to_string().as_bytes());
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream")), "{reply:?}");
    let events: Vec<&str> = reply.body.split("\n\n").filter(|event| event.starts_with("data: ")).collect();
    let [before @ .., last] = events.as_slice() else { panic!("{reply:?}") };
    assert!(!before.is_empty() && before.iter().all(|event| !event.contains("\"error\"")), "{before:?}");
    let last: Value = serde_json::from_str(last.trim_start_matches("data: ")).expect("JSON");
    assert_eq!(last["error"]["param"], "structured_outputs", "{last}");
    assert_eq!(last["error"]["type"], "invalid_request_error", "{last}");
    until("nothing is left of it", || server.is_idle());
}

#[test]
fn stop_tokens_lengths_and_ids() {
    let server = Serving::start(&[]);
    let body =
        json!({"prompt": "The capital of France is", "temperature": 0, "max_tokens": 8, "return_token_ids": true});
    let free = server.ask(TEXT, &body)["choices"][0].clone();
    let ids: Vec<u64> = serde_json::from_value(free["token_ids"].clone()).expect("ids");
    assert_eq!((ids.len(), &free["finish_reason"]), (8, &json!("length")));
    let mut stopped = body.clone();
    stopped["stop_token_ids"] = json!([ids[3]]);
    let answer = server.ask(TEXT, &stopped)["choices"][0].clone();
    let at = ids.iter().position(|id| *id == ids[3]).expect("it is there");
    assert_eq!((&answer["token_ids"], &answer["finish_reason"]), (&json!(ids[..at]), &json!("stop")));
    let prompt = server.ask("/tokenize", &json!({"prompt": "The capital of France is"}))["tokens"].clone();
    assert_eq!(free["prompt_token_ids"], prompt);
    let by_ids = server.ask(TEXT, &json!({"prompt": prompt, "temperature": 0, "max_tokens": 8}));
    assert_eq!(by_ids["choices"][0]["text"], free["text"]);
}

#[test]
fn the_same_seed_gives_the_same_answer_and_no_seed_another() {
    let server = Serving::start(&[]);
    let ask = |more: Value| {
        let mut body = json!({"prompt": "Peru", "temperature": 2, "max_tokens": 30, "ignore_eos": true});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        server.ask(TEXT, &body)["choices"][0]["text"].clone()
    };
    assert_eq!(ask(json!({"seed": -7})), ask(json!({"seed": -7})));
    assert_eq!(ask(json!({"seed": 7})), ask(json!({"random_seed": 7})));
    assert_ne!(ask(json!({"seed": 7})), ask(json!({"seed": 8})));
    assert_ne!(ask(json!({})), ask(json!({})));
}

#[test]
fn an_echo_is_the_prompt_and_alone_if_nothing_else_is_wanted() {
    let server = Serving::start(&[]);
    let prompt = "The capital of France is";
    let body = json!({"prompt": prompt, "echo": true, "max_tokens": 2, "temperature": 0});
    assert_eq!(server.ask(TEXT, &body)["choices"][0]["text"], format!("{prompt} Paris."));
    let alone = json!({"prompt": [prompt, "Peru"], "echo": true, "max_tokens": 0});
    let answer = server.ask(TEXT, &alone);
    assert_eq!((&answer["choices"][0]["text"], &answer["choices"][1]["text"]), (&json!(prompt), &json!("Peru")));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    assert_eq!(said(&server.events(TEXT, &streamed)), format!("{prompt} Paris."));
}

#[test]
fn a_message_is_gone_on_with() {
    let server = Serving::start(&[]);
    let messages = json!([{"role": "user", "content": "What is the capital of France?"}, {"role": "assistant", "content": "The capital of"}]);
    let body =
        json!({"messages": messages, "temperature": 0, "continue_final_message": true, "add_generation_prompt": false});
    let answer = server.ask(CHAT, &body);
    assert_eq!(answer["choices"][0]["message"]["content"], " France is Paris.");
}

#[test]
fn requests_have_ids_and_times_and_streams_are_not_held_back() {
    let server = Serving::start(&[]);
    let ask = |head: &[&str]| server.send("GET", "/v1/models", head, b"");
    assert_eq!(ask(&["x-request-id: mine-1"]).header("x-request-id"), Some("mine-1"));
    let long = format!("x-request-id: {}", "a".repeat(10_000));
    for bad in [&[long.as_str()][..], &["x-request-id: a b"], &["x-request-id: a", "x-request-id: b"], &[]] {
        let reply = ask(bad);
        let id = reply.header("x-request-id").expect("an id");
        assert!(id.len() == 32 && !id.contains(' '), "{id}");
    }
    assert!(ask(&[]).header("openai-processing-ms").is_some_and(|ms| ms.parse::<u64>().is_ok()));
    let reply = server.post(CHAT, question(json!({"stream": true})).to_string().as_bytes());
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
}

#[test]
fn probes_models_and_the_description() {
    let server = Serving::start(&[]);
    for path in ["/healthz", "/readyz", "/health"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert_eq!(server.get("/version").json()["name"], "tramontane");
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("breeze")));
    assert_eq!(server.get("/v1/models/breeze").json(), models["data"][0]);
    assert!(models["data"][0]["hash"].as_str().is_some_and(|hash| hash.len() == 71 && hash.starts_with("blake3:")));
    assert_eq!(models["data"][0]["license"], "apache-2.0", "its card says so");
    let description = server.get("/openapi.json").json();
    assert!(description["paths"]["/v1/chat/completions"]["post"].is_object());
}
