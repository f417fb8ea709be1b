//! API keys: who may ask, and that keys stay out of what is said.

use serde_json::json;

use crate::serving::Serving;

const KEY: &str = "sk-a-key-of-the-test-suite";
/// `printf %s sk-another-key-of-the-tests | sha256sum`
const OTHER: &str = "sk-another-key-of-the-tests";
const OTHER_HASH: &str = "479e2d3303be9fab8a099361ad4d3a9143ac35d113f8e0f2669a388cbc83d4ca";

fn server(folder: &tempfile::TempDir) -> Serving {
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("# test\nalice:{KEY}\nbob:{OTHER_HASH}\n")).expect("the file of keys");
    Serving::start(&["--api-keys-file", file.to_str().expect("a path in UTF-8")])
}

#[test]
fn every_route_but_the_probes_needs_a_key() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = server(&folder);
    for path in ["/healthz", "/readyz", "/health"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    let upper = format!("authorization: Bearer {}", KEY.to_uppercase());
    let hash = format!("authorization: Bearer {OTHER_HASH}");
    for head in [
        "x: y",
        "authorization: Bearer wrong",
        "authorization: Basic abc",
        &upper,
        &hash,
        "api-key: sk-a-key-of-the-test-suite",
    ] {
        for path in [
            "/v1/models",
            "/v1/nothing",
            "/version",
            "/openapi.json",
            "/v1/models/breeze",
            "//healthz",
            "/healthz/",
            "/readyz?x=/v1",
        ] {
            let reply = server.send("GET", path, &[head], b"");
            if path.starts_with("/readyz?") {
                assert_eq!(reply.status, 200, "{path}");
                continue;
            }
            assert_eq!(
                (reply.status, &reply.json()["error"]["code"]),
                (401, &json!("invalid_api_key")),
                "{head} {path}"
            );
            assert!(!reply.body.contains("sk-"), "{reply:?}");
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
        let reply =
            server.send("POST", "/v1/completions", &[head, "content-type: application/json"], b"{\"prompt\": \"Hi\"}");
        assert_eq!(reply.status, 401, "{reply:?}");
    }
}

#[test]
fn a_key_opens_whatever_way_it_is_kept_and_no_host_does() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let server = server(&folder);
    for key in [KEY, OTHER] {
        assert_eq!(server.send("GET", "/v1/models", &[&format!("authorization: Bearer {key}")], b"").status, 200);
    }
    for head in [
        "GET /v1/models HTTP/1.1\r\nhost: x/healthz?\r\nconnection: close\r\n\r\n",
        "GET http://x/v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    ] {
        let status = server.raw(head.as_bytes()).status;
        assert!(matches!(status, 400 | 401), "{head}: {status}");
    }
}
