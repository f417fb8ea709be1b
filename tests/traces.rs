//! Traces, as a collector gets them: one request's way through gateway, coordinator and nodes, whole and with nothing in it that was
//! said; and what becomes of requests where there is no collector. Beside that, the log's lines.

#[path = "traces/cluster.rs"]
mod cluster;
#[path = "traces/collector.rs"]
mod collector;
#[path = "../cluster/tests/registry/etcd_server.rs"]
mod etcd_server;
#[path = "processes/run.rs"]
mod run;
#[path = "support/serving.rs"]
mod serving;
#[path = "support/terminal.rs"]
mod terminal;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::Request;
use tonic::transport::Endpoint;
use tramontane_proto::v1::inference_client::InferenceClient;
use tramontane_proto::v1::{GenerateRequest, GenerationParameters, Input, input};

use cluster::{Cluster, coordinator};
use collector::{Collector, Span};
use etcd_server::free_port;
use run::until;
use serving::{Serving, WATCHDOG, connect, get, read_reply};
use terminal::Terminal;

/// By when anything that is to happen has happened; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(60);
/// How often what nobody tells us of is looked at.
const POLL: Duration = Duration::from_millis(5);
const LOOPBACK: &str = "127.0.0.1:0";
const KEY: &str = "sk-canary-key-5b1f0c";
/// Whose key it is.
const NAME: &str = "alicecanary";
/// In every prompt, and in no other text.
const PROMPT: &str = "zanzibarcanary";
const GATEWAY: &str = "tramontane-gateway";
const COORDINATOR: &str = "tramontane-coordinator";
const NODE: &str = "tramontane-expert-node";
/// Of a client's own trace.
const CLIENT: &str = "b7ad6b7169203331";
/// Steps that are shown of one stage, and those of them that show what is dispatched.
const SHOWN_STEPS: usize = 64;
const DETAILED_STEPS: usize = 2;
/// What the log says when a collector does not take traces.
const LOST: &str = "traces are lost";

/// A trace's id.
fn trace(number: u8) -> String {
    format!("{:032x}", 0x0af7_6519_16cd_43dd_u128 << 64 | u128::from(number))
}

/// The only one of that name.
fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name}: {found:#?}");
    found[0]
}

/// Asks for everything that is looked at below.
fn ask_all(cluster: &Cluster) {
    let plain = json!({"prompt": PROMPT, "max_tokens": 9, "ignore_eos": true, "temperature": 0.5, "seed": 7});
    cluster.ask(&cluster.gateway, &plain, &trace(1), "01");
    let together = json!({"prompt": [PROMPT, "Peru"], "max_tokens": 80, "ignore_eos": true});
    cluster.ask(&cluster.gateway, &together, &trace(2), "01");
    let choices = json!({"prompt": PROMPT, "max_tokens": 3, "n": 2, "temperature": 1, "ignore_eos": true});
    cluster.ask(&cluster.coordinators[0], &choices, &trace(3), "01");
    let url = format!("http://{}", cluster.gateway.grpc().expect("it serves gRPC"));
    cluster.runtime.block_on(async {
        let channel = Endpoint::try_from(url).expect("a URL").timeout(WATCHDOG).connect().await.expect("it listens");
        let prompt = Some(Input { input: Some(input::Input::Text(PROMPT.into())) });
        let parameters = Some(GenerationParameters { max_tokens: Some(3), ..GenerationParameters::default() });
        let mut request = Request::new(GenerateRequest { prompt, parameters, ..GenerateRequest::default() });
        let parent = format!("00-{}-{CLIENT}-01", trace(4));
        for (name, value) in [("traceparent", parent), ("authorization", format!("Bearer {KEY}"))] {
            request.metadata_mut().insert(name, value.parse().expect("printable"));
        }
        let mut stream = InferenceClient::new(channel).generate(request).await.expect("an answer").into_inner();
        while stream.message().await.expect("a piece").is_some() {}
    });
}

/// A request through the gateway: who did what, and what is said of it.
fn through_all(cluster: &Cluster) {
    let spans = cluster.whole(&trace(1));
    let root = only(&spans, "text_completion breeze");
    assert_eq!((root.service.as_str(), root.parent.as_str()), (GATEWAY, CLIENT), "the client's own trace goes on");
    for (name, expected) in [
        ("http.request.method", "POST"),
        ("http.route", "/v1/completions"),
        ("http.response.status_code", "200"),
        ("gen_ai.operation.name", "text_completion"),
        ("gen_ai.provider.name", "tramontane"),
        ("gen_ai.request.model", "breeze"),
        ("gen_ai.request.max_tokens", "9"),
        ("gen_ai.request.temperature", "0.5"),
        ("gen_ai.request.seed", "7"),
        ("gen_ai.request.stream", "false"),
        ("gen_ai.response.model", "breeze"),
        ("gen_ai.response.finish_reasons", "length"),
        ("gen_ai.usage.output_tokens", "9"),
    ] {
        assert_eq!(root.says(name), expected, "{name}");
    }
    assert!(root.says("gen_ai.response.id").starts_with("cmpl-"), "{root:?}");
    let first: f64 = root.says("gen_ai.response.time_to_first_chunk").parse().expect("seconds");
    assert!(first > 0.0, "{root:?}");
    let (run, engine) = (only(&spans, "run"), only(&spans, "engine"));
    assert_eq!((run.service.as_str(), &run.parent, run.says("tramontane.engine")), (GATEWAY, &root.id, "c0"));
    assert_eq!((engine.service.as_str(), engine.instance.as_str(), &engine.parent), (COORDINATOR, "c0", &run.id));
    assert_eq!(engine.says("tramontane.prompt_tokens"), root.says("gen_ai.usage.input_tokens"));
    // Nine tokens: one by the prompt's last step, eight by steps of their own.
    let (prefill, decode) = (only(&spans, "prefill"), only(&spans, "decode"));
    assert_eq!(decode.says("tramontane.steps"), "8");
    let steps = |of: &Span| spans.iter().filter(|s| s.name == "step" && s.parent == of.id).count();
    assert_eq!((steps(prefill) >= 1, steps(decode)), (true, 8));
    for span in &spans {
        let parent = spans.iter().find(|parent| parent.id == span.parent);
        assert!(parent.is_none_or(|parent| parent.begins <= span.begins), "{span:?} begins before {parent:?}");
        assert!(span.begins <= span.ends, "{span:?}");
    }
    nodes_of(&spans);
}

/// Every dispatch that is shown went to the node that says so, and both nodes computed.
fn nodes_of(spans: &[Span]) {
    let by_id: BTreeMap<&str, &Span> = spans.iter().map(|span| (span.id.as_str(), span)).collect();
    let mut computed = BTreeSet::new();
    for experts in spans.iter().filter(|span| span.name == "experts") {
        let dispatch = by_id[experts.parent.as_str()];
        assert_eq!((dispatch.name.as_str(), dispatch.service.as_str()), ("dispatch", COORDINATOR));
        assert_eq!((experts.service.as_str(), dispatch.says("tramontane.node")), (NODE, experts.instance.as_str()));
        for said in ["tramontane.layer", "tramontane.rows", "tramontane.experts"] {
            assert!(!experts.says(said).is_empty() && experts.says(said) == dispatch.says(said), "{experts:?}");
        }
        let compute = spans.iter().find(|span| span.parent == experts.id && span.name == "compute");
        assert!(compute.is_some_and(|compute| compute.says("tramontane.merged_batches") >= "1"), "{experts:?}");
        computed.insert(experts.instance.as_str());
    }
    assert_eq!(computed, BTreeSet::from(["n0", "n1"]));
}

/// Two prompts of one request, in steps together: of such a step one shows what is dispatched, and the other says which.
fn steps_shared(cluster: &Cluster) {
    let spans = cluster.whole(&trace(2));
    assert_eq!(spans.iter().filter(|span| span.name == "engine").count(), 2);
    assert_eq!(only(&spans, "text_completion breeze").says("gen_ai.usage.output_tokens"), "160");
    let linked: Vec<&Span> = spans.iter().filter(|span| !span.links.is_empty()).collect();
    assert!(!linked.is_empty(), "{spans:#?}");
    for span in linked {
        assert_eq!((span.name.as_str(), span.links.len()), ("step", 1), "{span:?}");
        let lead = spans.iter().find(|lead| lead.id == span.links[0]).expect("the step that leads");
        assert!(spans.iter().any(|span| span.name == "dispatch" && span.parent == lead.id), "{lead:?}");
    }
    for decode in spans.iter().filter(|span| span.name == "decode") {
        assert_eq!(decode.says("tramontane.steps"), "79");
        let mut steps: Vec<&Span> = spans.iter().filter(|span| span.parent == decode.id).collect();
        steps.sort_by_key(|step| step.begins);
        assert_eq!(steps.len(), SHOWN_STEPS);
        let dispatches = |step: &&Span| spans.iter().any(|span| span.parent == step.id);
        assert_eq!(steps.iter().skip(DETAILED_STEPS).position(dispatches), None);
    }
}

/// A coordinator's own front door.
fn without_gateway(cluster: &Cluster) {
    // Of two choices the first one shows its stages.
    let spans = cluster.whole(&trace(3));
    let root = only(&spans, "text_completion breeze");
    assert_eq!((root.service.as_str(), &only(&spans, "engine").parent), (COORDINATOR, &root.id));
    assert!(spans.iter().all(|span| span.service != GATEWAY), "{spans:#?}");
}

/// The context as metadata.
fn over_grpc(cluster: &Cluster) {
    let spans = cluster.whole(&trace(4));
    let root = only(&spans, "text_completion breeze");
    assert_eq!((root.service.as_str(), root.parent.as_str()), (GATEWAY, CLIENT));
    assert_eq!((root.says("rpc.method"), root.says("gen_ai.request.stream")), ("Generate", "true"));
    nodes_of(&spans);
}

/// A request whose coordinator is killed: the other one's run goes on where the first one's ended.
fn taken_up(cluster: &mut Cluster) {
    cluster.coordinators.push(coordinator(&cluster.etcd, &cluster.collector, "c1"));
    cluster.until_ready();
    let body = json!({"prompt": PROMPT, "max_tokens": 300, "ignore_eos": true, "stream": true}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nauthorization: Bearer {KEY}\r\ntraceparent: 00-{}-{CLIENT}-01\r\n\r\n",
        body.len(),
        trace(6)
    );
    let mut stream = connect(cluster.gateway.addr());
    stream.write_all((head + &body).as_bytes()).expect("it reads");
    let (mut seen, mut piece) = (Vec::new(), [0; 1024]);
    while !String::from_utf8_lossy(&seen).contains("\"text\"") {
        let length = stream.read(&mut piece).expect("an answer");
        assert!(length > 0, "{}", String::from_utf8_lossy(&seen));
        seen.extend(&piece[..length]);
    }
    let mut victim = None;
    until("one of them runs it", || {
        victim = cluster.coordinators.iter().position(|at| at.engine()["running"] == 1);
        victim.is_some()
    });
    let killed = cluster.coordinators.remove(victim.expect("one of them"));
    killed.signal("KILL");
    assert_eq!(killed.outcome().code, None);
    assert!(!read_reply(&mut seen.as_slice().chain(stream)).events().is_empty());
    let (mut spans, id) = (Vec::new(), trace(6));
    until("the request's span and those of its runs", || {
        spans = cluster.collector.spans(&id);
        spans.iter().any(|span| span.parent == CLIENT) && spans.iter().filter(|span| span.name == "run").count() == 2
    });
    assert_eq!(only(&spans, "text_completion breeze").says("gen_ai.usage.output_tokens"), "300");
    let mut runs: Vec<&Span> = spans.iter().filter(|span| span.name == "run").collect();
    runs.sort_by_key(|run| run.begins);
    let said = |name| runs.iter().map(|run| run.says(name)).collect::<Vec<_>>();
    assert_eq!(said("error.type"), ["engine_stopped", ""]);
    assert_eq!(BTreeSet::from_iter(said("tramontane.engine")), BTreeSet::from(["c0", "c1"]));
    let resumed = said("tramontane.resumed_after_tokens");
    assert!(resumed[0] == "0" && resumed[1].parse::<u32>().is_ok_and(|tokens| tokens > 0), "{resumed:?}");
}

#[test]
fn a_trace_is_whole_says_nothing_that_was_said_and_is_the_clients_to_refuse() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let keys = folder.path().join("keys");
    std::fs::write(&keys, format!("{NAME}:{KEY}\n")).expect("the file of keys");
    let mut cluster = Cluster::start(keys.to_str().expect("a path in UTF-8"));
    let unrecorded = trace(9);
    cluster.ask(&cluster.gateway, &json!({"prompt": PROMPT, "max_tokens": 3}), &unrecorded, "00");
    let refused = json!({"prompt": PROMPT, "max_tokens": -1}).to_string();
    let (key, parent) = (format!("authorization: Bearer {KEY}"), format!("traceparent: 00-{}-{CLIENT}-01", trace(5)));
    assert_eq!(cluster.gateway.send("POST", "/v1/completions", &[&parent], refused.as_bytes()).status, 401);
    let head = [key.as_str(), &parent, "content-type: application/json"];
    assert_eq!(cluster.gateway.send("POST", "/v1/completions", &head, refused.as_bytes()).status, 400);
    assert_eq!(cluster.gateway.send("GET", &format!("/v1/{PROMPT}"), &[&key, &parent], b"").status, 404);
    ask_all(&cluster);
    through_all(&cluster);
    steps_shared(&cluster);
    without_gateway(&cluster);
    over_grpc(&cluster);
    taken_up(&mut cluster);
    let collector = cluster.stop();
    // Of what was refused, one has a span: who asked had a key.
    let failed = collector.spans(&trace(5));
    assert_eq!(only(&failed, "text_completion breeze").says("error.type"), "invalid_request_error");
    assert_eq!(failed.len(), 1, "{failed:#?}");
    let known: BTreeSet<String> = (1..=6).map(trace).collect();
    let traces: BTreeSet<String> = collector.spans("").into_iter().map(|span| span.trace).collect();
    assert_eq!(traces, known, "nothing is sent of what is not recorded");
    let sent = format!("{:?}", collector.everything());
    for secret in [KEY, NAME, PROMPT] {
        assert!(!sent.contains(secret), "{secret}");
    }
}

/// Asks `server`, which must answer.
fn is_answered(server: &Serving) {
    let answer = server.ask("/v1/completions", &json!({"prompt": "Peru", "max_tokens": 4}));
    assert_eq!(answer["object"], "text_completion");
}

#[test]
fn without_a_collector_requests_are_answered_and_the_log_says_so_once() {
    let nowhere = format!("http://127.0.0.1:{}", free_port());
    let mut server = Serving::start(&["--otlp-endpoint", &nowhere, "--log-format", "text"]);
    is_answered(&server);
    until("it says that traces are lost", || server.has_complained(LOST));
    // What is lost of this one, at the latest when the process ends, is no news.
    is_answered(&server);
    server.signal("TERM");
    let outcome = server.outcome();
    assert_eq!((outcome.code, outcome.stderr.matches(LOST).count()), (Some(0), 1), "{}", outcome.stderr);
    assert!(outcome.stderr.lines().any(|line| line.contains(" WARN ")), "{}", outcome.stderr);
    // One that takes connections and says nothing on them.
    let silent = TcpListener::bind(LOOPBACK).expect("a port");
    let url = format!("http://{}", silent.local_addr().expect("an address"));
    let server = Serving::start(&["--otlp-endpoint", &url]);
    is_answered(&server);
    server.signal("TERM");
    assert_eq!(server.outcome().code, Some(0));
}

#[test]
fn of_what_no_client_decides_the_sampler_takes_its_share() {
    let collector = Collector::start();
    let args = |sample| ["--otlp-endpoint", collector.url(), "--trace-sample", sample];
    for sample in ["0", "1"] {
        let server = Serving::start(&args(sample));
        is_answered(&server);
        server.signal("TERM");
        assert_eq!(server.outcome().code, Some(0));
        let roots = collector.spans("").into_iter().filter(|span| span.parent.is_empty()).count();
        assert_eq!(roots.to_string(), sample);
    }
    let service: BTreeSet<String> = collector.spans("").into_iter().map(|span| span.service).collect();
    assert_eq!(service, BTreeSet::from(["tramontane-up".to_owned()]));
}

#[test]
fn lines_of_the_log_are_json_with_the_requests_id_and_text_on_a_terminal() {
    let server = Serving::start(&["--log-level", "tramontane_gateway=debug"]);
    let mut stream = connect(server.addr());
    let head = "POST /v1/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\nx-request-id: mine-17\r\n";
    let body = json!({"prompt": "Peru", "max_tokens": 2}).to_string();
    let more = format!("content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(format!("{head}{more}").as_bytes()).expect("it reads");
    assert_eq!(read_reply(&mut stream).status, 200);
    server.signal("TERM");
    let stderr = server.outcome().stderr;
    let logged = stderr.lines().filter(|line| line.starts_with('{'));
    let lines: Vec<Value> = logged.map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let line = lines.iter().find(|line| line["message"] == "answered").unwrap_or_else(|| panic!("{stderr}"));
    assert_eq!(
        (&line["span"]["id"], &line["level"], &line["status"]),
        (&json!("mine-17"), &json!("DEBUG"), &json!(200))
    );
    let mut terminal = Terminal::start(&["up", "--http", LOOPBACK, "--log-level", "tramontane_gateway=debug"]);
    let ready = terminal.shows("an address", |shown| shown.contains("http://127.0.0.1:") && shown.ends_with('\n'));
    let addr = ready.split("http://").nth(1).expect("an address").split(['/', ' ', '\n']).next();
    assert_eq!(get(addr.expect("an address"), "/healthz").status, 200);
    let shown = terminal.shows("a line of the log", |shown| shown.contains("answered"));
    assert!(shown.contains("DEBUG") && !shown.contains("\"message\""), "{shown}");
    terminal.types("\u{3}");
    assert_eq!(terminal.ends(), Some(0));
}
