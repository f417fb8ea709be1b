//! etcd, nodes, coordinators and a gateway, each a process that sends its traces to one collector.

use std::collections::BTreeSet;

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::collector::{Collector, Span};
use crate::etcd_server::Etcd;
use crate::run::{Running, holds_in_time, until};
use crate::serving::Serving;
use crate::{CLIENT, KEY, LOOPBACK, SHOWN_STEPS};

/// etcd, two nodes, a coordinator and a gateway, which all send their traces to one collector.
pub(crate) struct Cluster {
    pub(crate) gateway: Serving,
    pub(crate) coordinators: Vec<Serving>,
    nodes: Vec<Running>,
    pub(crate) collector: Collector,
    pub(crate) etcd: Etcd,
    pub(crate) runtime: Runtime,
}

/// The words of a command.
fn words(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

impl Cluster {
    /// A gateway with `keys`.
    pub(crate) fn start(keys: &str) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let (collector, etcd) = (Collector::start(), runtime.block_on(Etcd::start()));
        let with = |own: &[&str]| command(&etcd, &collector, own);
        let node = |id| ["expert-node", "--id", id, "--threads", "1", "--drain-timeout", "0"];
        let nodes = ["n0", "n1"].map(|id| Running::start(&words(&with(&node(id))))).into();
        let coordinators = vec![coordinator(&etcd, &collector, "c0")];
        let own = ["gateway", "--http", LOOPBACK, "--grpc", LOOPBACK, "--json", "--api-keys-file", keys];
        let gateway = Serving::start_role(&words(&with(&own)));
        let cluster = Self { gateway, coordinators, nodes, collector, etcd, runtime };
        cluster.until_ready();
        cluster
    }

    /// Waits until the gateway has its coordinators: it counts their blocks of keys and values together.
    pub(crate) fn until_ready(&self) {
        let blocks = |engine: &Value| engine["kv_total"].as_u64().expect("a count");
        let key = format!("authorization: Bearer {KEY}");
        let seen = || blocks(&self.gateway.send("GET", "/version", &[&key], b"").json()["engine"]);
        let all: u64 = self.coordinators.iter().map(|coordinator| blocks(&coordinator.engine())).sum();
        until("the gateway has its coordinators", || seen() == all);
    }

    /// Asks `at` for `body`, as a client whose trace is `trace`, recorded as `flags` say.
    pub(crate) fn ask(&self, at: &Serving, body: &Value, trace: &str, flags: &str) {
        let (key, parent) =
            (format!("authorization: Bearer {KEY}"), format!("traceparent: 00-{trace}-{CLIENT}-{flags}"));
        let head = [key.as_str(), &parent, "content-type: application/json"];
        let reply = at.send("POST", "/v1/completions", &head, body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{reply:?}");
    }

    /// The spans of `trace`, when they are all there.
    pub(crate) fn whole(&self, trace: &str) -> Vec<Span> {
        let mut spans = Vec::new();
        let is_whole = holds_in_time(|| {
            spans = self.collector.spans(trace);
            missing(&spans).is_none()
        });
        assert!(is_whole, "{:?} is missing: {spans:#?}", missing(&spans));
        spans
    }

    /// Ends it: everybody sends what is left.
    pub(crate) fn stop(self) -> Collector {
        for serving in self.coordinators.into_iter().chain([self.gateway]) {
            serving.signal("TERM");
            assert_eq!(serving.outcome().code, Some(0));
        }
        for node in self.nodes {
            node.signal("TERM");
            assert_eq!(node.outcome().code, Some(0));
        }
        self.collector
    }
}

/// What starts `own`, a role and its flags, in the cluster of `etcd`.
fn command(etcd: &Etcd, collector: &Collector, own: &[&str]) -> Vec<String> {
    let registry = format!("etcd://{}", etcd.endpoint());
    let common = ["--registry", &registry, "--otlp-endpoint", collector.url()];
    [own, &common].concat().into_iter().map(str::to_owned).collect()
}

/// A coordinator that serves. Each expert is at one node, so that both nodes compute.
pub(crate) fn coordinator(etcd: &Etcd, collector: &Collector, id: &str) -> Serving {
    let doors = ["--http", LOOPBACK, "--admin", LOOPBACK, "--json"];
    let own = ["coordinator", "--id", id, "--replicas", "1", "--threads", "1"];
    Serving::start_role(&words(&command(etcd, collector, &[&own[..], &doors].concat())))
}

/// What is not there yet of a trace through an engine.
fn missing(spans: &[Span]) -> Option<String> {
    let children = |of: &Span, name: &str| spans.iter().filter(|s| s.parent == of.id && s.name == name).count();
    let ids: BTreeSet<&str> = spans.iter().map(|span| span.id.as_str()).collect();
    let orphan = spans.iter().find(|span| span.parent != CLIENT && !ids.contains(span.parent.as_str()));
    if let Some(orphan) = orphan {
        return Some(format!("the parent of {orphan:?}"));
    }
    let engines: Vec<&Span> = spans.iter().filter(|span| span.name == "engine").collect();
    if !engines.iter().any(|engine| ["queue", "prefill", "decode"].iter().all(|stage| children(engine, stage) == 1)) {
        return Some("an engine's stages".to_owned());
    }
    let unanswered =
        spans.iter().find(|s| s.name == "dispatch" && s.says("error.type").is_empty() && children(s, "experts") == 0);
    if let Some(unanswered) = unanswered {
        return Some(format!("a node's answer to {unanswered:?}"));
    }
    let steps = |stage: &Span| stage.says("tramontane.steps").parse().unwrap_or(0).min(SHOWN_STEPS);
    let cut = spans.iter().find(|s| ["prefill", "decode"].contains(&s.name.as_str()) && children(s, "step") < steps(s));
    cut.map(|stage| format!("steps of {stage:?}"))
}
