//! An expert node: holds experts, merges what several coordinators send into one batch an expert, computes, joins, leaves.
//!
//! It keeps no state between layers: a batch comes with everything that its answer depends on.
//!
//! *Absent from here*: attention, sampling, sequences, tokens; how bytes travel (crate `cluster`); what an expert is (crate
//! `model`); who holds what (the placement's leader decides).

mod duty;
mod failures;
mod merge;
pub mod metrics;
mod node;
mod speed;
mod store;

pub use duty::{Duty, Keep, duty};
pub use node::{Node, NodeError, NodeOptions};
pub use store::{ExpertStore, Neighbours};
