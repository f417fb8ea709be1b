//! The exchange: a layer's rows go to expert nodes and come back, split-phase. The caller submits batches, does other
//! work, and takes completions as they come; what to do about a failure is the caller's to decide (`router::flight`).

mod carrier;
mod check;
pub mod grpc;
mod in_process;
mod nccl;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use tramontane_router::{ClusterView, ExpertBatch, ExpertId, ExpertRows, ModelId, NodeId};

pub use carrier::Carrier;
pub use check::{MAX_ANSWERS, MAX_PAYLOAD, MAX_ROWS, MAX_WIDTH, check_answer, check_batch};
pub use in_process::{Answers, Batches, InProcessExchange, LocalNodes};
pub use nccl::{Checked, NcclError, self_check};

/// Dispatches one node takes from one exchange at a time.
pub const MAX_IN_FLIGHT: usize = 128;

/// One submitted batch, unique within its exchange. Ascends in order of submission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DispatchId(u64);

impl DispatchId {
    /// The dispatch that was submitted as number `number` of its exchange.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, for traces.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for DispatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dispatch {}", self.0)
    }
}

/// How one dispatch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The dispatch.
    pub dispatch: DispatchId,
    /// The node it was sent to.
    pub node: NodeId,
    /// `batch.answers()` rows in the order of the batch's work, F32 or Bf16, of the batch's width; or why there are none.
    pub result: Result<ExpertRows, ExchangeError>,
}

/// Sends batches to expert nodes and brings their answers. Driven by one thread.
pub trait Exchange: Send {
    /// Sends `batch` to `node`. Never fails and never waits: a failure, too, comes out of [`Exchange::next`], and every
    /// dispatch that is not cancelled completes exactly once. A node takes [`MAX_IN_FLIGHT`] batches at a time (over
    /// gRPC as many again wait on this side, and NCCL carries as many besides); what comes over that completes as
    /// `Overloaded`.
    fn submit(&mut self, node: &NodeId, batch: ExpertBatch) -> DispatchId;

    /// Has `node` load `experts` of the batch's model, then does as [`Exchange::submit`]. Completes with
    /// [`ExchangeError::NotHeld`] when it cannot load one.
    fn rescue(&mut self, node: &NodeId, batch: ExpertBatch, experts: Vec<ExpertId>) -> DispatchId;

    /// Follows who is in the cluster, and where. What is in flight to a node that left goes on.
    fn follow(&mut self, view: &ClusterView);

    /// The next completion, in any order; `None` when `deadline` has passed without one. A deadline in the past takes
    /// what is there without waiting.
    fn next(&mut self, deadline: Instant) -> Option<Completion>;

    /// Forgets `dispatch`: it will not complete. Nothing happens if it already has.
    fn cancel(&mut self, dispatch: DispatchId);
}

/// Why a dispatch brought no rows. The variant is what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExchangeError {
    /// Send the rows to another holder, and suspect the node.
    #[error("node {node} is gone: {why}")]
    NodeGone {
        /// The node.
        node: NodeId,
        /// What broke.
        why: String,
    },
    /// Send the rows to another holder, or have the node load the expert; the view is behind.
    #[error("node {node} does not hold {expert}")]
    NotHeld {
        /// The node.
        node: NodeId,
        /// The expert it lacks.
        expert: ExpertId,
    },
    /// Never ask the node again: its bits would differ.
    #[error("node {node} serves another model: {why}")]
    WrongProfile {
        /// The node.
        node: NodeId,
        /// The field that differs.
        why: String,
    },
    /// Ask again when something in flight there has completed, or ask another holder.
    #[error("node {node} has too much waiting")]
    Overloaded {
        /// The node.
        node: NodeId,
    },
    /// Send the rows again, to another holder if there is one, and suspect the node.
    #[error("node {node}: damaged rows: {why}")]
    Corrupt {
        /// The node.
        node: NodeId,
        /// What is wrong with them.
        why: String,
    },
}

/// What answers batches at the far end: an expert node.
pub trait ExpertServer: Send + Sync {
    /// Computes `batches`, from one coordinator or several, all checked by [`check_batch`]. One answer a batch, in their
    /// order; what a batch's answer is does not depend on the others beside it.
    fn serve(&self, batches: &[ExpertBatch]) -> Vec<Result<ExpertRows, ServeError>>;

    /// Loads those of `experts` it does not hold yet, and returns when it answers for all of them. Blocks.
    ///
    /// # Errors
    /// [`ServeError::WrongModel`], or [`ServeError::CannotHold`] naming the first expert it cannot load.
    fn ensure_held(&self, model: &ModelId, experts: &[ExpertId]) -> Result<(), ServeError>;

    /// Rows each expert has received since the node started (an expert that has received none may be left out).
    fn received(&self) -> BTreeMap<ExpertId, u64>;

    /// Has the node leave once others hold what it is placed to hold. Not to be taken back.
    fn leave(&self);
}

/// Why a node does not do what it is asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServeError {
    /// Ask another holder, or [`ExpertServer::ensure_held`] first.
    #[error("{expert} is not held here")]
    NotHeld {
        /// The expert.
        expert: ExpertId,
    },
    /// Ask another survivor.
    #[error("{expert} cannot be held here: {why}")]
    CannotHold {
        /// The expert.
        expert: ExpertId,
        /// No room, no such tensor, …
        why: String,
    },
    /// Do not ask this node: it serves another model, or the same to other bits.
    #[error("another model is served here: {why}")]
    WrongModel {
        /// What differs.
        why: String,
    },
    /// Ask again later.
    #[error("too much waits here already")]
    Overloaded,
    /// Send the batch again.
    #[error("the batch is damaged: {why}")]
    Corrupt {
        /// What is wrong with it.
        why: String,
    },
}

impl ServeError {
    /// The same, as `node`'s caller sees it.
    pub fn at(self, node: &NodeId) -> ExchangeError {
        let node = node.clone();
        match self {
            Self::NotHeld { expert } | Self::CannotHold { expert, .. } => ExchangeError::NotHeld { node, expert },
            Self::WrongModel { why } => ExchangeError::WrongProfile { node, why },
            Self::Overloaded => ExchangeError::Overloaded { node },
            Self::Corrupt { why } => ExchangeError::Corrupt { node, why },
        }
    }
}
