//! A registry served over gRPC, so that processes on one machine share their parent's: `tramontane://host:port`.
//!
//! A node's lease is its `Join` stream: it ends when the stream does, or when nothing is heard on it for
//! `LEASE_TIMEOUT`. A client whose registry goes sees its watch and its leases lost; it does not connect again.

mod client;
mod server;

use std::time::Duration;

pub use client::ServedRegistry;
pub use server::serve_registry;

/// How often a node says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A node not heard for this long loses its lease.
const LEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the registry may take to answer.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Updates of one node that wait to be sent; more wait for a place.
const UPDATES: usize = 8;
