//! The exchange over gRPC: one long-lived bidirectional stream a pair of coordinator and node.

pub(super) mod client;
mod control;
pub(super) mod link;
mod read;
mod reassembly;
mod seal;
pub(super) mod server;
pub(super) mod shown;
pub(super) mod wire;

use std::time::Duration;

pub use client::GrpcExchange;
pub use control::NodeControl;
pub use read::{AnswerReader, Asked, BrokenStream, DispatchReader, Numbered};
pub use seal::{seal_reply, seal_request};
pub use server::serve_experts;

/// Bytes of rows in one chunk, at most: what is larger travels in several messages.
const MAX_CHUNK: usize = 4 << 20;
/// Batches of all coordinators that wait for a node's compute thread; what comes over it is answered `Overloaded`.
const QUEUE: usize = 64;
/// Batches one call of [`ExpertServer::serve`](super::ExpertServer::serve) merges, at most.
const MAX_MERGED: usize = 32;
/// Chunks handed to the transport ahead of what it has sent.
const CHUNKS_AHEAD: usize = 2;
/// How long a node may take to load experts.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a node may take to answer from memory.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
