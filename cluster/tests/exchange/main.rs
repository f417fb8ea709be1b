//! The exchange's conformance suite, run by every implementation; then what only those over wires can do.

mod conformance;
mod grpc;
mod harness;
#[cfg(feature = "nccl")]
mod nccl;
mod node;
mod rubbish;
