//! Errors as HTTP answers.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::{ApiError, seconds};

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// What went wrong.
    pub error: ErrorObject,
}

/// What went wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorObject {
    /// In words.
    pub message: String,
    /// Whose fault it is.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The parameter at fault.
    pub param: Option<String>,
    /// Its name for programs.
    pub code: Option<&'static str>,
}

impl From<&ApiError> for ErrorBody {
    fn from(error: &ApiError) -> Self {
        let names = error.names();
        let param = error.param_name().map(str::to_owned);
        Self { error: ErrorObject { message: error.to_string(), kind: names.kind, param, code: names.code } }
    }
}

/// Why a request was refused, for whoever counts; it rides on the answer.
#[derive(Clone, Copy)]
pub(super) struct Refusal(pub(super) &'static str);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if let Self::Internal { why } = self {
            tracing::error!(why, "an internal error");
        }
        let mut response = (self.names().status, Json(ErrorBody::from(&self))).into_response();
        response.extensions_mut().insert(Refusal(self.names().reason()));
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds(wait).max(1)));
        }
        match self {
            Self::MissingKey | Self::InvalidKey | Self::ExpiredKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // What is left of the body is not read: the connection is of no more use.
            Self::BodyTooLarge { .. } | Self::BodyTooSlow { .. } | Self::AmbiguousHead { .. } => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
