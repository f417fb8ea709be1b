//! Engines that die, or fall silent, behind a wire; and what no front door may say.

use std::time::{Duration, Instant};

use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tramontane_cluster::engine::grpc::GrpcEngine;
use tramontane_cluster::engine::{EngineError, Event, Phase, ValidRequest};
use tramontane_cluster::tls::Security;
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::engine_client::EngineClient;

use crate::harness::{Harness, of_choices, request, rest, runtime, token};

#[test]
fn an_engine_that_dies_has_stopped() {
    let mut harness = Harness::grpc();
    let streams = harness.submit(of_choices(2));
    let mut senders = harness.submission().events;
    senders[1].send(token(4)).expect("a reader");
    let mut streams = streams.into_iter().rev();
    let mut second = streams.next().expect("a choice");
    assert_eq!(second.blocking_next(), Some(Event::Token(token(4))));
    harness.server.take().expect("a server").kill();
    let stopped = [Event::Failed(EngineError::Stopped)];
    assert_eq!(rest(second), stopped);
    assert_eq!(streams.flat_map(rest).collect::<Vec<_>>(), stopped);
    harness.status_when(|status| status.phase == Phase::Stopped);
    assert_eq!(harness.engine.submit(request(1)).err(), Some(EngineError::Stopped));
    assert!(senders.iter().all(|events| events.is_closed()), "nobody computes for a wire that is cut");
}

#[test]
fn where_no_engine_is_there_is_an_address_and_a_reason() {
    let unreachable =
        runtime().block_on(GrpcEngine::connect("127.0.0.1:1", &Security::Plaintext)).expect_err("nobody listens");
    assert!(unreachable.to_string().contains("no engine at 127.0.0.1:1: "), "{unreachable}");
}

#[test]
fn an_engine_that_has_stopped_is_not_connected_to() {
    let mut harness = Harness::grpc();
    harness.inbox.take();
    harness.status_when(|status| status.phase == Phase::Stopped);
    let addr = &harness.server.as_ref().expect("a server").addr;
    let unreachable = runtime().block_on(GrpcEngine::connect(addr, &Security::Plaintext)).expect_err("it has stopped");
    assert!(unreachable.to_string().contains("it has stopped"), "{unreachable}");
}

#[test]
fn a_deadline_ends_what_the_engine_does_not() {
    let harness = Harness::grpc();
    let deadline = Some(Instant::now() + Duration::from_millis(50));
    let streams = harness.submit(ValidRequest { deadline, ..of_choices(2) });
    let submission = harness.submission();
    for stream in streams {
        assert_eq!(rest(stream), [Event::Failed(EngineError::DeadlineExceeded)]);
    }
    submission.events.iter().for_each(crate::harness::until_closed);
}

#[test]
fn one_connection_bears_any_number_of_cancelled_requests() {
    let harness = Harness::grpc();
    for id in 0..3000 {
        let streams = harness.submit(request(id));
        let mut events = harness.submission().events.remove(0);
        events.send(token(1)).expect("a reader");
        drop(streams);
        // What it still says is on its way when nobody wants it any more.
        while events.send(token(2)).is_ok() {
            std::thread::yield_now();
        }
    }
    assert_eq!(harness.engine.status().phase, Phase::Ready);
}

#[test]
fn what_no_front_door_may_say_is_refused() {
    let harness = Harness::grpc();
    let addr = harness.server.as_ref().expect("a server").addr.clone();
    let runtime = runtime();
    runtime.block_on(async {
        let mut client = EngineClient::new(channel(addr).await);
        let senseless = pb::EngineRequest { prompt: vec![1], ..pb::EngineRequest::default() };
        for first in [None, Some(pb::engine_input::Input::Cancel(0)), Some(pb::engine_input::Input::Request(senseless))]
        {
            let said = futures::stream::iter([pb::EngineInput { input: first }]);
            let refused = client.run(said).await.expect_err("refused");
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        }
        let nothing = client.run(futures::stream::empty()).await.expect_err("refused");
        assert_eq!(nothing.code(), Code::InvalidArgument);
    });
    assert!(harness.inbox.as_ref().expect("the loop").try_recv().is_none(), "nothing of it reached the engine");
}

async fn channel(addr: String) -> Channel {
    Endpoint::from_shared(format!("http://{addr}")).expect("an address").connect().await.expect("it listens")
}
