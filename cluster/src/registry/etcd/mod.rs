//! The registry of a real cluster: etcd. Any number of processes share it, and none of them needs it to go on serving.
//!
//! Below `/tramontane/<cluster>/` (JSON throughout):
//!
//! | key | what | written |
//! | --- | --- | --- |
//! | `nodes/<id>` | a node's record | by the node, under its lease |
//! | `coordinators/<id>` | an engine's record: where front doors reach it, what it serves | by its coordinator, under its lease |
//! | `keys/<name>` | an API key's record: its SHA-256, what it may | by a coordinator that an operator asked, when the key is absent; deleted when it is revoked |
//! | `usage/<name>/<day>/<model>` | what a key used of a model on a day (UTC), and whose entries are in it | by every front door, in one transaction that checks that nobody wrote between |
//! | `leader` | who leads: `{"name": …}` | by a candidate, under its lease, when the key is absent |
//! | `nodes-refused/<id>` | why a node may not be in the cluster: `{"why": …}` | by that node, for ten minutes |
//! | `models/<model>/orders` | what operators have ordered: cordoned nodes, a rebalance | by whom an operator asked (the leader, when a rebalance is done), in one transaction that checks that nobody wrote between |
//! | `models/<model>/profile` | what decides the bits of all answers | once, by the first process |
//! | `models/<model>/placement` | who should hold what | by the leader, in one transaction that checks leadership and parent |
//!
//! etcd away: the watch keeps the last view, proposals are refused with [`RegistryError::Lost`], and leases are renewed when
//! it is back. A node or engine whose lease ended comes back by itself. An older placement than was seen (etcd restored from a
//! snapshot) is not taken: [`Health::WentBack`]; nor are older orders, which the next order, or a restored placement, writes anew.
//!
//! [`RegistryError::Lost`]: super::RegistryError::Lost
//! [`Health::WentBack`]: super::Health::WentBack

mod accounts;
mod directory;
mod follow;
mod kept;
mod keys;
mod leader;
mod lease;
mod node;
mod options;
mod orders;
mod refused;
mod registry;
mod seen;

use std::time::Duration;

use etcd_client::{Client, Error, GetOptions};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tonic::Code;

use super::RegistryError;
use crate::transport::causes;

pub use accounts::EtcdAccounts;
pub use directory::EtcdDirectory;
pub use options::{EtcdOptions, EtcdTls, MAX_ENDPOINTS};
pub use refused::tell_refused;
pub use registry::EtcdRegistry;

/// How long etcd may take to answer one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait before something is tried again that etcd did not answer.
const RETRY: Duration = Duration::from_millis(250);
/// Bytes of one answer of etcd, at most: a list of all records.
const MAX_ANSWER: usize = 256 << 20;
/// Bytes of one value, at most: etcd's own default.
const MAX_VALUE: usize = 1 << 20;

/// `call`, awaited for [`CALL_TIMEOUT`].
async fn within<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, RegistryError> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map_err(|error| lost(&error)),
        Err(_) => Err(RegistryError::Lost { why: format!("etcd did not answer within {CALL_TIMEOUT:?}") }),
    }
}

/// How many keys begin with `prefix`.
async fn count(client: &Client, prefix: &str) -> Result<usize, RegistryError> {
    let options = GetOptions::new().with_prefix().with_count_only();
    let there = within(client.clone().get(prefix, Some(options))).await?;
    Ok(usize::try_from(there.count()).unwrap_or(0))
}

/// Waits until the keepers among `tasks` have given back what was dropped. Those that are late are given up: their leases end
/// by themselves.
async fn farewell(tasks: &TaskTracker) {
    tasks.close();
    _ = timeout(CALL_TIMEOUT, tasks.wait()).await;
}

/// An answer that brought nothing. A refusal to let us in is told apart: no waiting mends it.
fn lost(error: &Error) -> RegistryError {
    match error {
        // A wrong password is an invalid argument to etcd.
        Error::GRpcStatus(status)
            if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument) =>
        {
            RegistryError::Refused { what: "etcd access".into(), why: status.message().to_owned() }
        }
        Error::GRpcStatus(status) => {
            let why = causes(status);
            // Certificates that one side does not trust do not come right by themselves either.
            if ["invalid peer certificate", "received fatal alert"].iter().any(|sign| why.contains(sign)) {
                return RegistryError::Refused { what: "etcd access".into(), why };
            }
            RegistryError::Lost { why: format!("etcd: {why}") }
        }
        error => RegistryError::Lost { why: format!("etcd: {error}") },
    }
}
