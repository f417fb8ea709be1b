//! Placement: the document, the solver that makes the next one, the check that refuses a bad one, and rescue, which needs
//! no document at all.

mod board;
mod check;
mod document;
mod ledger;
mod rescue;
mod solve;

pub use check::{Violation, check};
pub use document::Placement;
pub use ledger::{Denied, Ledger, Term, WentBack, follows, may_take};
pub use rescue::rescue;
pub use solve::{ExpertSize, NodeRoom, Problem, SolveError, solve};
