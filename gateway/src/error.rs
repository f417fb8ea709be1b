//! What a request can fail with, and the one table that says what each protocol calls it.

use std::time::Duration;

use http::StatusCode;
use tonic::Code;
use tramontane_cluster::engine::EngineError;
use tramontane_model::chat::ChatError;
use tramontane_model::tokenizer::TokenizerError;

/// Why a request is not answered. The variant is what the caller should do next; the text is for the client, never for a log,
/// for it may quote what the client wrote.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// Change the request: a parameter, or the whole body.
    #[error("{why}")]
    Invalid {
        /// The parameter at fault, as the client named it (`messages[0].content`); `None` for the whole body.
        param: Option<String>,
        /// What is wrong with it.
        why: String,
    },
    /// Ask for less: the model's context has no room.
    #[error(
        "this model's context is {context} tokens, but {prompt} of the prompt and {completion} to generate were asked for"
    )]
    ContextLength {
        /// The parameter that holds the prompt.
        param: &'static str,
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate; 1 when nothing was said.
        completion: usize,
        /// The model's context.
        context: usize,
    },
    /// Send a key.
    #[error("an API key is needed: send `Authorization: Bearer KEY`")]
    MissingKey,
    /// Send another key.
    #[error("the API key is not valid")]
    InvalidKey,
    /// Ask the operator for a new key.
    #[error("the API key has expired")]
    ExpiredKey,
    /// Ask for another model, or with another key.
    #[error("the API key may not ask the model `{model}`")]
    ModelNotAllowed {
        /// What was asked for.
        model: String,
    },
    /// Ask again after the time.
    #[error("the API key has had its {limit} {} a minute; ask again in {} s", what.name(), seconds(*retry_after))]
    RateLimited {
        /// What it had enough of.
        what: PerMinute,
        /// How many it may have.
        limit: u32,
        /// When there is enough again.
        retry_after: Duration,
    },
    /// Ask again next month, or the operator for more.
    #[error("the API key has had its {limit} tokens of this month (UTC)")]
    QuotaSpent {
        /// How many it may have.
        limit: u64,
        /// When the month ends.
        retry_after: Duration,
    },
    /// Ask from a page of this machine, or have the operator let others ask.
    #[error(
        "a page of another site asks a server that is for this machine alone; where others may ask, it wants --api-keys-file, or \
         --insecure if that is meant"
    )]
    ForeignPage,
    /// Ask for another model.
    #[error("the model `{model}` does not exist here")]
    ModelNotFound {
        /// What was asked for.
        model: String,
    },
    /// Use another address.
    #[error("there is no such route")]
    RouteNotFound,
    /// Use another method.
    #[error("this route does not know the method")]
    MethodNotAllowed,
    /// Send a smaller body.
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The bound.
        limit: usize,
    },
    /// Send the body faster.
    #[error("the body did not arrive within {} seconds", limit.as_secs())]
    BodyTooSlow {
        /// The bound.
        limit: Duration,
    },
    /// Send JSON, and say so.
    #[error("the body must be JSON with `content-type: application/json`")]
    UnsupportedMediaType,
    /// Send requests whose head has one meaning only.
    #[error("the request's head is ambiguous: {why}")]
    AmbiguousHead {
        /// What has two meanings.
        why: &'static str,
    },
    /// Ask again when the model is loaded.
    #[error("the model is being loaded")]
    Loading,
    /// What the engine says.
    #[error("{0}")]
    Engine(EngineError),
    /// Tell the operator: this should not happen.
    #[error("an internal error")]
    Internal {
        /// What happened, for the log: without the client's text.
        why: &'static str,
    },
}

/// What is limited by the minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerMinute {
    /// Requests.
    Requests,
    /// Tokens of prompts, and generated ones.
    Tokens,
}

impl PerMinute {
    const fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// What an error is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// The HTTP status.
    pub status: StatusCode,
    /// `error.type` in the body.
    pub kind: &'static str,
    /// `error.code` in the body.
    pub code: Option<&'static str>,
    /// The gRPC status.
    pub grpc: Code,
}

impl Names {
    /// One word for it, of few there are: the code, or where there is none the kind.
    pub fn reason(&self) -> &'static str {
        self.code.unwrap_or(self.kind)
    }
}

/// How long whoever asks too early or an engine that leaves should wait, where the engine does not say.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl ApiError {
    /// A parameter is wrong.
    pub fn param(param: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { param: Some(param.into()), why: why.into() }
    }

    /// The one table.
    pub fn names(&self) -> Names {
        use StatusCode as S;
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        let (status, kind, code, grpc) = match self {
            Self::Invalid { .. } => (S::BAD_REQUEST, INVALID, None, Code::InvalidArgument),
            Self::ContextLength { .. } => {
                (S::BAD_REQUEST, INVALID, Some("context_length_exceeded"), Code::InvalidArgument)
            }
            Self::MissingKey | Self::InvalidKey | Self::ExpiredKey => {
                (S::UNAUTHORIZED, INVALID, Some("invalid_api_key"), Code::Unauthenticated)
            }
            Self::ModelNotAllowed { .. } => (S::FORBIDDEN, INVALID, Some("model_not_allowed"), Code::PermissionDenied),
            Self::ForeignPage => (S::FORBIDDEN, INVALID, Some("foreign_page"), Code::PermissionDenied),
            // The kind says what there is too much of, as OpenAI's does.
            Self::RateLimited { what, .. } => {
                (S::TOO_MANY_REQUESTS, what.name(), Some("rate_limit_exceeded"), Code::ResourceExhausted)
            }
            Self::QuotaSpent { .. } => {
                (S::TOO_MANY_REQUESTS, "insufficient_quota", Some("insufficient_quota"), Code::ResourceExhausted)
            }
            Self::ModelNotFound { .. } => (S::NOT_FOUND, INVALID, Some("model_not_found"), Code::NotFound),
            Self::RouteNotFound => (S::NOT_FOUND, INVALID, Some("unknown_url"), Code::Unimplemented),
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, INVALID, Some("method_not_supported"), Code::Unimplemented)
            }
            Self::BodyTooLarge { .. } => {
                (S::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large"), Code::ResourceExhausted)
            }
            Self::BodyTooSlow { .. } => (S::REQUEST_TIMEOUT, INVALID, Some("request_timeout"), Code::DeadlineExceeded),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_media_type"), Code::InvalidArgument)
            }
            Self::AmbiguousHead { .. } => (S::BAD_REQUEST, INVALID, Some("ambiguous_head"), Code::InvalidArgument),
            Self::Loading => (S::SERVICE_UNAVAILABLE, SERVER, Some("model_loading"), Code::Unavailable),
            Self::Internal { .. } => (S::INTERNAL_SERVER_ERROR, SERVER, Some("internal_error"), Code::Internal),
            Self::Engine(error) => return engine_names(error),
        };
        Names { status, kind, code, grpc }
    }

    /// The parameter at fault.
    pub fn param_name(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. } => param.as_deref(),
            Self::ContextLength { param, .. } => Some(param),
            Self::ModelNotFound { .. } | Self::ModelNotAllowed { .. } => Some("model"),
            _ => None,
        }
    }

    /// When to ask again, where that may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Engine(EngineError::Overloaded { retry_after }) => Some(*retry_after),
            Self::RateLimited { retry_after, .. } | Self::QuotaSpent { retry_after, .. } => Some(*retry_after),
            _ if self.names().status == StatusCode::SERVICE_UNAVAILABLE => Some(RETRY_AFTER),
            _ => None,
        }
    }
}

/// Whole seconds that last as long, at least.
pub(crate) fn seconds(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}

fn engine_names(error: &EngineError) -> Names {
    use StatusCode as S;
    const SERVER: &str = "server_error";
    let (status, kind, code, grpc) = match error {
        EngineError::Overloaded { .. } => (S::SERVICE_UNAVAILABLE, SERVER, "overloaded", Code::ResourceExhausted),
        EngineError::Draining => (S::SERVICE_UNAVAILABLE, SERVER, "draining", Code::Unavailable),
        EngineError::Stopped => (S::SERVICE_UNAVAILABLE, SERVER, "engine_stopped", Code::Unavailable),
        EngineError::ExpertsUnavailable { .. } => {
            (S::SERVICE_UNAVAILABLE, SERVER, "experts_unavailable", Code::Unavailable)
        }
        EngineError::DeadlineExceeded => (S::GATEWAY_TIMEOUT, SERVER, "deadline_exceeded", Code::DeadlineExceeded),
        EngineError::Numeric { .. } => (S::INTERNAL_SERVER_ERROR, SERVER, "numeric_error", Code::Internal),
        EngineError::SlowReader => {
            (S::REQUEST_TIMEOUT, "invalid_request_error", "slow_reader", Code::ResourceExhausted)
        }
        EngineError::InvalidConstraint { .. } => {
            (S::BAD_REQUEST, "invalid_request_error", "invalid_constraint", Code::InvalidArgument)
        }
        EngineError::InvalidRequest { .. } => {
            (S::BAD_REQUEST, "invalid_request_error", "invalid_request", Code::InvalidArgument)
        }
    };
    Names { status, kind, code: Some(code), grpc }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<TokenizerError> for ApiError {
    /// Of a request's own text.
    fn from(error: TokenizerError) -> Self {
        match error {
            TokenizerError::ControlToken { .. } => Self::Invalid { param: None, why: error.to_string() },
            _ => Self::Internal { why: "the tokenizer failed" },
        }
    }
}

impl From<ChatError> for ApiError {
    /// Of a request's own messages.
    fn from(error: ChatError) -> Self {
        match error {
            ChatError::Tokenizer(error) => error.into(),
            error => Self::param("messages", error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unavailable_says_when_to_ask_again_and_no_mistake_does() {
        let retry_after = Duration::from_secs(1);
        for error in [EngineError::Overloaded { retry_after }, EngineError::Draining, EngineError::Stopped] {
            let error = ApiError::from(error);
            assert_eq!(error.names().status, StatusCode::SERVICE_UNAVAILABLE);
            assert!(error.retry_after().is_some(), "{error:?}");
        }
        assert!(ApiError::Loading.retry_after().is_some());
        for error in [ApiError::param("n", "too many"), ApiError::InvalidKey, ApiError::RouteNotFound] {
            assert_eq!(error.retry_after(), None);
        }
    }

    #[test]
    fn who_has_had_enough_hears_when_there_is_more_in_whole_seconds_that_are_not_too_few() {
        let retry_after = Duration::from_millis(1001);
        let error = ApiError::RateLimited { what: PerMinute::Tokens, limit: 7, retry_after };
        assert_eq!(error.to_string(), "the API key has had its 7 tokens a minute; ask again in 2 s");
        let Names { status, kind, code, grpc } = error.names();
        assert_eq!(
            (status.as_u16(), kind, code, grpc),
            (429, "tokens", Some("rate_limit_exceeded"), Code::ResourceExhausted)
        );
        assert_eq!(error.retry_after(), Some(retry_after));
        let names = ApiError::QuotaSpent { limit: 7, retry_after }.names();
        assert_eq!((names.status.as_u16(), names.reason()), (429, "insufficient_quota"));
        assert_eq!([seconds(Duration::ZERO), seconds(Duration::from_secs(3))], [0, 3]);
    }

    #[test]
    fn an_error_names_its_parameter() {
        assert_eq!(ApiError::param("n", "x").param_name(), Some("n"));
        assert_eq!(ApiError::ModelNotFound { model: "gpt".to_owned() }.param_name(), Some("model"));
        assert_eq!(ApiError::Loading.param_name(), None);
    }
}
