//! Prompts and keys stay between client and model: nothing of them is logged, however much is, said in an error, or shown in metrics.

use std::io::Write;

use serde_json::json;

use crate::http2::{DATA, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, field, frame, frames};
use crate::serving::{Reply, Serving, get};

const KEY: &str = "sk-canary-key-5b1f0c";
const WRONG: &str = "sk-canary-wrong-77aa";
/// In every prompt, and in no other text.
const PROMPT: &str = "zanzibarcanary";

#[test]
fn prompts_and_keys_are_in_no_log_no_error_and_no_description() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("alice:{KEY}\n")).expect("the file of keys");
    let server = Serving::start_logging_all(&[
        "--api-keys-file",
        file.to_str().expect("a path in UTF-8"),
        "--metrics",
        "127.0.0.1:0",
    ]);
    let ask = |key: &str, method: &str, path: &str, body: &str| {
        let key = format!("authorization: Bearer {key}");
        server.send(method, path, &[&key, "content-type: application/json"], body.as_bytes())
    };
    let says_nothing = |what: &str, reply: &Reply| {
        let whole = format!("{:?}{}", reply.headers, reply.body);
        for secret in [KEY, WRONG, PROMPT] {
            assert!(!whole.contains(secret), "{what}: {whole}");
        }
    };
    let chat = json!([{"role": "user", "content": PROMPT}]);
    for (path, body) in [
        ("/v1/completions", json!({"prompt": PROMPT, "max_tokens": 2})),
        ("/v1/completions", json!({"prompt": PROMPT, "max_tokens": 2, "stream": true})),
        ("/v1/chat/completions", json!({"messages": chat, "max_tokens": 2})),
        ("/v1/chat/completions", json!({"messages": chat, "structured_outputs": {"choice": ["yes", "no"]}})),
        ("/v1/embeddings", json!({"input": PROMPT})),
    ] {
        assert_eq!(ask(KEY, "POST", path, &body.to_string()).status, 200, "{path}");
        says_nothing("a wrong key", &ask(WRONG, "POST", path, &body.to_string()));
    }
    let cut = format!("{{\"prompt\": \"{PROMPT}");
    let whole = format!("{{\"prompt\": \"{PROMPT}\"}} more");
    for (path, body) in [
        ("/v1/completions", cut.as_str()),
        ("/v1/completions", &whole),
        ("/v1/completions", &json!({"prompt": PROMPT, "n": 0}).to_string()),
        ("/v1/completions", &json!({"prompt": PROMPT, "max_tokens": 5000}).to_string()),
        ("/v1/completions", &json!({"prompt": PROMPT, "structured_outputs": {"regex": "(("}}).to_string()),
        ("/v1/chat/completions", &json!({"messages": chat, "frobnicate": 1}).to_string()),
        ("/v1/chat/completions", &json!({"messages": chat, "continue_final_message": true}).to_string()),
        ("/v1/embeddings", &json!({"input": PROMPT, "dimensions": 2}).to_string()),
    ] {
        let reply = ask(KEY, "POST", path, body);
        assert_eq!(reply.status, 400, "{body}: {reply:?}");
        says_nothing(body, &reply);
    }
    for path in ["/openapi.json", "/version", "/v1/models", "/readyz"] {
        says_nothing(path, &ask(KEY, "GET", path, ""));
    }
    heads_with_secrets(&server);
    let metrics = get(server.metrics(), "/metrics");
    assert!(metrics.body.contains("tramontane_request_success_total"), "{metrics:?}");
    says_nothing("metrics", &metrics);
    let seen_by_ps = std::fs::read(format!("/proc/{}/cmdline", server.pid())).expect("it runs");
    assert!(!String::from_utf8_lossy(&seen_by_ps).contains(KEY));
    server.signal("TERM");
    let outcome = server.outcome();
    let said = outcome.stdout + &outcome.stderr;
    assert!(said.contains("INFO"), "nothing was logged: {said}");
    for secret in [KEY, WRONG, PROMPT] {
        let line = said.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

/// Sends heads with all secrets in them, good and bad ones, in both versions of HTTP.
fn heads_with_secrets(server: &Serving) {
    for head in [
        format!(
            "GET /v1/{PROMPT} HTTP/1.1\r\nhost: {PROMPT}\r\nauthorization: Bearer {KEY}\r\nconnection: close\r\n\r\n"
        ),
        format!("GET / HTTP/1.1\r\nhost: x\r\nauthorization Bearer {KEY} {PROMPT}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nauthorization: Bearer {KEY}\r\ncontent-length: {PROMPT}\r\n\r\n"),
        format!("GET / HTTP/1.1\nauthorization: Bearer {KEY}\n\n"),
    ] {
        let status = server.raw(head.as_bytes()).status;
        assert!(matches!(status, 400 | 404), "{head}: {status}");
    }
    let body = json!({"prompt": PROMPT, "max_tokens": 2}).to_string();
    let common = [field(":method", "POST"), field(":scheme", "http"), field(":authority", PROMPT)].concat();
    let asked = |key: &str, more: &[u8]| {
        let path = field(":path", "/v1/completions");
        let known = [field("authorization", &format!("Bearer {key}")), field("content-type", "application/json")];
        [&common, &path, &known.concat(), more].concat()
    };
    let (end_of_head, end_of_body) = (4, 1);
    for (head, answered) in [
        (asked(KEY, &[]), true),
        (asked(WRONG, &[]), true),
        // A name in capitals, and a field of the connection's, are none in HTTP/2.
        (asked(KEY, &field("X-Name", PROMPT)), false),
        (asked(KEY, &field("connection", PROMPT)), false),
    ] {
        let mut stream = server.connect();
        let sent = [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, end_of_head, 1, &head)].concat();
        let sent = [sent, frame(DATA, end_of_body, 1, body.as_bytes())].concat();
        stream.write_all(&sent).expect("the server reads");
        let last = if answered { DATA } else { RST_STREAM };
        let frames = frames(&mut stream, last);
        // What is malformed ends its stream, or its connection.
        let wanted = if answered { [DATA, DATA] } else { [RST_STREAM, GOAWAY] };
        assert!(frames.iter().any(|(kind, ..)| wanted.contains(kind)), "{head:?}: {frames:?}");
        assert_eq!(frames.iter().any(|(kind, ..)| *kind == DATA), answered, "{frames:?}");
    }
}
