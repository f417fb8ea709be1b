//! What one flight learns of its nodes before the cluster's view does.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::Failure;
use crate::{ClusterView, Dispatch, ExpertId, NodeId};

/// The flight's own observations. Bounded: they name nodes and experts of the flight's dispatches only.
#[derive(Clone, Debug, Default)]
pub(super) struct Learned {
    /// Nodes to ask only where nobody else can serve: they failed, or are late.
    pub(super) avoid: BTreeSet<NodeId>,
    /// Nodes whose stream broke. They count as dead, until nobody else is left to ask.
    gone: BTreeSet<NodeId>,
    /// Nodes whose bits would differ: never asked again.
    foreign: BTreeSet<NodeId>,
    /// Experts that nodes lack, whatever the view says.
    lacking: BTreeSet<(NodeId, u32)>,
    /// Nodes that could not load an expert: they are given no new ones.
    full: BTreeSet<NodeId>,
}

impl Learned {
    /// Notes that `dispatch` failed; `load` are the experts that its node was to load first.
    pub(super) fn note(&mut self, dispatch: &Dispatch, load: &[u32], failure: Failure) {
        let node = || dispatch.node.clone();
        self.avoid.insert(node());
        match failure {
            Failure::NodeGone => _ = self.gone.insert(node()),
            Failure::WrongProfile => _ = self.foreign.insert(node()),
            Failure::NotHeld { expert } => {
                self.lacking.insert((node(), expert));
                if load.contains(&expert) {
                    self.full.insert(node());
                }
            }
            // As if it lacked it and had no room: others load it, if there are others.
            Failure::NotFinite { expert } => {
                self.lacking.insert((node(), expert));
                self.full.insert(node());
            }
            Failure::Overloaded | Failure::Corrupt => {}
        }
    }

    /// Forgets that nodes are gone and cannot load: when nobody else is left, they are worth another try.
    pub(super) fn forgive(&mut self) {
        self.gone.clear();
        self.full.clear();
    }

    /// The view as this flight sees it.
    pub(super) fn correct<'v>(&self, view: &'v ClusterView, layer: u32) -> Cow<'v, ClusterView> {
        if self.gone.is_empty() && self.foreign.is_empty() && self.lacking.is_empty() {
            return Cow::Borrowed(view);
        }
        let mut seen = view.clone();
        seen.nodes.retain(|id, _| !self.gone.contains(id) && !self.foreign.contains(id));
        for (node, expert) in &self.lacking {
            if let Some(record) = seen.nodes.get_mut(node) {
                record.held.remove(&ExpertId::new(layer, *expert));
            }
        }
        for node in &self.full {
            if let Some(record) = seen.nodes.get_mut(node) {
                // Draining is what rescue passes over; holders are asked all the same.
                record.draining = true;
            }
        }
        Cow::Owned(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExpertWork;
    use crate::testing::view;

    #[test]
    fn a_node_whose_values_are_not_finite_counts_as_one_that_lacks_the_expert_and_loads_none() {
        let view = view(&["a", "b"], &[(0, &["a"]), (1, &["a"])]);
        let work = vec![ExpertWork { expert: 0, rows: vec![0] }];
        let dispatch = Dispatch { node: "a".into(), tokens: vec![3], work };
        let mut learned = Learned::default();
        learned.note(&dispatch, &[], Failure::NotFinite { expert: 0 });
        let seen = learned.correct(&view, 0);
        assert_eq!(seen.nodes[&"a".into()].held, [ExpertId::new(0, 1)].into());
        assert!(seen.nodes[&"a".into()].draining, "rescue names another");
        learned.forgive();
        let seen = learned.correct(&view, 0);
        assert!(!seen.nodes[&"a".into()].draining, "where nobody else is left it may be asked again");
    }
}
