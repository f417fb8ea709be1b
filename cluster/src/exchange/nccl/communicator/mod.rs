//! One rank of an NCCL communicator, as the rest of the exchange uses it: join, move rows in groups, abort by dropping. The
//! pair `enabled` (cargo feature `nccl`) and `disabled` is the only place that knows whether this build has NCCL.

#[cfg(not(feature = "nccl"))]
mod disabled;
#[cfg(feature = "nccl")]
mod enabled;
#[cfg(feature = "nccl")]
mod library;
#[cfg(feature = "nccl")]
mod staging;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

#[cfg(not(feature = "nccl"))]
pub(super) use disabled::{Communicator, Rooms, check, unique_id, version};
#[cfg(feature = "nccl")]
pub(super) use enabled::{Communicator, check, unique_id, version};
#[cfg(feature = "nccl")]
pub(super) use staging::Rooms;

/// Bytes of NCCL's unique id.
pub(super) const ID_BYTES: usize = 128;

/// What ranks that belong together agree on before they join.
pub(super) type UniqueId = [u8; ID_BYTES];

/// A rank's place in a communicator.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "nccl"), expect(dead_code, reason = "nobody takes it"))]
pub(super) struct Seat {
    pub(super) id: UniqueId,
    pub(super) rank: u32,
    pub(super) ranks: u32,
}

/// One payload between this rank and another. Between two ranks payloads match in the order in which both name them.
#[derive(Clone, Debug)]
pub(super) enum Transfer {
    Send { to: u32, payload: Bytes },
    Receive { from: u32, bytes: usize },
}

impl Transfer {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Send { payload, .. } => payload.len(),
            Self::Receive { bytes, .. } => *bytes,
        }
    }

    /// The other rank, and which way it goes.
    pub(super) fn way(&self) -> (u32, Way) {
        match *self {
            Self::Send { to, .. } => (to, Way::There),
            Self::Receive { from, .. } => (from, Way::Here),
        }
    }
}

/// Whether a payload goes to the other rank or comes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    There,
    Here,
}

/// For how long NCCL is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience<'a> {
    pub(super) since: Instant,
    pub(super) limit: Duration,
    /// Set by who wants the wait to end at once.
    pub(super) stop: &'a AtomicBool,
}

impl<'a> Patience<'a> {
    pub(super) fn from_now(limit: Duration, stop: &'a AtomicBool) -> Self {
        Self { since: Instant::now(), limit, stop }
    }

    /// Fails when `what` is not to be waited for any longer.
    #[cfg_attr(not(feature = "nccl"), expect(dead_code, reason = "nothing is waited for"))]
    fn last(&self, what: &'static str) -> Result<(), NcclError> {
        if self.stop.load(Ordering::Acquire) {
            Err(NcclError::Stopped)
        } else if self.since.elapsed() > self.limit {
            Err(NcclError::Late { what, limit: self.limit })
        } else {
            Ok(())
        }
    }
}

/// Why NCCL does not do what it is asked. The variant says what helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NcclError {
    /// Use another build, or gRPC.
    #[error("this build has no NCCL; build it with `--features nccl`, or take --exchange grpc")]
    NotBuilt,
    /// Install the library, or say where it is.
    #[error("{library} cannot be used: {why}; looked for {names} where the system's loader looks (LD_LIBRARY_PATH)")]
    Missing {
        /// What it is.
        library: &'static str,
        /// The files' names.
        names: String,
        /// What the loader says.
        why: String,
    },
    /// Look at the machine's GPU and driver.
    #[error("no GPU to exchange rows with: {call}: {why}")]
    NoDevice {
        /// The driver's function that failed.
        call: &'static str,
        /// What it says.
        why: String,
    },
    /// Abort the communicator, and make another.
    #[error("{call}: {why}")]
    Broken {
        /// The function that failed.
        call: &'static str,
        /// What it says.
        why: String,
    },
    /// The same: another rank is not there, or stands still.
    #[error("{what} took longer than {limit:?}")]
    Late {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// The same, which somebody wanted.
    #[error("the communicator was stopped")]
    Stopped,
}
