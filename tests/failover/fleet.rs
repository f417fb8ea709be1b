//! A cluster: etcd, expert nodes and coordinators, each a process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::etcd_server::{Etcd, How, free_port};
use crate::islands::Island;
use crate::proxy::Proxy;
use crate::run::{Running, holds_in_time, run};
use crate::serving::Serving;

/// Seconds for which a silent process stays in the cluster: the fewest there are.
const LEASE: &str = "1";
/// The cluster's name.
pub(crate) const NAME: &str = "test";

/// What a cluster is to be.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) replicas: usize,
}

/// A running cluster; its processes are killed when it is dropped.
pub(crate) struct Fleet {
    coordinator: Option<Serving>,
    nodes: BTreeMap<String, Running>,
    /// Nodes that are no processes of ours.
    others: BTreeSet<String>,
    replicas: String,
    /// What every coordinator is told besides.
    more: &'static [&'static str],
    etcd: Etcd,
    runtime: Runtime,
}

/// What etcd says of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// By node: the experts that it holds.
    pub(crate) held: BTreeMap<String, BTreeSet<String>>,
    /// By expert: the nodes that should hold it.
    pub(crate) placed: BTreeMap<String, BTreeSet<String>>,
    pub(crate) epoch: u64,
}

impl Fleet {
    /// Starts a cluster, and waits until it serves and all nodes hold what they should.
    pub(crate) fn start(size: Size) -> Self {
        Self::start_with(size, &[], How::default())
    }

    /// The same, nodes in the `zones` by turns.
    pub(crate) fn start_in_zones(size: Size, zones: &[&str]) -> Self {
        Self::found(size.replicas, &[], How::default()).with_nodes(size.nodes, zones)
    }

    /// The same, with coordinators that are told `more`, on an etcd that is run so.
    pub(crate) fn start_with(size: Size, more: &'static [&'static str], etcd: How) -> Self {
        Self::found(size.replicas, more, etcd).with_nodes(size.nodes, &[""])
    }

    fn with_nodes(mut self, nodes: usize, zones: &[&str]) -> Self {
        for i in 0..nodes {
            self.start_node(&format!("n{i}"), &["--zone", zones[i % zones.len()]]);
        }
        self.open();
        self
    }

    /// An etcd alone; nodes are to be started, then the cluster is to be opened.
    pub(crate) fn found(replicas: usize, more: &'static [&'static str], etcd: How) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        let etcd = runtime.block_on(Etcd::start_as(etcd));
        let (nodes, others, replicas) = (BTreeMap::new(), BTreeSet::new(), replicas.to_string());
        Self { coordinator: None, nodes, others, replicas, more, etcd, runtime }
    }

    /// Starts the first coordinator, and waits until it serves and all nodes hold what they should.
    pub(crate) fn open(&mut self) {
        self.coordinator = Some(self.start_coordinator("c0"));
        self.until_settled();
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    pub(crate) fn etcd(&mut self) -> &mut Etcd {
        &mut self.etcd
    }

    /// Starts etcd again, on its data.
    pub(crate) fn revive_etcd(&mut self) {
        self.runtime.block_on(self.etcd.run());
    }

    /// Starts etcd with what `snapshot` holds instead of its data.
    pub(crate) fn restore_etcd(&mut self, snapshot: &Path) {
        self.runtime.block_on(self.etcd.restore(snapshot));
    }

    pub(crate) fn registry(&self) -> String {
        format!("etcd://{}", self.etcd.endpoint())
    }

    /// The first coordinator.
    pub(crate) fn coordinator(&self) -> &Serving {
        self.coordinator.as_ref().expect("it was started")
    }

    /// Takes the first coordinator out, for whoever waits for its end.
    pub(crate) fn take_coordinator(&mut self) -> Serving {
        self.coordinator.take().expect("it was started")
    }

    /// Starts a coordinator, and waits until it serves.
    pub(crate) fn start_coordinator(&self, id: &str) -> Serving {
        let registry = self.registry();
        let args = ["coordinator", "--registry", &registry, "--cluster", NAME, "--lease", LEASE, "--id", id];
        let more = [
            "--replicas",
            &self.replicas,
            "--threads",
            "1",
            "--http",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--json",
        ];
        Serving::start_role(&[&args[..], &more, self.more].concat())
    }

    /// Starts an expert node; it joins in its own time.
    pub(crate) fn start_node(&mut self, id: &str, more: &[&str]) {
        let registry = self.registry();
        self.add(id, Running::start(&node_args(&registry, id, more)));
    }

    /// Starts an expert node on an island.
    pub(crate) fn start_node_on(&mut self, id: &str, island: &Island) {
        let registry = format!("etcd://{}", self.etcd.endpoint_at(&island.registry_at));
        let listen = format!("{}:0", island.addr);
        self.add(
            id,
            Running::start_within_namespace(
                &island.namespace,
                &node_args(&registry, id, &["--listen", &listen, "--plaintext"]),
            ),
        );
    }

    fn add(&mut self, id: &str, node: Running) {
        assert!(self.nodes.insert(id.to_owned(), node).is_none(), "{id} is there");
    }

    /// Starts a node that coordinators reach over a wire.
    pub(crate) fn start_node_behind_a_wire(&mut self, id: &str) -> Proxy {
        let free = format!("127.0.0.1:{}", free_port());
        let proxy = Proxy::to(free.clone(), &self.runtime);
        self.start_node(id, &["--listen", &free, "--advertise", &proxy.addr]);
        proxy
    }

    /// A node has joined that is no process of ours.
    pub(crate) fn expect(&mut self, id: &str) {
        self.others.insert(id.to_owned());
    }

    /// What `tramontane status` says.
    pub(crate) fn status(&self) -> Value {
        let outcome = run(&["status", "--json", "--endpoint", self.coordinator().admin()]);
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {}", outcome.stderr))
    }

    /// Names of the nodes that were started.
    pub(crate) fn nodes(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// Sends SIGKILL, and forgets the node.
    pub(crate) fn kill(&mut self, id: &str) {
        self.nodes.remove(id).expect("a node").kill();
    }

    /// Sends a node a signal.
    pub(crate) fn signal(&self, id: &str, name: &str) {
        self.nodes[id].signal(name);
    }

    /// Takes a node's process out, for whoever waits for its end.
    pub(crate) fn take(&mut self, id: &str) -> Running {
        self.nodes.remove(id).expect("a node")
    }

    /// What etcd says.
    pub(crate) fn told(&self) -> Told {
        let (well, text) = self.etcd.ctl(&["get", "--prefix", &format!("/tramontane/{NAME}/"), "-w", "simple"]);
        assert!(well, "etcd does not answer");
        let mut told = Told::default();
        let name = |expert: &Value| format!("L{}/E{}", expert["layer"], expert["expert"]);
        let lines: Vec<&str> = text.lines().collect();
        for (key, value) in lines.as_chunks::<2>().0.iter().map(|[key, value]| (key, value)) {
            let value: Value = serde_json::from_str(value).unwrap_or_else(|error| panic!("{error}: {key}: {value}"));
            if key.contains("/nodes/") {
                let held = value["held"].as_array().expect("experts").iter().map(name).collect();
                told.held.insert(value["id"].as_str().expect("a name").to_owned(), held);
            } else if key.ends_with("/placement") {
                told.epoch = value["epoch"].as_u64().expect("a number");
                for replicas in value["replicas"].as_array().expect("experts") {
                    let nodes = replicas["nodes"].as_array().expect("nodes").iter();
                    let nodes = nodes.filter_map(Value::as_str).map(str::to_owned).collect();
                    told.placed.insert(name(replicas), nodes);
                }
            }
        }
        told
    }

    /// Waits until exactly the nodes that were started are in the cluster, each has its share, and hold what is placed on them, with as many
    /// replicas as there are to be.
    pub(crate) fn until_settled(&self) {
        let replicas: usize = self.replicas.parse().expect("a number");
        let mut told = Told::default();
        let settled = || {
            told = self.told();
            let nodes: BTreeSet<&String> = self.nodes.keys().chain(&self.others).collect();
            let there = told.held.keys().eq(nodes.iter().copied());
            let count = nodes.len();
            let placed = |(expert, nodes): (&String, &BTreeSet<String>)| {
                // Hot experts earn more.
                nodes.len() >= replicas.min(count)
                    && nodes.iter().all(|node| told.held.get(node).is_some_and(|held| held.contains(expert)))
            };
            let used = nodes.iter().all(|&node| told.placed.values().any(|placed| placed.contains(node)));
            there && used && told.placed.iter().all(placed)
        };
        if !holds_in_time(settled) {
            panic!("not every expert is where it should be; status: {:#}; etcd: {told:?}", self.status());
        }
    }
}

fn node_args<'a>(registry: &'a str, id: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["expert-node", "--registry", registry, "--cluster", NAME, "--lease", LEASE];
    [&args[..], &["--id", id, "--threads", "1"], more].concat()
}
