//! The expert nodes of an embedded cluster, whatever they run in; and those that run in this process.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tramontane_cluster::exchange::grpc::{GrpcExchange, NodeControl};
use tramontane_cluster::exchange::{Exchange, ExpertServer, InProcessExchange};
use tramontane_cluster::registry::{EmbeddedRegistry, Registry};
use tramontane_cluster::tls::Security;
use tramontane_expert_node::{ExpertStore, Neighbours, Node};
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
    /// What child processes need, if there are any: the registry, and who places their experts. It outlives them.
    serving: JoinSet<anyhow::Error>,
    /// Whether all is up: from then on a child that ends is started again.
    settled: watch::Sender<bool>,
}

/// How this process reaches its nodes.
enum Reach {
    InProcess(BTreeMap<NodeId, Arc<ExpertStore>>),
    Grpc { profile: NumericProfile },
}

impl Nodes {
    /// Nodes that have joined over gRPC; `alive`, `serving` and `settled` are as in [`Nodes`].
    pub(crate) fn over_grpc(
        registry: Arc<dyn Registry>,
        profile: NumericProfile,
        alive: JoinSet<anyhow::Error>,
        serving: JoinSet<anyhow::Error>,
        settled: watch::Sender<bool>,
    ) -> Self {
        Self { registry, reach: Reach::Grpc { profile }, alive, serving, settled }
    }

    /// Has `work` done beside the nodes, to their end.
    pub(crate) fn beside(&mut self, what: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.serving.spawn(async move {
            work.await;
            anyhow!("{what} has ended")
        });
    }

    /// All is up: child processes that end from now on are started again.
    pub(crate) fn settled(&self) {
        self.settled.send_replace(true);
    }

    /// An exchange to the nodes.
    pub(crate) fn exchange(&self) -> Box<dyn Exchange> {
        match &self.reach {
            Reach::InProcess(stores) => Box::new(InProcessExchange::new(Neighbours::new(stores.clone()))),
            Reach::Grpc { profile } => {
                Box::new(GrpcExchange::new(Handle::current(), profile.clone(), Security::Plaintext))
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
            Reach::Grpc { .. } => {
                let mut all = BTreeMap::new();
                for (id, node) in &self.registry.watch().current().nodes {
                    let mut control = NodeControl::connect(id.clone(), &node.addr, &Security::Plaintext).await?;
                    all.insert(id.clone(), control.received().await?);
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
            match node.follow().await {
                Ok(()) => anyhow!("an expert node has left"),
                Err(ended) => ended.into(),
            }
        });
        stores.insert(id, store);
    }
    let (serving, settled) = Default::default();
    Ok(Nodes { registry, reach: Reach::InProcess(stores), alive, serving, settled })
}

/// Why the first of `tasks` ended; waits for ever when there are none.
pub(super) async fn first_to_end(tasks: &mut JoinSet<anyhow::Error>) -> anyhow::Error {
    match tasks.join_next().await {
        Some(ended) => ended.unwrap_or_else(|panic| anyhow!("a task of the cluster panicked: {panic}")),
        None => std::future::pending().await,
    }
}
