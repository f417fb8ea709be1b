//! Leadership: a key under a lease. Whoever created the key leads; a write is checked against that very creation.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::{Client, Compare, CompareOp, EventType, PutOptions, Txn, TxnOp, TxnOpResponse, WatchOptions};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::{sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::keys::{Keys, LeaderRecord, decode, encode};
use super::lease::Heart;
use super::{RETRY, within};
use crate::registry::{Leadership, RegistryError};

/// What tells one leadership from every other: the revision that created its key, and its lease. (After a restored snapshot
/// revisions come again; leases do not.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    revision: i64,
    lease: i64,
}

/// The leadership that this process has, or had when it last heard of it.
#[derive(Clone, Default)]
pub(super) struct Leading(Arc<Mutex<Option<Token>>>);

impl Leading {
    pub(super) fn token(&self) -> Option<Token> {
        *self.lock()
    }

    fn end(&self, of: Token) {
        self.lock().take_if(|token| *token == of);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Token>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Token {
    /// That this leadership stands, as a transaction checks it.
    pub(super) fn holds(self, keys: &Keys) -> [Compare; 2] {
        [
            Compare::create_revision(keys.leader(), CompareOp::Equal, self.revision),
            Compare::lease(keys.leader(), CompareOp::Equal, self.lease),
        ]
    }
}

/// A leadership held; the task gives it up when this is dropped.
pub(super) struct EtcdLeadership {
    /// Tells the task, by being dropped, to end.
    _stop: oneshot::Sender<()>,
    lost: tokio::sync::watch::Receiver<bool>,
}

impl Leadership for EtcdLeadership {
    fn lost(&self) -> BoxFuture<'_, ()> {
        let mut lost = self.lost.clone();
        async move {
            // An error means that the task is gone, and the leadership with it.
            let _ = lost.wait_for(|&lost| lost).await;
        }
        .boxed()
    }
}

/// Campaigns as `name` until this process leads.
pub(super) async fn lead(
    client: &Client,
    keys: &Keys,
    ttl_seconds: i64,
    leading: &Leading,
    name: &str,
    tasks: &TaskTracker,
) -> Result<EtcdLeadership, RegistryError> {
    let record = encode("leader", &LeaderRecord { name: name.to_owned() })?;
    loop {
        match campaign(client, keys, ttl_seconds, &record).await {
            Ok(Some((token, heart))) => {
                *leading.lock() = Some(token);
                let (stop, stopped) = oneshot::channel();
                let (tell, lost) = tokio::sync::watch::channel(false);
                tasks.spawn(hold(heart, token, leading.clone(), stopped, tell));
                return Ok(EtcdLeadership { _stop: stop, lost });
            }
            Ok(None) => {}
            Err(error @ RegistryError::Refused { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "the campaign goes on");
                sleep(RETRY).await;
            }
        }
    }
}

/// One try: the leadership, or `None` when the leader of then is gone.
async fn campaign(
    client: &Client,
    keys: &Keys,
    ttl_seconds: i64,
    record: &[u8],
) -> Result<Option<(Token, Heart)>, RegistryError> {
    let (mut client, key) = (client.clone(), keys.leader());
    let there = within(client.get(key.as_str(), None)).await?;
    if let (Some(_), Some(header)) = (there.kvs().first(), there.header()) {
        return until_gone(&mut client, &key, header.revision() + 1).await.map(|()| None);
    }
    let heart = Heart::begin(&client, ttl_seconds).await?;
    let create = Txn::new().when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)]).and_then([TxnOp::put(
        key.as_str(),
        record,
        Some(PutOptions::new().with_lease(heart.lease)),
    )]);
    let created = match within(client.txn(create)).await {
        Ok(created) => created,
        Err(error) => {
            // It may have been written all the same: with the lease it goes.
            heart.end().await;
            return Err(error);
        }
    };
    if created.succeeded() {
        let revision = created.header().map_or(0, |header| header.revision());
        return Ok(Some((Token { revision, lease: heart.lease }, heart)));
    }
    heart.end().await;
    Ok(None)
}

/// Waits until `key`, seen just before `revision`, is deleted.
async fn until_gone(client: &mut Client, key: &str, revision: i64) -> Result<(), RegistryError> {
    let options = WatchOptions::new().with_start_revision(revision);
    let mut stream = within(client.watch(key, Some(options))).await?;
    loop {
        match stream.message().await {
            Ok(Some(changed)) if changed.canceled() => {
                return Err(RegistryError::Lost { why: changed.cancel_reason().to_owned() });
            }
            Ok(Some(changed)) => {
                if changed.events().iter().any(|event| event.event_type() == EventType::Delete) {
                    return Ok(());
                }
            }
            Ok(None) => return Err(RegistryError::Lost { why: "etcd ended the stream".into() }),
            Err(error) => return Err(super::lost(&error)),
        }
    }
}

/// Keeps a leadership until it is dropped or cannot be confirmed in time.
async fn hold(
    mut heart: Heart,
    token: Token,
    leading: Leading,
    stopped: oneshot::Receiver<()>,
    lost: tokio::sync::watch::Sender<bool>,
) {
    let over = async {
        loop {
            let expires = heart.expires();
            tokio::select! {
                () = heart.beat() => return,
                () = sleep_until(expires) => if heart.expires() <= expires { return },
            }
        }
    };
    tokio::select! {
        _ = stopped => {}
        () = over => tracing::warn!("the leadership was lost"),
    }
    leading.end(token);
    lost.send_replace(true);
    heart.end().await;
}

/// Who leads by the answer to a read of the leader's key, for an error's text.
pub(super) fn leader_in(keys: &Keys, response: Option<&TxnOpResponse>) -> String {
    let Some(TxnOpResponse::Get(read)) = response else { return "nobody leads".into() };
    match read.kvs().first().map(|kv| decode::<LeaderRecord>(&keys.leader(), kv.value())) {
        Some(Ok(LeaderRecord { name })) => format!("{name} leads"),
        Some(Err(error)) => error.to_string(),
        None => "nobody leads".into(),
    }
}
