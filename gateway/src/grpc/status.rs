//! Errors as gRPC statuses, with what a program wants to know in their details.

use std::collections::HashMap;

use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::ApiError;

/// The domain of [`ErrorDetails`]' reasons.
const DOMAIN: &str = "tramontane";

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        if let ApiError::Internal { why } = error {
            tracing::error!(why, "an internal error");
        }
        let (names, message) = (error.names(), error.to_string());
        let mut details = ErrorDetails::new();
        if let Some(param) = error.param_name() {
            details.add_bad_request_violation(param, message.as_str());
        }
        if error.retry_after().is_some() {
            details.set_retry_info(error.retry_after());
        }
        if let Some(code) = names.code {
            details.set_error_info(code, DOMAIN, HashMap::new());
        }
        Status::with_error_details(names.grpc, message, details)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn details_name_the_parameter_and_when_to_ask_again() {
        let status = Status::from(ApiError::param("n", "too many"));
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_details_bad_request().map(|found| found.field_violations);
        assert_eq!(violations.and_then(|found| found.first().map(|it| it.field.clone())).as_deref(), Some("n"));
        let status = Status::from(ApiError::Loading);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()));
    }
}
