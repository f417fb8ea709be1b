//! The console as browsers fetch it, and whose pages may ask.

use serde_json::json;

use crate::serving::{Reply, Serving};

const PAGE: &str = "/ui";
const PIECES: [(&str, &str); 5] = [
    (PAGE, "text/html; charset=utf-8"),
    ("/ui/style.css", "text/css; charset=utf-8"),
    ("/ui/console.js", "text/javascript; charset=utf-8"),
    ("/ui/text.js", "text/javascript; charset=utf-8"),
    ("/ui/icon.svg", "image/svg+xml"),
];
const KEY: &str = "sk-a-key-of-the-test-suite";

/// What a browser is told of every piece.
fn is_guarded(reply: &Reply) {
    let policy = reply.header("content-security-policy").expect("a policy");
    let rules: Vec<&str> = policy.split("; ").collect();
    for rule in
        ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"]
    {
        assert!(rules.contains(&rule), "{rule}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
}

#[test]
fn the_console_is_served_piece_by_piece_and_only_read() {
    let server = Serving::start(&[]);
    for (path, media) in PIECES {
        let whole = server.get(path);
        assert_eq!((whole.status, whole.header("content-type")), (200, Some(media)), "{path}");
        assert_eq!(whole.header("content-length"), Some(whole.body.len().to_string().as_str()), "{path}");
        is_guarded(&whole);
        let head = server.send("HEAD", path, &[], b"");
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert_eq!(head.header("content-length"), whole.header("content-length"), "{path}");
        is_guarded(&head);
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            assert_eq!(server.send(method, path, &[], b"").status, 405, "{method} {path}");
        }
    }
    let stroke = server.get("/ui/");
    assert_eq!((stroke.status, stroke.header("location")), (308, Some("../ui")));
    for path in ["/ui/index.html", "/ui/../openapi.json", "/ui/console.js/", "/ui//text.js", "/UI"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
}

#[test]
fn it_can_be_left_out() {
    let server = Serving::start(&["--no-ui"]);
    for path in PIECES.map(|(path, _)| path).into_iter().chain(["/ui/"]) {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
}

#[test]
fn the_page_needs_no_key_and_what_it_asks_does() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("alice:{KEY}\n")).expect("the file of keys");
    let server = Serving::start(&["--api-keys-file", file.to_str().expect("a path in UTF-8")]);
    for (path, _) in PIECES {
        let reply = server.get(path);
        assert_eq!(reply.status, 200, "{path}");
        assert!(!reply.body.contains("alice") && !reply.body.contains("sk-"), "{path}");
    }
    for path in ["/v1/models", "/version", "/ui/index.html", "/ui/x"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
}

#[test]
fn without_keys_a_page_of_a_stranger_may_not_ask() {
    let question = json!({"prompt": "Once", "max_tokens": 1}).to_string();
    let asked_by = |server: &Serving, origin: &str| {
        let origin = format!("origin: {origin}");
        let head = [&origin, "content-type: application/json"];
        server.send("POST", "/v1/completions", &head, question.as_bytes())
    };
    let server = Serving::start(&[]);
    for own in
        [format!("http://{}", server.addr()), "http://localhost:8080".to_owned(), "https://llm.example".to_owned()]
    {
        assert_eq!(asked_by(&server, &own).status, 200, "{own}");
    }
    let strange = "http://rebound.example:8080";
    let refused = asked_by(&server, strange);
    let error = &refused.json()["error"];
    assert_eq!((refused.status, &error["type"]), (403, &json!("invalid_request_error")));
    assert_eq!(error["code"], "foreign_page");
    // Another page's question is never asked: the browser is not told that it may.
    let preflight = ["origin: https://llm.example", "access-control-request-method: POST"];
    let reply = server.send("OPTIONS", "/v1/completions", &preflight, b"");
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (405, None));
    let server = Serving::start(&["--insecure"]);
    assert_eq!(asked_by(&server, strange).status, 200);
}
