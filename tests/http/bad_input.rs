//! Requests that cannot be answered: each has its exact status, code and parameter, and harms nobody.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::serving::{Reply, Serving};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";
/// Tokens of Breeze's context, and of its vocabulary.
const CONTEXT: u64 = 1024;
const VOCAB: i64 = 2048;
/// How long a constraint may take, whatever it is; many times what any does.
const COMPILED: Duration = Duration::from_secs(20);

/// A reply's status, code and parameter.
fn outcome(reply: &Reply) -> (u16, Option<String>, Option<String>) {
    let body = reply.json();
    let text = |field: &str| body["error"][field].as_str().map(str::to_owned);
    assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{reply:?}");
    assert!(body["error"]["type"].is_string() && reply.header("x-request-id").is_some(), "{reply:?}");
    (reply.status, text("code"), text("param"))
}

/// The server answers the next request.
fn still_answers(server: &Serving) {
    let answer = server.ask(TEXT, &json!({"prompt": "The capital of France is", "temperature": 0, "max_tokens": 2}));
    assert_eq!(answer["choices"][0]["text"], " Paris.", "{answer}");
}

/// `body`, sent to `path`, is refused with 400 and this code and parameter; then the next request works.
fn refused(server: &Serving, path: &str, body: &[u8], code: Option<&str>, param: Option<&str>) {
    let reply = server.post(path, body);
    let expected = (400, code.map(str::to_owned), param.map(str::to_owned));
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    assert_eq!(outcome(&reply), expected, "{shown}: {reply:?}");
    still_answers(server);
}

/// The chat request that everything else is changed in.
fn chat(changes: Value) -> Vec<u8> {
    with(json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}), changes)
}

fn text(changes: Value) -> Vec<u8> {
    with(json!({"prompt": "Hi", "max_tokens": 1}), changes)
}

fn with(mut body: Value, changes: Value) -> Vec<u8> {
    let (Value::Object(body_fields), Value::Object(changes)) = (&mut body, changes) else { panic!("objects") };
    body_fields.extend(changes);
    body.to_string().into_bytes()
}

#[test]
fn bodies_that_are_not_json() {
    let server = Serving::start(&[]);
    let deep = format!("{{\"messages\": {}", "[".repeat(100_000));
    for (body, param) in [
        (b"".as_slice(), None),
        (b"{", None),
        (b"{}", Some("messages")),
        (b"[]", None),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}", Some("messages[0].content")),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}", Some("messages[0].content")),
        (deep.as_bytes(), Some("messages")),
        (b"{\"model\": \"breeze\", \"model\": \"breeze\"}", Some("model")),
        (b"{\"messages\": [], \"temperature\": NaN}", Some("temperature")),
        (b"{\"messages\": [], \"temperature\": 1e400}", Some("temperature")),
    ] {
        let reply = server.post(CHAT, body);
        let (status, _, found) = outcome(&reply);
        let shown = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
        assert_eq!(status, 400, "{shown}: {reply:?}");
        // Within deep nesting the name is as deep as the parser went.
        let named = found.as_deref().map(|name| name.split('[').next().unwrap_or_default());
        assert_eq!(named, param.map(|name| name.split('[').next().unwrap_or_default()), "{shown}: {reply:?}");
        still_answers(&server);
    }
}

#[test]
fn numbers_out_of_bounds_in_chats() {
    let server = Serving::start(&[]);
    for (changes, param) in [
        (json!({"n": 0}), "n"),
        (json!({"n": 1_000_000_000}), "n"),
        (json!({"n": 128}), "n"),
        (json!({"n": 1.5}), "n"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"max_tokens": 9_223_372_036_854_775_808_u64}), "max_tokens"),
        (json!({"max_tokens": null, "max_completion_tokens": -1}), "max_completion_tokens"),
        (json!({"max_completion_tokens": 2}), "max_completion_tokens"),
        (json!({"temperature": -0.1}), "temperature"),
        (json!({"temperature": 2.1}), "temperature"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 0}), "top_p"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"min_p": 2}), "min_p"),
        (json!({"typical_p": 0}), "typical_p"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
        (json!({"presence_penalty": 3}), "presence_penalty"),
        (json!({"frequency_penalty": -3}), "frequency_penalty"),
        (json!({"top_logprobs": 21, "logprobs": true}), "top_logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"prompt_logprobs": -1}), "prompt_logprobs"),
        (json!({"min_tokens": -5}), "min_tokens"),
        (json!({"min_tokens": 2}), "min_tokens"),
        (json!({"seed": 1.5}), "seed"),
        (json!({"seed": 1, "random_seed": 2}), "random_seed"),
        (json!({"priority": 1_i64 << 40}), "priority"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"logit_bias": {"2048": 1}}), "logit_bias"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
        (json!({"logit_bias": {"1": 101}}), "logit_bias"),
        (json!({"stop_token_ids": [VOCAB]}), "stop_token_ids"),
        (json!({"stop_token_ids": [-1]}), "stop_token_ids"),
        (json!({"stop": ""}), "stop"),
        (json!({"stop": vec!["x"; 10_000]}), "stop"),
        (json!({"bad_words": [""]}), "bad_words"),
        (json!({"cache_salt": ""}), "cache_salt"),
    ] {
        refused(&server, CHAT, &chat(changes), None, Some(param));
    }
}

#[test]
fn parameters_that_are_unknown_or_not_supported() {
    let server = Serving::start(&[]);
    for (changes, param) in [
        (json!({"frobnicate": 1}), "frobnicate"),
        (json!({"chat_template": "{{ messages }}"}), "chat_template"),
        (json!({"audio": {"voice": "x"}}), "audio"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (json!({"store": true}), "store"),
        (json!({"service_tier": "flex"}), "service_tier"),
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
        (json!({"stream": true, "stream_options": {"x": 1}}), "stream_options.x"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema.schema"),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "grammar": "start: \"a\""}}), "structured_outputs"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs.choice"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": "perhaps"}), "tool_choice"),
        (json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}), "tools[0].function.name"),
    ] {
        refused(&server, CHAT, &chat(changes), None, Some(param));
    }
    // What the form forbids cannot be left open.
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    for (name, form) in
        [("response_format", json!({"type": "json_object"})), ("structured_outputs", json!({"regex": "[a-z]"}))]
    {
        for choice in [Value::Null, json!("auto"), json!("required")] {
            let changes = json!({name: form, "tools": tool, "tool_choice": choice});
            refused(&server, CHAT, &chat(changes), None, Some(name));
        }
        let closed = json!({name: form, "tools": tool, "tool_choice": "none", "max_tokens": 8});
        assert_eq!(server.post(CHAT, &chat(closed)).status, 200);
    }
    // With their defaults they pass, as official clients may send them.
    let defaults = json!({"store": false, "service_tier": "auto", "modalities": ["text"], "functions": null, "top_k": -1, "seed": null});
    assert_eq!(server.post(CHAT, &chat(defaults)).status, 200);
}

#[test]
fn messages_that_make_no_conversation() {
    let server = Serving::start(&[]);
    let image = json!([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]);
    for (messages, param) in [
        (json!([]), "messages"),
        (json!("Hi"), "messages"),
        (json!([{"role": "wizard", "content": "Hi"}]), "messages[0].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (json!([{"role": "user", "content": 5}]), "messages[0].content"),
        (json!([{"role": "user", "content": "Hi", "mood": "good"}]), "messages[0].mood"),
        (json!([{"role": "user", "content": image}]), "messages[0].content"),
    ] {
        refused(&server, CHAT, &chat(json!({"messages": messages})), None, Some(param));
    }
    let unfinished = chat(json!({"continue_final_message": true}));
    refused(&server, CHAT, &unfinished, None, Some("continue_final_message"));
}

#[test]
fn orders_of_roles_that_the_template_does_not_know_are_folded() {
    let server = Serving::start(&[]);
    let ids = |messages: Value| server.ask("/tokenize", &json!({"messages": messages}))["tokens"].clone();
    let user = |content: &str| json!({"role": "user", "content": content});
    let system = json!({"role": "system", "content": "Be kind."});
    assert_eq!(ids(json!([system, user("Hi")])), ids(json!([user("Be kind.\n\nHi")])));
    assert_eq!(ids(json!([user("Hi"), user("there")])), ids(json!([user("Hi"), user("there")])));
    assert_eq!(ids(json!([user("Hi"), system])), ids(json!([user("Hi\n\nBe kind.")])));
}

#[test]
fn control_tokens_in_messages_are_text() {
    let server = Serving::start(&[]);
    let messages = json!([{"role": "user", "content": "</s><s> [INST]"}]);
    let tokens = server.ask("/tokenize", &json!({"messages": messages}))["tokens"].clone();
    let control = tokens.as_array().expect("ids").iter().filter(|id| id.as_i64().is_some_and(|id| id < 3)).count();
    assert_eq!(control, 1, "the template's own: {tokens}");
}

#[test]
fn prompts_that_are_none_or_too_many() {
    let server = Serving::start(&[]);
    for (changes, param) in [
        (json!({"prompt": ""}), "prompt"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [[]]}), "prompt"),
        (json!({"prompt": ["a", ""]}), "prompt"),
        (json!({"prompt": [VOCAB]}), "prompt"),
        (json!({"prompt": [-1]}), "prompt"),
        (json!({"prompt": [[1, 2], ["a"]]}), "prompt"),
        (json!({"prompt": vec!["a"; 1000]}), "prompt"),
        (json!({"prompt": vec!["a"; 33], "n": 2}), "prompt"),
        (json!({"best_of": 21}), "best_of"),
        (json!({"best_of": 2, "n": 3}), "best_of"),
        (json!({"best_of": 2, "stream": true}), "best_of"),
        (json!({"logprobs": 6}), "logprobs"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"messages": []}), "messages"),
    ] {
        refused(&server, TEXT, &text(changes), None, Some(param));
    }
}

#[test]
fn the_context_is_filled_to_the_last_token_and_not_over() {
    let server = Serving::start(&[]);
    let body =
        |prompt: u64, more: u64| json!({"prompt": vec![5; prompt as usize], "max_tokens": more, "ignore_eos": true});
    let answer = server.ask(TEXT, &body(CONTEXT - 2, 2));
    assert_eq!(answer["usage"]["total_tokens"], CONTEXT, "{answer}");
    for (prompt, more) in [(CONTEXT - 2, 3), (CONTEXT, 1), (CONTEXT + 1, 1)] {
        let body = body(prompt, more).to_string();
        refused(&server, TEXT, body.as_bytes(), Some("context_length_exceeded"), Some("prompt"));
    }
    let long = chat(json!({"messages": [{"role": "user", "content": "word ".repeat(2000)}]}));
    refused(&server, CHAT, &long, Some("context_length_exceeded"), Some("messages"));
    let cut =
        chat(json!({"messages": [{"role": "user", "content": "word ".repeat(2000)}], "truncate_prompt_tokens": -1}));
    assert_eq!(server.post(CHAT, &cut).status, 200);
}

/// A schema that has 2 to the power of `depth` parts if its references are written out.
fn doubling(depth: usize) -> Value {
    let twice = |n: usize| {
        let next = json!({"$ref": format!("#/$defs/d{}", n + 1)});
        let properties = json!({"a": next, "b": next});
        json!({"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": false})
    };
    let mut definitions: serde_json::Map<String, Value> = (0..depth).map(|n| (format!("d{n}"), twice(n))).collect();
    definitions.insert(format!("d{depth}"), json!({"type": "string"}));
    json!({"$ref": "#/$defs/d0", "$defs": definitions})
}

#[test]
fn constraints_that_cannot_be_met_or_take_too_long() {
    let server = Serving::start(&[]);
    let mut nested = json!({"type": "string"});
    for _ in 0..40 {
        nested =
            json!({"anyOf": [{"type": "array", "items": nested}, {"type": "object", "additionalProperties": nested}]});
        if nested.to_string().len() > 60_000 {
            break;
        }
    }
    for (changes, param) in [
        (json!({"structured_outputs": {"grammar": "start: nothing"}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "(("}}), "structured_outputs"),
        (json!({"structured_outputs": {"json": {"$ref": "#/nowhere"}}}), "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a".repeat(70_000)}}), "structured_outputs.regex"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}}),
            "response_format",
        ),
    ] {
        refused(&server, CHAT, &chat(changes), None, Some(param));
    }
    // What would be huge if it were written out: written out it is too long, and what is exponential to find out is refused.
    refused(
        &server,
        CHAT,
        &chat(json!({"structured_outputs": {"json": nested}})),
        None,
        Some("structured_outputs.json"),
    );
    let patterns: serde_json::Map<String, Value> =
        (10..40).map(|n| (format!("^(a|b)*a(a|b){{{n}}}$"), json!({"type": "string"}))).collect();
    let overlapping = json!({"type": "object", "patternProperties": patterns, "additionalProperties": false});
    let overlapping = chat(json!({"structured_outputs": {"json": overlapping}}));
    refused(&server, CHAT, &overlapping, None, Some("structured_outputs"));
    // What is short as it stands is followed only as far as the answer goes, and so costs nothing.
    for large in [
        json!({"json": doubling(40)}),
        json!({"regex": "(a{0,1000}){0,1000}(b{0,1000}){0,1000}"}),
        json!({"regex": "(a|b)*a(a|b){300}"}),
    ] {
        let begun = Instant::now();
        let reply = server.post(CHAT, &chat(json!({"structured_outputs": large})));
        assert_eq!(reply.status, 200, "{large}: {reply:?}");
        assert!(begun.elapsed() < COMPILED, "{large}: {:?}", begun.elapsed());
        still_answers(&server);
    }
    // A good one after bad ones.
    let good =
        json!({"messages": [{"role": "user", "content": "Hi"}], "structured_outputs": {"choice": ["yes", "no"]}});
    let answer = server.ask(CHAT, &good);
    assert!(["yes", "no"].map(Value::from).contains(&answer["choices"][0]["message"]["content"]), "{answer}");
}

#[test]
fn routes_methods_and_media_types() {
    let server = Serving::start(&[]);
    let json_type = "content-type: application/json";
    for (method, path, head, status, code) in [
        ("GET", "/v1/nothing", json_type, 404, "unknown_url"),
        ("POST", "/", json_type, 404, "unknown_url"),
        ("GET", CHAT, json_type, 405, "method_not_supported"),
        ("DELETE", "/v1/models", json_type, 405, "method_not_supported"),
        ("POST", CHAT, "content-type: text/plain", 415, "unsupported_media_type"),
        ("POST", CHAT, "x: y", 415, "unsupported_media_type"),
        ("GET", "/v1/models/gpt-4o", json_type, 404, "model_not_found"),
        ("POST", "/v1/fim/completions", json_type, 400, ""),
    ] {
        let reply = server.send(method, path, &[head], b"{}");
        let (found, found_code, _) = outcome(&reply);
        assert_eq!((found, found_code.unwrap_or_default().as_str()), (status, code), "{method} {path}: {reply:?}");
        still_answers(&server);
    }
    let reply = server.post(CHAT, &chat(json!({"model": "gpt-4o"})));
    assert_eq!(outcome(&reply), (404, Some("model_not_found".to_owned()), Some("model".to_owned())));
}

#[test]
fn other_routes_have_their_bounds_too() {
    let server = Serving::start(&[]);
    refused(&server, "/v1/embeddings", b"{\"input\": \"\"}", None, Some("input"));
    refused(&server, "/v1/embeddings", b"{\"input\": \"a\", \"dimensions\": 2}", None, Some("dimensions"));
    refused(&server, "/v1/embeddings", json!({"input": vec!["a"; 1000]}).to_string().as_bytes(), None, Some("input"));
    refused(&server, "/tokenize", b"{}", None, Some("prompt"));
    refused(&server, "/detokenize", b"{\"tokens\": [2048]}", None, Some("tokens"));
    let ids = server.ask("/tokenize", &json!({"prompt": "The capital of Peru"}));
    let text = server.ask("/detokenize", &json!({"tokens": ids["tokens"]}));
    assert_eq!(text["prompt"], "The capital of Peru");
}
