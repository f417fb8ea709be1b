//! Which key holds what, and what stands in it.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tramontane_router::{ModelId, NodeId};

use super::MAX_VALUE;
use crate::registry::RegistryError;
use crate::registry::accounts::{UsageId, UsageQuery};
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

/// The keys of a cluster's accounts.
#[derive(Clone, Debug)]
pub(super) struct AccountKeys {
    /// `/tramontane/<cluster>/`.
    root: String,
}

impl AccountKeys {
    pub(super) fn new(cluster: &str) -> Self {
        Self { root: format!("/tramontane/{cluster}/") }
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.all_keys())
    }

    pub(super) fn all_keys(&self) -> String {
        format!("{}keys/", self.root)
    }

    /// The range that is watched, from and to.
    pub(super) fn watched(&self) -> (String, String) {
        // '0' follows '/'.
        (self.all_keys(), format!("{}keys0", self.root))
    }

    pub(super) fn parse_key(&self, key: &[u8]) -> Option<Arc<str>> {
        std::str::from_utf8(key).ok()?.strip_prefix(&self.all_keys()).map(Arc::from)
    }

    pub(super) fn usage(&self, id: &UsageId) -> String {
        format!("{}usage/{}/{}/{}", self.root, id.key, id.day, id.model)
    }

    /// A range, from and to, in which all lies that `query` covers: of one key nothing else does.
    pub(super) fn usage_range(&self, query: &UsageQuery) -> (String, String) {
        let UsageQuery { key, from, to } = query;
        match key {
            Some(key) => (format!("{}usage/{key}/{from}/", self.root), format!("{}usage/{key}/{to}0", self.root)),
            None => (format!("{}usage/", self.root), format!("{}usage0", self.root)),
        }
    }

    pub(super) fn parse_usage(&self, key: &[u8]) -> Option<UsageId> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(&self.root)?.strip_prefix("usage/")?;
        // A model's name may hold slashes, the others hold none.
        let mut parts = rest.splitn(3, '/');
        let (key, day, model) = (parts.next()?, parts.next()?, parts.next()?);
        Some(UsageId { key: key.into(), day: day.parse().ok()?, model: model.into() })
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

    #[test]
    fn usage_is_read_back_and_a_query_of_one_key_is_its_range() {
        let keys = AccountKeys::new("c");
        let id = |key: &str, day: &str, model: &str| {
            let day = day.parse().expect("a day");
            UsageId { key: key.into(), day, model: model.into() }
        };
        let (from, to) = ("2026-11-01".parse().expect("a day"), "2026-11-30".parse().expect("a day"));
        let of_a = UsageQuery { key: Some("a".into()), from, to };
        let all = UsageQuery { key: None, ..of_a.clone() };
        for (id, wanted) in [
            (id("a", "2026-11-01", "m"), true),
            (id("a", "2026-11-30", "org/m:q4"), true),
            (id("a", "2026-12-01", "m"), false),
            (id("a", "2026-10-31", "m"), false),
            (id("a-", "2026-11-03", "m"), false),
            (id("a.b", "2026-11-03", "m"), false),
            (id("b", "2026-11-03", "m"), false),
        ] {
            let key = keys.usage(&id);
            assert_eq!(keys.parse_usage(key.as_bytes()), Some(id.clone()), "{key}");
            let inside = |query| {
                let (from, to) = keys.usage_range(query);
                (from.as_str()..to.as_str()).contains(&key.as_str())
            };
            assert_eq!((inside(&of_a), of_a.covers(&id), inside(&all)), (wanted, wanted, true), "{key}");
        }
        for wrong in ["/tramontane/c/usage/a", "/tramontane/c/usage/a/2026-11-01", "/tramontane/c/usage/a/x/m", "x"] {
            assert_eq!(keys.parse_usage(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(keys.parse_key(keys.key("a").as_bytes()).as_deref(), Some("a"));
    }
}
