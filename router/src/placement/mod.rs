//! Placement: the document, the solver that says where experts should be, the controller that gets them there, the check
//! that refuses a bad step, the ledger's rules of who writes, operators' orders, and rescue, which needs no document at all.

mod board;
mod check;
mod controller;
mod document;
mod ledger;
mod orders;
mod rescue;
mod seat;
mod solve;

pub use check::{Violation, check};
pub use controller::{Change, Controller, ControllerPolicy, Decision, Desire, Kind, Reason, changes, is_drained};
pub use document::Placement;
pub use ledger::{Denied, Ledger, Term, WentBack, follows, may_take};
pub use orders::{BlockedRebalance, MAX_CORDONED, Order, Orders, TooManyCordoned};
pub use rescue::rescue;
pub use solve::{ExpertSize, NodeRoom, Problem, SolveError, Standing, Wishes, solve, solve_with};
