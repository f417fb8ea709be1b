//! What a watcher has seen of its cluster, entry by entry. Pure.

use std::collections::BTreeMap;
use std::mem;

use tramontane_router::placement::{Orders, Placement, WentBack, may_take};
use tramontane_router::{ClusterView, NodeId, NodeRecord, NumericProfile};

use super::follow::Seen;
use super::keys::{Key, Keys, Refusal, decode};
use crate::registry::{Health, MAX_NODES, MAX_REFUSED, RegistryError};

/// Nodes, placement and orders so far.
#[derive(Clone, Debug)]
pub(super) struct SeenCluster {
    keys: Keys,
    profile: NumericProfile,
    view: ClusterView,
    /// Records of nodes that do not belong here, and why: they came past the check, or its cluster changed. They are no nodes.
    misfits: BTreeMap<NodeId, String>,
    /// Why nodes were refused, as they told.
    told: BTreeMap<NodeId, String>,
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
        (self.misfits, self.told) = Default::default();
        let mut found = None;
        for (key, value) in entries {
            match self.keys.parse(key) {
                Key::Placement => found = self.placement_of(value),
                _ => self.put(key, value),
            }
        }
        self.view.placement = before.placement;
        if self.view.orders.version < before.orders.version {
            self.view.orders = before.orders;
        }
        self.take(found);
        self.name_refused();
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        match self.keys.parse(key) {
            Key::Node(id) => {
                let name = self.keys.node(&id);
                match decode::<NodeRecord>(&name, value) {
                    Ok(record) if record.id != id => tracing::error!(key = name, "another node's record; passed over"),
                    Ok(record) if self.profile.difference(&record.profile).is_some() => {
                        let why = self.profile.difference(&record.profile).unwrap_or_default();
                        self.view.nodes.remove(&id);
                        if self.misfits.len() < MAX_REFUSED {
                            self.misfits.insert(id, why);
                        }
                    }
                    Ok(record) if self.view.nodes.contains_key(&id) || self.view.nodes.len() < MAX_NODES => {
                        self.misfits.remove(&id);
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
            Key::Orders => match decode::<Orders>(&self.keys.orders(), value) {
                // Older ones come from an older snapshot.
                Ok(orders) if orders.version < self.view.orders.version => {}
                Ok(orders) => self.view.orders = orders,
                Err(error) => tracing::error!(%error, "no orders; the last ones stand"),
            },
            Key::Refused(id) => match decode::<Refusal>(&self.keys.refused(&id), value) {
                Ok(Refusal { why }) if self.told.contains_key(&id) || self.told.len() < MAX_REFUSED => {
                    self.told.insert(id, why);
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "no refusal; passed over"),
            },
            Key::Other => {}
        }
        self.name_refused();
    }

    fn delete(&mut self, key: &[u8]) {
        match self.keys.parse(key) {
            Key::Node(id) => {
                self.view.nodes.remove(&id);
                self.misfits.remove(&id);
            }
            Key::Refused(id) => _ = self.told.remove(&id),
            Key::Placement => self.take(None),
            // Nobody deletes them; who does has the last ones stand.
            Key::Orders | Key::Other => {}
        }
        self.name_refused();
    }

    fn view(&self) -> &ClusterView {
        &self.view
    }

    fn health(&self) -> Health {
        self.went_back.map_or(Health::Connected, Health::WentBack)
    }
}

impl SeenCluster {
    pub(super) fn new(keys: Keys, profile: NumericProfile) -> Self {
        let (view, misfits, told) = Default::default();
        Self { keys, profile, view, misfits, told, went_back: None }
    }

    fn name_refused(&mut self) {
        let both = self.told.iter().chain(&self.misfits).take(MAX_REFUSED);
        self.view.refused = both.map(|(node, why)| (node.clone(), why.clone())).collect();
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

    fn profile() -> NumericProfile {
        NumericProfile { contract: 1, weights: "00".into(), quantization: "f32".into(), arithmetic: "cpu".into() }
    }

    fn record(id: &str) -> NodeRecord {
        let profile = profile();
        let (addr, zone, held) = (String::new(), String::new(), [].into());
        NodeRecord { id: id.into(), addr, held, profile, capacity: 1, speed: 0, zone, draining: false }
    }

    fn json(value: &impl serde::Serialize) -> Vec<u8> {
        serde_json::to_vec(value).expect("JSON")
    }

    #[test]
    fn a_list_replaces_the_nodes_and_keeps_a_newer_placement() {
        let keys = Keys::new("c", "m".into());
        let mut seen = SeenCluster::new(keys.clone(), profile());
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
    fn older_orders_are_not_taken_and_deleted_ones_stand() {
        let keys = Keys::new("c", "m".into());
        let mut seen = SeenCluster::new(keys.clone(), profile());
        let orders = |version| Orders { version, cordoned: ["a".into()].into(), ..Orders::default() };
        let key = keys.orders();
        seen.put(key.as_bytes(), &json(&orders(3)));
        seen.put(key.as_bytes(), &json(&orders(2)));
        seen.put(key.as_bytes(), b"[]");
        seen.delete(key.as_bytes());
        seen.list([].into_iter());
        assert_eq!(seen.view.orders, orders(3));
        let (newer, key) = (json(&orders(4)), key.into_bytes());
        seen.list([(key.as_slice(), newer.as_slice())].into_iter());
        assert_eq!(seen.view.orders, orders(4));
    }

    #[test]
    fn a_record_that_does_not_fit_is_no_node_and_is_named_with_what_differs() {
        let keys = Keys::new("c", "m".into());
        let mut seen = SeenCluster::new(keys.clone(), profile());
        let key = keys.node(&"a".into());
        let mut other = record("a");
        other.profile.quantization = "q8_0".into();
        seen.put(key.as_bytes(), &json(&other));
        assert!(seen.view.nodes.is_empty());
        assert_eq!(seen.view.refused[&"a".into()], "quantisation f32 here, q8_0 there");
        seen.put(keys.refused(&"b".into()).as_bytes(), &json(&Refusal { why: "x".into() }));
        assert_eq!(seen.view.refused.len(), 2);
        seen.put(key.as_bytes(), &json(&record("a")));
        assert_eq!((seen.view.nodes.len(), seen.view.refused.len()), (1, 1));
        seen.delete(keys.refused(&"b".into()).as_bytes());
        assert!(seen.view.refused.is_empty());
    }

    #[test]
    fn rubbish_under_our_keys_changes_nothing() {
        let keys = Keys::new("c", "m".into());
        let mut seen = SeenCluster::new(keys.clone(), profile());
        seen.put(keys.placement().as_bytes(), &json(&placement(3)));
        seen.put(keys.placement().as_bytes(), b"{");
        seen.put(keys.node(&"a".into()).as_bytes(), b"[]");
        seen.put(keys.node(&"a".into()).as_bytes(), &json(&record("b")));
        assert_eq!((seen.view.nodes.len(), seen.view.placement), (0, Some(placement(3))));
    }
}
