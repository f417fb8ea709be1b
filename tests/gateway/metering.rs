//! Keys that an operator makes and revokes while two front doors serve, a coordinator's own and a gateway: who is let in, what he may, and
//! that what he has used adds up to what was generated, to the token.

use serde_json::{Value, json};
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_types::StatusExt;
use tramontane_proto::v1;
use tramontane_proto::v1::inference_client::InferenceClient;

use crate::cluster::Cluster;
use crate::run::{Outcome, run, until};
use crate::serving::{Reply, Serving};

const LOOPBACK: &str = "127.0.0.1:0";

/// An operator at a cluster's coordinator.
struct Operator<'a>(&'a str);

impl Operator<'_> {
    fn does(&self, args: &[&str]) -> String {
        let Outcome { code, stdout, stderr } = run(&[args, &["--endpoint", self.0]].concat());
        assert_eq!(code, Some(0), "{args:?}: {stderr}");
        stdout
    }

    /// Makes a key of this name that may what `limits` say.
    fn makes(&self, name: &str, limits: &[&str]) -> String {
        let key = self.does(&[&["keys", "create", name], limits].concat());
        let key = key.strip_suffix('\n').expect("one line").to_owned();
        assert!(key.starts_with("sk-") && key.len() > 40, "{key}");
        key
    }

    fn usage(&self, by: &str) -> Vec<Value> {
        let said = self.does(&["usage", "--by", by, "--json"]);
        let rows: Value = serde_json::from_str(&said).expect("JSON");
        rows.as_array().expect("rows").clone()
    }

    /// Requests, tokens of prompts and generated ones that `key` has used.
    fn used(&self, key: &str) -> [u64; 3] {
        let rows = self.usage("key");
        let row = rows.iter().find(|row| row["key"] == key);
        ["requests", "prompt_tokens", "completion_tokens"]
            .map(|count| row.map_or(0, |row| row[count].as_u64().expect("a count")))
    }

    /// Tokens that the engine has generated.
    fn generated(&self) -> u64 {
        let Outcome { stdout, .. } = run(&["status", "--json", "--endpoint", self.0]);
        let status: Value = serde_json::from_str(&stdout).expect("JSON");
        status["engine"]["generated"].as_u64().expect("a count")
    }
}

fn ask(door: &Serving, key: &str, body: &Value) -> Reply {
    let key = format!("authorization: Bearer {key}");
    door.send("POST", "/v1/completions", &[&key, "content-type: application/json"], body.to_string().as_bytes())
}

fn short() -> Value {
    json!({"prompt": "The capital of France is", "max_tokens": 3})
}

/// What the answer says it took: one request, and so many tokens.
fn told(reply: &Reply) -> [u64; 3] {
    assert_eq!(reply.status, 200, "{reply:?}");
    let usage = match reply.header("content-type") {
        Some("text/event-stream") => reply.events().last().expect("usage")["usage"].clone(),
        _ => reply.json()["usage"].clone(),
    };
    let count = |name: &str| usage[name].as_u64().expect("a count");
    [1, count("prompt_tokens"), count("completion_tokens")]
}

fn sum(counts: impl IntoIterator<Item = [u64; 3]>) -> [u64; 3] {
    counts.into_iter().fold([0; 3], |sum, more| [0, 1, 2].map(|i| sum[i] + more[i]))
}

/// That `door` refuses with 429 and `code`, and says when to ask again.
fn refuses(reply: &Reply, code: &str) {
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (429, &json!(code)), "{reply:?}");
    let wait: u64 = reply.header("retry-after").and_then(|seconds| seconds.parse().ok()).expect("seconds");
    assert!(wait > 0, "{reply:?}");
}

/// The same over gRPC.
fn refuses_over_grpc(door: &Serving, key: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let status = runtime.block_on(async {
        let address = format!("http://{}", door.grpc().expect("it serves gRPC"));
        let channel = Endpoint::from_shared(address).expect("an address").connect().await.expect("it listens");
        let mut client = InferenceClient::new(channel);
        let prompt = Some(v1::Input { input: Some(v1::input::Input::Text("Hello".to_owned())) });
        let mut request = Request::new(v1::GenerateRequest { prompt, ..Default::default() });
        request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().expect("ASCII"));
        client.generate(request).await.expect_err("a refusal")
    });
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay).expect("when to ask again");
    assert!(!retry.is_zero());
}

#[test]
fn keys_are_made_metered_and_revoked_while_front_doors_serve() {
    let mut cluster = Cluster::start(1);
    let loud = ["gateway", "--registry", cluster.registry(), "--http", LOOPBACK, "--grpc", LOOPBACK, "--json"];
    let gateway = Serving::start_role_logging_all(&loud);
    let coordinator = cluster.take_coordinator();
    let operator = Operator(coordinator.admin());
    let doors = [&coordinator, &gateway];

    // Nobody needs a key until there is one; then everybody does.
    for door in doors {
        assert_eq!(door.get("/v1/models").status, 200);
    }
    let before = operator.generated();
    let alice = operator.makes("alice", &["--rpm", "1", "--tpm", "100000"]);
    let bob = operator.makes("bob", &[]);
    for door in doors {
        until("it asks for a key", || door.get("/v1/models").status == 401);
        until("it knows the keys", || ask(door, &bob, &json!({"prompt": 0})).status == 400);
        assert_eq!(ask(door, "sk-wrong-0123456789", &short()).status, 401);
    }
    let again = run(&["keys", "create", "bob", "--endpoint", operator.0]);
    assert!(again.code == Some(1) && again.stderr.contains("a key of this name"), "{}", again.stderr);

    // What was used adds up over both doors, whole and streamed.
    let streamed = json!({"prompt": "Once upon a time", "max_tokens": 5, "n": 2, "stream": true, "stream_options": {"include_usage": true}});
    let asked =
        doors.into_iter().flat_map(|door| [told(&ask(door, &bob, &short())), told(&ask(door, &bob, &streamed))]);
    let bobs = sum(asked);

    // Requests a minute are each door's.
    let mut alices = Vec::new();
    for door in doors {
        let first = ask(door, &alice, &short());
        assert_eq!(first.header("x-ratelimit-limit-requests"), Some("1"), "{first:?}");
        for name in ["remaining-requests", "reset-requests", "limit-tokens", "remaining-tokens", "reset-tokens"] {
            assert!(first.header(&format!("x-ratelimit-{name}")).is_some(), "{name}: {first:?}");
        }
        alices.push(told(&first));
        refuses(&ask(door, &alice, &short()), "rate_limit_exceeded");
    }
    refuses_over_grpc(&gateway, &alice);
    let alices = sum(alices);

    // A month's tokens are spent at one door, and are gone at the other.
    let carol = operator.makes("carol", &["--monthly-tokens", "1", "--models", "breeze"]);
    until("the gateway knows the key", || {
        gateway.send("GET", "/v1/models", &[&format!("authorization: Bearer {carol}")], b"").status == 200
    });
    let carols = told(&ask(&gateway, &carol, &short()));
    until("what is gone is known", || operator.used("carol") == carols);
    let mut let_in = vec![carols];
    until("it is gone at the coordinator too", || {
        let reply = ask(&coordinator, &carol, &short());
        if reply.status == 429 {
            refuses(&reply, "insufficient_quota");
            return true;
        }
        let_in.push(told(&reply));
        false
    });
    let carols = sum(let_in);
    for (name, told) in [("alice", alices), ("bob", bobs), ("carol", carols)] {
        until("the usage is there", || operator.used(name) == told);
    }

    // All of it is what was generated.
    let all = sum([alices, bobs, carols]);
    assert_eq!(operator.generated() - before, all[2]);
    for by in ["model", "day"] {
        let rows = operator.usage(by);
        let total = |count: &str| rows.iter().map(|row| row[count].as_u64().expect("a count")).sum::<u64>();
        assert_eq!(["requests", "prompt_tokens", "completion_tokens"].map(total), all, "{by}: {rows:?}");
    }
    let csv = operator.does(&["usage", "-o", "csv"]);
    let line = format!("bob,{},{},{},{}", bobs[0], bobs[1], bobs[2], bobs[1] + bobs[2]);
    assert!(csv.starts_with("key,requests,") && csv.lines().any(|told| told == line), "{csv}");
    let list = operator.does(&["keys", "list", "-o", "csv"]);
    assert!(list.lines().any(|told| told.starts_with("carol,,,1,,breeze,")), "{list}");

    // etcd goes: keys go on being known, and what is used meanwhile is not lost.
    let mut etcd = cluster.take_etcd();
    etcd.kill();
    let away = sum(doors.map(|door| told(&ask(door, &bob, &short()))));
    cluster.revive(etcd);
    let bobs = sum([bobs, away]);
    until("what was used meanwhile is there", || operator.used("bob") == bobs);

    // Revoked, it opens no door; and a door that has asked for keys goes on asking.
    for name in ["alice", "bob", "carol"] {
        operator.does(&["keys", "revoke", name]);
    }
    for door in doors {
        until("it does not know the key any more", || ask(door, &bob, &short()).status == 401);
        assert_eq!(door.get("/v1/models").status, 401);
    }
    assert_eq!(operator.used("bob"), bobs, "what was used stays");

    // A process that leaves brings what it has counted first.
    let dave = operator.makes("dave", &[]);
    until("the gateway knows the key", || ask(&gateway, &dave, &json!({"prompt": 0})).status == 400);
    let daves = told(&ask(&gateway, &dave, &short()));
    gateway.signal("TERM");
    let Outcome { code, stdout, stderr } = gateway.outcome();
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(operator.used("dave"), daves);

    // It has logged all it could, and no key.
    assert!(stderr.len() > 10_000, "it logs everything: {stderr}");
    for secret in [&alice, &bob, &carol, &dave, "sk-wrong"] {
        assert!(!stderr.contains(secret) && !stdout.contains(secret), "a key is in the log");
    }
}
