//! Ends of the wire that do not keep to the protocol: neither side believes the other.

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};
use tramontane_cluster::exchange::grpc::{GrpcExchange, seal_reply, seal_request};
use tramontane_cluster::exchange::{Exchange, ExchangeError};
use tramontane_cluster::tls::Security;
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::experts_client::ExpertsClient;
use tramontane_proto::v1::experts_server::{Experts, ExpertsServer};
use tramontane_router::{ExpertRows, NodeId, RowFormat};

use crate::harness::{GrpcNode, next, runtime};
use crate::node::{TestNode, batch, profile};

/// Answers every dispatch with what `answer` makes of its sequence number.
struct Rubbish {
    answer: fn(u64) -> pb::DispatchReply,
}

#[tonic::async_trait]
impl Experts for Rubbish {
    type ExchangeStream = BoxStream<'static, Result<pb::DispatchReply, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::DispatchRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let answer = self.answer;
        Ok(Response::new(request.into_inner().map_ok(move |request| seal_reply(answer(request.sequence))).boxed()))
    }

    type CommunicateStream = BoxStream<'static, Result<pb::CommunicateReply, Status>>;

    async fn communicate(
        &self,
        _: Request<Streaming<pb::CommunicateRequest>>,
    ) -> Result<Response<Self::CommunicateStream>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn ensure_held(&self, _: Request<pb::EnsureHeldRequest>) -> Result<Response<pb::EnsureHeldReply>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn leave(&self, _: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveReply>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    async fn stats(&self, _: Request<pb::StatsRequest>) -> Result<Response<pb::StatsReply>, Status> {
        Err(Status::unimplemented("not asked"))
    }
}

fn result_of(answer: fn(u64) -> pb::DispatchReply) -> Result<ExpertRows, ExchangeError> {
    let runtime = runtime();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
    let (node, addr) = (NodeId::from("a"), listener.local_addr().expect("an address").to_string());
    let service = ExpertsServer::new(Rubbish { answer });
    runtime.spawn(Server::builder().serve_with_incoming(service, TcpListenerStream::new(listener)));
    let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
    exchange.set_nodes([(node.clone(), addr)].into());
    exchange.submit(&node, batch(RowFormat::F32, 1, 1, &[0], 1));
    next(&mut exchange).result
}

fn rows(sequence: u64, width: u32, payload: &'static [u8]) -> pb::DispatchReply {
    let head = Some(pb::AnswerHead { format: pb::RowFormat::F32.into(), width, rows: 1 });
    let chunk = Some(pb::Chunk { index: 0, last: true, payload: payload.into() });
    let answer = Some(pb::dispatch_reply::Answer::Rows(pb::AnswerRows { head, chunk }));
    pb::DispatchReply { sequence, answer, seal: 0 }
}

#[test]
fn answers_that_make_no_sense_are_corrupt() {
    assert!(result_of(|sequence| rows(sequence, 1, b"good")).is_ok());
    let rubbish: [fn(u64) -> pb::DispatchReply; 4] = [
        |sequence| rows(sequence, 2, b"too wide"),
        |sequence| rows(sequence, 1, b"too long"),
        |sequence| rows(sequence, 1, b"odd"),
        |sequence| pb::DispatchReply { sequence, answer: None, seal: 0 },
    ];
    for answer in rubbish {
        let result = result_of(answer);
        assert!(matches!(result, Err(ExchangeError::Corrupt { .. })), "{result:?}");
    }
}

#[test]
fn a_node_that_answers_what_was_not_asked_is_gone() {
    let rubbish: [fn(u64) -> pb::DispatchReply; 3] = [
        |sequence| rows(sequence + 1, 1, b"good"),
        |sequence| {
            let error = pb::DispatchError { code: 3, expert: None, message: String::new() };
            pb::DispatchReply {
                sequence: sequence + 1,
                answer: Some(pb::dispatch_reply::Answer::Error(error)),
                seal: 0,
            }
        },
        |sequence| {
            let chunk = Some(pb::Chunk { index: 1, last: true, payload: b"good".as_slice().into() });
            let answer = Some(pb::dispatch_reply::Answer::Rows(pb::AnswerRows { head: None, chunk }));
            pb::DispatchReply { sequence, answer, seal: 0 }
        },
    ];
    for answer in rubbish {
        let result = result_of(answer);
        assert!(matches!(result, Err(ExchangeError::NodeGone { .. })), "{result:?}");
    }
}

#[test]
fn a_node_ends_a_stream_whose_chunks_are_mixed_up() {
    let server = GrpcNode::start(std::sync::Arc::new(TestNode::holding([0])), profile(), "127.0.0.1:0");
    let headless = seal_request(pb::DispatchRequest { sequence: 1, head: None, chunk: None, seal: 0 });
    let ended = runtime().block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.addr)).expect("an address");
        let mut client = ExpertsClient::new(endpoint.connect().await.expect("a node"));
        let requests = stream::iter([headless]).chain(stream::pending());
        client.exchange(requests).await.expect("a stream").into_inner().message().await
    });
    assert_eq!(ended.expect_err("a reason").code(), Code::InvalidArgument);
}
