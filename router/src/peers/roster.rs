//! The view for dispatching. A lost lease does not end a node whose stream is healthy: who left the view without a word is
//! remembered until a dispatch to it fails, or the name comes back.

use std::collections::BTreeMap;

use crate::{ClusterView, NodeId, NodeRecord};

/// Nodes that left the view, and may serve still. Bounded by the nodes of the views it was shown.
#[derive(Clone, Debug, Default)]
pub struct Roster {
    last: BTreeMap<NodeId, NodeRecord>,
    missing: BTreeMap<NodeId, NodeRecord>,
}

impl Roster {
    /// Takes a new view. Returns the nodes that are another process than before (another address): what was learned of them
    /// is void.
    pub fn see(&mut self, view: &ClusterView) -> Vec<NodeId> {
        let left = std::mem::take(&mut self.last);
        let mut renewed = Vec::new();
        for (id, record) in left.into_iter().chain(std::mem::take(&mut self.missing)) {
            match view.nodes.get(&id) {
                Some(now) if now.addr != record.addr => renewed.push(id),
                Some(_) => {}
                // One that drains says goodbye by leaving.
                None if record.draining => {}
                None => _ = self.missing.insert(id, record),
            }
        }
        self.last.clone_from(&view.nodes);
        renewed
    }

    /// The stream to `node` broke: if it is not in the view, it is gone.
    pub fn broke(&mut self, node: &NodeId) {
        self.missing.remove(node);
    }

    /// `view` with the nodes that are remembered.
    pub fn complete(&self, view: &ClusterView) -> ClusterView {
        let mut view = view.clone();
        for (id, record) in &self.missing {
            view.nodes.entry(id.clone()).or_insert_with(|| record.clone());
        }
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::view;

    #[test]
    fn a_node_without_a_lease_serves_until_its_stream_breaks() {
        let mut roster = Roster::default();
        let both = view(&["a", "b"], &[(0, &["a", "b"])]);
        assert!(roster.see(&both).is_empty());
        let mut one = both.clone();
        one.nodes.remove(&"a".into());
        roster.see(&one);
        roster.see(&one);
        assert_eq!(roster.complete(&one), both);
        roster.broke(&"b".into());
        roster.broke(&"a".into());
        assert_eq!(roster.complete(&one), one);
    }

    #[test]
    fn a_node_that_left_on_purpose_is_gone_and_one_at_a_new_address_is_another() {
        let mut roster = Roster::default();
        let mut now = view(&["a", "b"], &[]);
        now.nodes.get_mut(&"a".into()).unwrap().draining = true;
        roster.see(&now);
        now.nodes.remove(&"a".into());
        now.nodes.get_mut(&"b".into()).unwrap().addr = "elsewhere".into();
        assert_eq!(roster.see(&now), ["b".into()]);
        assert_eq!(roster.complete(&now), now);
    }
}
