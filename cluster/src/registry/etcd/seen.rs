//! What a watcher has seen of its cluster, entry by entry. Pure.

use std::mem;

use tramontane_router::placement::{Placement, WentBack, may_take};
use tramontane_router::{ClusterView, NodeRecord};

use super::follow::Seen;
use super::keys::{Key, Keys, decode};
use crate::registry::{Health, MAX_NODES, RegistryError};

/// Nodes and placement so far.
#[derive(Clone, Debug)]
pub(super) struct SeenCluster {
    keys: Keys,
    view: ClusterView,
    /// Why the placement in the view is not the registry's.
    went_back: Option<WentBack>,
}

impl Seen for SeenCluster {
    type View = ClusterView;

    fn range(&self) -> (String, String) {
        self.keys.watched()
    }

    fn list<'a>(&mut self, entries: impl Iterator<Item = (&'a [u8], &'a [u8])>) {
        let before = mem::take(&mut self.view);
        let mut found = None;
        for (key, value) in entries {
            match self.keys.parse(key) {
                Key::Placement => found = self.placement_of(value),
                _ => self.put(key, value),
            }
        }
        self.view.placement = before.placement;
        self.take(found);
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        match self.keys.parse(key) {
            Key::Node(id) => {
                let name = self.keys.node(&id);
                match decode::<NodeRecord>(&name, value) {
                    Ok(record) if record.id != id => tracing::error!(key = name, "another node's record; passed over"),
                    Ok(record) if self.view.nodes.contains_key(&id) || self.view.nodes.len() < MAX_NODES => {
                        self.view.nodes.insert(id, record);
                    }
                    Ok(_) => tracing::error!(key = name, "more than {MAX_NODES} nodes; passed over"),
                    Err(error) => tracing::error!(%error, "no node's record; passed over"),
                }
            }
            Key::Placement => {
                if let found @ Some(_) = self.placement_of(value) {
                    self.take(found);
                }
            }
            Key::Other => {}
        }
    }

    fn delete(&mut self, key: &[u8]) {
        match self.keys.parse(key) {
            Key::Node(id) => _ = self.view.nodes.remove(&id),
            Key::Placement => self.take(None),
            Key::Other => {}
        }
    }

    fn view(&self) -> &ClusterView {
        &self.view
    }

    fn health(&self) -> Health {
        self.went_back.map_or(Health::Connected, Health::WentBack)
    }
}

impl SeenCluster {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, view: ClusterView::default(), went_back: None }
    }

    fn placement_of(&self, value: &[u8]) -> Option<Placement> {
        let read: Result<Placement, RegistryError> = decode(&self.keys.placement(), value);
        read.inspect_err(|error| tracing::error!(%error, "no placement; the last one stands")).ok()
    }

    fn take(&mut self, found: Option<Placement>) {
        match may_take(self.view.placement.as_ref(), found.as_ref()) {
            Ok(()) => (self.view.placement, self.went_back) = (found, None),
            Err(went_back) => {
                if self.went_back != Some(went_back) {
                    tracing::error!("{went_back}");
                }
                self.went_back = Some(went_back);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tramontane_router::{Epoch, ExpertId, NumericProfile};

    use super::*;

    fn placement(epoch: u64) -> Placement {
        let replicas = [(ExpertId::new(0, 0), vec!["a".into()])].into();
        Placement { model: "m".into(), epoch: Epoch(epoch), parent: Epoch(epoch - 1), replicas }
    }

    fn record(id: &str) -> NodeRecord {
        let profile = NumericProfile { contract: 1, weights: "00".into(), quantization: "f32".into() };
        let (addr, zone, held) = (String::new(), String::new(), [].into());
        NodeRecord { id: id.into(), addr, held, profile, capacity: 1, speed: 0, zone, draining: false }
    }

    fn json(value: &impl serde::Serialize) -> Vec<u8> {
        serde_json::to_vec(value).expect("JSON")
    }

    #[test]
    fn a_list_replaces_the_nodes_and_keeps_a_newer_placement() {
        let keys = Keys::new("c", "m".into());
        let mut seen = SeenCluster::new(keys.clone());
        let (a, b) = (keys.node(&"a".into()), keys.node(&"b".into()));
        seen.put(a.as_bytes(), &json(&record("a")));
        seen.put(keys.placement().as_bytes(), &json(&placement(3)));
        let old = json(&placement(2));
        let b_record = json(&record("b"));
        let list = [(keys.placement().into_bytes(), old), (b.into_bytes(), b_record)];
        seen.list(list.iter().map(|(k, v)| (k.as_slice(), v.as_slice())));
        assert_eq!(seen.view.nodes.keys().map(|id| id.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(seen.view.placement, Some(placement(3)));
        assert_eq!(seen.went_back, Some(WentBack { seen: Epoch(3), found: Epoch(2) }));
        seen.put(keys.placement().as_bytes(), &json(&placement(4)));
        assert_eq!((seen.view.placement, seen.went_back), (Some(placement(4)), None));
    }

    #[test]
    fn rubbish_under_our_keys_changes_nothing() {
        let keys = Keys::new("c", "m".into());
        let mut seen = SeenCluster::new(keys.clone());
        seen.put(keys.placement().as_bytes(), &json(&placement(3)));
        seen.put(keys.placement().as_bytes(), b"{");
        seen.put(keys.node(&"a".into()).as_bytes(), b"[]");
        seen.put(keys.node(&"a".into()).as_bytes(), &json(&record("b")));
        assert_eq!((seen.view.nodes.len(), seen.view.placement), (0, Some(placement(3))));
    }
}
