//! The exchange over NCCL: rows go from GPU to GPU, everything else over gRPC.
//!
//! Each coordinator has a communicator of its own, in which it is rank 0 and the nodes are the others. A stream of control
//! messages to each member (`Experts.Communicate`) orders what goes through it. NCCL matches what two ranks send and receive
//! by the order in which they name it, so one end decides that order: the coordinator. It says "rows of these sizes come" and
//! sends; a member says "an answer of this size waits", and sends it when the coordinator says "now that one". Each end's
//! thread (`rank`) moves what waits as one group. A member does its part of the coordinator's order and nothing else, so
//! nobody waits for somebody who waits for him.
//!
//! Within a group NCCL keeps the order of what goes one way between two ranks, and pairs what goes one way with what goes
//! the other as it likes: a payload may wait there for one that was named after it. Were that one in a later group of the
//! other end's, both would wait for ever. So with each other rank a group's payloads go one way.
//!
//! A communicator is one generation: it is made, it serves, it breaks as a whole. When a member dies, stands still, or the
//! nodes change, everybody aborts, and the coordinator makes the next with those who can (`roster`). What was under way then
//! is sent over gRPC (`exchange` holds a whole [`GrpcExchange`](super::grpc::GrpcExchange)), and so is everything until the
//! next communicator stands, and whatever goes to a node that is not in it. So the caller sees the same completions as
//! without NCCL; the bits are the same, for the bytes are.

mod check;
mod communicator;
mod exchange;
mod group;
mod member;
mod rank;
mod roster;
mod wire;

use std::time::Duration;

use super::MAX_IN_FLIGHT;

pub use check::{Checked, self_check};
pub use communicator::NcclError;
pub(super) use exchange::NcclExchange;
pub(super) use member::{Places, REPLIES, serve_member};

/// What a communicator needs is there.
///
/// # Errors
/// What is missing, and how to get it.
pub(super) fn available() -> Result<(), NcclError> {
    communicator::check()
}

/// The coordinator's rank.
const COORDINATOR: u32 = 0;
/// Communicators that a node is in at once, at most: one of each coordinator, and those that are ending.
const PLACES: usize = 64;
/// Payloads that one group moves, at most.
const MAX_GROUP: usize = 64;
/// Bytes that one group moves, at most (a single payload may be larger): they are staged in as much of the device's memory,
/// and of the host's.
const MAX_GROUP_BYTES: usize = 32 << 20;
/// Payloads to and from one member that wait to be moved, at most: a dispatch and an answer for each in flight.
const ORDERS_PER_MEMBER: usize = 2 * MAX_IN_FLIGHT;
/// How long NCCL may take to get all ranks together, and all members and the coordinator to exchange their first bytes;
const JOIN_LIMIT: Duration = Duration::from_secs(30);
/// and one of them, when it is its turn.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// How long a group may take beside its bytes' time: longer, and a member stands still. What the other members are waiting
/// for waits as long.
const STALL_LIMIT: Duration = Duration::from_secs(2);
/// Bytes a second that the slowest network moves.
const SLOWEST: f64 = 100e6;
/// How long a node may take to say whether it can be a member.
const OFFER_LIMIT: Duration = Duration::from_secs(5);
/// After a failure a node is left out this long,
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// twice as long after each further one, and at most this long.
const LAST_PAUSE: Duration = Duration::from_secs(60);
