//! A node's life: it joins, loads what the placement gives it, publishes what it holds, until its lease ends.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use tokio::task::JoinError;
use tramontane_cluster::exchange::ServeError;
use tramontane_cluster::registry::{Lease, Registry, RegistryError, Watch};
use tramontane_router::{ClusterView, ExpertId, NodeId, NodeRecord, NumericProfile};

use crate::{Duty, ExpertStore, Keep, duty};

/// Why a node ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The registry refused it, or is gone.
    #[error("expert node {node} is not in the cluster")]
    Registry {
        /// The node.
        node: NodeId,
        /// What the registry said.
        source: RegistryError,
    },
    /// It cannot hold what the placement gives it: mend its disk or give it room.
    #[error("expert node {node} cannot load what it is given")]
    Load {
        /// The node.
        node: NodeId,
        /// Which expert, and why.
        source: ServeError,
    },
    /// A defect: the loading thread panicked.
    #[error("expert node {node}: loading ended abnormally")]
    Panicked {
        /// The node.
        node: NodeId,
        /// How.
        source: JoinError,
    },
}

/// What a node says of itself when it joins.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Its name.
    pub id: NodeId,
    /// Where its `Experts` service listens; empty in the coordinator's process.
    pub addr: String,
    /// Bytes of experts it may hold.
    pub capacity: u64,
    /// What it shares its fate with; may be empty.
    pub zone: String,
    /// What decides its bits.
    pub profile: NumericProfile,
}

/// A node that has joined.
pub struct Node {
    options: NodeOptions,
    store: Arc<ExpertStore>,
    lease: Box<dyn Lease>,
    watch: Watch,
    /// What its record says that it holds.
    published: BTreeSet<ExpertId>,
}

impl Node {
    /// Joins the cluster of `registry`, holding nothing yet.
    ///
    /// # Errors
    /// [`NodeError::Registry`] when it is refused.
    pub async fn join(
        options: NodeOptions,
        store: Arc<ExpertStore>,
        registry: &dyn Registry,
    ) -> Result<Self, NodeError> {
        let published = store.held();
        let record = record(&options, published.clone());
        let watch = registry.watch();
        let lease =
            registry.join(record).await.map_err(|source| NodeError::Registry { node: options.id.clone(), source })?;
        Ok(Self { options, store, lease, watch, published })
    }

    /// Follows the placement until the lease is lost: loads what it gives, publishes it, then gives up what others hold.
    ///
    /// # Errors
    /// Always, in the end: [`NodeError`] says why it is over.
    pub async fn follow(mut self) -> Result<Infallible, NodeError> {
        let mut view = self.watch.current();
        loop {
            self.obey(&view).await?;
            view = tokio::select! {
                changed = self.watch.changed() => changed.map_err(|source| self.registry_error(source))?,
                () = self.lease.lost() => {
                    return Err(self.registry_error(RegistryError::Lost { why: "the lease ended".to_owned() }));
                }
            };
        }
    }

    async fn obey(&mut self, view: &ClusterView) -> Result<(), NodeError> {
        let mut keep = Keep::LastCopies;
        while let Some(duty) = self.duty(view, keep) {
            if duty.load.is_empty() {
                return self.publish(duty).await;
            }
            match self.load(duty.load).await? {
                Ok(()) => {}
                // Beside what it keeps for others there may be no room for what it is given.
                Err(ServeError::CannotHold { .. }) if keep == Keep::LastCopies => {
                    keep = Keep::Nothing;
                    if let Some(tight) = self.duty(view, keep) {
                        self.publish(tight).await?;
                    }
                }
                Err(source) => return Err(NodeError::Load { node: self.options.id.clone(), source }),
            }
        }
        Ok(())
    }

    fn duty(&self, view: &ClusterView, keep: Keep) -> Option<Duty> {
        duty(view, &self.options.id, &self.store.held(), &self.published, keep)
    }

    /// Loads `experts`, or says which of them it cannot hold.
    async fn load(&self, experts: Vec<ExpertId>) -> Result<Result<(), ServeError>, NodeError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || experts.into_iter().try_for_each(|expert| store.load(expert)))
            .await
            .map_err(|source| NodeError::Panicked { node: self.options.id.clone(), source })
    }

    /// Publishes what it holds, and forgets the rest.
    async fn publish(&mut self, duty: Duty) -> Result<(), NodeError> {
        // What is given up is taken from the record first, so that nobody asks for it any more.
        let update = self.lease.update(record(&self.options, duty.publish.clone()));
        update.await.map_err(|source| self.registry_error(source))?;
        self.store.retain(|expert| !duty.forget.contains(&expert));
        self.published = duty.publish;
        Ok(())
    }

    fn registry_error(&self, source: RegistryError) -> NodeError {
        NodeError::Registry { node: self.options.id.clone(), source }
    }
}

fn record(options: &NodeOptions, held: BTreeSet<ExpertId>) -> NodeRecord {
    let NodeOptions { id, addr, capacity, zone, profile } = options.clone();
    NodeRecord { id, addr, held, profile, capacity, speed: 0, zone, draining: false }
}
