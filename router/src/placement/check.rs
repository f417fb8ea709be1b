//! The check every placement passes before it is written: it follows its parent and leaves no expert without a holder.

use std::collections::BTreeSet;

use super::{Placement, Standing};
use crate::{ClusterView, Epoch, ExpertId, ModelId, NodeId};

/// Why a placement is refused. Made for the operator, or the control loop, that proposed it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Propose it for the right cluster.
    #[error("model {next} where {current} is served")]
    WrongModel {
        /// The model served.
        current: ModelId,
        /// The model placed.
        next: ModelId,
    },
    /// Make it again from the current placement: somebody else was first.
    #[error("made from epoch {parent}, but the current one is {current}")]
    WrongParent {
        /// The current epoch (0 before the first).
        current: Epoch,
        /// The epoch it was made from.
        parent: Epoch,
    },
    /// Number it one after its parent.
    #[error("epoch {epoch} does not follow its parent {parent}")]
    WrongEpoch {
        /// Its parent.
        parent: Epoch,
        /// Its own epoch.
        epoch: Epoch,
    },
    /// Place the expert too.
    #[error("{expert} is left out")]
    MissingExpert {
        /// Placed now, and not in the next; or placed on no node.
        expert: ExpertId,
    },
    /// Name each node once.
    #[error("{expert} is placed on {node} twice")]
    DuplicateNode {
        /// The expert.
        expert: ExpertId,
        /// The node.
        node: NodeId,
    },
    /// Wait for the node to join, or place the expert elsewhere.
    #[error("{expert} is newly placed on {node}, which is not alive")]
    UnknownNode {
        /// The expert.
        expert: ExpertId,
        /// The node.
        node: NodeId,
    },
    /// Place the expert on a node that stays.
    #[error("{expert} is newly placed on {node}, which is draining")]
    DrainingNode {
        /// The expert.
        expert: ExpertId,
        /// The node.
        node: NodeId,
    },
    /// Place the expert on another node, or uncordon this one.
    #[error("{expert} is newly placed on {node}, which is cordoned")]
    CordonedNode {
        /// The expert.
        expert: ExpertId,
        /// The node.
        node: NodeId,
    },
    /// Add the new nodes first, and remove the old ones when a new one holds the expert.
    #[error("{expert} would lose its holders {holders:?} before another node holds it")]
    NoHolderLeft {
        /// The expert.
        expert: ExpertId,
        /// The live holders it has now.
        holders: Vec<NodeId>,
    },
}

/// Says what is wrong with `next` as the successor of the view's placement; empty when it may be written.
///
/// A node that is placed already may stay placed while it is dead: it may come back. Capacity is not checked, for neither
/// view nor placement knows an expert's bytes; [`super::solve`] honours it.
pub fn check(view: &ClusterView, next: &Placement) -> Vec<Violation> {
    let mut found = check_version(view.placement.as_ref(), next);
    for (&expert, nodes) in &next.replicas {
        if nodes.is_empty() {
            found.push(Violation::MissingExpert { expert });
        }
        check_nodes(view, expert, nodes, &mut found);
    }
    for &expert in view.placement.iter().flat_map(|p| p.replicas.keys()) {
        let Some(nodes) = next.replicas.get(&expert) else {
            found.push(Violation::MissingExpert { expert });
            continue;
        };
        let holders: Vec<NodeId> = view.holders(expert).cloned().collect();
        let held = |id: &NodeId| view.nodes.get(id).is_some_and(|n| n.held.contains(&expert));
        if !holders.is_empty() && !nodes.iter().any(held) {
            found.push(Violation::NoHolderLeft { expert, holders });
        }
    }
    found
}

fn check_version(current: Option<&Placement>, next: &Placement) -> Vec<Violation> {
    let mut found = Vec::new();
    if let Some(current) = current.filter(|p| p.model != next.model) {
        found.push(Violation::WrongModel { current: current.model.clone(), next: next.model.clone() });
    }
    let epoch = current.map_or(Epoch::default(), |p| p.epoch);
    if next.parent != epoch {
        found.push(Violation::WrongParent { current: epoch, parent: next.parent });
    }
    if next.epoch.0.checked_sub(1) != Some(next.parent.0) {
        found.push(Violation::WrongEpoch { parent: next.parent, epoch: next.epoch });
    }
    found
}

fn check_nodes(view: &ClusterView, expert: ExpertId, nodes: &[NodeId], found: &mut Vec<Violation>) {
    let placed = view.placement.as_ref().and_then(|p| p.replicas.get(&expert));
    let mut seen = BTreeSet::new();
    for node in nodes {
        let (id, placed) = (node, placed.is_some_and(|nodes| nodes.contains(node)));
        let node = node.clone();
        if !seen.insert(id) {
            found.push(Violation::DuplicateNode { expert, node });
        } else if !placed {
            match view.nodes.get(id) {
                None => found.push(Violation::UnknownNode { expert, node }),
                Some(record) => match view.standing(record) {
                    Standing::Open => {}
                    Standing::Cordoned => found.push(Violation::CordonedNode { expert, node }),
                    Standing::Leaving => found.push(Violation::DrainingNode { expert, node }),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::view;

    const E0: ExpertId = ExpertId::new(0, 0);

    /// Expert 0 on a, expert 1 on a and b; c holds nothing.
    fn now() -> ClusterView {
        view(&["a", "b", "c"], &[(0, &["a"]), (1, &["a", "b"])])
    }

    fn next(change: impl FnOnce(&mut Placement)) -> Placement {
        let mut next = now().placement.unwrap();
        (next.epoch, next.parent) = (Epoch(2), Epoch(1));
        change(&mut next);
        next
    }

    fn place(nodes: &[&str]) -> Placement {
        next(|p| _ = p.replicas.insert(E0, nodes.iter().map(NodeId::from).collect()))
    }

    #[test]
    fn accepts_a_successor_and_a_first_placement() {
        assert_eq!(check(&now(), &place(&["a", "c"])), []);
        let mut first = next(|_| {});
        (first.epoch, first.parent) = (Epoch(1), Epoch(0));
        assert_eq!(check(&ClusterView { placement: None, ..now() }, &first), []);
    }

    #[test]
    fn refuses_what_does_not_follow_its_parent() {
        let stale = next(|p| p.parent = Epoch(0));
        let (current, parent, epoch) = (Epoch(1), Epoch(0), Epoch(2));
        let wanted = [Violation::WrongParent { current, parent }, Violation::WrongEpoch { parent, epoch }];
        assert_eq!(check(&now(), &stale), wanted);
        let skipped = check(&now(), &next(|p| p.epoch = Epoch(3)));
        assert_eq!(skipped, [Violation::WrongEpoch { parent: current, epoch: Epoch(3) }]);
        let other = check(&now(), &next(|p| p.model = "x".into()));
        assert_eq!(other, [Violation::WrongModel { current: "m".into(), next: "x".into() }]);
    }

    #[test]
    fn a_move_is_two_placements() {
        let lost = Violation::NoHolderLeft { expert: E0, holders: vec!["a".into()] };
        assert_eq!(check(&now(), &place(&["c"])), [lost]);
        let mut view = now();
        view.nodes.get_mut(&"c".into()).unwrap().held.insert(E0);
        assert_eq!(check(&view, &place(&["c"])), []);
    }

    #[test]
    fn an_expert_that_has_no_live_holder_may_go_anywhere() {
        let mut view = now();
        view.nodes.remove(&"a".into());
        assert_eq!(check(&view, &place(&["c"])), []);
        // Expert 1 stays on the dead a and the live b.
        assert_eq!(check(&view, &place(&["a", "b"])), []);
    }

    #[test]
    fn refuses_experts_left_out_and_nodes_named_wrongly() {
        let expert = E0;
        let left_out = check(&now(), &next(|p| _ = p.replicas.remove(&E0)));
        assert_eq!(left_out, [Violation::MissingExpert { expert }]);
        assert!(check(&now(), &place(&[])).contains(&Violation::MissingExpert { expert }));
        let twice = check(&now(), &place(&["a", "a"]));
        assert_eq!(twice, [Violation::DuplicateNode { expert, node: "a".into() }]);
        let unknown = check(&now(), &place(&["a", "z"]));
        assert_eq!(unknown, [Violation::UnknownNode { expert, node: "z".into() }]);
        let mut view = now();
        view.nodes.get_mut(&"c".into()).unwrap().draining = true;
        let draining = check(&view, &place(&["a", "c"]));
        assert_eq!(draining, [Violation::DrainingNode { expert, node: "c".into() }]);
    }
}
