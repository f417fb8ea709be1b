//! What a node shows of a batch in its sender's trace: the time until it is taken up, and its computing, which it may share with
//! others. Where the sender shows nothing, neither does the node.

use tramontane_router::{ExpertBatch, ExpertRows};

use crate::exchange::ServeError;
use crate::trace::{Kind, TraceContext, TraceSpan, names};

/// Names of spans.
const BATCH: &str = "experts";
const QUEUE: &str = "queue";
const COMPUTE: &str = "compute";

/// A batch's spans, if it has any.
#[derive(Default)]
pub(in crate::exchange) struct Shown(Option<Box<Spans>>);

struct Spans {
    batch: TraceSpan,
    stage: TraceSpan,
}

impl Shown {
    /// `batch` has been read.
    pub(in crate::exchange) fn arrives(batch: &ExpertBatch) -> Self {
        Self(batch.trace.map(|ids| {
            let span = TraceSpan::begin(BATCH, Kind::Server, Some(&TraceContext::from(ids)));
            span.set(names::LAYER, i64::from(batch.layer));
            span.count(names::ROWS, batch.answers());
            span.count(names::EXPERTS, batch.work.len());
            let stage = TraceSpan::begin(QUEUE, Kind::Internal, span.context());
            Box::new(Spans { batch: span, stage })
        }))
    }

    /// Its computing begins, together with that of others: of `merged` batches in all.
    pub(in crate::exchange) fn computes(&mut self, merged: usize) {
        if let Some(spans) = &mut self.0 {
            spans.stage = TraceSpan::begin(COMPUTE, Kind::Internal, spans.batch.context());
            spans.stage.count(names::MERGED, merged);
        }
    }

    /// It is answered.
    pub(in crate::exchange) fn end(self, answer: &Result<ExpertRows, ServeError>) {
        if let (Some(spans), Err(error)) = (self.0, answer) {
            spans.batch.fail(word(error));
        }
    }
}

fn word(error: &ServeError) -> &'static str {
    match error {
        ServeError::NotHeld { .. } => "not_held",
        ServeError::CannotHold { .. } => "cannot_hold",
        ServeError::WrongModel { .. } => "wrong_model",
        ServeError::Overloaded => "overloaded",
        ServeError::Corrupt { .. } => "corrupt",
    }
}
