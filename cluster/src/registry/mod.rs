//! The registry: who is in the cluster and what each node holds (observed, under leases), and who should hold what
//! (the placement, fenced by its parent's epoch). Everybody watches the two as one [`ClusterView`].

pub mod accounts;
pub mod directory;
mod embedded;
pub mod etcd;
mod rules;
pub mod served;
pub(crate) mod wire;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, pending, ready};
use tokio::sync::watch;
use tramontane_router::placement::{Order, Orders, Placement, WentBack};
use tramontane_router::{ClusterView, Epoch, NodeId, NodeRecord};

pub use embedded::EmbeddedRegistry;

/// Nodes in one cluster, at most.
pub const MAX_NODES: usize = 1024;
/// Bytes of a node's name, at most, and none is empty.
pub const MAX_NAME: usize = 253;
/// Refused nodes that a view names, at most.
pub const MAX_REFUSED: usize = 64;
/// How long it is remembered that a node was refused. One that is started again and again says so again.
const REFUSAL_LASTS: Duration = Duration::from_secs(600);

/// A cluster's registry. `join` and `propose` may go over the network, so they are async; a thread of its own calls them
/// through its runtime handle's `block_on`. `watch` is for both worlds.
pub trait Registry: Send + Sync {
    /// Puts a node into the cluster, for as long as the lease is held.
    ///
    /// # Errors
    /// [`RegistryError::Taken`]; [`RegistryError::Refused`] when the node does not belong here; [`RegistryError::Lost`].
    fn join(&self, record: NodeRecord) -> BoxFuture<'_, Result<Box<dyn Lease>, RegistryError>>;

    /// The view as it is, and its changes.
    fn watch(&self) -> Watch;

    /// Makes `placement` the current one, if its parent is; the first has the parent `Epoch(0)`.
    ///
    /// # Errors
    /// [`RegistryError`], each kind of it.
    fn propose(&self, placement: Placement) -> BoxFuture<'_, Result<Accepted, RegistryError>>;

    /// Applies `order` to what operators have ordered, in one transaction; returns what stands then. Any process may: it is no
    /// decision of the leader's.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when there are too many; [`RegistryError::Lost`].
    fn order(&self, order: Order) -> BoxFuture<'_, Result<Orders, RegistryError>>;

    /// Tells who looks after the cluster, for a while, that `node` may not be in it. Best effort: the node itself ends with the
    /// reason.
    fn tell_refused(&self, node: NodeId, why: String) -> BoxFuture<'_, ()>;

    /// Waits until this process, which calls itself `name`, leads the cluster. It leads while what comes back is held and
    /// not lost: where several processes could, a registry takes proposals of the leader only.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] where `name` may not lead.
    fn lead(&self, name: &str) -> BoxFuture<'_, Result<Box<dyn Leadership>, RegistryError>>;

    /// Writes the newest placement seen as one that follows it, over an older one that the registry has come back with.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] when the registry has not gone back; else as [`Registry::propose`].
    fn restore(&self) -> BoxFuture<'_, Result<Accepted, RegistryError>>;

    /// How it stands with the registry right now.
    fn health(&self) -> Health;

    /// Waits, for a bounded time, until the registry knows which leases and leaderships were dropped. For a process that is
    /// about to end: without it others wait until they expire.
    fn farewell(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}

/// How it stands with a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Views are as new as they can be.
    Connected,
    /// Nobody answers there: the last view stands, and changes wait.
    Disconnected {
        /// What broke.
        why: String,
    },
    /// It shows an older placement than it did, which is not taken.
    WentBack(WentBack),
    /// It can be read, and takes no changes.
    ReadOnly {
        /// What is wrong with it.
        why: String,
    },
}

/// A leadership; it ends when this is dropped.
pub trait Leadership: Send + Sync {
    /// Completes when it is lost although it is held.
    fn lost(&self) -> BoxFuture<'_, ()>;
}

/// Leadership where nobody else can lead.
struct Unopposed;

impl Leadership for Unopposed {
    fn lost(&self) -> BoxFuture<'_, ()> {
        pending().boxed()
    }
}

fn nothing_to_restore() -> RegistryError {
    RegistryError::Refused { what: "restore".into(), why: "the registry has not gone back".into() }
}

/// A node's place in the cluster; it leaves when this is dropped.
pub trait Lease: Send + Sync {
    /// Publishes the node's record anew: what it holds, whether it drains. Returns when the registry has it.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for another name or profile than it joined with (the record before stays);
    /// [`RegistryError::Lost`].
    fn update(&self, record: NodeRecord) -> BoxFuture<'_, Result<(), RegistryError>>;

    /// Completes when the lease is lost although it is held: the registry is gone, or gave the node up.
    fn lost(&self) -> BoxFuture<'_, ()>;
}

/// That a proposal is the current placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its epoch.
    pub epoch: Epoch,
}

/// Why the registry did not do what it was asked. The variant is what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// Another placement was accepted first: read the view, and decide anew.
    #[error("the placement was made from an old one: the current epoch is {current}")]
    Fenced {
        /// The current placement's epoch.
        current: Epoch,
    },
    /// Campaign again ([`Registry::lead`]), and decide anew.
    #[error("not the leader: {why}")]
    NotLeader {
        /// Who is, or that nobody is.
        why: String,
    },
    /// Take another name; or wait, if the name was this node's own before it was started again: it is free when that lease ends.
    #[error("node {node} refused: a node of this name is in the cluster")]
    Taken {
        /// The name.
        node: NodeId,
    },
    /// The same of an engine's name.
    #[error("engine {engine} refused: an engine of this name is in the cluster")]
    EngineTaken {
        /// The name.
        engine: directory::EngineId,
    },
    /// Do not try again unchanged: tell the operator.
    #[error("{what} refused: {why}")]
    Refused {
        /// The node, placement or address.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry cannot be reached: go on with the last view (a child process ends with its parent).
    #[error("the registry is lost: {why}")]
    Lost {
        /// What broke.
        why: String,
    },
}

/// The cluster's view as it changes. A slow watcher sees the newest view, not all between. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<Arc<ClusterView>>);

impl From<watch::Receiver<Arc<ClusterView>>> for Watch {
    /// A watch of whatever shows views.
    fn from(views: watch::Receiver<Arc<ClusterView>>) -> Self {
        Self(views)
    }
}

impl Watch {
    /// The newest view; the last one for ever when the registry is lost.
    pub fn current(&self) -> Arc<ClusterView> {
        self.0.borrow().clone()
    }

    /// Waits for a view not yet seen by this watch, and returns it.
    ///
    /// # Errors
    /// [`RegistryError::Lost`].
    pub async fn changed(&mut self) -> Result<Arc<ClusterView>, RegistryError> {
        self.0.changed().await.map_err(|_| Self::closed())?;
        Ok(self.0.borrow_and_update().clone())
    }

    /// Waits until the view, as it is or will be, satisfies `condition`.
    ///
    /// # Errors
    /// [`RegistryError::Lost`].
    pub async fn until(
        &mut self,
        mut condition: impl FnMut(&ClusterView) -> bool,
    ) -> Result<Arc<ClusterView>, RegistryError> {
        let view = self.0.wait_for(|view| condition(view)).await.map_err(|_| Self::closed())?;
        Ok(view.clone())
    }

    /// Whether the registry is lost.
    pub fn is_lost(&self) -> bool {
        self.0.has_changed().is_err()
    }

    fn closed() -> RegistryError {
        RegistryError::Lost { why: "no more views come".into() }
    }
}
