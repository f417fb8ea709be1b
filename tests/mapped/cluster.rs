//! A registry in this process, and an expert node in another that has joined it and serves one file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;
use tramontane_cluster::exchange::Exchange;
use tramontane_cluster::exchange::grpc::GrpcExchange;
use tramontane_cluster::registry::served::serve_registry;
use tramontane_cluster::registry::{EmbeddedRegistry, Registry};
use tramontane_cluster::tls::Security;
use tramontane_model::manifest::Manifest;
use tramontane_model::weights::Quantize;
use tramontane_router::placement::Placement;
use tramontane_router::{ClusterView, Epoch, ExpertBatch, ExpertId, ExpertRows, NodeId, NumericProfile};

use crate::run::Running;
use crate::support::model::Model;

const NODE: &str = "node-0";

/// The registry and the node.
pub(crate) struct Cluster {
    pub(crate) node: Running,
    registry: Arc<EmbeddedRegistry>,
    profile: NumericProfile,
    limit: Duration,
    runtime: Runtime,
}

impl Cluster {
    /// Starts a node on `model`, which is `file` with its manifest beside it, and waits until it has joined, holding nothing. Nothing may
    /// take longer than `limit`.
    pub(crate) fn start(model: &Model, file: &Path, capacity: u64, limit: Duration) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let profile = model.profile(Quantize::AsStored);
        let registry = Arc::new(EmbeddedRegistry::new(model.id.clone(), profile.clone()));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let url = format!("tramontane://{}", listener.local_addr().expect("its address"));
        runtime.spawn(serve_registry(registry.clone(), listener, std::future::pending()));
        let (file, capacity) = (file.to_str().expect("a path of a test is UTF-8"), capacity.to_string());
        let args = ["expert-node", "--registry", &url, "--model", file, "--id", NODE, "--capacity", &capacity];
        let node = Running::start_within(limit, &args);
        let cluster = Self { node, registry, profile, limit, runtime };
        cluster.until("it has joined", |view| view.nodes.contains_key(&NodeId::from(NODE)));
        cluster
    }

    /// Gives `experts`, and no others, to the node.
    pub(crate) fn place(&self, model: &Model, experts: &[ExpertId]) {
        let replicas = experts.iter().map(|&expert| (expert, vec![NodeId::from(NODE)])).collect();
        let placement = Placement { model: model.id.clone(), epoch: Epoch(1), parent: Epoch(0), replicas };
        self.runtime.block_on(self.registry.propose(placement)).expect("the placement is accepted");
    }

    /// Waits until the node holds `count` experts.
    pub(crate) fn until_held(&self, count: usize) {
        self.until("it holds its experts", |view| view.nodes.values().any(|node| node.held.len() == count));
    }

    /// What the node answers to `batches`, over gRPC, one after the other; and how long it took.
    pub(crate) fn ask(&self, batches: &[ExpertBatch]) -> (Vec<ExpertRows>, Duration) {
        let node = NodeId::from(NODE);
        let addr = self.registry.watch().current().nodes[&node].addr.clone();
        let mut exchange = GrpcExchange::new(self.runtime.handle().clone(), self.profile.clone(), Security::Plaintext);
        exchange.set_nodes(BTreeMap::from([(node.clone(), addr)]));
        let start = Instant::now();
        let answer = |batch: &ExpertBatch| {
            exchange.submit(&node, batch.clone());
            let completion = exchange.next(Instant::now() + self.limit).expect("an answer in time");
            completion.result.expect("the node answers")
        };
        (batches.iter().map(answer).collect(), start.elapsed())
    }

    fn until(&self, what: &str, condition: impl FnMut(&ClusterView) -> bool) {
        let mut watch = self.registry.watch();
        let held = self.runtime.block_on(async { timeout(self.limit, watch.until(condition)).await });
        held.unwrap_or_else(|_| panic!("after {:?} not: {what}", self.limit)).expect("the registry lives");
    }
}

/// `model`, but for the hashes, which are read from the manifest beside `file` and not computed.
pub(crate) fn open(file: &Path) -> Model {
    let name = file.file_name().expect("a file").to_str().expect("a name in UTF-8");
    Model::open_with(name, file, |checkpoint| {
        let manifest = Manifest::load(file, checkpoint).expect("the manifest is sound");
        manifest.expect("there is a manifest").root().to_owned()
    })
}
