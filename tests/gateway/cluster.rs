//! etcd, two expert nodes, coordinators and a gateway, each a process.

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::etcd_server::Etcd;
use crate::run::{Running, until};
use crate::serving::Serving;
use crate::streams::Addresses;

const NODES: usize = 2;
/// Any free port.
const LOOPBACK: &str = "127.0.0.1:0";

/// A cluster; its processes are killed when it is dropped.
pub(crate) struct Cluster {
    registry: String,
    gateway: Option<Serving>,
    coordinators: Vec<Serving>,
    _nodes: Vec<Running>,
    etcd: Option<Etcd>,
    runtime: Runtime,
}

impl Cluster {
    /// Starts it with so many coordinators, and waits until the gateway has them.
    pub(crate) fn start(coordinators: usize) -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let etcd = runtime.block_on(Etcd::start());
        let registry = format!("etcd://{}", etcd.endpoint());
        let node = |i: usize| {
            let id = format!("node-{i}");
            Running::start(&[
                "expert-node",
                "--registry",
                &registry,
                "--listen",
                LOOPBACK,
                "--id",
                &id,
                "--threads",
                "1",
            ])
        };
        let nodes = (0..NODES).map(node).collect();
        let mut cluster =
            Self { registry, gateway: None, coordinators: Vec::new(), _nodes: nodes, etcd: Some(etcd), runtime };
        for number in 0..coordinators {
            let coordinator = cluster.coordinator(number);
            cluster.keep(coordinator);
        }
        let (registry, http) = (cluster.registry.as_str(), ["--http", LOOPBACK, "--grpc", LOOPBACK, "--json"]);
        cluster.gateway = Some(Serving::start_role(&[&["gateway", "--registry", registry], &http[..]].concat()));
        cluster.until_ready(coordinators);
        cluster
    }

    /// Starts the coordinator of that number, and waits until it serves.
    pub(crate) fn coordinator(&self, number: usize) -> Serving {
        let id = format!("coordinator-{number}");
        let args = ["coordinator", "--registry", &self.registry, "--id", &id, "--lease", "2", "--threads", "1"];
        Serving::start_role(
            &[&args[..], &["--http", LOOPBACK, "--listen", LOOPBACK, "--admin", LOOPBACK, "--json"]].concat(),
        )
    }

    pub(crate) fn keep(&mut self, coordinator: Serving) {
        self.coordinators.push(coordinator);
    }

    pub(crate) fn take_coordinator(&mut self) -> Serving {
        self.coordinators.pop().expect("a coordinator")
    }

    /// Where its registry is.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    pub(crate) fn gateway(&self) -> &Serving {
        self.gateway.as_ref().expect("it is started last")
    }

    /// Takes its etcd out, for whoever kills it.
    pub(crate) fn take_etcd(&mut self) -> Etcd {
        self.etcd.take().expect("an etcd")
    }

    /// Starts `etcd` again, on its data.
    pub(crate) fn revive(&mut self, mut etcd: Etcd) {
        self.runtime.block_on(etcd.run());
        self.etcd = Some(etcd);
    }

    /// The coordinators, in the order of their numbers.
    pub(crate) fn coordinators(&self) -> &[Serving] {
        &self.coordinators
    }

    /// Where the gateway serves.
    pub(crate) fn addresses(&self) -> Addresses<'_> {
        Addresses { http: self.gateway().addr(), grpc: self.gateway().grpc().expect("it serves gRPC") }
    }

    /// Waits until the gateway has so many coordinators: it counts their blocks of keys and values together.
    pub(crate) fn until_ready(&self, coordinators: usize) {
        let blocks = |engine: Value| engine["kv_total"].as_u64().expect("a count");
        let each = blocks(self.coordinators[0].engine());
        until("the gateway has its coordinators", || blocks(self.gateway().engine()) == each * coordinators as u64);
    }

    /// Waits until nobody computes anything.
    pub(crate) fn until_idle(&self) {
        until("nobody computes", || self.gateway().is_idle() && self.coordinators.iter().all(Serving::is_idle));
    }
}
