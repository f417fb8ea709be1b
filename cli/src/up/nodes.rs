//! The expert nodes of an embedded cluster, whatever they run in; and those that run in this process.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tramontane_cluster::exchange::grpc::{GrpcExchange, NodeControl};
use tramontane_cluster::exchange::{Exchange, ExpertServer, InProcessExchange};
use tramontane_cluster::registry::{EmbeddedRegistry, Registry};
use tramontane_expert_node::{ExpertStore, Node};
use tramontane_kernels::Compute;
use tramontane_router::{ExpertId, NodeId, NumericProfile};

use super::assemble::node_id;
use crate::model::Model;

/// How long after its connections break the end of a process may be told.
const END_NOTICE: Duration = Duration::from_secs(1);

/// Running expert nodes. Dropping them ends them.
pub(crate) struct Nodes {
    pub(crate) registry: Arc<dyn Registry>,
    reach: Reach,
    /// One task a node; each ends with the reason for which the node did.
    alive: JoinSet<anyhow::Error>,
    /// The task that serves the registry to child processes, if there are any. It outlives them.
    serving: JoinSet<anyhow::Error>,
}

/// How this process reaches its nodes.
enum Reach {
    InProcess(BTreeMap<NodeId, Arc<ExpertStore>>),
    Grpc { addrs: BTreeMap<NodeId, String>, profile: NumericProfile },
}

impl Nodes {
    /// Nodes that have joined over gRPC; `alive` and `serving` are as in [`Nodes`].
    pub(crate) fn over_grpc(
        registry: Arc<dyn Registry>,
        addrs: BTreeMap<NodeId, String>,
        profile: NumericProfile,
        alive: JoinSet<anyhow::Error>,
        serving: JoinSet<anyhow::Error>,
    ) -> Self {
        Self { registry, reach: Reach::Grpc { addrs, profile }, alive, serving }
    }

    /// An exchange to the nodes.
    pub(crate) fn exchange(&self) -> Box<dyn Exchange> {
        match &self.reach {
            Reach::InProcess(stores) => {
                let servers = stores.iter().map(|(id, s)| (id.clone(), s.clone() as Arc<dyn ExpertServer>)).collect();
                Box::new(InProcessExchange::new(servers))
            }
            Reach::Grpc { addrs, profile } => {
                let mut exchange = GrpcExchange::new(Handle::current(), profile.clone());
                exchange.set_nodes(addrs.clone());
                Box::new(exchange)
            }
        }
    }

    /// Awaits `work`, unless a node ends first. A process that ends just after `work` has failed is named as the reason:
    /// its connections break before its parent hears of its end.
    pub(crate) async fn until<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let failed = tokio::select! {
            biased;
            error = first_to_end(&mut self.alive) => return Err(error),
            error = first_to_end(&mut self.serving) => return Err(error),
            done = work => match (done, &self.reach) {
                (Err(failed), Reach::Grpc { .. }) => failed,
                (done, _) => return done,
            },
        };
        Err(timeout(END_NOTICE, first_to_end(&mut self.alive)).await.unwrap_or(failed))
    }

    /// Ends the nodes, and then the registry.
    pub(crate) async fn stop(mut self) {
        self.alive.shutdown().await;
        self.serving.shutdown().await;
    }

    /// Rows that each node's experts have received, as the nodes count them.
    pub(crate) async fn received(&self) -> anyhow::Result<BTreeMap<NodeId, BTreeMap<ExpertId, u64>>> {
        match &self.reach {
            Reach::InProcess(stores) => Ok(stores.iter().map(|(id, store)| (id.clone(), store.received())).collect()),
            Reach::Grpc { addrs, .. } => {
                let mut all = BTreeMap::new();
                for (id, addr) in addrs {
                    let received = NodeControl::connect(id.clone(), addr).await?.received().await?;
                    all.insert(id.clone(), received);
                }
                Ok(all)
            }
        }
    }
}

/// Starts `count` nodes in this process, which compute on the coordinator's own threads.
pub(crate) async fn start(model: &Model, count: usize, compute: &Compute) -> anyhow::Result<Nodes> {
    let registry: Arc<dyn Registry> = Arc::new(EmbeddedRegistry::new(model.id.clone(), model.profile.clone()));
    let (mut stores, mut alive) = (BTreeMap::new(), JoinSet::new());
    for id in (0..count).map(node_id) {
        let store = model.expert_store(u64::MAX, compute.clone());
        let options = model.node(id.clone(), String::new(), u64::MAX);
        let node = Node::join(options, store.clone(), registry.as_ref()).await?;
        alive.spawn(async move {
            let Err(ended) = node.follow().await;
            ended.into()
        });
        stores.insert(id, store);
    }
    Ok(Nodes { registry, reach: Reach::InProcess(stores), alive, serving: JoinSet::new() })
}

/// Why the first of `tasks` ended; waits for ever when there are none.
pub(super) async fn first_to_end(tasks: &mut JoinSet<anyhow::Error>) -> anyhow::Error {
    match tasks.join_next().await {
        Some(ended) => ended.unwrap_or_else(|panic| anyhow!("a task of the cluster panicked: {panic}")),
        None => std::future::pending().await,
    }
}
