//! The stores of one process, which compute as one.

use std::collections::BTreeMap;
use std::sync::Arc;

use tramontane_cluster::exchange::{Answers, Batches, ExpertServer, LocalNodes};
use tramontane_router::NodeId;

use super::ExpertStore;
use super::call::{Call, compute};

/// Stores with one backend: what several of them are asked for is one job, in which no thread waits for a node to be done.
pub struct Neighbours(BTreeMap<NodeId, Arc<ExpertStore>>);

impl Neighbours {
    /// These stores, each of them once and all with the same backend, on which they compute.
    pub fn new(stores: BTreeMap<NodeId, Arc<ExpertStore>>) -> Self {
        let names = |store| stores.values().filter(|other| Arc::ptr_eq(store, other)).count();
        debug_assert!(stores.values().all(|store| names(store) == 1), "a store would wait for itself");
        Self(stores)
    }
}

impl LocalNodes for Neighbours {
    fn node(&self, id: &NodeId) -> Option<&dyn ExpertServer> {
        self.0.get(id).map(|store| &**store as &dyn ExpertServer)
    }

    fn serve(&self, batches: &Batches) -> Answers {
        let here = || batches.iter().filter_map(|(id, own)| self.0.get(id).map(|store| (id, store, own)));
        // In the order of their names, in which every caller locks them.
        let mut calls: Vec<Call<'_>> = here().map(|(_, store, own)| Call::new(store, own)).collect();
        compute(&mut calls);
        here().map(|(id, ..)| id.clone()).zip(calls.into_iter().map(Call::answers)).collect()
    }
}
