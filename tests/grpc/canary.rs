//! Prompts and keys stay between client and model over gRPC too.

use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tramontane_proto::v1::inference_client::InferenceClient;
use tramontane_proto::v1::{EmbedRequest, GenerateRequest, GenerationParameters, Input, TokenizeRequest, input};

use super::serving::Serving;
use super::{GRPC, channel, greedy, request};

const KEY: &str = "sk-canary-key-5b1f0c";
const WRONG: &str = "sk-canary-wrong-77aa";
/// In every prompt, and in no other text.
const PROMPT: &str = "zanzibarcanary";

fn with_key<T>(key: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().expect("printable"));
    request
}

async fn ask(client: &mut InferenceClient<Channel>, key: &str, asked: GenerateRequest) -> Code {
    let outcome = async {
        let mut stream = client.generate(with_key(key, asked)).await?.into_inner();
        while stream.message().await?.is_some() {}
        Ok::<(), tonic::Status>(())
    };
    let Err(status) = outcome.await else { return Code::Ok };
    for secret in [KEY, WRONG, PROMPT] {
        assert!(!format!("{status:?}").contains(secret), "{status:?}");
    }
    status.code()
}

#[test]
fn prompts_and_keys_are_in_no_log_and_no_status() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, format!("alice:{KEY}\n")).expect("the file of keys");
    let file = file.to_str().expect("a path in UTF-8");
    let serving = Serving::start_logging_all(&[&GRPC[..], &["--api-keys-file", file]].concat());
    Runtime::new().expect("a runtime").block_on(async {
        let mut client = InferenceClient::new(channel(&serving).await);
        assert_eq!(ask(&mut client, KEY, request(PROMPT, greedy(2))).await, Code::Ok);
        assert_eq!(ask(&mut client, WRONG, request(PROMPT, greedy(2))).await, Code::Unauthenticated);
        let none = GenerationParameters { n: Some(0), ..greedy(2) };
        assert_eq!(ask(&mut client, KEY, request(PROMPT, none)).await, Code::InvalidArgument);
        assert_eq!(ask(&mut client, KEY, request(PROMPT, greedy(5000))).await, Code::InvalidArgument);
        let inputs = vec![Input { input: Some(input::Input::Text(PROMPT.into())) }];
        let embed = EmbedRequest { inputs, ..EmbedRequest::default() };
        assert!(client.embed(with_key(KEY, embed)).await.is_ok());
        let tokenize = TokenizeRequest { text: Some(PROMPT.into()), ..TokenizeRequest::default() };
        assert!(client.tokenize(with_key(KEY, tokenize)).await.is_ok());
    });
    serving.signal("TERM");
    let outcome = serving.outcome();
    let said = outcome.stdout + &outcome.stderr;
    assert!(said.contains("INFO"), "nothing was logged: {said}");
    for secret in [KEY, WRONG, PROMPT] {
        let line = said.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
