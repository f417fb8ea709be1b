//! Around every request: its id, its key, its time, and the count of those that are being answered.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body::{Frame, SizeHint};
use tracing::Instrument;

use super::Gateway;
use super::connection::Head;
use super::limits;
use super::reply::Refusal;
use super::ui;
use crate::error::ApiError;
use crate::frontdoor::{Caller, alphanumeric};
use crate::metering::Account;
use crate::shown::Shown;

/// Where a request's id stands.
const REQUEST_ID: &str = "x-request-id";
/// Longest id of a client's that is kept, in bytes.
const MAX_REQUEST_ID: usize = 128;
/// Letters of an id of ours.
const ID_LETTERS: usize = 32;
/// Routes that need no key, beside the console's page.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/health"];

pub(super) async fn around(State(gateway): State<Arc<Gateway>>, mut request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let counted = Counted::new(&gateway);
    let id = request_id(request.headers());
    let mut shown = Shown::logged(id.to_str().unwrap_or_default());
    let connection = request.extensions().get::<Head>().cloned();
    let chunked = request.headers().contains_key(header::TRANSFER_ENCODING);
    let mut account = Account::default();
    let mut response = match admit(&gateway, &request) {
        Ok(known) => {
            account = known.clone();
            shown = shown.over_http(request.uri().path(), request.method().as_str(), request.headers());
            request.extensions_mut().insert(Caller { account: known, deadline: None, shown: shown.clone() });
            next.run(request).instrument(shown.log().clone()).await
        }
        Err(error) => shown.log().in_scope(|| error.into_response()),
    };
    shown.answered(response.status().as_u16());
    if let Some(Refusal(reason)) = response.extensions().get() {
        gateway.metrics.reject(reason);
        shown.fail(reason);
    }
    let headers = response.headers_mut();
    if let (Some(connection), true) = (connection, headers.contains_key(header::CONNECTION)) {
        connection.leave_unread();
    }
    limits::say(headers, account.standing());
    headers.insert(REQUEST_ID, id);
    headers.insert("openai-processing-ms", HeaderValue::from(begun.elapsed().as_millis() as u64));
    if chunked {
        // The head of a next request on this connection would not be looked at (`heads`).
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(Watched { body, shown, _counted: counted }))
}

/// Who asks, if he may.
fn admit(gateway: &Gateway, request: &Request) -> Result<Account, ApiError> {
    if let Some(why) = request.extensions().get::<Head>().and_then(Head::ambiguity) {
        return Err(ApiError::AmbiguousHead { why });
    }
    let path = request.uri().path();
    if PROBES.contains(&path) || ui::is_piece(path) {
        return Ok(Account::default());
    }
    gateway.meter.authenticate(request.headers())
}

/// The client's id if it is one short printable word, else one of ours.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let mut sent = headers.get_all(REQUEST_ID).iter();
    let printable = |value: &&HeaderValue| {
        (1..=MAX_REQUEST_ID).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    match (sent.next().filter(printable), sent.next()) {
        (Some(id), None) => id.clone(),
        _ => HeaderValue::try_from(alphanumeric(ID_LETTERS)).unwrap_or(HeaderValue::from_static("")),
    }
}

/// A request that is being answered.
pub(crate) struct Counted(Arc<Gateway>);

impl Counted {
    pub(crate) fn new(gateway: &Arc<Gateway>) -> Self {
        gateway.in_flight.fetch_add(1, Ordering::SeqCst);
        Self(gateway.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.0.ended.notify_waiters();
    }
}

/// A body whose request counts until it is sent or given up.
struct Watched {
    body: Body,
    shown: Shown,
    _counted: Counted,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, shown, .. } = &mut *self;
        shown.log().in_scope(|| Pin::new(body).poll_frame(context))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_if_it_is_one_short_printable_word() {
        let ask = |ids: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for id in ids {
                headers.append(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            }
            request_id(&headers)
        };
        assert_eq!(ask(&[b"abc-1"]), "abc-1");
        for bad in [&[b"".as_slice()][..], &[b"a b"], &[&[b'x'; 129]], &["é".as_bytes()], &[b"a", b"b"], &[]] {
            let id = ask(bad);
            assert_eq!(id.len(), ID_LETTERS, "{id:?}");
        }
    }
}
