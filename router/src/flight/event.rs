//! The words of a flight: what happens to it, and what it has its caller do.

use std::fmt;

use crate::{Dispatch, NodeId};

/// A dispatch of one flight, numbered in order of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DispatchNo(pub(super) usize);

impl DispatchNo {
    /// The number, from 0.
    pub const fn get(self) -> usize {
        self.0
    }
}

impl fmt::Display for DispatchNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dispatch {}", self.0)
    }
}

/// Why a dispatch brought no rows that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The stream to the node broke.
    NodeGone,
    /// The node does not hold an expert, or could not load it.
    NotHeld {
        /// The expert within the flight's layer.
        expert: u32,
    },
    /// The node serves other bits.
    WrongProfile,
    /// The node has too much waiting.
    Overloaded,
    /// The rows are damaged.
    Corrupt,
    /// A row's values are not finite: for this expert the node is not asked again.
    NotFinite {
        /// The expert within the flight's layer.
        expert: u32,
    },
}

impl Failure {
    /// What it holds against the node, if anything.
    pub const fn suspicion(self) -> Option<Suspicion> {
        match self {
            Self::NodeGone => Some(Suspicion::Gone),
            Self::WrongProfile => Some(Suspicion::WrongProfile),
            Self::Corrupt | Self::NotFinite { .. } => Some(Suspicion::Corrupt),
            Self::NotHeld { .. } | Self::Overloaded => None,
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The rows of a dispatch came.
    Reply {
        /// The dispatch.
        dispatch: DispatchNo,
    },
    /// A dispatch failed. Also for one that replied already, also after [`Action::Done`]: its rows turned out damaged.
    Failed {
        /// The dispatch.
        dispatch: DispatchNo,
        /// Why.
        failure: Failure,
    },
    /// Time passed; due at [`super::Flight::deadline`].
    Tick,
}

/// Why a node is suspected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspicion {
    /// It did not answer by the deadline.
    Late,
    /// Its stream broke.
    Gone,
    /// It serves other bits.
    WrongProfile,
    /// It answered damaged rows.
    Corrupt,
}

/// Why a flight was given up. The step runs again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AbandonReason {
    /// [`super::Policy::timeout`] passed.
    #[error("a layer's experts did not answer in time")]
    TimedOut,
    /// [`super::Policy::max_resends`] were sent, and rows are missing still.
    #[error("a layer's experts failed too often")]
    ResendsSpent,
}

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a dispatch of the plan.
    Send {
        /// Its number.
        id: DispatchNo,
        /// What to send.
        dispatch: Dispatch,
    },
    /// Send rows that another node is slow with to a second one; whoever answers first is heard.
    Hedge {
        /// Its number.
        id: DispatchNo,
        /// The slow dispatch.
        of: DispatchNo,
        /// What to send.
        dispatch: Dispatch,
    },
    /// Send rows again that failed or are late.
    Resend {
        /// Its number.
        id: DispatchNo,
        /// What to send.
        dispatch: Dispatch,
    },
    /// Have the node load experts that no live node holds (`EnsureHeld`), then send. If it cannot load one, say that the
    /// dispatch failed with [`Failure::NotHeld`].
    Rescue {
        /// Its number.
        id: DispatchNo,
        /// What to send.
        dispatch: Dispatch,
        /// What to load first: experts within the layer, ascending.
        load: Vec<u32>,
    },
    /// Prefer others to this node from now on.
    Suspect {
        /// The node.
        node: NodeId,
        /// Why.
        why: Suspicion,
    },
    /// Combine the answers of these dispatches and cancel all others: together they hold every pair once.
    Done {
        /// The dispatches.
        answers: Vec<DispatchNo>,
    },
    /// Cancel everything and run the step again.
    Abandon {
        /// Why.
        why: AbandonReason,
    },
}
