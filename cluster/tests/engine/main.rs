//! The engine's conformance suite, run by every implementation; then what only the one over gRPC can do.

mod conformance;
mod grpc;
mod harness;
