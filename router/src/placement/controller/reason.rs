//! Why an expert moves, for the operator.

use std::fmt;

use super::{Change, Desire, Kind};
use crate::placement::{Placement, Standing};
use crate::{ClusterView, NodeId};

/// Why a change is to be made. The first that holds is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No live node is given the expert.
    Homeless,
    /// A node that has it leaves.
    Leaves(NodeId),
    /// A node that had it is gone.
    Gone(NodeId),
    /// It has fewer replicas than it should.
    TooFew,
    /// It has more replicas than it should.
    TooMany,
    /// It receives so many rows that it earns another replica.
    Hot,
    /// Its replicas share a zone, and need not.
    Zones,
    /// Nodes are unevenly full for their speed.
    Balance,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Homeless => f.write_str("no node has it"),
            Self::Leaves(node) => write!(f, "{node} leaves"),
            Self::Gone(node) => write!(f, "{node} is gone"),
            Self::TooFew => f.write_str("too few replicas"),
            Self::TooMany => f.write_str("too many replicas"),
            Self::Hot => f.write_str("it is hot"),
            Self::Zones => f.write_str("spreads it over zones"),
            Self::Balance => f.write_str("balance"),
        }
    }
}

/// Why `change` is on the way from the view's placement to `goal`.
pub(super) fn reason(view: &ClusterView, goal: &Placement, desire: &Desire, change: &Change) -> Reason {
    let nodes = |placement: Option<&Placement>| -> Vec<NodeId> {
        placement.and_then(|p| p.replicas.get(&change.expert)).cloned().unwrap_or_default()
    };
    let (old, new) = (nodes(view.placement.as_ref()), nodes(Some(goal)));
    let alive: Vec<&NodeId> = old.iter().filter(|node| view.nodes.contains_key(*node)).collect();
    let leaves = |node: &&NodeId| view.nodes.get(node).is_some_and(|n| view.standing(n) == Standing::Leaving);
    // An expert comes to a node because others lose it; it goes from one for what that one is.
    let concerns = |node: &&NodeId| !new.contains(node) && (change.kind == Kind::Add || **node == change.node);
    let lost = || old.iter().filter(concerns);
    if change.kind == Kind::Add && alive.is_empty() {
        return Reason::Homeless;
    }
    if let Some(node) = lost().find(leaves) {
        return Reason::Leaves(node.clone());
    }
    if let Some(node) = lost().find(|node| !view.nodes.contains_key(*node)) {
        return Reason::Gone(node.clone());
    }
    match (change.kind, new.len().cmp(&alive.len())) {
        (Kind::Add, std::cmp::Ordering::Greater) if alive.len() >= desire.replicas => Reason::Hot,
        (Kind::Add, std::cmp::Ordering::Greater) => Reason::TooFew,
        (Kind::Remove, std::cmp::Ordering::Less) => Reason::TooMany,
        _ if zones(view, &new) > zones(view, &old) => Reason::Zones,
        _ => Reason::Balance,
    }
}

/// In how many zones `nodes` are.
fn zones(view: &ClusterView, nodes: &[NodeId]) -> usize {
    let zones = nodes.iter().filter_map(|node| view.nodes.get(node)).map(|node| node.zone.as_str());
    zones.collect::<std::collections::BTreeSet<_>>().len()
}
