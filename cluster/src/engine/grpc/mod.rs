//! The engine over gRPC: one call a request, so that HTTP/2 keeps slow readers apart; and a report of how the engine fares,
//! whose silence means that it is gone.
//!
//! Whoever reaches the service can spend the engine's time under any tenant's name: it stands on a listener of its own, for
//! front doors alone, and never beside what clients reach.

mod client;
mod event_wire;
mod mark_wire;
mod request_wire;
mod server;

use std::time::Duration;

pub use client::{GrpcEngine, Unreachable};
pub use server::serve_engine;

/// Requests that one front door has at one engine, at most; what comes over it is answered `Overloaded`.
const MAX_RUNS: u32 = 1024;
/// Choices of one request, at most.
const MAX_CHOICES: u32 = 128;
/// Bytes of one event, at most: a long prompt's log-probabilities are one.
const MAX_EVENT: usize = 64 << 20;
/// How long a call may be open before it says what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);
/// How often the engine's status is looked at, for reports of its changes.
const REPORT_EVERY: Duration = Duration::from_millis(50);
/// How long an unchanged status is kept back, at most.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// An engine that has reported nothing for this long is gone, though its connections stand.
const SILENCE: Duration = Duration::from_secs(10);
/// How long after a request's deadline its engine may say so before it is said here.
const DEADLINE_GRACE: Duration = Duration::from_secs(1);
/// How long a call of which nobody wants any more may take to end; then it is broken off.
const LEAVE: Duration = Duration::from_secs(5);
