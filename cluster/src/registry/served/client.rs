//! The child's end: its parent's registry, over gRPC.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::registry_client::RegistryClient;
use tramontane_router::placement::{Order, Orders, Placement};
use tramontane_router::{ClusterView, Epoch, NodeId, NodeRecord};

use super::{HEARTBEAT, REPLY_TIMEOUT, UPDATES};
use crate::registry::{
    Accepted, Health, Leadership, Lease, Registry, RegistryError, Unopposed, Watch, nothing_to_restore, wire,
};
use crate::transport::{self, MAX_MESSAGE, causes};

/// What a served registry's address begins with.
const SCHEME: &str = "tramontane://";

/// A registry served by another process.
pub struct ServedRegistry {
    client: RegistryClient<Channel>,
    views: watch::Receiver<Arc<ClusterView>>,
}

impl ServedRegistry {
    /// Connects to `tramontane://host:port` and waits for its first view. Must be called on a tokio runtime, which then
    /// carries the registry's streams.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for another kind of address, [`RegistryError::Lost`] when nobody answers there.
    pub async fn connect(url: &str) -> Result<Self, RegistryError> {
        let addr = url.strip_prefix(SCHEME).ok_or_else(|| RegistryError::Refused {
            what: format!("registry {url}"),
            why: format!("its address does not begin with {SCHEME}"),
        })?;
        let channel = transport::connect(addr).await.map_err(|why| RegistryError::Lost { why })?;
        let mut client =
            RegistryClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        let opened = async {
            let mut views = client.watch(pb::WatchRequest {}).await.map_err(lost)?.into_inner();
            Ok((next_view(&mut views).await?, views))
        };
        let (first, mut views) = within(opened).await?;
        let (seen, watched) = watch::channel(Arc::new(first));
        tokio::spawn(async move {
            // Ends, and closes every watch, when the registry is lost or nobody watches any more.
            let why = loop {
                tokio::select! {
                    () = seen.closed() => return,
                    next = next_view(&mut views) => match next {
                        Ok(view) => seen.send_replace(Arc::new(view)),
                        Err(error) => break error,
                    },
                };
            };
            tracing::warn!("{why}");
        });
        Ok(Self { client, views: watched })
    }
}

async fn next_view(views: &mut Streaming<pb::ClusterView>) -> Result<ClusterView, RegistryError> {
    let view = views.message().await.map_err(lost)?.ok_or_else(ended)?;
    wire::view_from_pb(view).map_err(|malformed| RegistryError::Lost { why: malformed.0 })
}

/// `answer`, awaited for [`REPLY_TIMEOUT`].
async fn within<T>(answer: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
    let late = |_| RegistryError::Lost { why: format!("no answer within {REPLY_TIMEOUT:?}") };
    timeout(REPLY_TIMEOUT, answer).await.map_err(late)?
}

fn lost(status: Status) -> RegistryError {
    RegistryError::Lost { why: causes(&status) }
}

fn ended() -> RegistryError {
    RegistryError::Lost { why: "it ended the stream".into() }
}

impl Registry for ServedRegistry {
    /// The parent alone writes placements, and it keeps the registry.
    fn lead(&self, _: &str) -> BoxFuture<'_, Result<Box<dyn Leadership>, RegistryError>> {
        ready(Ok(Box::new(Unopposed) as Box<dyn Leadership>)).boxed()
    }

    fn restore(&self) -> BoxFuture<'_, Result<Accepted, RegistryError>> {
        ready(Err(nothing_to_restore())).boxed()
    }

    fn health(&self) -> Health {
        match self.views.has_changed() {
            Ok(_) => Health::Connected,
            Err(_) => Health::Disconnected { why: "the parent's registry is gone".into() },
        }
    }

    fn join(&self, record: NodeRecord) -> BoxFuture<'_, Result<Box<dyn Lease>, RegistryError>> {
        let mut client = self.client.clone();
        async move {
            let (updates, requests) = mpsc::channel(UPDATES);
            let joining = async {
                updates.send(record_update(&record)).await.map_err(|_| ended())?;
                let mut replies = client.join(ReceiverStream::new(requests)).await.map_err(lost)?.into_inner();
                next_reply(&mut replies).await??;
                Ok(replies)
            };
            let replies = within(joining).await?;
            let (records, given) = mpsc::channel(UPDATES);
            tokio::spawn(keep(given, updates, replies));
            Ok(Box::new(ServedLease { records }) as Box<dyn Lease>)
        }
        .boxed()
    }

    fn watch(&self) -> Watch {
        let mut receiver = self.views.clone();
        receiver.mark_changed();
        Watch(receiver)
    }

    fn order(&self, order: Order) -> BoxFuture<'_, Result<Orders, RegistryError>> {
        use pb::order_reply::Outcome;
        let mut client = self.client.clone();
        async move {
            let request = Request::new(wire::order_to_pb(&order));
            match within(async { client.order(request).await.map_err(lost) }).await?.into_inner().outcome {
                Some(Outcome::Orders(orders)) => Ok(wire::orders_from_pb(orders)),
                Some(Outcome::Refused(refused)) => Err(wire::refused_from_pb(refused)),
                None => Err(RegistryError::Lost { why: "an empty answer".into() }),
            }
        }
        .boxed()
    }

    fn tell_refused(&self, node: NodeId, why: String) -> BoxFuture<'_, ()> {
        let mut client = self.client.clone();
        async move {
            let request = Request::new(wire::refused_node(&node, &why));
            if let Err(error) = within(async { client.tell_refused(request).await.map_err(lost) }).await {
                tracing::warn!(%error, "the cluster has not heard of the refusal");
            }
        }
        .boxed()
    }

    fn propose(&self, placement: Placement) -> BoxFuture<'_, Result<Accepted, RegistryError>> {
        use pb::propose_reply::Outcome;
        let mut client = self.client.clone();
        async move {
            let request = Request::new(pb::ProposeRequest { placement: Some(wire::placement_to_pb(&placement)) });
            let reply = within(async { client.propose(request).await.map_err(lost) }).await?;
            match reply.into_inner().outcome {
                Some(Outcome::Accepted(pb::Accepted { epoch })) => Ok(Accepted { epoch: Epoch(epoch) }),
                Some(Outcome::Fenced(pb::Fenced { current })) => Err(RegistryError::Fenced { current: Epoch(current) }),
                Some(Outcome::Refused(refused)) => Err(wire::refused_from_pb(refused)),
                None => Err(RegistryError::Lost { why: "an empty answer".into() }),
            }
        }
        .boxed()
    }
}

/// What the registry did with a record.
type Outcome = Result<(), RegistryError>;
/// A record to publish, and who waits for the outcome.
type Update = (NodeRecord, oneshot::Sender<Outcome>);

/// The task that keeps the lease ends when this is dropped, and its stream with it.
struct ServedLease {
    records: mpsc::Sender<Update>,
}

impl Lease for ServedLease {
    fn update(&self, record: NodeRecord) -> BoxFuture<'_, Outcome> {
        let published = async {
            let (tell, told) = oneshot::channel();
            self.records.send((record, tell)).await.map_err(|_| ended())?;
            told.await.map_err(|_| ended())?
        };
        within(published).boxed()
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        self.records.closed().boxed()
    }
}

/// Publishes records and heartbeats until the lease is dropped or the stream ends.
async fn keep(
    mut records: mpsc::Receiver<Update>,
    updates: mpsc::Sender<pb::NodeUpdate>,
    mut replies: Streaming<pb::JoinReply>,
) {
    let mut waiting = VecDeque::new();
    let mut heartbeat = interval(HEARTBEAT);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            record = records.recv(), if waiting.len() < UPDATES => {
                let Some((record, outcome)) = record else { return };
                waiting.push_back(outcome);
                record_update(&record)
            }
            _ = heartbeat.tick() => pb::NodeUpdate { update: Some(pb::node_update::Update::Heartbeat(pb::Heartbeat {})) },
            reply = next_reply(&mut replies) => match (reply, waiting.pop_front()) {
                (Ok(outcome), Some(tell)) => {
                    // Fails only when the caller no longer waits.
                    let _ = tell.send(outcome);
                    continue;
                }
                (Ok(_), None) => return,
                (Err(error), _) => {
                    tracing::warn!("the lease ends: {error}");
                    return;
                }
            },
        };
        // Waits for the transport only: the registry has room for as many replies as there are updates waiting for one.
        if updates.send(message).await.is_err() {
            return;
        }
    }
}

/// The next reply: outside what became of the stream, inside what became of a record.
async fn next_reply(replies: &mut Streaming<pb::JoinReply>) -> Result<Outcome, RegistryError> {
    match replies.message().await.map_err(lost)?.ok_or_else(ended)?.reply {
        Some(pb::join_reply::Reply::Granted(pb::Granted {})) => Ok(Ok(())),
        Some(pb::join_reply::Reply::Refused(refused)) => Ok(Err(wire::refused_from_pb(refused))),
        Some(pb::join_reply::Reply::Taken(pb::Taken { node })) => Ok(Err(RegistryError::Taken { node: node.into() })),
        None => Err(RegistryError::Lost { why: "an empty reply".into() }),
    }
}

fn record_update(record: &NodeRecord) -> pb::NodeUpdate {
    pb::NodeUpdate { update: Some(pb::node_update::Update::Record(wire::record_to_pb(record))) }
}
