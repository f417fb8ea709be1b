//! Bodies: read under bounds of size and time, and parsed so that what is wrong has a name.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use crate::error::ApiError;

/// Largest body, in bytes: a prompt of a million tokens as ids.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// How long a body may take to arrive.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads a JSON body.
///
/// # Errors
/// [`ApiError::UnsupportedMediaType`], [`ApiError::BodyTooLarge`], [`ApiError::BodyTooSlow`], [`ApiError::Invalid`].
pub(super) async fn read<T: DeserializeOwned>(headers: &HeaderMap, body: Body) -> Result<T, ApiError> {
    if !is_json(headers) {
        return Err(ApiError::UnsupportedMediaType);
    }
    parse(&collect(headers, body).await?)
}

async fn collect(headers: &HeaderMap, body: Body) -> Result<Bytes, ApiError> {
    const TOO_LARGE: ApiError = ApiError::BodyTooLarge { limit: MAX_BODY_BYTES };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > MAX_BODY_BYTES as u64) {
        return Err(TOO_LARGE);
    }
    let whole = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    match whole {
        Err(_) => Err(ApiError::BodyTooSlow { limit: BODY_TIMEOUT }),
        Ok(Ok(whole)) => Ok(whole.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(TOO_LARGE),
        Ok(Err(_)) => Err(ApiError::Invalid { param: None, why: "the body was cut off".to_owned() }),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(Ok(media)) = headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) else { return false };
    let media = media.split(';').next().unwrap_or_default().trim();
    media.eq_ignore_ascii_case("application/json")
}

/// Parses a body. An object that names a key twice is refused where the key is one of ours.
///
/// # Errors
/// [`ApiError::Invalid`] with the parameter at fault.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ApiError> {
    let invalid = |param, why: String| ApiError::Invalid { param, why };
    let mut reader = serde_json::Deserializer::from_slice(json);
    let parsed = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let param = name(error.path());
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => invalid(param.or_else(|| quoted_field(&inner)), inner.to_string()),
            _ => invalid(param, format!("the body is not valid JSON: {inner}")),
        }
    })?;
    reader.end().map_err(|error| invalid(None, format!("the body is not valid JSON: {error}")))?;
    Ok(parsed)
}

/// `messages[0].content`; `None` for the body as a whole.
fn name(path: &serde_path_to_error::Path) -> Option<String> {
    let mut name = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => name.push_str(&format!("[{index}]")),
            Segment::Map { key } => {
                name.push_str(if name.is_empty() { "" } else { "." });
                name.push_str(key);
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    Some(name).filter(|name| !name.is_empty())
}

/// The field of "missing field `x`" and "duplicate field `x`", which have no path.
fn quoted_field(error: &serde_json::Error) -> Option<String> {
    let text = error.to_string();
    let rest = text.strip_prefix("missing field `").or_else(|| text.strip_prefix("duplicate field `"))?;
    rest.split('`').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only what goes wrong is looked at")]
    struct Inner {
        text: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only what goes wrong is looked at")]
    struct Asked {
        n: i64,
        temperature: Option<f64>,
        list: Option<Vec<Inner>>,
        raw: Option<Box<RawValue>>,
    }

    fn param(json: &[u8]) -> Option<String> {
        match parse::<Asked>(json) {
            Err(ApiError::Invalid { param, .. }) => param,
            other => panic!("{other:?}: {}", String::from_utf8_lossy(json)),
        }
    }

    #[test]
    fn what_is_wrong_has_a_name() {
        for (json, name) in [
            (r#"{"n": "one"}"#, Some("n")),
            (r#"{"n": 9223372036854775808}"#, Some("n")),
            (r#"{"n": 1.5}"#, Some("n")),
            (r#"{"n": 1, "temperature": 1e400}"#, Some("temperature")),
            (r#"{"n": 1, "temperature": NaN}"#, Some("temperature")),
            (r#"{"n": 1, "list": [{"text": "a"}, {"text": 2}]}"#, Some("list[1].text")),
            (r#"{"n": 1, "list": [{"text": "\ud800"}]}"#, Some("list[0].text")),
            (r#"{"n": 1, "list": [{"text": "a", "other": 2}]}"#, Some("list[0].other")),
            (r#"{"n": 1, "other": 2}"#, Some("other")),
            (r#"{}"#, Some("n")),
            (r#"{"n": 1, "n": 2}"#, Some("n")),
            ("[]", None),
            ("", None),
            (r#"{"n": 1} x"#, None),
        ] {
            assert_eq!(param(json.as_bytes()).as_deref(), name, "{json}");
        }
        param(b"{\"n\": 1, \"list\": [{\"text\": \"\xff\"}]}");
    }

    #[test]
    fn a_schema_stays_as_it_was_sent() {
        let asked: Asked = parse(br#"{"n": 1, "raw": {"b": 1, "a": 2e5}}"#).unwrap();
        assert_eq!(asked.raw.unwrap().get(), r#"{"b": 1, "a": 2e5}"#);
    }

    #[test]
    fn depth_is_bounded_before_the_stack_is() {
        let deep = "[".repeat(100_000);
        for json in [format!("{{\"n\": {deep}"), format!("{{\"raw\": {deep}"), format!("{{\"other\": {deep}"), deep] {
            param(json.as_bytes());
        }
    }
}
