//! What the placement asks of a node. Pure.

use std::collections::BTreeSet;

use tramontane_router::{ClusterView, ExpertId, NodeId};

/// What a node does to hold what it is given, in this order: it loads, publishes what it holds, and forgets the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty {
    /// Experts to load, ascending.
    pub load: Vec<ExpertId>,
    /// What it holds then.
    pub hold: BTreeSet<ExpertId>,
}

/// What `node`, which holds `held`, has to do by `view`; `None` when nothing is placed yet, or nothing is to be done.
pub fn duty(view: &ClusterView, node: &NodeId, held: &BTreeSet<ExpertId>) -> Option<Duty> {
    let placement = view.placement.as_ref()?;
    let given = placement.replicas.iter().filter(|(_, nodes)| nodes.contains(node));
    let hold: BTreeSet<ExpertId> = given.map(|(&expert, _)| expert).collect();
    let load = hold.difference(held).copied().collect();
    (hold != *held).then_some(Duty { load, hold })
}
