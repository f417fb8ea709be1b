//! The front door: OpenAI-compatible HTTP and gRPC in, engines out.
//!
//! *Absent from here*: weights, sampling, scheduling. The gateway reaches engines through [`tramontane_cluster::engine::Engine`] alone.
