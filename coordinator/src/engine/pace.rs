//! How fast the queue moves: what a refused request is told.

use std::time::{Duration, Instant};

/// The least and the most that a refused request is told to wait.
const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Share of the newest interval in the estimate.
const NEWEST: f64 = 0.2;

/// The time between two sequences that are let in while others wait: an exponential moving average.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Seconds.
    interval: Option<f64>,
    /// When somebody was let in last, or began to wait for it; how many had been by then.
    since: Option<(Instant, u64)>,
}

impl Pace {
    /// At `now`, `admitted` sequences have been let in since the start, and `waiting` wait.
    pub(super) fn observe(&mut self, now: Instant, admitted: u64, waiting: usize) {
        if let Some((since, before)) = self.since
            && admitted > before
        {
            let newest = now.saturating_duration_since(since).as_secs_f64() / (admitted - before) as f64;
            let old = self.interval.unwrap_or(newest);
            self.interval = Some(old + NEWEST * (newest - old));
            self.since = None;
        }
        if waiting == 0 {
            // How long nobody was let in because nobody came says nothing.
            self.since = None;
        } else if self.since.is_none() {
            self.since = Some((now, admitted));
        }
    }

    /// When those `waiting` will have been let in, if it goes on like this.
    pub(super) fn retry_after(&self, waiting: usize) -> Duration {
        let seconds = self.interval.unwrap_or(0.0) * waiting as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(BOUNDS.1).clamp(BOUNDS.0, BOUNDS.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_the_queue_at_its_pace_within_bounds() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        assert_eq!(pace.retry_after(100), BOUNDS.0, "nothing is known yet");
        pace.observe(at(0.0), 0, 10);
        // Two were let in within a second.
        pace.observe(at(1.0), 2, 8);
        assert_eq!(pace.retry_after(8), Duration::from_secs(4));
        assert_eq!((pace.retry_after(1), pace.retry_after(1_000)), BOUNDS);
        pace.observe(at(2.5), 3, 7);
        assert_eq!(pace.retry_after(10), Duration::from_secs(7), "0.5 + 0.2 · (1.5 − 0.5)");
    }

    #[test]
    fn time_without_a_queue_does_not_count() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        pace.observe(start, 0, 1);
        pace.observe(start + Duration::from_secs(2), 1, 0);
        pace.observe(start + Duration::from_secs(1_000), 2, 1);
        assert_eq!(pace.retry_after(1), Duration::from_secs(2));
    }
}
