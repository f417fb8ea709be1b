//! A cluster in this process: expert nodes, reached directly or over gRPC on loopback, and a model's forward pass on them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tramontane_cluster::exchange::grpc::{GrpcExchange, serve_experts};
use tramontane_cluster::exchange::{Exchange, ExpertServer, InProcessExchange};
use tramontane_cluster::registry::{EmbeddedRegistry, Registry, Watch};
use tramontane_cluster::tls::Security;
use tramontane_coordinator::{Dispatcher, Forward};
use tramontane_expert_node::{ExpertStore, Neighbours, Node, NodeError, NodeOptions};
use tramontane_kernels::{Compute, Isa, KvType};
use tramontane_model::decoder;
use tramontane_model::device::{Device, DeviceName};
use tramontane_model::expert::ExpertBackend;
use tramontane_model::weights::Quantize;
use tramontane_router::flight::Policy;
use tramontane_router::placement::{ExpertSize, NodeRoom, Problem, solve};
use tramontane_router::{NodeId, NumericProfile, RowFormat};

use super::model::Model;

/// Blocks of keys and values where nothing is said of them. A prime, so that [`super::steps`] can scatter them.
pub(crate) const KV_BLOCKS: usize = 101;

/// How the coordinator reaches expert nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Called on the coordinator's own thread, with the coordinator's threads.
    InProcess,
    /// Over gRPC on loopback; each node has threads of its own.
    Grpc,
}

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) quantize: Quantize,
    pub(crate) kv: KvType,
    pub(crate) kv_blocks: usize,
    pub(crate) nodes: usize,
    pub(crate) reach: Reach,
    pub(crate) isa: Isa,
    pub(crate) threads: usize,
    pub(crate) device: DeviceName,
}

impl Setup {
    /// The plainest cluster: one node in this process, portable arithmetic, one thread.
    pub(crate) fn plain(quantize: Quantize, kv: KvType) -> Self {
        let (nodes, reach, isa, threads) = (1, Reach::InProcess, Isa::Portable, 1);
        Self { quantize, kv, kv_blocks: KV_BLOCKS, nodes, reach, isa, threads, device: DeviceName::Cpu }
    }
}

/// A model on running nodes.
pub(crate) struct Cluster {
    pub(crate) forward: Forward,
    pub(crate) kv_blocks: usize,
    /// Dropped last: [`Cluster::forward`] reaches them.
    pub(crate) nodes: Nodes,
}

/// Running expert nodes, which end when this is dropped.
pub(crate) struct Nodes {
    stores: BTreeMap<NodeId, Arc<ExpertStore>>,
    /// Nodes follow the placement in it, and gRPC servers run in it.
    _runtime: Runtime,
}

impl Nodes {
    /// Rows that each node's experts have received.
    pub(crate) fn received(&self) -> Vec<u64> {
        self.stores.values().map(|store| store.received().values().sum()).collect()
    }
}

impl Cluster {
    /// Starts the nodes, places the experts on them, and returns when every expert is held.
    pub(crate) fn start(model: &Model, setup: &Setup) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let compute = Compute::new(setup.isa, setup.threads);
        let device = Device::open(setup.device).expect("the device opens");
        let (nodes, exchange, watch) = runtime.block_on(start_nodes(model, setup, &device, &compute));
        let nodes = Nodes { stores: nodes, _runtime: runtime };
        let room = (setup.kv, setup.kv_blocks);
        let checkpoint = model.checkpoint.clone();
        let decoder = decoder::load(&device, compute.clone(), None, checkpoint, &model.config, room);
        let decoder = decoder.expect("the decoder loads");
        let dispatcher = Dispatcher::new(model.id.clone(), exchange, watch, Policy::default());
        let encoding = if model.experts(setup.quantize).quantized { RowFormat::Q8 } else { RowFormat::F32 };
        let forward = Forward::new(decoder, compute, dispatcher, encoding);
        Self { forward, kv_blocks: setup.kv_blocks, nodes }
    }
}

type Stores = BTreeMap<NodeId, Arc<ExpertStore>>;

async fn start_nodes(
    model: &Model,
    setup: &Setup,
    device: &Device,
    compute: &Compute,
) -> (Stores, Box<dyn Exchange>, Watch) {
    let profile = NumericProfile { arithmetic: device.arithmetic().to_owned(), ..model.profile(setup.quantize) };
    let registry = EmbeddedRegistry::new(model.id.clone(), profile.clone());
    let (mut stores, mut addrs, mut following) = (BTreeMap::new(), BTreeMap::new(), JoinSet::new());
    for id in (0..setup.nodes).map(|i| NodeId::from(format!("node-{i}"))) {
        let compute = match setup.reach {
            Reach::InProcess => compute.clone(),
            Reach::Grpc => Compute::new(setup.isa, setup.threads),
        };
        let (checkpoint, config, backend) =
            (model.checkpoint.clone(), model.config.clone(), ExpertBackend::new(device.clone(), compute, None));
        let store = ExpertStore::new(model.id.clone(), checkpoint, config, setup.quantize, u64::MAX, backend);
        let store = Arc::new(store);
        let addr = match setup.reach {
            Reach::InProcess => String::new(),
            Reach::Grpc => {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                let addr = listener.local_addr().expect("its address").to_string();
                tokio::spawn(serve_experts(
                    store.clone(),
                    profile.clone(),
                    listener,
                    Security::Plaintext,
                    std::future::pending(),
                ));
                addr
            }
        };
        let (capacity, zone) = (u64::MAX, String::new());
        let options = NodeOptions { id: id.clone(), addr: addr.clone(), capacity, zone, profile: profile.clone() };
        let node = Node::join(options, store.clone(), &registry).await.expect("the node joins");
        following.spawn(node.follow());
        stores.insert(id.clone(), store);
        addrs.insert(id, addr);
    }
    place(model, &registry, &mut following).await;
    // From here on a node that ends is seen by whoever asks it.
    following.detach_all();
    let exchange: Box<dyn Exchange> = match setup.reach {
        Reach::InProcess => Box::new(InProcessExchange::new(Neighbours::new(stores.clone()))),
        Reach::Grpc => {
            let mut exchange = GrpcExchange::new(tokio::runtime::Handle::current(), profile, Security::Plaintext);
            exchange.set_nodes(addrs);
            Box::new(exchange)
        }
    };
    (stores, exchange, registry.watch())
}

/// Gives every node its share of the experts, and waits until they are held.
async fn place(model: &Model, registry: &EmbeddedRegistry, following: &mut JoinSet<Result<(), NodeError>>) {
    let nodes: Vec<NodeId> = registry.watch().current().nodes.keys().cloned().collect();
    let problem = Problem {
        model: model.id.clone(),
        experts: model.expert_ids().map(|id| ExpertSize { id, bytes: 1 }).collect(),
        nodes: nodes.iter().map(|id| NodeRoom::open(id.clone(), u64::MAX)).collect(),
        replicas: 1,
    };
    let placement = solve(&problem, None).expect("a placement");
    let idle: Vec<_> = nodes.iter().filter(|id| !placement.replicas.values().flatten().any(|n| n == *id)).collect();
    assert!(idle.is_empty(), "nodes without experts: {idle:?}");
    registry.propose(placement).await.expect("the placement is accepted");
    let total = model.expert_ids().count();
    let mut watch = registry.watch();
    tokio::select! {
        ended = following.join_next() => panic!("a node ended: {ended:?}"),
        held = watch.until(|view| view.nodes.values().map(|node| node.held.len()).sum::<usize>() == total) => {
            held.expect("the registry lives");
        }
    }
}
