//! What a coordinator sees of its cluster: intent (placement) beside observation (node records).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::placement::{Orders, Placement, Standing};
use crate::{ExpertId, NodeId, NumericProfile};

/// What an expert node says of itself; lives under the node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's name.
    pub id: NodeId,
    /// Where its `Experts` service listens (`host:port`); empty for a node in the same process.
    pub addr: String,
    /// The experts it has in memory and answers for.
    pub held: BTreeSet<ExpertId>,
    /// What decides the bits of its answers.
    pub profile: NumericProfile,
    /// How many bytes of experts it may hold.
    pub capacity: u64,
    /// Expert rows it computes in a second, as it measured; 0 when it did not.
    #[serde(default)]
    pub speed: u32,
    /// What it shares its fate with (a rack, a building); replicas of one expert are spread over zones. May be empty.
    #[serde(default)]
    pub zone: String,
    /// Whether it is leaving: it still answers, but gets no new experts.
    #[serde(default)]
    pub draining: bool,
}

impl NodeRecord {
    /// Whether it is in the process of whoever reads this: nothing goes over the wire to it.
    pub fn is_in_process(&self) -> bool {
        self.addr.is_empty()
    }
}

/// Placement (who should hold an expert), orders (what operators want) and records (who holds what, and is alive).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// The newest accepted placement; `None` before the first.
    pub placement: Option<Placement>,
    /// The nodes whose leases live.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// What operators have ordered.
    pub orders: Orders,
    /// Nodes that wanted to be in the cluster and may not be, and why.
    pub refused: BTreeMap<NodeId, String>,
}

impl ClusterView {
    /// What may be placed on `node`, which is in the view.
    pub fn standing(&self, node: &NodeRecord) -> Standing {
        if node.draining {
            Standing::Leaving
        } else if self.orders.cordoned.contains(&node.id) {
            Standing::Cordoned
        } else {
            Standing::Open
        }
    }

    /// The live nodes that are placed to hold `expert` *and* hold it, in placement order.
    pub fn holders(&self, expert: ExpertId) -> impl Iterator<Item = &NodeId> {
        let placed = self.placement.as_ref().and_then(|p| p.replicas.get(&expert));
        placed.into_iter().flatten().filter(move |id| self.nodes.get(*id).is_some_and(|n| n.held.contains(&expert)))
    }

    /// All live nodes that hold `expert`, placed to or not, in their names' order.
    pub fn live_holders(&self, expert: ExpertId) -> impl Iterator<Item = &NodeRecord> {
        self.nodes.values().filter(move |node| node.held.contains(&expert))
    }
}
