//! The placement document: which nodes should hold which expert. Intent, versioned by epoch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Epoch, ExpertId, ModelId, NodeId};

/// Who should hold each expert of a model. Written by the leader, one epoch after its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The model placed.
    pub model: ModelId,
    /// This document's version.
    pub epoch: Epoch,
    /// The version it was made from; a write whose parent is not the current epoch is fenced.
    pub parent: Epoch,
    /// The nodes that should hold each expert, ascending. Serialised as a list, for JSON keys are text.
    #[serde(with = "as_list")]
    pub replicas: BTreeMap<ExpertId, Vec<NodeId>>,
}

mod as_list {
    //! `replicas` as a list of `{layer, expert, nodes}`.
    use super::{BTreeMap, Deserialize, ExpertId, NodeId, Serialize};
    use serde::{Deserializer, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Entry {
        #[serde(flatten)]
        expert: ExpertId,
        nodes: Vec<NodeId>,
    }

    pub(super) fn serialize<S: Serializer>(map: &BTreeMap<ExpertId, Vec<NodeId>>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map.iter().map(|(&expert, nodes)| Entry { expert, nodes: nodes.clone() }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<ExpertId, Vec<NodeId>>, D::Error> {
        let entries = Vec::<Entry>::deserialize(from)?;
        Ok(entries.into_iter().map(|e| (e.expert, e.nodes)).collect())
    }
}
