//! A node's record in etcd.

use etcd_client::Client;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio_util::task::TaskTracker;
use tramontane_router::{NodeId, NodeRecord, NumericProfile};

use super::kept::{Kept, Record};
use super::keys::{Keys, encode};
use crate::registry::{Lease, RegistryError, rules};

/// A node's place; it leaves the cluster when this is dropped.
pub(super) struct EtcdLease {
    node: NodeId,
    profile: NumericProfile,
    kept: Kept,
}

/// Puts `record` into the cluster.
pub(super) async fn join(
    client: &Client,
    keys: &Keys,
    ttl_seconds: i64,
    profile: NumericProfile,
    record: NodeRecord,
    tasks: &TaskTracker,
) -> Result<EtcdLease, RegistryError> {
    let node = record.id.clone();
    let taken = RegistryError::Taken { node: node.clone() };
    let record = Record { key: keys.node(&node), value: value(&record)?, taken };
    Ok(EtcdLease { node, profile, kept: Kept::begin(client, ttl_seconds, record, tasks).await? })
}

impl Lease for EtcdLease {
    /// While etcd is away this waits: the node goes on, and the record is written when etcd is back.
    fn update(&self, record: NodeRecord) -> BoxFuture<'_, Result<(), RegistryError>> {
        async move {
            rules::renew(&self.profile, &self.node, &record)?;
            self.kept.update(value(&record)?).await
        }
        .boxed()
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        self.kept.lost().boxed()
    }
}

fn value(record: &NodeRecord) -> Result<Vec<u8>, RegistryError> {
    encode(&format!("node {}", record.id), record)
}
