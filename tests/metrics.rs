//! What a cluster shows of itself: Debian's Prometheus watches all its processes while they serve, and every query of the dashboard
//! brings data. (`./test` fetches Prometheus: `tests/deploy/install`.)

#[path = "../cluster/tests/registry/etcd_server.rs"]
mod etcd_server;
#[path = "processes/run.rs"]
mod run;
#[path = "support/serving.rs"]
mod serving;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use etcd_server::{Etcd, free_port};
use run::{Running, holds_in_time, until};
use serving::{Serving, get, post};

/// By when anything that is to happen has happened; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(60);
/// How often what nobody tells us of is looked at.
const POLL: Duration = Duration::from_millis(5);
const LOOPBACK: &str = "127.0.0.1:0";

/// etcd, two nodes, a coordinator and a gateway.
struct Cluster {
    gateway: Serving,
    coordinator: Serving,
    _nodes: Vec<Running>,
    /// Where metrics are: of the gateway, the coordinator, and the nodes.
    metrics: Vec<String>,
    _etcd: Etcd,
    _runtime: Runtime,
}

impl Cluster {
    fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let etcd = runtime.block_on(Etcd::start());
        let registry = format!("etcd://{}", etcd.endpoint());
        let ports: Vec<String> = (0..4).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let role = |role: &'static str, port: usize| {
            [role, "--registry", &registry, "--metrics", &ports[port]].map(str::to_owned)
        };
        let start = |role: [String; 5], more: &[&str]| -> Vec<String> {
            role.into_iter().chain(more.iter().map(|&more| more.to_owned())).collect()
        };
        let words = |args: &Vec<String>| -> Vec<&'static str> { args.iter().map(|arg| &*arg.clone().leak()).collect() };
        let node = |port: usize| {
            let id = format!("n{port}");
            Running::start(&words(&start(role("expert-node", port), &["--id", &id, "--threads", "1"])))
        };
        let nodes = vec![node(2), node(3)];
        let own = ["--http", LOOPBACK, "--admin", LOOPBACK, "--threads", "1", "--json"];
        let coordinator = Serving::start_role(&words(&start(role("coordinator", 1), &own)));
        let gateway = Serving::start_role(&words(&start(role("gateway", 0), &["--http", LOOPBACK, "--json"])));
        until("the gateway has its coordinator", || gateway.engine()["kv_total"] == coordinator.engine()["kv_total"]);
        Self { gateway, coordinator, _nodes: nodes, metrics: ports, _etcd: etcd, _runtime: runtime }
    }

    /// Something for everything that is counted.
    fn work(&self) {
        let body = json!({"prompt": "Peru", "max_tokens": 24, "ignore_eos": true});
        let refused = json!({"prompt": "Peru", "max_tokens": -1});
        for addr in [self.gateway.addr(), self.coordinator.addr()] {
            assert_eq!(post(addr, "/v1/completions", &body).status, 200);
            assert_eq!(post(addr, "/v1/completions", &refused).status, 400);
        }
    }
}

/// Prometheus, which looks every second; it is killed when this is dropped.
struct Prometheus {
    child: Child,
    addr: String,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    fn start(watched: &[String]) -> Self {
        let tools = Path::new(env!("CARGO_TARGET_TMPDIR")).join("../deploy");
        let program = tools.join("prometheus");
        assert!(program.exists(), "run ./test, or `tests/deploy/install target/deploy`: no {}", program.display());
        let folder = tempfile::tempdir().expect("a folder");
        let config = folder.path().join("prometheus.yml");
        // As the chart's monitors have it, but for the time between two looks.
        let jobs = ["gateway", "coordinator", "expert-node", "expert-node"];
        let targets =
            watched.iter().zip(jobs).map(|(addr, job)| json!({"targets": [addr], "labels": {"component": job}}));
        let settings = json!({
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [{"job_name": "tramontane", "static_configs": targets.collect::<Vec<_>>()}],
        });
        std::fs::write(&config, settings.to_string()).expect("a file");
        let addr = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()));
        command.arg(format!("--web.listen-address={addr}"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let prometheus = Self { child, addr, _folder: folder };
        until("Prometheus listens", || std::net::TcpStream::connect(&prometheus.addr).is_ok());
        prometheus
    }

    /// What `query` brings: numbers, without those that are none.
    fn ask(&self, query: &str) -> Vec<f64> {
        let query: String = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let reply = get(&self.addr, &format!("/api/v1/query?query={query}"));
        if reply.status != 200 {
            return Vec::new();
        }
        let found = reply.json()["data"]["result"].as_array().cloned().unwrap_or_default();
        let value = |series: &Value| series["value"][1].as_str().and_then(|value| value.parse().ok());
        found.iter().filter_map(value).filter(|value: &f64| !value.is_nan()).collect()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The dashboard's queries, as Grafana would have them.
fn queries() -> Vec<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/tramontane/files/dashboard.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).expect("a file")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().expect("a query"));
    queries.map(|query| query.replace("$__rate_interval", "30s").replace("$model", ".*")).collect()
}

#[test]
fn every_query_of_the_dashboard_brings_data() {
    let cluster = Cluster::start();
    for addr in &cluster.metrics {
        until("it is ready", || get(addr, "/readyz").status == 200);
        assert_eq!((get(addr, "/healthz").status, get(addr, "/v1/models").status), (200, 404), "{addr}");
        let shown = get(addr, "/metrics");
        assert!(shown.header("content-type").is_some_and(|kind| kind.starts_with("application/openmetrics-text")));
        assert!(shown.body.ends_with("# EOF\n") && shown.body.contains("tramontane_model_info{"), "{}", shown.body);
    }
    let prometheus = Prometheus::start(&cluster.metrics);
    until("Prometheus sees all", || prometheus.ask("sum(up)") == [4.0]);
    let queries = queries();
    assert!(queries.len() > 20, "{queries:?}");
    let mut silent = Vec::new();
    let all_bring_data = || {
        // A rate needs two looks with something between them.
        cluster.work();
        silent = queries.iter().filter(|query| prometheus.ask(query).is_empty()).collect();
        silent.is_empty()
    };
    let data = holds_in_time(all_bring_data);
    assert!(data, "no data: {silent:#?}");
    // Numbers that are known.
    for (query, expected) in [
        ("max(tramontane_experts_unavailable)", 0.0),
        ("min(tramontane_registry_connected)", 1.0),
        ("max(tramontane_expert_replicas_min)", 2.0),
        ("sum(tramontane_nodes{state=\"ready\"})", 2.0),
        ("sum(tramontane_num_requests_running)", 0.0),
    ] {
        until(query, || prometheus.ask(query) == [expected]);
    }
    // What was counted at both ends is the same: the nodes' rows are the tokens' experts, two in each layer.
    until("rejected requests are counted", || {
        let rejected = prometheus.ask("sum(tramontane_requests_rejected_total{reason=\"invalid_request_error\"})");
        rejected.first().is_some_and(|&count| count >= 2.0)
    });
}
