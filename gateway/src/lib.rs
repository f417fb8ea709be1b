//! The front door: OpenAI-compatible HTTP in, engines out. gRPC stands on the same core.
//!
//! A request goes three ways at once, and each is one module: [`frontdoor`] decides (what is asked becomes a checked request to
//! an engine, tokens become text), [`http`] and [`grpc`] carry (routes, bodies, events, connections), [`error`] says what went wrong, in one
//! table for all protocols. [`keys`] knows who may ask, [`metering`] how much, and what was used, [`shown`] what is shown of a request. [`fleet`] makes one engine of many, so that requests outlive the one they run on.
//!
//! *Absent from here*: weights, sampling, scheduling, and any log of what people write. The gateway reaches engines through
//! [`tramontane_cluster::engine::Engine`] alone.

pub mod error;
pub mod fleet;
pub mod frontdoor;
pub mod grpc;
pub mod http;
pub mod keys;
pub mod metering;
pub mod metrics;
pub mod shown;
