//! A stand-in for libcuda and libnccl, written for the tests of the NCCL exchange, which compile it to a shared library of
//! either name and have it loaded in their place. "Device memory" is the process's own; ranks of one communicator, in one
//! process or several, meet over Unix sockets in a folder that the unique id names.
//!
//! Where the exchange could lean on something that NCCL does not promise, it is as strict as NCCL: a payload that is sent is
//! gone only once it is received; between two ranks payloads match in their order, and sizes must; what goes each way within
//! a group goes in pairs; a rank that has failed stands still until it is aborted, and a process that ends before all are
//! crashes; calls are non-blocking, and copies want pinned memory. It is more lenient in one thing: real NCCL refuses two
//! ranks on one GPU, unless it is 2.30 or newer and told not to.
//!
//! `NCCL_STANDIN=what@rank=n,…` has the n-th call of that kind go wrong on that rank, or fail with the code n: see [`fault`].

#![allow(non_snake_case, clippy::missing_safety_doc, missing_docs)]

mod comm;
mod driver;
mod nccl;

use std::collections::BTreeMap;
use std::env;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often is looked whether others have come, or have aborted.
pub(crate) const LOOK: Duration = Duration::from_millis(1);

/// What is to go wrong with `what` on `rank`: the number that was set.
pub(crate) fn fault(what: &str, rank: u32) -> Option<u64> {
    let set = env::var("NCCL_STANDIN").ok()?;
    let wanted = format!("{what}@{rank}=");
    set.split(',').find_map(|one| one.strip_prefix(&wanted)?.parse().ok())
}

/// Whether this call is the one that is to go wrong. Counts calls of the process.
pub(crate) fn strikes(what: &'static str, rank: u32) -> bool {
    static CALLS: Mutex<BTreeMap<(&str, u32), u64>> = Mutex::new(BTreeMap::new());
    let mut calls = lock(&CALLS);
    let call = calls.entry((what, rank)).or_default();
    *call += 1;
    fault(what, rank) == Some(*call)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
