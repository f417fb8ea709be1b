//! The parent's end: any registry, served to child processes.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tonic::{Request, Response, Status, Streaming};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::registry_server::{Registry as Service, RegistryServer};

use super::{LEASE_TIMEOUT, UPDATES};
use crate::Malformed;
use crate::registry::{Accepted, Lease, Registry, RegistryError, wire};
use crate::tls::{Role, Security};
use crate::transport::{self, MAX_MESSAGE, ServerError, Stop};

/// Serves `registry` on `listener`, which is for this machine alone and speaks plainly, until `shutdown` completes: then its clients see it lost.
///
/// # Errors
/// The transport broke.
pub async fn serve_registry(
    registry: Arc<dyn Registry>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServerError> {
    let (signal, stop) = Stop::after(shutdown);
    let service = RegistryServer::new(Served { registry, stop })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let incoming = transport::incoming(listener, &Security::Plaintext, Role::ExpertNode)?;
    Ok(transport::server().serve_with_incoming_shutdown(service, incoming, signal).await?)
}

struct Served {
    registry: Arc<dyn Registry>,
    stop: Stop,
}

type Replies = mpsc::Sender<Result<pb::JoinReply, Status>>;

#[tonic::async_trait]
impl Service for Served {
    type JoinStream = ReceiverStream<Result<pb::JoinReply, Status>>;
    type WatchStream = BoxStream<'static, Result<pb::ClusterView, Status>>;

    async fn join(&self, request: Request<Streaming<pb::NodeUpdate>>) -> Result<Response<Self::JoinStream>, Status> {
        let (replies, replied) = mpsc::channel(UPDATES);
        let (registry, stop) = (self.registry.clone(), self.stop.clone());
        tokio::spawn(async move {
            // The lease is dropped with the future that holds it, whichever ends first.
            tokio::select! {
                () = stop.stopped() => {}
                ended = member(registry.as_ref(), request.into_inner(), &replies, LEASE_TIMEOUT) => if let Err(status) = ended {
                    // Fails only when the node is no longer there to hear it.
                    let _ = replies.send(Err(status)).await;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(replied)))
    }

    async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let views = WatchStream::new(self.registry.watch().0).map(|view| Ok(wire::view_to_pb(&view)));
        Ok(Response::new(views.take_until(self.stop.clone().stopped()).boxed()))
    }

    async fn propose(&self, request: Request<pb::ProposeRequest>) -> Result<Response<pb::ProposeReply>, Status> {
        use pb::propose_reply::Outcome;
        let placement = request.into_inner().placement.ok_or_else(|| invalid(Malformed::missing("placement")))?;
        let placement = wire::placement_from_pb(placement).map_err(invalid)?;
        let outcome = match self.registry.propose(placement).await {
            Ok(Accepted { epoch }) => Outcome::Accepted(pb::Accepted { epoch: epoch.0 }),
            Err(RegistryError::Fenced { current }) => Outcome::Fenced(pb::Fenced { current: current.0 }),
            Err(error @ RegistryError::Lost { .. }) => return Err(Status::unavailable(error.to_string())),
            Err(error) => Outcome::Refused(wire::refused_to_pb(error)),
        };
        Ok(Response::new(pb::ProposeReply { outcome: Some(outcome) }))
    }

    async fn order(&self, request: Request<pb::OrderRequest>) -> Result<Response<pb::OrderReply>, Status> {
        use pb::order_reply::Outcome;
        let order = wire::order_from_pb(request.into_inner()).map_err(invalid)?;
        let outcome = match self.registry.order(order).await {
            Ok(orders) => Outcome::Orders(wire::orders_to_pb(&orders)),
            Err(error @ RegistryError::Lost { .. }) => return Err(Status::unavailable(error.to_string())),
            Err(error) => Outcome::Refused(wire::refused_to_pb(error)),
        };
        Ok(Response::new(pb::OrderReply { outcome: Some(outcome) }))
    }

    async fn tell_refused(&self, request: Request<pb::RefusedNode>) -> Result<Response<pb::TellRefusedReply>, Status> {
        let pb::RefusedNode { node, why } = request.into_inner();
        self.registry.tell_refused(node.into(), why).await;
        Ok(Response::new(pb::TellRefusedReply {}))
    }
}

fn invalid(malformed: Malformed) -> Status {
    Status::invalid_argument(malformed.0)
}

/// Holds one node's lease while its stream lives, and speaks within `silence`. Fails when the stream must end with a
/// reason.
async fn member(
    registry: &dyn Registry,
    mut updates: impl Stream<Item = Result<pb::NodeUpdate, Status>> + Unpin,
    replies: &Replies,
    silence: Duration,
) -> Result<(), Status> {
    let mut lease: Option<Box<dyn Lease>> = None;
    loop {
        let heard = timeout(silence, updates.next()).await;
        let heard = heard.map_err(|_| Status::deadline_exceeded(format!("not heard for {silence:?}")))?;
        // A broken stream is an end like any other: the process died.
        let Some(Ok(message)) = heard else { return Ok(()) };
        let record = match (message.update, &lease) {
            (Some(pb::node_update::Update::Record(record)), _) => wire::record_from_pb(record).map_err(invalid)?,
            (Some(pb::node_update::Update::Heartbeat(_)), Some(_)) => continue,
            (_, None) => return Err(invalid(Malformed("the first message is no record".into()))),
            (None, Some(_)) => return Err(invalid(Malformed::missing("update"))),
        };
        let outcome = match &lease {
            Some(lease) => lease.update(record).await,
            None => registry.join(record).await.map(|joined| lease = Some(joined)),
        };
        let reply = match outcome {
            Ok(()) => pb::join_reply::Reply::Granted(pb::Granted {}),
            Err(error) => wire::denial_to_pb(error),
        };
        if replies.send(Ok(pb::JoinReply { reply: Some(reply) })).await.is_err() || lease.is_none() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use tonic::Code;
    use tramontane_router::{ModelId, NodeId, NodeRecord, NumericProfile};

    use super::*;
    use crate::registry::EmbeddedRegistry;

    fn profile() -> NumericProfile {
        NumericProfile { contract: 1, weights: "ab".into(), quantization: "f32".into(), arithmetic: "cpu".into() }
    }

    fn record() -> pb::NodeUpdate {
        let (id, addr, held) = (NodeId::from("n"), String::new(), [].into());
        let record = NodeRecord {
            id,
            addr,
            held,
            profile: profile(),
            capacity: 0,
            speed: 0,
            zone: String::new(),
            draining: false,
        };
        pb::NodeUpdate { update: Some(pb::node_update::Update::Record(wire::record_to_pb(&record))) }
    }

    fn heartbeat() -> pb::NodeUpdate {
        pb::NodeUpdate { update: Some(pb::node_update::Update::Heartbeat(pb::Heartbeat {})) }
    }

    async fn end_of(registry: &dyn Registry, updates: Vec<pb::NodeUpdate>) -> (Result<(), Status>, usize) {
        let (replies, mut replied) = mpsc::channel(UPDATES);
        let updates = stream::iter(updates).map(Ok).chain(stream::pending());
        let ended = member(registry, updates, &replies, Duration::from_millis(20)).await;
        drop(replies);
        let mut count = 0;
        while replied.recv().await.is_some() {
            count += 1;
        }
        (ended, count)
    }

    #[tokio::test]
    async fn a_node_that_falls_silent_loses_its_lease() {
        let registry = EmbeddedRegistry::new(ModelId::from("m"), profile());
        let mut watch = registry.watch();
        let (ended, replies) = end_of(&registry, vec![record(), heartbeat(), heartbeat()]).await;
        assert_eq!(ended.expect_err("a reason").code(), Code::DeadlineExceeded);
        assert_eq!(replies, 1, "the record's; heartbeats get none");
        assert!(watch.changed().await.expect("a view").nodes.is_empty());
    }

    #[tokio::test]
    async fn a_stream_that_does_not_begin_with_a_record_is_ended() {
        let registry = EmbeddedRegistry::new(ModelId::from("m"), profile());
        for first in [heartbeat(), pb::NodeUpdate::default()] {
            let (ended, replies) = end_of(&registry, vec![first]).await;
            assert_eq!((ended.expect_err("a reason").code(), replies), (Code::InvalidArgument, 0));
        }
    }
}
