//! More than is taken, and a server that leaves: refused at once, with a code and when to ask again. Readers that do not read.

use std::time::Duration;

use tokio::task::JoinSet;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use tramontane_proto::v1::inference_client::InferenceClient;
use tramontane_proto::v1::{AnswerPiece, GenerationParameters};

use super::serving::Serving;
use super::{Answer, channel, generate, greedy, request, with};

/// Choices of a call: as many as run at once.
const MANY: i64 = 64;
/// Calls that are surely more than run and wait.
const FLOOD: usize = 32;

/// Takes a while.
fn long() -> GenerationParameters {
    GenerationParameters { ignore_eos: Some(true), ..greedy(900) }
}

/// The refusal's reason, and after how long to ask again.
fn told(status: &Status) -> (String, Duration) {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    (reason, delay.unwrap_or_else(|| panic!("nothing about when to ask again: {status}")))
}

async fn first(stream: &mut Streaming<AnswerPiece>) -> Result<(), Status> {
    stream.message().await.map(|piece| assert!(piece.is_some(), "a stream does not end without a word"))
}

#[test]
fn over_the_bound_a_call_is_refused_while_others_still_wait() {
    with(&[], async |serving| {
        let client = InferenceClient::new(channel(serving).await);
        let mut calls = JoinSet::new();
        for _ in 0..FLOOD {
            let mut client = client.clone();
            calls.spawn(async move {
                let asked = request("Once", GenerationParameters { n: Some(MANY), ..long() });
                let mut stream = client.generate(asked).await?.into_inner();
                first(&mut stream).await?;
                Ok::<_, Status>(stream)
            });
        }
        let (mut streams, mut refused) = (Vec::new(), None);
        while refused.is_none() {
            match calls.join_next().await.expect("more than there are places").expect("no panic") {
                Ok(stream) => streams.push(stream),
                Err(status) => refused = Some(status),
            }
        }
        let refused = refused.expect("a status");
        // Whoever came before is still waiting for a place.
        while serving.engine()["waiting"].as_u64().is_none_or(|waiting| waiting == 0) {
            tokio::task::yield_now().await;
        }
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        let (reason, delay) = told(&refused);
        assert_eq!(reason, "overloaded");
        assert!((1..=60).contains(&delay.as_secs()), "{delay:?}");
        drop((calls, streams));
        until_idle(serving).await;
        let mut client = client;
        assert_eq!(generate(&mut client, request("x", greedy(4))).await.expect("it goes on").ends, 1);
    });
}

#[test]
fn a_server_that_leaves_finishes_its_streams_and_refuses_new_calls() {
    with(&[], async |serving| {
        let channel = channel(serving).await;
        let mut client = InferenceClient::new(channel.clone());
        let mut running = client.generate(request("Once", long())).await.expect("a stream").into_inner();
        first(&mut running).await.expect("a piece");
        serving.signal("TERM");
        let mut health = HealthClient::new(channel);
        loop {
            let service = HealthCheckRequest { service: "tramontane.v1.Inference".into() };
            let status = health.check(service).await.expect("health answers while streams run").into_inner().status();
            if status == ServingStatus::NotServing {
                break;
            }
            tokio::task::yield_now().await;
        }
        let refused = loop {
            // Health is told first, the engine next.
            match generate(&mut client, request("x", greedy(1))).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(status) => break status,
            }
        };
        assert_eq!((refused.code(), told(&refused).0.as_str()), (Code::Unavailable, "draining"), "{refused}");
        let mut answer = Answer::default();
        while let Some(piece) = running.message().await.expect("it is finished") {
            answer.take(piece);
        }
        assert_eq!(answer.usage.expect("usage comes last").completion_tokens, 900);
    });
}

async fn until_idle(serving: &Serving) {
    while !serving.is_idle() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A reader may take its time with what is there: the engine is done with it, and others on its connection are not held up.
#[test]
fn a_reader_that_does_not_read_holds_up_nobody_not_even_the_engine() {
    with(&[], async |serving| {
        let addr = serving.grpc().expect("it serves gRPC");
        // So little may come unasked that almost all of the answer waits at the server.
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address");
        let channel = endpoint.initial_stream_window_size(Some(16 << 10)).connect().await.expect("it listens");
        let mut client = InferenceClient::new(channel);
        let asked = GenerationParameters { top_logprobs: Some(20), ..long() };
        let mut unread = client.generate(request("Once", asked)).await.expect("a stream").into_inner();
        until_idle(serving).await;
        assert_eq!(generate(&mut client, request("x", greedy(4))).await.expect("an answer").ends, 1);
        let mut answer = Answer::default();
        while let Some(piece) = unread.message().await.expect("all of it is kept") {
            answer.take(piece);
        }
        assert_eq!((answer.tokens.len(), answer.ends), (900, 1));
    });
}
