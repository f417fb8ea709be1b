//! A client of OpenAI's HTTP API: what `chat` and `bench serve` ask by. One connection a request, JSON in, JSON or events out; what comes
//! is bounded.

mod endpoint;
pub(crate) mod origin;
mod sse;
pub(crate) mod wire;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::Value;

pub(crate) use endpoint::{Endpoint, EndpointArgs};
use sse::Events as Parser;

use crate::Unreachable;

/// Largest answer that is read whole, in bytes.
const MAX_ANSWER: usize = 64 << 20;
/// What is shown of an answer that is no error of the API's, in characters.
const SHOWN: usize = 200;
/// What this program calls itself.
pub(crate) const USER_AGENT: &str = concat!("tramontane/", env!("CARGO_PKG_VERSION"));

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Look at the address, or start the server.
    #[error("cannot reach {address}")]
    Unreachable {
        /// Host and port.
        address: String,
        /// What the system says.
        #[source]
        why: anyhow::Error,
    },
    /// Do what the server says.
    #[error("{}: {message}", status.as_u16())]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its name for programs.
        code: Option<String>,
        /// Its words.
        message: String,
    },
    /// Ask again: the server failed in the middle of an answer.
    #[error("the answer broke off: {message}")]
    BrokeOff {
        /// What it said.
        message: String,
    },
}

impl ClientError {
    /// A short name, to count by.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Unreachable { .. } => "unreachable".to_owned(),
            Self::Refused { status, code: Some(code), .. } => format!("{} {code}", status.as_u16()),
            Self::Refused { status, code: None, .. } => status.as_u16().to_string(),
            Self::BrokeOff { .. } => "broke off".to_owned(),
        }
    }
}

/// The error as one that ends the program, and says how: by 3 where there was no server.
pub(crate) fn with_exit_code(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<ClientError>() {
        Some(ClientError::Unreachable { .. }) => Unreachable(error).into(),
        _ => error,
    }
}

impl Endpoint {
    /// What stands at `path`.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, ClientError> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        let bytes = whole(response.into_body()).await?;
        serde_json::from_slice(&bytes).map_err(|error| broke_off(format!("it is not JSON: {error}")))
    }

    /// The first of the server's models.
    pub(crate) async fn first_model(&self) -> Result<String, ClientError> {
        let models = self.get("/v1/models").await?;
        let first = models["data"][0]["id"].as_str().map(str::to_owned);
        first.ok_or_else(|| broke_off("it lists no models"))
    }

    /// Asks for a stream of events. Dropping it ends the answer at the server too.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Result<Stream, ClientError> {
        let response = self.send(Method::POST, path, Bytes::from(body.to_string())).await?;
        Ok(Stream { body: response.into_body(), parser: Parser::default() })
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let address = self.origin().authority();
        let unreachable = |why: anyhow::Error| ClientError::Unreachable { address: address.clone(), why };
        let mut sender = self.wire().connect(self.origin()).await.map_err(unreachable)?;
        let request = Request::builder()
            .method(method)
            .uri(self.path(path))
            .header(header::HOST, &address)
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONTENT_TYPE, "application/json");
        let request = match self.key() {
            Some(key) => request.header(header::AUTHORIZATION, format!("Bearer {key}")),
            None => request,
        };
        let request = request.body(Full::new(body)).map_err(|error| unreachable(error.into()))?;
        let response = sender.send_request(request).await.map_err(|error| unreachable(error.into()))?;
        if response.status() == StatusCode::OK {
            return Ok(response);
        }
        let status = response.status();
        let bytes = whole(response.into_body()).await?;
        Err(refusal(status, &bytes))
    }
}

/// An answer that comes in events.
pub(crate) struct Stream {
    body: Incoming,
    parser: Parser,
}

impl Stream {
    /// The next event; `None` after the last. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(data) = self.parser.next() {
                return read(&data);
            }
            let Some(frame) = self.body.frame().await else {
                return Err(broke_off("the connection was closed"));
            };
            let frame = frame.map_err(|error| broke_off(error.to_string()))?;
            if let Ok(bytes) = frame.into_data() {
                self.parser.push(&bytes).map_err(broke_off)?;
            }
        }
    }
}

/// What an event says; `None` if it is the end.
fn read(data: &str) -> Result<Option<Value>, ClientError> {
    if data == "[DONE]" {
        return Ok(None);
    }
    let event: Value = serde_json::from_str(data).map_err(|error| broke_off(format!("it is not JSON: {error}")))?;
    match event["error"]["message"].as_str() {
        Some(message) => Err(broke_off(message)),
        None => Ok(Some(event)),
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    let body_text = String::from_utf8_lossy(body);
    let error = serde_json::from_slice::<Value>(body).map(|body| body["error"].clone()).unwrap_or_default();
    let shown = || body_text.trim().chars().take(SHOWN).collect();
    let message = error["message"].as_str().map_or_else(shown, str::to_owned);
    ClientError::Refused { status, code: error["code"].as_str().map(str::to_owned), message }
}

async fn whole(body: Incoming) -> Result<Bytes, ClientError> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(broke_off(format!("it is longer than {MAX_ANSWER} bytes"))),
        Err(error) => Err(broke_off(error.to_string())),
    }
}

fn broke_off(message: impl Into<String>) -> ClientError {
    ClientError::BrokeOff { message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_servers_words_or_the_beginning_of_what_it_sent() {
        let body = br#"{"error": {"message": "the queue is full", "code": "overloaded"}}"#;
        let refused = refusal(StatusCode::SERVICE_UNAVAILABLE, body);
        assert_eq!(
            (refused.to_string().as_str(), refused.name().as_str()),
            ("503: the queue is full", "503 overloaded")
        );
        let page = refusal(StatusCode::BAD_GATEWAY, "<html>é".repeat(100).as_bytes());
        assert_eq!(page.name(), "502");
        assert!(page.to_string().starts_with("502: <html>é<") && page.to_string().chars().count() < 220, "{page}");
    }

    #[test]
    fn the_end_an_error_and_what_is_no_json_are_told_apart() {
        assert!(matches!(read("[DONE]"), Ok(None)));
        assert!(matches!(read(r#"{"choices": []}"#), Ok(Some(_))));
        for (data, words) in [(r#"{"error": {"message": "it went wrong"}}"#, "it went wrong"), ("{", "not JSON")] {
            let error = read(data).expect_err("no event").to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
