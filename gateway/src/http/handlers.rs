//! The routes' work: read the body, let the core decide, write the answer.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use tramontane_cluster::engine::{EngineStatus, Phase};
use tramontane_model::tokenizer::Special;
use utoipa::ToSchema;

use super::answer::completions::Shows;
use super::answer::{self, UsageBody};
use super::request::{ChatBody, CompletionBody, DetokenizeBody, EmbeddingBody, EncodingFormat, Source, TokenizeBody};
use super::{Gateway, body};
use crate::error::ApiError;
use crate::frontdoor::{Caller, FrontDoor, aside};

type Shared = State<Arc<Gateway>>;

/// Goes on with a conversation.
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatBody, responses(
    (status = 200, description = "The answer; with `stream`, chunks as server-sent events", body = answer::chat::ChatCompletion),
    (status = 429, description = "The key has had its requests or tokens of this minute (`rate_limit_exceeded`) or month (`insufficient_quota`); `retry-after` says when to ask again", body = super::reply::ErrorBody),
    (status = "default", description = "What went wrong", body = super::reply::ErrorBody)))]
pub(super) async fn chat(
    State(gateway): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let front = gateway.front()?.clone();
    let body: ChatBody = body::read(&headers, body).await?;
    front.check_model(body.model())?;
    let manner = body.manner()?;
    let (job, logprobs) = aside(move || {
        let request = body.into_request()?;
        let logprobs = request.parameters.logprobs.is_some();
        Ok((front.chat(request, &caller)?, logprobs))
    })
    .await?;
    let prompt = job.prompts().first().cloned().unwrap_or_default();
    let writer = answer::chat::Writer::new(job.front(), manner, logprobs, prompt, job.n());
    job.shown().answers(writer.id(), manner.stream);
    let answer = job.start()?;
    if manner.stream {
        return answer::stream(answer, manner, writer).await;
    }
    let (choices, usage) = answer.whole().await?;
    Ok(Json(writer.whole(choices, usage)).into_response())
}

/// Goes on with texts.
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionBody, responses(
    (status = 200, description = "The completion; with `stream`, chunks as server-sent events", body = answer::completions::Completion),
    (status = 429, description = "The key has had its requests or tokens of this minute (`rate_limit_exceeded`) or month (`insufficient_quota`); `retry-after` says when to ask again", body = super::reply::ErrorBody),
    (status = "default", description = "What went wrong", body = super::reply::ErrorBody)))]
pub(super) async fn completions(
    State(gateway): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let front = gateway.front()?.clone();
    let body: CompletionBody = body::read(&headers, body).await?;
    front.check_model(body.model())?;
    let manner = body.manner()?;
    let (job, writer) = aside(move || {
        let request = body.into_request()?;
        let shows = Shows {
            echo: request.echo,
            logprobs: request.parameters.logprobs.is_some(),
            prompt_logprobs: request.parameters.prompt_logprobs.is_some(),
        };
        if manner.stream && shows.echo && shows.logprobs && request.parameters.n.unwrap_or(1) > 1 {
            return Err(ApiError::param("echo", "`echo` with `logprobs` of several choices is not streamed"));
        }
        let job = front.completion(request, &caller)?;
        let writer = answer::completions::Writer::new(job.front(), manner, shows, job.prompts(), job.n())?;
        Ok((job, writer))
    })
    .await?;
    job.shown().answers(writer.id(), manner.stream);
    let answer = job.start()?;
    if manner.stream {
        return answer::stream(answer, manner, writer).await;
    }
    let (choices, usage) = answer.whole().await?;
    Ok(Json(writer.whole(choices, usage)?).into_response())
}

/// Mistral's fill-in-the-middle, which the served models do not know.
#[utoipa::path(post, path = "/v1/fim/completions", responses(
    (status = 400, description = "The model does not fill in the middle", body = super::reply::ErrorBody)))]
pub(super) async fn fill_in_the_middle() -> ApiError {
    ApiError::param("model", "the model does not fill in the middle")
}

/// Embeddings.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Embeddings {
    id: String,
    object: &'static str,
    model: String,
    data: Vec<Embedding>,
    usage: UsageBody,
}

/// A text's embedding.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

/// A vector, of length one.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Embeds texts: the mean of the last hidden states, as a vector of length one.
#[utoipa::path(post, path = "/v1/embeddings", request_body = EmbeddingBody, responses(
    (status = 200, description = "The embeddings", body = Embeddings),
    (status = 429, description = "The key has had its requests or tokens of this minute (`rate_limit_exceeded`) or month (`insufficient_quota`); `retry-after` says when to ask again", body = super::reply::ErrorBody),
    (status = "default", description = "What went wrong", body = super::reply::ErrorBody)))]
pub(super) async fn embeddings(
    State(gateway): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Embeddings>, ApiError> {
    let front = gateway.front()?.clone();
    let body: EmbeddingBody = body::read(&headers, body).await?;
    front.check_model(body.model())?;
    let model = front.model().id().to_owned();
    let (job, format) = aside(move || {
        let request = body.into_request()?;
        Ok((front.embedding(&request.inputs, request.truncate, &caller)?, request.format))
    })
    .await?;
    let (vectors, usage) = job.run().await?;
    let data = vectors.into_iter().enumerate().map(|(index, vector)| {
        let embedding = match format {
            EncodingFormat::Float => Vector::Float(vector),
            EncodingFormat::Base64 => {
                Vector::Base64(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()))
            }
        };
        Embedding { object: "embedding", index, embedding }
    });
    let id = format!("embd-{}", crate::frontdoor::alphanumeric(29));
    Ok(Json(Embeddings { id, object: "list", model, data: data.collect(), usage: usage.into() }))
}

/// Token ids.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Tokens {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_strs: Option<Vec<String>>,
}

/// The token ids of a text or a conversation.
#[utoipa::path(post, path = "/tokenize", request_body = TokenizeBody, responses(
    (status = 200, description = "The ids", body = Tokens),
    (status = "default", description = "What went wrong", body = super::reply::ErrorBody)))]
pub(super) async fn tokenize(State(gateway): Shared, headers: HeaderMap, body: Body) -> Result<Json<Tokens>, ApiError> {
    let front = gateway.front()?.clone();
    let body: TokenizeBody = body::read(&headers, body).await?;
    front.check_model(body.model())?;
    aside(move || {
        let names = body.wants_names();
        let tokens = match body.into_source()? {
            Source::Text { text, special } => {
                let special = if special { Special::Add } else { Special::None };
                front.tokenizer().encode(&text, special)?
            }
            Source::Chat(request) => front.conversation(&request)?,
        };
        let name = |&id: &u32| front.tokenizer().id_to_token(id).unwrap_or_default();
        let token_strs = names.then(|| tokens.iter().map(name).collect());
        Ok(Json(Tokens { count: tokens.len(), max_model_len: front.model().context, tokens, token_strs }))
    })
    .await
}

/// A text.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Text {
    prompt: String,
}

/// The text of token ids, control tokens left out.
#[utoipa::path(post, path = "/detokenize", request_body = DetokenizeBody, responses(
    (status = 200, description = "The text", body = Text),
    (status = "default", description = "What went wrong", body = super::reply::ErrorBody)))]
pub(super) async fn detokenize(State(gateway): Shared, headers: HeaderMap, body: Body) -> Result<Json<Text>, ApiError> {
    let front = gateway.front()?.clone();
    let body: DetokenizeBody = body::read(&headers, body).await?;
    front.check_model(body.model.as_deref())?;
    aside(move || Ok(Json(Text { prompt: front.text_of("tokens", &body.tokens)? }))).await
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelBody {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    max_model_len: usize,
    max_context_length: usize,
    /// Which weights these are: the root of the hashes of all tensors, as `blake3:` and hex digits.
    hash: String,
    quantization: String,
    license: Option<String>,
    /// Mistral's client wants to know.
    capabilities: Capabilities,
    #[serde(rename = "type")]
    kind: &'static str,
}

/// What a model can do, in Mistral's words.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Capabilities {
    completion_chat: bool,
    completion_fim: bool,
    function_calling: bool,
    fine_tuning: bool,
    vision: bool,
}

/// The models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Models {
    object: &'static str,
    data: Vec<ModelBody>,
}

fn model_body(front: &FrontDoor) -> ModelBody {
    let model = front.model();
    let chat = front.can_chat();
    ModelBody {
        id: model.id().to_owned(),
        object: "model",
        created: model.card.created,
        owned_by: "tramontane",
        root: model.id().to_owned(),
        max_model_len: model.context,
        max_context_length: model.context,
        hash: model.named_hash(),
        quantization: model.card.quantization.clone(),
        license: model.card.license.clone(),
        capabilities: Capabilities {
            completion_chat: chat,
            completion_fim: false,
            function_calling: chat,
            fine_tuning: false,
            vision: false,
        },
        kind: "base",
    }
}

/// The models that are served, and that the key may ask.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, description = "The models", body = Models)))]
pub(super) async fn models(
    State(gateway): Shared,
    Extension(caller): Extension<Caller>,
) -> Result<Json<Models>, ApiError> {
    let served = std::iter::once(gateway.front()?).filter(|front| caller.account.may_ask(front.model().id()));
    Ok(Json(Models { object: "list", data: served.map(|front| model_body(front)).collect() }))
}

/// One model.
#[utoipa::path(get, path = "/v1/models/{id}", params(("id" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The model", body = ModelBody),
    (status = 404, description = "There is no such model", body = super::reply::ErrorBody)))]
pub(super) async fn model(State(gateway): Shared, Path(id): Path<String>) -> Result<Json<ModelBody>, ApiError> {
    let front = gateway.front()?;
    front.check_model(Some(&id))?;
    Ok(Json(model_body(front)))
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", responses((status = 200, description = "It does")))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether requests are answered now.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "They are"),
    (status = 503, description = "The model is being loaded, or the engine drains or has stopped")))]
pub(super) async fn readyz(State(gateway): Shared) -> (StatusCode, &'static str) {
    match gateway.front().map(|front| front.engine_status().phase) {
        Ok(Phase::Ready) => (StatusCode::OK, "ready\n"),
        Ok(Phase::Draining) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        Ok(Phase::Stopped) => (StatusCode::SERVICE_UNAVAILABLE, "the engine has stopped\n"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
    }
}

/// What this is, and how it fares.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Version {
    name: &'static str,
    version: &'static str,
    /// `null` while the model is being loaded.
    engine: Option<EngineBody>,
}

/// How the engine fares, as of its last step.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EngineBody {
    /// Sequences that hold KV blocks.
    running: usize,
    /// Sequences that wait.
    waiting: usize,
    /// KV blocks that sequences hold; those that only the prefix cache keeps are free.
    kv_used: usize,
    /// KV blocks there are.
    kv_total: usize,
    /// Sequences that have lost their blocks to older ones, since the start.
    preemptions: u64,
    /// Prompt tokens looked up in the prefix cache, since the start.
    prefix_queries: u64,
    /// Prompt tokens found there, since the start.
    prefix_hits: u64,
    /// Tokens generated, since the start.
    generated: u64,
}

impl From<EngineStatus> for EngineBody {
    fn from(status: EngineStatus) -> Self {
        let EngineStatus { phase: _, running, waiting, kv_used, kv_total, .. } = status;
        let EngineStatus { preemptions, prefix_queries, prefix_hits, generated, .. } = status;
        Self { running, waiting, kv_used, kv_total, preemptions, prefix_queries, prefix_hits, generated }
    }
}

/// What this is, and how it fares. Not among the probes: how much others ask is for those with a key.
#[utoipa::path(get, path = "/version", responses((status = 200, description = "Name, version and load", body = Version)))]
pub(super) async fn version(State(gateway): Shared) -> Json<Version> {
    let engine = gateway.front().ok().map(|front| front.engine_status().into());
    Json(Version { name: "tramontane", version: env!("CARGO_PKG_VERSION"), engine })
}
