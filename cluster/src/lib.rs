//! How our processes meet: seams, each a trait with an in-process implementation and others over wires.
//!
//! - [`exchange`]: rows to experts and back. The engine's own thread drives it; tokio only carries bytes.
//! - [`registry`]: who is in the cluster (leases), who should hold what (placement, fenced by epoch).
//! - [`registry::directory`]: which engines there are, and where.
//! - [`engine`]: requests in, token events out.
//! - [`admin`]: what operators see and ask for.
//!
//! [`tls`] secures all of them: both ends show certificates, which name their roles. [`trace`] says what becomes of a request in each.
//!
//! One conformance suite a seam (`tests/`) is run by every implementation of it.
//!
//! *Absent from here*: model weights, scheduling, retry and hedging policy (`router` decides, the caller acts).

pub mod admin;
mod convert;
mod due;
pub mod engine;
pub mod exchange;
pub mod metrics;
pub mod registry;
pub mod tls;
pub mod trace;
mod transport;

pub use convert::Malformed;
pub use transport::ServerError;
