//! What comes of dispatching: why a layer brought nothing, and what is held against nodes.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_cluster::exchange::ExchangeError;
use tramontane_router::flight::{AbandonReason, Failure};
use tramontane_router::peers::{Quarantine, Traffic};
use tramontane_router::{CombineError, ExpertId, NodeId, PlanError};

/// Why a layer's experts brought nothing. The hidden states are as they were: the step may run again.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// Run the step again when nodes have joined; fail the requests whose deadlines pass meanwhile.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Run the step again, without the requests whose deadlines have passed.
    #[error("{why}; the last failure: {}", last.as_ref().map_or("none".to_owned(), ToString::to_string))]
    Abandoned {
        /// What ended the flight.
        why: AbandonReason,
        /// What a node said last.
        last: Option<ExchangeError>,
    },
    /// Run the step again: the next time they may agree, or a third node be there.
    #[error("nodes {} answer other bits for the same rows, and there is no third to say which are right", names(nodes))]
    Disputed {
        /// The nodes.
        nodes: BTreeSet<NodeId>,
    },
    /// Fail the row's request: different nodes answer values that are not finite for it, so it is the row and not a node.
    #[error("the experts' answer for row {row} is not finite, whoever computes it")]
    NotFinite {
        /// The hidden row.
        row: usize,
    },
    /// A defect in planning: the answers do not fit the routing, and no node is to blame.
    #[error(transparent)]
    Combine(CombineError),
}

impl DispatchError {
    /// Whether the step may bring something if it runs again as it is.
    pub const fn may_run_again(&self) -> bool {
        matches!(self, Self::Plan(_) | Self::Abandoned { .. } | Self::Disputed { .. })
    }
}

/// What is held against nodes, for whoever shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerReport {
    /// Used only where nobody else can serve.
    pub suspected: Vec<NodeId>,
    /// Not used at all, and why.
    pub quarantined: BTreeMap<NodeId, Quarantine>,
    /// Whose answers were used last although no second node confirmed them, where everything is to be ([`super::Auditing::Everything`]).
    pub unconfirmed: BTreeSet<ExpertId>,
    /// Nodes that contradict one another, and no third is there: no step goes through.
    pub disputed: BTreeSet<NodeId>,
    /// Dispatches sent since the start, first ones and later ones.
    pub dispatches: u64,
    /// Those that were sent again.
    pub resent: u64,
    /// Those that were sent beside a slow one.
    pub hedged: u64,
    /// Those that had a node load experts first.
    pub rescued: u64,
    /// What nodes have done.
    pub traffic: BTreeMap<NodeId, Traffic>,
}

fn names(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

/// What an exchange's error is to the flight.
pub(super) fn failure(error: &ExchangeError) -> Failure {
    match error {
        ExchangeError::NodeGone { .. } => Failure::NodeGone,
        ExchangeError::NotHeld { expert, .. } => Failure::NotHeld { expert: expert.expert },
        ExchangeError::WrongProfile { .. } => Failure::WrongProfile,
        ExchangeError::Overloaded { .. } => Failure::Overloaded,
        ExchangeError::Corrupt { .. } => Failure::Corrupt,
    }
}
