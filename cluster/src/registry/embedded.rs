//! The registry of one process: a view in memory.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, pending, ready};
use tokio::sync::watch;
use tramontane_router::placement::Placement;
use tramontane_router::{ClusterView, Epoch, ModelId, NodeId, NodeRecord, NumericProfile};

use super::{Accepted, Lease, MAX_NAME, MAX_NODES, Registry, RegistryError, Watch};

/// A registry that lives as long as it, or a lease of it, is held.
pub struct EmbeddedRegistry {
    shared: Arc<Shared>,
}

struct Shared {
    model: ModelId,
    profile: NumericProfile,
    /// Changed only through `send_if_modified`, whose lock makes each change one transaction.
    view: watch::Sender<Arc<ClusterView>>,
}

impl EmbeddedRegistry {
    /// An empty cluster that serves `model` to the bits `profile` stands for.
    pub fn new(model: ModelId, profile: NumericProfile) -> Self {
        Self { shared: Arc::new(Shared { model, profile, view: watch::Sender::default() }) }
    }
}

impl Registry for EmbeddedRegistry {
    fn join(&self, record: NodeRecord) -> BoxFuture<'_, Result<Box<dyn Lease>, RegistryError>> {
        let node = record.id.clone();
        let joined = self.shared.change(|shared, view| shared.admit(view, record));
        let lease = joined.map(|()| Box::new(EmbeddedLease { shared: self.shared.clone(), node }) as Box<dyn Lease>);
        ready(lease).boxed()
    }

    fn watch(&self) -> Watch {
        let mut receiver = self.shared.view.subscribe();
        receiver.mark_changed();
        Watch(receiver)
    }

    fn propose(&self, placement: Placement) -> BoxFuture<'_, Result<Accepted, RegistryError>> {
        ready(self.shared.change(|shared, view| shared.accept(view, placement))).boxed()
    }
}

impl Shared {
    /// Applies `change` to the view, and tells the watchers if it succeeds; it must leave the view alone if it fails.
    fn change<T>(
        &self,
        change: impl FnOnce(&Self, &mut ClusterView) -> Result<T, RegistryError>,
    ) -> Result<T, RegistryError> {
        let mut outcome = None;
        self.view.send_if_modified(|view| {
            let done = change(self, Arc::make_mut(view));
            outcome.insert(done).is_ok()
        });
        // `send_if_modified` calls its closure exactly once.
        outcome.unwrap_or_else(|| Err(RegistryError::Lost { why: "the view cannot be changed".into() }))
    }

    fn admit(&self, view: &mut ClusterView, record: NodeRecord) -> Result<(), RegistryError> {
        let name = record.id.as_str();
        if name.is_empty() || name.len() > MAX_NAME {
            return Err(refused(&record.id, format!("its name has {} bytes, not 1 to {MAX_NAME}", name.len())));
        }
        if view.nodes.len() >= MAX_NODES {
            return Err(refused(&record.id, format!("the cluster has {MAX_NODES} nodes already")));
        }
        if let Some(difference) = self.profile.difference(&record.profile) {
            return Err(refused(&record.id, difference));
        }
        match view.nodes.entry(record.id.clone()) {
            Entry::Vacant(place) => {
                place.insert(record);
                Ok(())
            }
            Entry::Occupied(_) => Err(refused(&record.id, "a node of this name is in the cluster".into())),
        }
    }

    fn accept(&self, view: &mut ClusterView, placement: Placement) -> Result<Accepted, RegistryError> {
        let (epoch, current) = (placement.epoch, view.placement.as_ref().map_or(Epoch(0), |p| p.epoch));
        let refused = |why| Err(RegistryError::Refused { what: format!("placement {epoch}"), why });
        if placement.model != self.model {
            return refused(format!("it places {}, the cluster serves {}", placement.model, self.model));
        }
        if placement.parent != current {
            return Err(RegistryError::Fenced { current });
        }
        // Compared without adding: the epoch came from outside.
        if epoch.0.checked_sub(1) != Some(current.0) {
            return refused(format!("its epoch does not follow its parent's, {current}"));
        }
        view.placement = Some(placement);
        Ok(Accepted { epoch })
    }
}

fn refused(node: &NodeId, why: String) -> RegistryError {
    RegistryError::Refused { what: format!("node {node}"), why }
}

struct EmbeddedLease {
    shared: Arc<Shared>,
    node: NodeId,
}

impl Lease for EmbeddedLease {
    fn update(&self, record: NodeRecord) -> BoxFuture<'_, Result<(), RegistryError>> {
        let updated = self.shared.change(|shared, view| {
            if record.id != self.node {
                return Err(refused(&self.node, format!("it cannot become {}", record.id)));
            }
            if let Some(difference) = shared.profile.difference(&record.profile) {
                return Err(refused(&self.node, difference));
            }
            view.nodes.insert(record.id.clone(), record);
            Ok(())
        });
        ready(updated).boxed()
    }

    /// Never: the lease keeps its registry.
    fn lost(&self) -> BoxFuture<'_, ()> {
        pending().boxed()
    }
}

impl Drop for EmbeddedLease {
    fn drop(&mut self) {
        self.shared.view.send_modify(|view| {
            Arc::make_mut(view).nodes.remove(&self.node);
        });
    }
}
