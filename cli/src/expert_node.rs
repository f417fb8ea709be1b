//! The role `expert-node`: a process that joins a registry and serves its experts over gRPC.

use anyhow::Context;
use tokio::net::TcpListener;
use tramontane_cluster::exchange::grpc::serve_experts;
use tramontane_cluster::registry::RegistryError;
use tramontane_cluster::registry::served::ServedRegistry;
use tramontane_expert_node::Node;
use tramontane_kernels::{Compute, Isa};
use tramontane_router::NodeId;

use crate::Unreachable;
use crate::args::NodeArgs;
use crate::model::Model;

/// Runs until its registry is gone.
pub(crate) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let addr = listener.local_addr()?.to_string();
    let model = Model::open(&args.model)?;
    let registry = ServedRegistry::connect(&args.registry).await.map_err(|error| match error {
        RegistryError::Lost { .. } => Unreachable(anyhow::Error::new(error).context(args.registry.clone())).into(),
        other => anyhow::Error::new(other),
    })?;
    let threads = args.threads.unwrap_or_else(cores);
    let capacity = args.capacity.unwrap_or(u64::MAX);
    let store = model.expert_store(capacity, Compute::new(Isa::detect(), threads));
    let id = NodeId::from(args.id.unwrap_or_else(|| addr.clone()));
    let node = Node::join(model.node(id.clone(), addr.clone(), capacity), store.clone(), &registry).await?;
    tracing::info!(node = %id, %addr, cluster = args.cluster, "joined");
    tokio::select! {
        served = serve_experts(store, model.profile, listener, std::future::pending()) => {
            served.with_context(|| format!("node {id} cannot serve on {addr}"))
        }
        Err(ended) = node.follow() => Err(ended.into()),
    }
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
