//! Prompts and keys stay between client and model: nothing of them is logged, however much is, or said in an error.

use serde_json::json;

use crate::serving::{Reply, Serving};

const KEY: &str = "sk-canary-key-5b1f0c";
const WRONG: &str = "sk-canary-wrong-77aa";
/// In every prompt, and in no other text.
const PROMPT: &str = "zanzibarcanary";

#[test]
fn prompts_and_keys_are_in_no_log_no_error_and_no_description() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("alice:{KEY}\n")).expect("the file of keys");
    let server = Serving::start_logging_all(&["--api-keys-file", file.to_str().expect("a path in UTF-8")]);
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
    server.signal("TERM");
    let outcome = server.outcome();
    let said = outcome.stdout + &outcome.stderr;
    assert!(said.contains("INFO"), "nothing was logged: {said}");
    for secret in [KEY, WRONG, PROMPT] {
        let line = said.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
