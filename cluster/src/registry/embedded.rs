//! The registry of one process: a view in memory.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, pending, ready};
use tokio::sync::watch;
use tramontane_router::placement::{Order, Orders, Placement, follows};
use tramontane_router::{ClusterView, ModelId, NodeId, NodeRecord, NumericProfile};

use super::{
    Accepted, Health, Leadership, Lease, MAX_REFUSED, REFUSAL_LASTS, Registry, RegistryError, Unopposed, Watch,
    nothing_to_restore, rules,
};

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

    fn order(&self, order: Order) -> BoxFuture<'_, Result<Orders, RegistryError>> {
        let taken = self.shared.change(|_, view| {
            view.orders = view.orders.after(&order).map_err(rules::disobeyed)?;
            Ok(view.orders.clone())
        });
        ready(taken).boxed()
    }

    fn tell_refused(&self, node: NodeId, why: String) -> BoxFuture<'_, ()> {
        async move {
            self.shared.view.send_modify(|view| {
                let refused = &mut Arc::make_mut(view).refused;
                if refused.contains_key(&node) || refused.len() < MAX_REFUSED {
                    refused.insert(node.clone(), why.clone());
                }
            });
            let shared = Arc::downgrade(&self.shared);
            tokio::spawn(async move {
                tokio::time::sleep(REFUSAL_LASTS).await;
                let Some(shared) = shared.upgrade() else { return };
                shared.view.send_if_modified(|view| {
                    let old = view.refused.get(&node) == Some(&why);
                    old && Arc::make_mut(view).refused.remove(&node).is_some()
                });
            });
        }
        .boxed()
    }

    fn lead(&self, _: &str) -> BoxFuture<'_, Result<Box<dyn Leadership>, RegistryError>> {
        ready(Ok(Box::new(Unopposed) as Box<dyn Leadership>)).boxed()
    }

    fn restore(&self) -> BoxFuture<'_, Result<Accepted, RegistryError>> {
        ready(Err(nothing_to_restore())).boxed()
    }

    fn health(&self) -> Health {
        Health::Connected
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
        rules::admit(&self.profile, view.nodes.len(), &record)?;
        match view.nodes.entry(record.id.clone()) {
            Entry::Vacant(place) => {
                view.refused.remove(&record.id);
                place.insert(record);
                Ok(())
            }
            Entry::Occupied(_) => Err(RegistryError::Taken { node: record.id }),
        }
    }

    fn accept(&self, view: &mut ClusterView, placement: Placement) -> Result<Accepted, RegistryError> {
        let epoch = placement.epoch;
        follows(&self.model, view.placement.as_ref(), &placement).map_err(|denied| rules::denied(epoch, denied))?;
        view.placement = Some(placement);
        Ok(Accepted { epoch })
    }
}

struct EmbeddedLease {
    shared: Arc<Shared>,
    node: NodeId,
}

impl Lease for EmbeddedLease {
    fn update(&self, record: NodeRecord) -> BoxFuture<'_, Result<(), RegistryError>> {
        let updated = self.shared.change(|shared, view| {
            rules::renew(&shared.profile, &self.node, &record)?;
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
