//! The operator's seam: how a cluster fares as one of its coordinators sees it, and what an operator may ask of it.

mod accounts;
mod client;
mod server;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use serde::Serialize;
use tramontane_router::peers::Traffic;
use tramontane_router::placement::{Change, Placement};
use tramontane_router::{ClusterView, Epoch, ExpertId, NodeId};

use crate::engine::EngineStatus;
use crate::registry::RegistryError;
use crate::registry::accounts::Accounts;

pub use client::{AdminClient, AdminClientError};
pub use server::serve_admin;

/// What a coordinator does for operators.
pub trait Admin: Send + Sync {
    /// How the cluster fares now.
    fn status(&self) -> ClusterStatus;

    /// Has `node` leave once others hold what it holds. Returns when the node has taken that in.
    ///
    /// # Errors
    /// [`AdminError::UnknownNode`], [`AdminError::NoRoom`] unless it is forced, [`AdminError::Unreachable`].
    fn drain(&self, node: NodeId, force: Force) -> BoxFuture<'_, Result<(), AdminError>>;

    /// Has `node` get no new experts, or get them again. Says whether that is new.
    ///
    /// # Errors
    /// [`AdminError::UnknownNode`], [`AdminError::Registry`].
    fn cordon(&self, node: NodeId, cordon: Cordon) -> BoxFuture<'_, Result<bool, AdminError>>;

    /// What a rebalance would move, and why; changes nothing.
    fn rehearse(&self) -> Rehearsal;

    /// Has the leader move experts to where they should be, at once, if any is not there. Returns when that is ordered.
    ///
    /// # Errors
    /// [`AdminError::Registry`].
    fn rebalance(&self) -> BoxFuture<'_, Result<Rebalance, AdminError>>;

    /// The placements seen, oldest first, each with when it was seen first.
    fn history(&self) -> Vec<(SystemTime, Arc<Placement>)>;

    /// Writes the newest placement seen over an older one that the registry came back with.
    ///
    /// # Errors
    /// [`AdminError::Registry`].
    fn restore(&self) -> BoxFuture<'_, Result<Epoch, AdminError>>;

    /// The cluster's keys and what they have used; `None` where it keeps none.
    fn accounts(&self) -> Option<Arc<dyn Accounts>>;
}

/// Whether a node shall leave although others have no room for what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// It stays then.
    No,
    /// It leaves; its experts are loaded by others when they are asked for, beyond what those should hold.
    Yes,
}

/// What a cordon is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cordon {
    /// The node gets nothing new.
    Set,
    /// It does again.
    Lift,
}

/// Why something was not done. The variant is what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// Look at the list of nodes.
    #[error("there is no node {node}")]
    UnknownNode {
        /// The name.
        node: NodeId,
    },
    /// Add nodes or capacity, or force it.
    #[error("the other nodes have no room for what {node} holds: {why}")]
    NoRoom {
        /// The node.
        node: NodeId,
        /// What does not fit.
        why: String,
    },
    /// Look at the node itself.
    #[error("node {node} cannot be reached: {why}")]
    Unreachable {
        /// The node.
        node: NodeId,
        /// What failed.
        why: String,
    },
    /// Use a file of keys.
    #[error("this cluster keeps no keys: its registry is not etcd")]
    NoAccounts,
    /// Look at the list of keys.
    #[error("there is no key {name}")]
    UnknownKey {
        /// The name.
        name: String,
    },
    /// What the registry says.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// How a cluster fares, as one coordinator sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterStatus {
    /// The coordinator.
    pub coordinator: String,
    /// Intent and observation.
    pub view: Arc<ClusterView>,
    /// Layers of the model.
    pub layers: u32,
    /// Experts of a layer.
    pub experts: u32,
    /// Nodes that should hold each expert.
    pub replicas: usize,
    /// What is not as it should be, worst first.
    pub findings: Vec<Finding>,
    /// Rows a second of every expert that receives any.
    pub rates: BTreeMap<ExpertId, f32>,
    /// What is held against nodes.
    pub peers: BTreeMap<NodeId, PeerNote>,
    /// Dispatches so far.
    pub dispatches: DispatchCounts,
    /// The engine; `None` until the model is loaded.
    pub engine: Option<EngineStatus>,
    /// What nodes did for this coordinator.
    pub traffic: BTreeMap<NodeId, Traffic>,
}

impl ClusterStatus {
    /// All experts of the model, layer by layer.
    pub fn expert_ids(&self) -> impl Iterator<Item = ExpertId> + use<> {
        let (layers, experts) = (self.layers, self.experts);
        (0..layers).flat_map(move |layer| (0..experts).map(move |expert| ExpertId::new(layer, expert)))
    }
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Severity {
    /// Requests are served; something has less in reserve than it should.
    Warn,
    /// Requests fail, or will.
    Err,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub what: String,
}

/// What a coordinator holds against a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerNote {
    /// What.
    pub what: String,
    /// Whether its answers are not used at all; else they are where nobody else can serve.
    pub quarantined: bool,
}

/// Dispatches of a coordinator since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DispatchCounts {
    /// Sent, first ones and later ones.
    pub sent: u64,
    /// Sent again after a failure.
    pub resent: u64,
    /// Sent beside a slow one.
    pub hedged: u64,
    /// Sent to a node that loaded experts first.
    pub rescued: u64,
}

/// What would move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rehearsal {
    /// Why nothing moves, where that is so.
    pub why: String,
    /// What would change, by expert, then node.
    pub moves: Vec<Move>,
}

/// One change on the way to where everything should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// What changes.
    pub change: Change,
    /// Bytes that the expert takes.
    pub bytes: u64,
    /// Why, for the operator.
    pub why: String,
}

/// What was ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rebalance {
    /// What will move.
    pub plan: Rehearsal,
    /// The version of the orders that stands until it is done; `None` where nothing moves.
    pub order: Option<u64>,
}
