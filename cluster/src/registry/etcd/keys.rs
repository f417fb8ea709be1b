//! Which key holds what, and what stands in it.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tramontane_router::{ModelId, NodeId};

use super::MAX_VALUE;
use crate::registry::RegistryError;
use crate::registry::directory::EngineId;

/// The keys of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// `/tramontane/<cluster>/`.
    root: String,
    model: ModelId,
}

/// What a watched key is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    Node(NodeId),
    Refused(NodeId),
    Placement,
    Orders,
    Other,
}

/// The keys of a cluster's engines.
#[derive(Clone, Debug)]
pub(super) struct EngineKeys {
    /// `/tramontane/<cluster>/coordinators/`.
    root: String,
}

impl EngineKeys {
    pub(super) fn new(cluster: &str) -> Self {
        Self { root: format!("/tramontane/{cluster}/coordinators/") }
    }

    pub(super) fn engine(&self, id: &EngineId) -> String {
        format!("{}{id}", self.root)
    }

    pub(super) fn all(&self) -> &str {
        &self.root
    }

    /// The range that is watched, from and to.
    pub(super) fn watched(&self) -> (String, String) {
        // '0' follows '/'.
        (self.root.clone(), format!("{}0", self.root.trim_end_matches('/')))
    }

    pub(super) fn parse(&self, key: &[u8]) -> Option<EngineId> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.root).map(EngineId::from)
    }
}

/// Why a node may not be in the cluster.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    pub(super) why: String,
}

/// Who leads, as it stands under the leader's key.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LeaderRecord {
    pub(super) name: String,
}

impl Keys {
    pub(super) fn new(cluster: &str, model: ModelId) -> Self {
        Self { root: format!("/tramontane/{cluster}/"), model }
    }

    pub(super) fn node(&self, id: &NodeId) -> String {
        format!("{}nodes/{id}", self.root)
    }

    pub(super) fn nodes(&self) -> String {
        format!("{}nodes/", self.root)
    }

    pub(super) fn leader(&self) -> String {
        format!("{}leader", self.root)
    }

    pub(super) fn profile(&self) -> String {
        format!("{}models/{}/profile", self.root, self.model)
    }

    pub(super) fn placement(&self) -> String {
        format!("{}models/{}/placement", self.root, self.model)
    }

    pub(super) fn orders(&self) -> String {
        format!("{}models/{}/orders", self.root, self.model)
    }

    pub(super) fn refused(&self, id: &NodeId) -> String {
        format!("{}{id}", self.all_refused())
    }

    fn all_refused(&self) -> String {
        format!("{}nodes-refused/", self.root)
    }

    /// The range that is watched, from and to: `models/`, `nodes-refused/` and `nodes/`, which are neighbours, so that all come in one
    /// stream with one revision; `keys/`, `leader` and `usage/`, which change with the traffic, lie outside.
    pub(super) fn watched(&self) -> (String, String) {
        // '0' follows '/'.
        (format!("{}models/", self.root), format!("{}nodes0", self.root))
    }

    pub(super) fn parse(&self, key: &[u8]) -> Key {
        let Ok(key) = std::str::from_utf8(key) else { return Key::Other };
        if let Some(id) = key.strip_prefix(&self.nodes()) {
            return Key::Node(NodeId::from(id));
        }
        if let Some(id) = key.strip_prefix(&self.all_refused()) {
            return Key::Refused(NodeId::from(id));
        }
        match key {
            key if key == self.placement() => Key::Placement,
            key if key == self.orders() => Key::Orders,
            _ => Key::Other,
        }
    }
}

/// `value` as it is written.
pub(super) fn encode(what: &str, value: &impl Serialize) -> Result<Vec<u8>, RegistryError> {
    let refused = |why: String| RegistryError::Refused { what: what.to_owned(), why };
    let text = serde_json::to_vec(value).map_err(|error| refused(error.to_string()))?;
    if text.len() > MAX_VALUE {
        return Err(refused(format!("{} bytes of JSON, and etcd takes {MAX_VALUE}", text.len())));
    }
    Ok(text)
}

/// What was written under `key`; anybody with a client may have written it.
pub(super) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(value)
        .map_err(|error| RegistryError::Refused { what: key.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watched_range_holds_nodes_and_placement_and_nothing_that_changes_with_traffic() {
        let keys = Keys::new("c", "org/m".into());
        let (from, to) = keys.watched();
        let inside = |key: &str| (from.as_str()..to.as_str()).contains(&key);
        let (n, odd) = ("n".into(), "~/ü".into());
        let orders = keys.orders();
        for key in [keys.node(&n), keys.node(&odd), keys.refused(&odd), keys.placement(), keys.profile(), orders] {
            assert!(inside(&key), "{key}");
        }
        for key in ["keys/k", "leader", "usage/k", "nodf/x"] {
            assert!(!inside(&format!("/tramontane/c/{key}")), "{key}");
        }
        assert!(!inside("/tramontane/cc/nodes/n"));
    }

    #[test]
    fn keys_are_read_back() {
        let keys = Keys::new("c", "m".into());
        assert_eq!(keys.parse(keys.node(&"a/b".into()).as_bytes()), Key::Node("a/b".into()));
        assert_eq!(keys.parse(keys.placement().as_bytes()), Key::Placement);
        assert_eq!(keys.parse(keys.refused(&"a/b".into()).as_bytes()), Key::Refused("a/b".into()));
        assert_eq!(keys.parse(keys.orders().as_bytes()), Key::Orders);
        assert_eq!(keys.parse(b"/tramontane/c/models/other/placement"), Key::Other);
        assert_eq!(keys.parse(&[0xff]), Key::Other);
    }

    #[test]
    fn engines_keys_are_a_range_of_their_own() {
        let keys = EngineKeys::new("c");
        let (from, to) = keys.watched();
        let inside = |key: &str| (from.as_str()..to.as_str()).contains(&key);
        for id in ["a", "~/ü"] {
            let key = keys.engine(&id.into());
            assert!(inside(&key), "{key}");
            assert_eq!(keys.parse(key.as_bytes()), Some(id.into()));
        }
        for key in ["/tramontane/c/keys/k", "/tramontane/c/coordinators", "/tramontane/cc/coordinators/a"] {
            assert!(!inside(key) && keys.parse(key.as_bytes()).is_none(), "{key}");
        }
    }
}
