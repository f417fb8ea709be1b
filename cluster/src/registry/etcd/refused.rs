//! That a node may not be in the cluster, told to who looks after it.

use etcd_client::{Client, PutOptions};
use tramontane_router::{ModelId, NodeId};

use super::keys::{Keys, Refusal, encode};
use super::options::EtcdOptions;
use super::within;
use crate::registry::{MAX_NAME, REFUSAL_LASTS, RegistryError};

/// Tells it for a process that was let into etcd and not into the cluster, so that it has no registry to tell.
pub async fn tell_refused(options: &EtcdOptions, model: ModelId, node: &NodeId, why: String) {
    let keys = Keys::new(&options.cluster, model);
    match options.client().await {
        Ok(client) => tell(&client, &keys, node, why).await,
        Err(error) => tracing::warn!(%error, "the cluster has not heard of the refusal"),
    }
}

/// The same, by who has a connection.
pub(super) async fn tell(client: &Client, keys: &Keys, node: &NodeId, why: String) {
    if let Err(error) = write(&mut client.clone(), keys, node, why).await {
        tracing::warn!(%error, "the cluster has not heard of the refusal");
    }
}

async fn write(client: &mut Client, keys: &Keys, node: &NodeId, why: String) -> Result<(), RegistryError> {
    if node.as_str().len() > MAX_NAME {
        return Ok(());
    }
    let value = encode("refusal", &Refusal { why })?;
    let seconds = i64::try_from(REFUSAL_LASTS.as_secs()).unwrap_or(i64::MAX);
    let lease = within(client.lease_grant(seconds, None)).await?.id();
    let options = PutOptions::new().with_lease(lease);
    within(client.put(keys.refused(node), value, Some(options))).await.map(|_| ())
}

/// It is in the cluster now.
pub(super) async fn forget(client: &Client, keys: &Keys, node: &NodeId) {
    // Best effort: it is forgotten by itself too.
    _ = within(client.clone().delete(keys.refused(node), None)).await;
}
