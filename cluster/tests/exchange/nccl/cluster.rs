//! Nodes behind listeners, and an exchange over NCCL to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::runtime::Runtime;
use tramontane_cluster::exchange::{Carrier, Exchange, ExpertServer};
use tramontane_cluster::metrics::ExchangeMetrics;
use tramontane_cluster::tls::Security;
use tramontane_router::{ClusterView, NodeId, NodeRecord};

use crate::harness::{GrpcNode, LONG, runtime};
use crate::node::profile;

/// How often a communicator is looked at.
const LOOK: Duration = Duration::from_millis(5);

pub(crate) struct Cluster {
    pub(crate) exchange: Box<dyn Exchange>,
    pub(crate) servers: BTreeMap<NodeId, GrpcNode>,
    metrics: Registry,
    _runtime: Option<Runtime>,
}

impl Cluster {
    pub(crate) fn start<S: ExpertServer + 'static>(nodes: impl IntoIterator<Item = (&'static str, S)>) -> Self {
        let runtime = runtime();
        let start = |node| GrpcNode::start(Arc::new(node), profile(), "127.0.0.1:0");
        let servers: BTreeMap<_, _> = nodes.into_iter().map(|(name, node)| (NodeId::from(name), start(node))).collect();
        let addrs = servers.iter().map(|(id, server)| (id.clone(), server.addr.clone())).collect();
        let cluster = Self::over(&runtime, &addrs);
        Self { servers, _runtime: Some(runtime), ..cluster }
    }

    pub(crate) fn over(runtime: &Runtime, addrs: &BTreeMap<NodeId, String>) -> Self {
        let counts = ExchangeMetrics::default();
        let mut metrics = Registry::default();
        counts.register(&mut metrics);
        let exchange = Carrier::Nccl.exchange(runtime.handle(), profile(), Security::Plaintext, counts);
        let mut cluster = Self { exchange, servers: BTreeMap::new(), metrics, _runtime: None };
        cluster.follow(addrs);
        cluster
    }

    /// The nodes are these.
    pub(crate) fn follow(&mut self, addrs: &BTreeMap<NodeId, String>) {
        let record = |id: &NodeId, addr: &str| NodeRecord {
            id: id.clone(),
            addr: addr.to_owned(),
            held: [].into(),
            profile: profile(),
            capacity: 0,
            speed: 0,
            zone: String::new(),
            draining: false,
        };
        let nodes = addrs.iter().map(|(id, addr)| (id.clone(), record(id, addr))).collect();
        self.exchange.follow(&ClusterView { nodes, ..ClusterView::default() });
    }

    /// Where the nodes listen.
    pub(crate) fn addrs(&self) -> BTreeMap<NodeId, String> {
        self.servers.iter().map(|(id, server)| (id.clone(), server.addr.clone())).collect()
    }

    /// Waits for a communicator of so many nodes.
    pub(crate) fn stands(&mut self, members: usize) {
        let until = Instant::now() + LONG;
        while !self.is_standing(members) {
            assert!(Instant::now() < until, "no communicator of {members} nodes");
            std::thread::sleep(LOOK);
        }
    }

    pub(crate) fn is_standing(&self, members: usize) -> bool {
        self.metric("exchange_nccl_members") == members as u64
    }

    /// Whether the communicator that stands is the first.
    pub(crate) fn is_first_generation(&self) -> bool {
        self.metric("exchange_nccl_communicators_total") < 2
    }

    /// Bytes that went by NCCL.
    pub(crate) fn by_nccl(&self) -> u64 {
        self.metric("exchange_nccl_bytes_total")
    }

    fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        encode(&mut text, &self.metrics).expect("text");
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        value.unwrap_or_else(|| panic!("{name} is not in {text}"))
    }
}
