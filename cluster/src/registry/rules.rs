//! What every registry refuses, in the same words.

use tramontane_router::placement::{Denied, TooManyCordoned};
use tramontane_router::{Epoch, NodeId, NodeRecord, NumericProfile};

use super::{MAX_NAME, MAX_NODES, RegistryError};

/// Whether `record` may join a cluster of `profile` that has `nodes` nodes.
pub(super) fn admit(profile: &NumericProfile, nodes: usize, record: &NodeRecord) -> Result<(), RegistryError> {
    let name = record.id.as_str();
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(refused(&record.id, format!("its name has {} bytes, not 1 to {MAX_NAME}", name.len())));
    }
    if nodes >= MAX_NODES {
        return Err(refused(&record.id, format!("the cluster has {MAX_NODES} nodes already")));
    }
    belongs(profile, record)
}

/// Whether `record` may stand for `node`, which has joined.
pub(super) fn renew(profile: &NumericProfile, node: &NodeId, record: &NodeRecord) -> Result<(), RegistryError> {
    if record.id != *node {
        return Err(refused(node, format!("it cannot become {}", record.id)));
    }
    belongs(profile, record)
}

fn belongs(profile: &NumericProfile, record: &NodeRecord) -> Result<(), RegistryError> {
    profile.difference(&record.profile).map_or(Ok(()), |why| Err(refused(&record.id, why)))
}

pub(super) fn refused(node: &NodeId, why: String) -> RegistryError {
    RegistryError::Refused { what: format!("node {node}"), why }
}

/// Why an order is not taken.
pub(super) fn disobeyed(error: TooManyCordoned) -> RegistryError {
    RegistryError::Refused { what: "order".into(), why: error.to_string() }
}

/// Why the placement of `epoch` was not written.
pub(super) fn denied(epoch: Epoch, denied: Denied) -> RegistryError {
    match denied {
        Denied::Fenced { current, .. } => RegistryError::Fenced { current },
        Denied::NotLeader { .. } => RegistryError::NotLeader { why: denied.to_string() },
        Denied::Malformed(why) => RegistryError::Refused { what: format!("placement {epoch}"), why },
    }
}
