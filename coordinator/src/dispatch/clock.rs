//! Where the dispatcher has its time from: the system, or a script.

use std::time::Instant;

/// A clock that never goes back.
pub trait Clock: Send {
    /// The moment.
    fn now(&self) -> Instant;
}

/// The system's.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }
}
