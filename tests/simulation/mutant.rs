//! Seeded mistakes. Each is made around the real code, in one place of the simulation, and must be caught by the law it breaks.

use super::trace::Law;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// A node's answer is taken for the oldest that is waited for, whatever it answers.
    NoSequenceCheck,
    /// The leader goes to its goal in one step.
    RemoveBeforeHeld,
    /// Nodes are asked by what is placed on them, and compute with what they do not have.
    DispatchByIntent,
    /// The registry takes what any leader writes, from any parent.
    StaleLeader,
    /// What is sent again comes back with a row forgotten, which adds nothing.
    ForgottenRow,
    /// A prefix block can be found before the step that fills it has ended.
    EarlyPublish,
    /// Where two nodes must agree, an answer is used before they do.
    UnconfirmedRows,
}

impl Mutant {
    /// All of them.
    pub(crate) const ALL: [Self; 7] = [
        Self::NoSequenceCheck,
        Self::RemoveBeforeHeld,
        Self::DispatchByIntent,
        Self::StaleLeader,
        Self::ForgottenRow,
        Self::EarlyPublish,
        Self::UnconfirmedRows,
    ];

    /// The law that it breaks.
    pub(crate) fn breaks(self) -> Law {
        match self {
            Self::NoSequenceCheck | Self::DispatchByIntent | Self::ForgottenRow | Self::UnconfirmedRows => Law::Rows,
            Self::RemoveBeforeHeld => Law::Holder,
            Self::StaleLeader => Law::Chain,
            Self::EarlyPublish => Law::Cache,
        }
    }
}
