//! A node's record, kept in etcd by a task of its own: under a lease, renewed, and written anew when the lease was lost.

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::TaskTracker;
use tramontane_router::{NodeId, NodeRecord, NumericProfile};

use super::keys::{Keys, encode};
use super::lease::Heart;
use super::{RETRY, within};
use crate::registry::{Lease, RegistryError, rules};

/// Updates of one node that wait to be written; more wait for a place.
const UPDATES: usize = 8;

type Outcome = Result<(), RegistryError>;
type Update = (NodeRecord, oneshot::Sender<Outcome>);

/// A node's place; the task leaves the cluster when this is dropped.
pub(super) struct EtcdLease {
    node: NodeId,
    profile: NumericProfile,
    updates: mpsc::Sender<Update>,
}

/// The task.
struct Keeper {
    client: Client,
    key: String,
    ttl_seconds: i64,
    record: NodeRecord,
    /// `None` until a lease is granted, and after etcd said that it is gone.
    heart: Option<Heart>,
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
    let (key, node) = (keys.node(&record.id), record.id.clone());
    let mut keeper = Keeper { client: client.clone(), key, ttl_seconds, record, heart: None };
    if let Err(error) = keeper.publish().await {
        if let Some(heart) = keeper.heart.take() {
            heart.end().await;
        }
        return Err(error);
    }
    let (updates, given) = mpsc::channel(UPDATES);
    tasks.spawn(keeper.keep(given));
    Ok(EtcdLease { node, profile, updates })
}

impl Lease for EtcdLease {
    /// While etcd is away this waits: the node goes on, and the record is written when etcd is back.
    fn update(&self, record: NodeRecord) -> BoxFuture<'_, Outcome> {
        async move {
            rules::renew(&self.profile, &self.node, &record)?;
            let ended = || RegistryError::Lost { why: "the node's name was taken by another".into() };
            let (tell, told) = oneshot::channel();
            self.updates.send((record, tell)).await.map_err(|_| ended())?;
            told.await.map_err(|_| ended())?
        }
        .boxed()
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        self.updates.closed().boxed()
    }
}

impl Keeper {
    /// Until the lease is dropped, or another node has taken the name.
    async fn keep(mut self, mut updates: mpsc::Receiver<Update>) {
        let mut waiting: Vec<oneshot::Sender<Outcome>> = Vec::new();
        // When the record is to be written; `None` while what stands in etcd is what we have.
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                update = updates.recv(), if waiting.len() < UPDATES => {
                    let Some((record, tell)) = update else { break };
                    self.record = record;
                    waiting.push(tell);
                    due = Some(Instant::now());
                }
                () = beat(&mut self.heart) => {
                    tracing::warn!(node = %self.record.id, "the lease was lost; joining again");
                    self.heart = None;
                    due = Some(Instant::now());
                }
                () = at(due) => match self.publish().await {
                    Err(RegistryError::Lost { why }) => {
                        tracing::warn!(node = %self.record.id, why, "the record is not written yet");
                        due = Some(Instant::now() + RETRY);
                    }
                    outcome => {
                        due = None;
                        let over = matches!(outcome, Err(RegistryError::Taken { .. }));
                        // Fails only where the caller no longer waits.
                        waiting.drain(..).for_each(|tell| _ = tell.send(outcome.clone()));
                        if over {
                            tracing::error!(node = %self.record.id, "another node has taken the name");
                            break;
                        }
                    }
                },
            }
        }
        if let Some(heart) = self.heart {
            heart.end().await;
        }
    }

    /// Writes the record under the lease, if the key is absent or under this very lease.
    async fn publish(&mut self) -> Outcome {
        let heart = match &mut self.heart {
            Some(heart) => heart,
            none => none.insert(Heart::begin(&self.client, self.ttl_seconds).await?),
        };
        let (key, lease) = (self.key.as_str(), heart.lease);
        let value = encode(&format!("node {}", self.record.id), &self.record)?;
        let put = || vec![TxnOp::put(key, value.clone(), Some(PutOptions::new().with_lease(lease)))];
        let absent = Txn::new().when([Compare::create_revision(key, CompareOp::Equal, 0)]).and_then(put());
        let ours = Txn::new().when([Compare::lease(key, CompareOp::Equal, lease)]).and_then(put());
        match within(self.client.txn(ours.or_else([TxnOp::txn(absent)]))).await {
            Ok(written) if written.succeeded() || inner_succeeded(&written) => Ok(()),
            Ok(_) => Err(RegistryError::Taken { node: self.record.id.clone() }),
            // Ended between two heartbeats: with a new one the next try will do.
            Err(RegistryError::Lost { why }) if why.contains("lease not found") => {
                self.heart = None;
                Err(RegistryError::Lost { why })
            }
            Err(error) => Err(error),
        }
    }
}

fn inner_succeeded(response: &etcd_client::TxnResponse) -> bool {
    response.op_responses().iter().any(|op| matches!(op, etcd_client::TxnOpResponse::Txn(inner) if inner.succeeded()))
}

async fn beat(heart: &mut Option<Heart>) {
    match heart {
        Some(heart) => heart.beat().await,
        None => std::future::pending().await,
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
