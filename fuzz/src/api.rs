//! The API's bodies: they go through all routes that take one, to a real front door of the demo model. What stands in for the engine's loop
//! answers each request that was found valid with tokens of its own prompt, so that answers are written too.

use std::sync::Arc;
use std::thread;

use axum::Router;
use axum::body::{Body, to_bytes};
use http::{Request, StatusCode, header};
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tramontane_cluster::engine::{
    EngineInbox, EngineInfo, EventSender, FinishReason, Generation, ReaderGone, Submission, Task, Token, Usage,
    in_process,
};
use tramontane_gateway::frontdoor::{FrontDoor, Limits, ModelCard, ServedModel};
use tramontane_gateway::http::{Console, Gateway, Pages, routes};
use tramontane_gateway::metering::Meter;
use tramontane_model::chat::ChatTemplate;
use tramontane_model::checkpoint::Checkpoint;
use tramontane_model::config::ModelConfig;
use tramontane_model::tokenizer::Tokenizer;

const ROUTES: [&str; 6] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize", "/v1/fim/completions"];
/// Tokens that an answer has, at most.
const ANSWER: usize = 12;
/// Largest answer, in bytes: log-probabilities of every token, for every choice.
const MAX_ANSWER: usize = 64 << 20;

thread_local! {
    static DOOR: (Runtime, Router) = open();
}

fn open() -> (Runtime, Router) {
    let config = ModelConfig::from_json(super::CONFIG, "config.json").expect("the demo model's configuration");
    let tokenizer = Tokenizer::from_json(super::TOKENIZER).expect("its tokenizer");
    let files = [("tokenizer_config.json", super::TOKENIZER_CONFIG), ("model.safetensors", &EMPTY)];
    let source = Checkpoint::from_files(&files).expect("a checkpoint").chat_template().expect("its template");
    let chat = source.map(|source| ChatTemplate::compile(&source).expect("it compiles"));
    let info = EngineInfo {
        model: "breeze".into(),
        context: config.context,
        vocab: config.vocab,
        fingerprint: "fp_of_nothing".to_owned(),
    };
    let model = ServedModel::new(&info, config.eos.clone(), ModelCard::default());
    let (engine, inbox) = in_process(info, 64);
    thread::spawn(move || answer(&inbox));
    let gateway = Gateway::new(Meter::open());
    gateway.open(Arc::new(FrontDoor::new(Arc::new(engine), tokenizer, chat, model, Limits::default())));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    (runtime, routes(&gateway, Console::Served, Pages::OfThisMachine))
}

/// A safetensors file of no tensors.
static EMPTY: [u8; 10] = *b"\x02\0\0\0\0\0\0\0{}";

fn answer(inbox: &EngineInbox) {
    while let Some(Submission { request, events }) = inbox.recv() {
        for (choice, sender) in events.into_iter().enumerate() {
            // A reader that has gone wants nothing more.
            _ = match &request.task {
                Task::Embed => embed(sender),
                Task::Generate(generation) => generate(sender, &request.prompt, generation, choice == 0),
            };
        }
    }
}

fn embed(mut sender: EventSender) -> Result<(), ReaderGone> {
    sender.send_embedding(vec![0.5; 4])?;
    sender.finish(FinishReason::Embedded, Usage::default());
    Ok(())
}

fn generate(mut sender: EventSender, prompt: &[u32], how: &Generation, first: bool) -> Result<(), ReaderGone> {
    let token = |id: u32, top: Option<u32>| {
        let top = (0..top.unwrap_or(0)).map(|other| (other, -1.0 - other as f32)).collect();
        Token { id, logprob: -0.5, top }
    };
    sender.start(0)?;
    if how.prompt_logprobs.is_some() && first {
        let rest = prompt.iter().skip(1).map(|&id| Some(token(id, how.prompt_logprobs)));
        sender.send_prompt(std::iter::once(None).chain(rest).collect())?;
    }
    for &id in prompt.iter().rev().take(how.max_tokens.min(ANSWER)) {
        sender.send(token(id, how.logprobs))?;
    }
    sender.finish(FinishReason::Length, Usage::default());
    Ok(())
}

/// `data` is a body, behind a byte that says where it goes.
pub(super) fn request(data: &[u8]) {
    let Some((&route, body)) = data.split_first() else { return };
    let route = ROUTES[usize::from(route) % ROUTES.len()];
    DOOR.with(|(runtime, door)| {
        let request = Request::post(route).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body.to_vec())).expect("a request");
        let (status, answer) = runtime.block_on(async {
            let Ok(answer) = door.clone().oneshot(request).await;
            let status = answer.status();
            (status, to_bytes(answer.into_body(), MAX_ANSWER).await.expect("an answer within its bound"))
        });
        assert!(status != StatusCode::INTERNAL_SERVER_ERROR, "{}", String::from_utf8_lossy(&answer));
        assert!(!answer.is_empty() || status == StatusCode::OK, "a refusal without words");
    });
}
