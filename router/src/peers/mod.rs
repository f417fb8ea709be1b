//! What a coordinator knows of its nodes beyond the registry's view: how long they take, whom it suspects, who was there a
//! moment ago, and whose answers differ from others'. Pure; local to one coordinator.

mod audit;
mod estimates;
mod health;
mod roster;

pub use audit::{Audit, MAX_AUDIT_ROWS, Verdict, judge, sample};
pub use estimates::{Estimates, MAX_RATIO, Traffic, units};
pub use health::{Health, Quarantine};
pub use roster::Roster;
