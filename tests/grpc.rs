//! The binary as gRPC clients meet it: the same answers as over HTTP, errors with codes and details, cancelling, health; what happens
//! when there is too much of anything.

#[path = "grpc/bounds.rs"]
mod bounds;
#[path = "grpc/canary.rs"]
mod canary;
#[path = "http/http2.rs"]
mod http2;
#[path = "grpc/overload.rs"]
mod overload;
#[path = "processes/run.rs"]
mod run;
#[path = "support/serving.rs"]
mod serving;

use std::time::Duration;

use serde_json::json;
use serving::{Serving, WATCHDOG};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;
use tramontane_proto::v1::answer_piece::Piece;
use tramontane_proto::v1::inference_client::InferenceClient;
use tramontane_proto::v1::{
    AnswerPiece, ChatMessage, ChatRequest, EmbedRequest, GenerateRequest, GenerationParameters, Input, ModelsRequest,
    TokenUsage, input,
};

/// How a server is started that speaks gRPC too.
const GRPC: [&str; 2] = ["--grpc", "127.0.0.1:0"];

/// What came of a stream.
#[derive(Debug, Default, PartialEq)]
struct Answer {
    text: String,
    tokens: Vec<u32>,
    ends: usize,
    usage: Option<TokenUsage>,
}

impl Answer {
    fn take(&mut self, piece: AnswerPiece) {
        match piece.piece {
            Some(Piece::Text(text)) => {
                self.text.push_str(&text.text);
                self.tokens.extend(text.tokens.iter().map(|token| token.id));
            }
            Some(Piece::End(_)) => self.ends += 1,
            Some(Piece::Usage(usage)) => self.usage = Some(usage),
            other => panic!("{other:?}"),
        }
    }
}

fn request(prompt: &str, parameters: GenerationParameters) -> GenerateRequest {
    let prompt = Some(Input { input: Some(input::Input::Text(prompt.to_owned())) });
    GenerateRequest { model: None, prompt, parameters: Some(parameters) }
}

fn greedy(max_tokens: i64) -> GenerationParameters {
    GenerationParameters { max_tokens: Some(max_tokens), temperature: Some(0.0), ..GenerationParameters::default() }
}

async fn channel(serving: &Serving) -> Channel {
    let addr = serving.grpc().expect("it serves gRPC");
    Channel::from_shared(format!("http://{addr}")).expect("an address").connect().await.expect("it listens")
}

async fn generate(client: &mut InferenceClient<Channel>, request: GenerateRequest) -> Result<Answer, Status> {
    let mut stream = client.generate(request).await?.into_inner();
    let mut answer = Answer::default();
    while let Some(piece) = stream.message().await? {
        answer.take(piece);
    }
    Ok(answer)
}

/// Runs `test` against a server, with an end to its patience.
fn with(args: &[&str], test: impl AsyncFnOnce(&Serving)) {
    let serving = Serving::start(&[&GRPC, args].concat());
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async { timeout(WATCHDOG, test(&serving)).await.expect("it answers in time") });
}

#[test]
fn grpc_answers_as_http_does() {
    with(&[], async |serving| {
        let http = serving
            .ask("/v1/completions", &json!({"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}));
        let mut client = InferenceClient::new(channel(serving).await);
        let answer = generate(&mut client, request("The capital of France is", greedy(12))).await.expect("an answer");
        assert_eq!(json!(answer.text), http["choices"][0]["text"]);
        assert_eq!((answer.ends, answer.tokens.is_empty()), (1, false));
        let usage = answer.usage.expect("usage comes last");
        assert_eq!(json!(usage.completion_tokens), http["usage"]["completion_tokens"]);
        assert_eq!(json!(usage.prompt_tokens), http["usage"]["prompt_tokens"]);

        let question = "What is the capital of France?";
        let http = serving.ask(
            "/v1/chat/completions",
            &json!({"messages": [{"role": "user", "content": question}], "max_tokens": 12, "temperature": 0}),
        );
        let message = ChatMessage { role: "user".into(), content: question.into(), ..ChatMessage::default() };
        let asked = ChatRequest { messages: vec![message], parameters: Some(greedy(12)), ..ChatRequest::default() };
        let mut stream = client.chat(asked).await.expect("a stream").into_inner();
        let mut answer = Answer::default();
        while let Some(piece) = stream.message().await.expect("no failure") {
            answer.take(piece);
        }
        assert_eq!(json!(answer.text), http["choices"][0]["message"]["content"]);
    });
}

#[test]
fn grpc_lists_models_and_embeds() {
    with(&[], async |serving| {
        let mut client = InferenceClient::new(channel(serving).await);
        let models = client.models(ModelsRequest {}).await.expect("models").into_inner().models;
        assert_eq!(models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["breeze"]);
        let inputs = vec![Input { input: Some(input::Input::Text("Paris".into())) }];
        let http = serving.ask("/v1/embeddings", &json!({"input": "Paris"}));
        let reply =
            client.embed(EmbedRequest { inputs, ..EmbedRequest::default() }).await.expect("embeddings").into_inner();
        let expected: Vec<f32> = http["data"][0]["embedding"]
            .as_array()
            .expect("values")
            .iter()
            .map(|value| value.as_f64().expect("a number") as f32)
            .collect();
        assert_eq!(reply.embeddings[0].values, expected);
    });
}

#[test]
fn what_is_wrong_has_a_code_and_names_its_field_and_the_next_call_works() {
    with(&[], async |serving| {
        let mut client = InferenceClient::new(channel(serving).await);
        let none = GenerationParameters { n: Some(0), ..greedy(4) };
        let status = generate(&mut client, request("x", none)).await.expect_err("no choices");
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let details = status.get_details_bad_request().expect("what is bad about it");
        assert_eq!(details.field_violations[0].field, "n");
        let long = greedy(1 << 40);
        assert_eq!(
            generate(&mut client, request("x", long)).await.expect_err("too many").code(),
            Code::InvalidArgument
        );
        let empty = GenerateRequest { prompt: None, ..request("", greedy(4)) };
        assert_eq!(generate(&mut client, empty).await.expect_err("no prompt").code(), Code::InvalidArgument);
        let other = GenerateRequest { model: Some("other".into()), ..request("x", greedy(4)) };
        assert_eq!(generate(&mut client, other).await.expect_err("another model").code(), Code::NotFound);
        assert_eq!(generate(&mut client, request("x", greedy(4))).await.expect("it goes on").ends, 1);
    });
}

#[test]
fn a_cancelled_call_frees_its_sequence() {
    with(&[], async |serving| {
        let mut client = InferenceClient::new(channel(serving).await);
        let endless = GenerationParameters { ignore_eos: Some(true), ..greedy(900) };
        let mut stream = client.generate(request("Once", endless)).await.expect("a stream").into_inner();
        assert!(stream.message().await.expect("no failure").is_some());
        drop(stream);
        while !serving.is_idle() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn a_deadline_ends_the_call_in_the_engine_too() {
    with(&[], async |serving| {
        let mut client = InferenceClient::new(channel(serving).await);
        let mut asked = Request::new(request("Once", GenerationParameters { ignore_eos: Some(true), ..greedy(900) }));
        asked.set_timeout(Duration::from_millis(50));
        let outcome = async {
            let mut stream = client.generate(asked).await?.into_inner();
            while stream.message().await?.is_some() {}
            Ok::<(), Status>(())
        };
        let status = outcome.await.expect_err("900 tokens take longer");
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status}");
        while !serving.is_idle() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
fn keys_are_asked_for_but_not_by_health() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    let key = "a-key-of-some-length";
    std::fs::write(&file, format!("someone:{key}\n")).expect("written");
    with(&["--api-keys-file", file.to_str().expect("UTF-8")], async |serving| {
        let channel = channel(serving).await;
        let mut client = InferenceClient::new(channel.clone());
        let status = generate(&mut client, request("x", greedy(2))).await.expect_err("no key");
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        let mut asked = Request::new(ModelsRequest {});
        let bearer = format!("Bearer {key}").parse().expect("printable");
        asked.metadata_mut().insert("authorization", bearer);
        assert!(client.models(asked).await.is_ok());
        let service = HealthCheckRequest { service: "tramontane.v1.Inference".into() };
        let health = HealthClient::new(channel).check(service).await.expect("an answer").into_inner();
        assert_eq!(health.status(), ServingStatus::Serving);
    });
}

#[test]
fn a_connection_without_calls_does_not_keep_the_process() {
    let serving = Serving::start(&GRPC);
    let runtime = Runtime::new().expect("a runtime");
    let held = runtime.block_on(channel(&serving));
    serving.signal("TERM");
    assert_eq!(serving.outcome().code, Some(0));
    drop(held);
}

#[test]
fn without_the_flag_there_is_no_grpc() {
    assert_eq!(Serving::start(&[]).grpc(), None);
}
