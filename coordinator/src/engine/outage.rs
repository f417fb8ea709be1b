//! How long steps have failed for want of experts, and whether to bear it. Pure.

use std::time::{Duration, Instant};

/// How long requests wait for experts that nobody holds, or that nobody answers for. Those with earlier deadlines leave before.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Since when no step has gone through.
#[derive(Debug, Default)]
pub(super) struct Outage {
    since: Option<Instant>,
}

impl Outage {
    /// A step has gone through.
    pub(super) fn end(&mut self) {
        self.since = None;
    }

    /// A step has failed at `now`. Whether it is the first one in a row.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        self.since.replace(self.since.unwrap_or(now)).is_none()
    }

    /// Whether steps have failed for so long that requests are to hear of it.
    pub(super) fn is_over_long(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) >= PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_counted_from_the_first_failure_in_a_row() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        assert!(!outage.is_over_long(start + 2 * PATIENCE), "nothing has failed");
        assert!(outage.begins(start));
        assert!(!outage.begins(start + PATIENCE / 2));
        assert!(!outage.is_over_long(start + PATIENCE - Duration::from_millis(1)));
        assert!(outage.is_over_long(start + PATIENCE));
        outage.end();
        assert!(!outage.is_over_long(start + 2 * PATIENCE));
        assert!(outage.begins(start + 2 * PATIENCE));
    }
}
