//! Coordinators that do not keep to the control stream's protocol: the node ends the stream, and serves on.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::iter;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::communicate_reply::Step as Reply;
use tramontane_proto::v1::communicate_request::Step as Request;
use tramontane_proto::v1::experts_client::ExpertsClient;

use super::stand_in::{Build, inside};
use crate::harness::{GrpcNode, LONG, runtime};
use crate::node::{TestNode, profile};

async fn client(server: &GrpcNode) -> ExpertsClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addr)).expect("an address");
    ExpertsClient::new(endpoint.connect().await.expect("a node"))
}

/// What a node answers to these messages: its steps, and how the stream ends.
fn answer(steps: Vec<pb::CommunicateRequest>) -> (Vec<Reply>, Option<(Code, String)>) {
    let server = GrpcNode::start(Arc::new(TestNode::holding(0..8)), profile(), "127.0.0.1:0");
    let runtime = runtime();
    runtime.block_on(async {
        let mut replies = client(&server).await.communicate(iter(steps)).await.expect("a stream").into_inner();
        let mut said = Vec::new();
        loop {
            match replies.message().await {
                Ok(Some(message)) => said.push(message.step.expect("a step")),
                Ok(None) => return (said, None),
                Err(status) => return (said, Some((status.code(), status.message().to_owned()))),
            }
        }
    })
}

fn sealed(step: Request) -> pb::CommunicateRequest {
    let mut message = pb::CommunicateRequest { step: Some(step), seal: 0 };
    message.seal = crc32fast::hash(&prost::Message::encode_to_vec(&message));
    message
}

fn offer() -> pb::CommunicateRequest {
    sealed(Request::Offer(pb::CommunicatorOffer { generation: 5 }))
}

/// Communicators that nobody else joins: the folders in which their ranks would meet.
#[derive(Default)]
struct Lonely(Vec<TempDir>);

impl Lonely {
    fn join(&mut self) -> pb::CommunicateRequest {
        let folder = tempfile::tempdir().expect("a folder");
        let mut id = folder.path().as_os_str().as_encoded_bytes().to_vec();
        id.resize(128, 0);
        self.0.push(folder);
        sealed(Request::Join(pb::CommunicatorJoin { id: id.into(), rank: 1, ranks: 2 }))
    }
}

fn rows(sequence: u64, bytes: u64) -> pb::CommunicateRequest {
    let head = Some(pb::DispatchHead::default());
    sealed(Request::Rows(pb::RowsComing { sequence, head, bytes, sum: 0 }))
}

#[test]
fn a_node_believes_nobody() {
    inside("nccl::protocol::a_node_believes_nobody", Build::Whole, "", || {
        let mut torn = offer();
        torn.seal ^= 1;
        let seat =
            |rank, ranks, bytes| sealed(Request::Join(pb::CommunicatorJoin { id: vec![0; bytes].into(), rank, ranks }));
        let mut lonely = Lonely::default();
        let mut join = || lonely.join();
        let headless = sealed(Request::Rows(pb::RowsComing { sequence: 1, head: None, bytes: 4, sum: 0 }));
        let cases = [
            (vec![join()], "an offer comes first"),
            (vec![torn], "damaged on the way"),
            (vec![pb::CommunicateRequest::default()], "step is missing"),
            (vec![offer(), offer()], "a seat comes second"),
            (vec![offer(), seat(0, 2, 128)], "rank 0 of 2"),
            (vec![offer(), seat(2, 2, 128)], "rank 2 of 2"),
            (vec![offer(), seat(1, 2, 127)], "an id of 127 bytes"),
            (vec![offer(), join(), offer()], "a second beginning"),
            (vec![offer(), join(), sealed(Request::Fetch(1))], "dispatch 1 has no answer here"),
            (vec![offer(), join(), headless], "head is missing"),
            (vec![offer(), join(), rows(1, 0)], "a payload of 0 bytes"),
            (vec![offer(), join(), rows(1, 1 << 40)], "a payload of 1099511627776 bytes"),
            (vec![offer(), join(), rows(1, 4), rows(1, 4)], "dispatch 1 comes twice"),
        ];
        for (steps, why) in cases {
            let (said, ended) = answer(steps);
            let (code, message) = ended.expect("an error");
            assert!(code == Code::InvalidArgument && message.contains(why), "{code:?} {message:?}, not {why:?}");
            assert!(said.iter().all(|step| matches!(step, Reply::Able(5))), "{said:?}");
        }
    });
}

#[test]
fn more_dispatches_than_may_be_in_flight_end_the_stream() {
    inside("nccl::protocol::more_dispatches_than_may_be_in_flight_end_the_stream", Build::Whole, "", || {
        let mut lonely = Lonely::default();
        let many = (0..1000).map(|sequence| rows(sequence, 4));
        let (_, ended) = answer([offer(), lonely.join()].into_iter().chain(many).collect());
        let (code, message) = ended.expect("an error");
        assert!(code == Code::ResourceExhausted && message.contains("too many dispatches"), "{code:?} {message}");
    });
}

#[test]
fn a_node_is_in_so_many_communicators_and_no_more() {
    inside("nccl::protocol::a_node_is_in_so_many_communicators_and_no_more", Build::Whole, "", || {
        let server = GrpcNode::start(Arc::new(TestNode::holding(0..8)), profile(), "127.0.0.1:0");
        runtime().block_on(async {
            let client = client(&server).await;
            // The stream lasts as long as what sends into it.
            let open = async || {
                let (requests, requested) = mpsc::channel(1);
                client.clone().communicate(ReceiverStream::new(requested)).await.map(|replies| (requests, replies))
            };
            let mut seats = Vec::new();
            let refused = loop {
                match open().await {
                    Ok(seat) => seats.push(seat),
                    Err(status) => break status,
                }
            };
            assert_eq!((seats.len(), refused.code()), (64, Code::ResourceExhausted), "{refused:?}");
            // A seat is free as soon as the node has seen its stream end.
            seats.pop();
            let again = async { while open().await.is_err() {} };
            timeout(LONG, again).await.expect("a seat that is free again");
        });
    });
}

#[test]
fn a_coordinator_that_thinks_better_of_it_ends_the_stream_in_peace() {
    let test = "nccl::protocol::a_coordinator_that_thinks_better_of_it_ends_the_stream_in_peace";
    inside(test, Build::Whole, "", || {
        assert_eq!(answer(vec![offer()]), (vec![Reply::Able(5)], None));
        let mut lonely = Lonely::default();
        assert_eq!(answer(vec![offer(), lonely.join()]), (vec![Reply::Able(5)], None));
    });
}

#[test]
fn a_node_without_a_gpu_says_so() {
    inside("nccl::protocol::a_node_without_a_gpu_says_so", Build::Whole, "nodevice@0=1", || {
        let (said, ended) = answer(vec![offer(), Lonely::default().join()]);
        let (code, message) = ended.expect("an error");
        assert!(said.is_empty() && code == Code::FailedPrecondition && message.contains("cuInit"), "{message}");
    });
}
