//! The calls' work: who asks, let the core decide, write the answer.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::Stream;
use futures::stream;
use http::HeaderMap;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use tramontane_model::tokenizer::Special;
use tramontane_proto::v1;
use tramontane_proto::v1::inference_server::{Inference, SERVICE_NAME};

use super::read;
use super::write::{self, Logprobs};
use crate::error::ApiError;
use crate::frontdoor::{Answer, Caller, ChatRequest, FrontDoor, Job, aside};
use crate::http::{Counted, Gateway, request_id};
use crate::shown::Shown;

/// Methods whose calls have a span.
const TRACED: [&str; 3] = ["Generate", "Chat", "Embed"];
/// Most digits of a `grpc-timeout` (gRPC over HTTP/2, "TimeoutValue").
const MAX_TIMEOUT_DIGITS: usize = 8;

pub(super) struct Service(Arc<Gateway>);

type Pieces = Pin<Box<dyn Stream<Item = Result<v1::AnswerPiece, Status>> + Send>>;

impl Service {
    pub(super) fn new(gateway: Arc<Gateway>) -> Self {
        Self(gateway)
    }

    /// Counts a refusal, and words it.
    fn refused(&self, shown: &Shown, error: ApiError) -> Status {
        self.0.metrics().reject(error.names().reason());
        shown.fail(error.names().reason());
        shown.log().in_scope(|| error.into())
    }

    /// The front door, if it is open and the caller may come in, calling `method` and asking for its model.
    fn admit(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
        model: Option<&str>,
    ) -> Result<(Arc<FrontDoor>, Caller), Status> {
        let headers: &HeaderMap = metadata.as_ref();
        let shown = Shown::logged(request_id(headers).to_str().unwrap_or_default());
        let account = self.0.meter().authenticate(headers).map_err(|error| self.refused(&shown, error))?;
        let shown = if TRACED.contains(&method) { shown.over_grpc(SERVICE_NAME, method, headers) } else { shown };
        let front = self.0.front().and_then(|front| front.check_model(model).map(|()| front.clone()));
        let front = front.map_err(|error| self.refused(&shown, error))?;
        let timeout = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout);
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Ok((front, Caller { account, deadline, shown }))
    }

    fn pieces(&self, job: Job, logprobs: Logprobs, counted: Counted) -> Result<Response<Pieces>, Status> {
        let (front, shown) = (job.front().clone(), job.shown().clone());
        shown.streams(true);
        let answer = job.start().map_err(|error| self.refused(&shown, error))?;
        let state = Answering { answer: Some(answer), ready: VecDeque::new(), front, logprobs, _counted: counted };
        Ok(Response::new(Box::pin(stream::unfold(state, Answering::next))))
    }
}

/// An answer that is being written. Dropping it cancels it.
struct Answering {
    /// `None` after the last piece, or an error.
    answer: Option<Answer>,
    ready: VecDeque<v1::AnswerPiece>,
    front: Arc<FrontDoor>,
    logprobs: Logprobs,
    _counted: Counted,
}

impl Answering {
    async fn next(mut self) -> Option<(Result<v1::AnswerPiece, Status>, Self)> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some((Ok(piece), self));
            }
            let answer = self.answer.as_mut()?;
            match answer.next().await {
                Some(Ok(step)) => {
                    let piece = |piece| write::piece(&self.front, self.logprobs, step.choice, piece);
                    self.ready.extend(step.pieces.into_iter().filter_map(piece));
                }
                Some(Err(error)) => {
                    answer.failed_in_mid_stream(&error);
                    self.answer = None;
                    return Some((Err(error.into()), self));
                }
                None => {
                    self.ready.push_back(write::last(answer.usage()));
                    self.answer = None;
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Inference for Service {
    type GenerateStream = Pieces;
    type ChatStream = Pieces;

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Pieces>, Status> {
        let counted = Counted::new(&self.0);
        let (front, caller) = self.admit("Generate", request.metadata(), request.get_ref().model.as_deref())?;
        let shown = caller.shown.clone();
        let (job, logprobs) = aside(move || {
            let request = read::completion(request.into_inner())?;
            let logprobs = logprobs(request.parameters.logprobs.is_some());
            Ok((front.completion(request, &caller)?, logprobs))
        })
        .await
        .map_err(|error| self.refused(&shown, error))?;
        self.pieces(job, logprobs, counted)
    }

    async fn chat(&self, request: Request<v1::ChatRequest>) -> Result<Response<Pieces>, Status> {
        let counted = Counted::new(&self.0);
        let (front, caller) = self.admit("Chat", request.metadata(), request.get_ref().model.as_deref())?;
        let shown = caller.shown.clone();
        let (job, logprobs) = aside(move || {
            let request = read::chat(request.into_inner())?;
            let logprobs = logprobs(request.parameters.logprobs.is_some());
            Ok((front.chat(request, &caller)?, logprobs))
        })
        .await
        .map_err(|error| self.refused(&shown, error))?;
        self.pieces(job, logprobs, counted)
    }

    async fn embed(&self, request: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedReply>, Status> {
        let _counted = Counted::new(&self.0);
        let (front, caller) = self.admit("Embed", request.metadata(), request.get_ref().model.as_deref())?;
        let shown = caller.shown.clone();
        let job = aside(move || {
            let request = request.into_inner();
            let inputs = request.inputs.into_iter().map(|input| read::input("input", Some(input)));
            front.embedding(&inputs.collect::<Result<Vec<_>, _>>()?, request.truncate_prompt_tokens, &caller)
        })
        .await
        .map_err(|error| self.refused(&shown, error))?;
        let (vectors, usage) = job.run().await.map_err(|error| self.refused(&shown, error))?;
        let embeddings = vectors.into_iter().map(|values| v1::Embedding { values }).collect();
        Ok(Response::new(v1::EmbedReply { embeddings, usage: Some(write::usage(usage)) }))
    }

    async fn tokenize(&self, request: Request<v1::TokenizeRequest>) -> Result<Response<v1::TokenizeReply>, Status> {
        let _counted = Counted::new(&self.0);
        let (front, caller) = self.admit("Tokenize", request.metadata(), request.get_ref().model.as_deref())?;
        let shown = caller.shown.clone();
        let tokens = aside(move || {
            let request = request.into_inner();
            match (request.text, request.messages) {
                (Some(text), messages) if messages.is_empty() => {
                    let special = if request.add_special_tokens == Some(false) { Special::None } else { Special::Add };
                    Ok(front.tokenizer().encode(&text, special)?)
                }
                (None, messages) if !messages.is_empty() => {
                    front.conversation(&ChatRequest { turns: read::turns(messages)?, ..ChatRequest::default() })
                }
                _ => Err(ApiError::param("text", "one of `text` and `messages` is wanted")),
            }
        })
        .await
        .map_err(|error| self.refused(&shown, error))?;
        Ok(Response::new(v1::TokenizeReply { tokens }))
    }

    async fn models(&self, request: Request<v1::ModelsRequest>) -> Result<Response<v1::ModelsReply>, Status> {
        let (front, caller) = self.admit("Models", request.metadata(), None)?;
        let served = std::iter::once(&front).filter(|front| caller.account.may_ask(front.model().id()));
        Ok(Response::new(v1::ModelsReply { models: served.map(|front| write::model(front)).collect() }))
    }
}

fn logprobs(wanted: bool) -> Logprobs {
    if wanted { Logprobs::Wanted } else { Logprobs::Unwanted }
}

/// The time that a `grpc-timeout` stands for; `None` if it is none (gRPC over HTTP/2, "Timeout").
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > MAX_TIMEOUT_DIGITS || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_at_most_eight_digits_and_a_unit() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "1", "1s", "-1S", "123456789S", "1é"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }
}
