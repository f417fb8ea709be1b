//! A dispatch in a trace: from its being sent to its answer, or to the end of its layer where that did not wait for it.

use tramontane_cluster::exchange::ExchangeError;
use tramontane_cluster::trace::{Kind, TraceContext, TraceSpan, names};
use tramontane_router::Dispatch;

/// The span of a dispatch.
const DISPATCH: &str = "dispatch";
/// Why it was sent.
const CAUSE: &str = "tramontane.dispatch.cause";

/// Why a dispatch is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// By the plan.
    First,
    /// Another one is late.
    Hedge,
    /// Another one has failed.
    Resend,
    /// Nobody holds what it asks for; its node loads it.
    Rescue,
}

impl Cause {
    const fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Hedge => "hedge",
            Self::Resend => "resend",
            Self::Rescue => "rescue",
        }
    }
}

/// `dispatch` of `layer` is sent, and shown under `parent`, if that is anything.
pub(super) fn begin(parent: Option<&TraceContext>, layer: u32, dispatch: &Dispatch, cause: Cause) -> TraceSpan {
    let span = TraceSpan::begin(DISPATCH, Kind::Client, parent);
    if span.is_shown() {
        span.set(names::NODE, dispatch.node.as_str().to_owned());
        span.set(names::LAYER, i64::from(layer));
        span.count(names::ROWS, dispatch.pairs().count());
        span.count(names::EXPERTS, dispatch.work.len());
        span.set(CAUSE, cause.name());
    }
    span
}

/// It is answered, or has failed with `error`.
pub(super) fn end(span: &mut TraceSpan, error: Option<&ExchangeError>) {
    let span = std::mem::take(span);
    if let Some(error) = error {
        span.fail(match error {
            ExchangeError::NodeGone { .. } => "node_gone",
            ExchangeError::NotHeld { .. } => "not_held",
            ExchangeError::WrongProfile { .. } => "wrong_profile",
            ExchangeError::Overloaded { .. } => "overloaded",
            ExchangeError::Corrupt { .. } => "corrupt",
        });
    }
}
