//! A record kept in etcd by a task of its own: under a lease, renewed, and written anew when the lease was lost.

use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::lease::Heart;
use super::{RETRY, within};
use crate::due::at;
use crate::registry::RegistryError;

/// Updates of one record that wait to be written; more wait for a place.
const UPDATES: usize = 8;

type Outcome = Result<(), RegistryError>;
type Update = (Vec<u8>, oneshot::Sender<Outcome>);

/// A record to keep.
pub(super) struct Record {
    pub(super) key: String,
    /// Its first value.
    pub(super) value: Vec<u8>,
    /// What it is to hear whose key another has.
    pub(super) taken: RegistryError,
}

/// A record that is kept; the task deletes it when this is dropped.
pub(super) struct Kept {
    updates: mpsc::Sender<Update>,
}

/// The task.
struct Keeper {
    client: Client,
    ttl_seconds: i64,
    record: Record,
    /// `None` until a lease is granted, and after etcd said that it is gone.
    heart: Option<Heart>,
}

impl Kept {
    /// Writes `record`, whose key must be absent, and keeps it.
    pub(super) async fn begin(
        client: &Client,
        ttl_seconds: i64,
        record: Record,
        tasks: &TaskTracker,
    ) -> Result<Self, RegistryError> {
        let mut keeper = Keeper { client: client.clone(), ttl_seconds, record, heart: None };
        if let Err(error) = keeper.publish().await {
            if let Some(heart) = keeper.heart.take() {
                heart.end().await;
            }
            return Err(error);
        }
        let (updates, given) = mpsc::channel(UPDATES);
        tasks.spawn(keeper.keep(given));
        Ok(Self { updates })
    }

    /// Writes another value. While etcd is away this waits: it is written when etcd is back.
    pub(super) async fn update(&self, value: Vec<u8>) -> Outcome {
        let ended = || RegistryError::Lost { why: "the name was taken by another".into() };
        let (tell, told) = oneshot::channel();
        self.updates.send((value, tell)).await.map_err(|_| ended())?;
        told.await.map_err(|_| ended())?
    }

    /// Completes when another has the key.
    pub(super) async fn lost(&self) {
        self.updates.closed().await;
    }
}

impl Keeper {
    /// Until the record is dropped, or another has taken the name.
    async fn keep(mut self, mut updates: mpsc::Receiver<Update>) {
        let mut waiting: Vec<oneshot::Sender<Outcome>> = Vec::new();
        // When the record is to be written; `None` while what stands in etcd is what we have.
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                update = updates.recv(), if waiting.len() < UPDATES => {
                    let Some((value, tell)) = update else { break };
                    self.record.value = value;
                    waiting.push(tell);
                    due = Some(Instant::now());
                }
                () = beat(&mut self.heart) => {
                    tracing::warn!(key = self.record.key, "the lease was lost; joining again");
                    self.heart = None;
                    due = Some(Instant::now());
                }
                () = at(due) => match self.publish().await {
                    Err(RegistryError::Lost { why }) => {
                        tracing::warn!(key = self.record.key, why, "the record is not written yet");
                        due = Some(Instant::now() + RETRY);
                    }
                    outcome => {
                        due = None;
                        let over = outcome.as_ref().is_err_and(|error| *error == self.record.taken);
                        // Fails only where the caller no longer waits.
                        waiting.drain(..).for_each(|tell| _ = tell.send(outcome.clone()));
                        if over {
                            tracing::error!(key = self.record.key, "another has taken the name");
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
        let (key, value, lease) = (self.record.key.as_str(), &self.record.value, heart.lease);
        let put = || vec![TxnOp::put(key, value.clone(), Some(PutOptions::new().with_lease(lease)))];
        let absent = Txn::new().when([Compare::create_revision(key, CompareOp::Equal, 0)]).and_then(put());
        let ours = Txn::new().when([Compare::lease(key, CompareOp::Equal, lease)]).and_then(put());
        match within(self.client.txn(ours.or_else([TxnOp::txn(absent)]))).await {
            Ok(written) if written.succeeded() || inner_succeeded(&written) => Ok(()),
            Ok(_) => Err(self.record.taken.clone()),
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
