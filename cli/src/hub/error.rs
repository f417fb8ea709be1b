//! Why a model cannot be had.

use std::io;
use std::time::Duration;

use http::StatusCode;

/// Why a model cannot be had from a hub, or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    /// Look at the address or the network; the same again may go well.
    #[error("cannot reach {host}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What the system says.
        #[source]
        why: anyhow::Error,
    },
    /// The same again may go well: the hub failed in the middle, or has too much to do.
    #[error("{what}: {why}")]
    BrokeOff {
        /// What was asked for.
        what: String,
        /// What happened.
        why: String,
        /// How long the hub wants to be left alone.
        after: Option<Duration>,
    },
    /// Give a token, or another name.
    #[error(
        "{repo} is not public, or there is no such repository: a token goes into a file named by --token-file (HF_TOKEN_PATH)"
    )]
    NotPublic {
        /// The repository.
        repo: String,
    },
    /// Ask its makers.
    #[error(
        "{repo} is given to those alone who agreed to its terms: do that at {page}, and pull again with the token of that account"
    )]
    Gated {
        /// The repository.
        repo: String,
        /// Where people are asked.
        page: String,
    },
    /// Give another name.
    #[error("{host} has no {what}")]
    NotFound {
        /// Who was asked.
        host: String,
        /// What is not there.
        what: String,
    },
    /// Do what the hub says.
    #[error("{what}: {status}{}{words}", if words.is_empty() { "" } else { ": " })]
    Refused {
        /// What was asked for.
        what: String,
        /// The hub's status.
        status: StatusCode,
        /// Its words.
        words: String,
    },
    /// It is no hub, or one that gives no sums: name another.
    #[error("{host} does not answer as a hub does: {why}")]
    NoHub {
        /// Who was asked.
        host: String,
        /// What is wrong with the answer.
        why: String,
    },
    /// Choose among what there is.
    #[error("{repo} {why}")]
    Choice {
        /// The repository.
        repo: String,
        /// What is wrong with the choice, and what there is.
        why: String,
    },
    /// It was changed on the way, or at the hub; nothing of it is kept. Pull again, or ask the hub's people.
    #[error("{file} is not what the hub says it is: its {sum} is {found}, not {wanted}; it is removed")]
    Changed {
        /// The file.
        file: String,
        /// Which sum.
        sum: &'static str,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// Make room, or name another folder.
    #[error("{folder} has {free} free, and {needed} are needed")]
    NoRoom {
        /// The folder.
        folder: String,
        /// What is free, for people.
        free: String,
        /// What is needed, for people.
        needed: String,
    },
    /// Let the other one end.
    #[error("{folder}: another process is pulling it")]
    Busy {
        /// The folder.
        folder: String,
    },
    /// Look at the disk.
    #[error("{path}")]
    Io {
        /// File or folder.
        path: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

impl HubError {
    /// Whether the same again may go well.
    pub(crate) const fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::BrokeOff { .. })
    }

    /// How long the hub wants to be left alone.
    pub(crate) const fn after(&self) -> Option<Duration> {
        match self {
            Self::BrokeOff { after, .. } => *after,
            _ => None,
        }
    }
}
