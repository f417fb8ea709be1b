//! A request's mark, as metadata of its call: the id under the name that HTTP has for it, its place in a trace as W3C Trace Context.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::engine::Mark;
use crate::trace::TraceContext;

const ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is read, in bytes; front doors have none that are longer.
const MAX_ID: usize = 128;

/// Writes `mark` to `metadata`.
pub(super) fn write(mark: &Mark, metadata: &mut HeaderMap) {
    if let Some(Ok(id)) = mark.id.as_deref().map(HeaderValue::try_from) {
        metadata.insert(ID, id);
    }
    if let Some(trace) = &mark.trace {
        trace.write(metadata);
    }
}

/// The mark that `metadata` has. What is not sound is left out: nothing is decided by it.
pub(super) fn read(metadata: &HeaderMap) -> Mark {
    let id = metadata.get(ID).and_then(|id| id.to_str().ok()).filter(|id| (1..=MAX_ID).contains(&id.len()));
    let trace = TraceContext::read(metadata).filter(TraceContext::is_recorded);
    Mark { id: id.map(Into::into), trace }
}
