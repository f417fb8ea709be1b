//! Loads that failed: when each may be tried again. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tramontane_router::ExpertId;

/// How long a load that failed is left alone the first time; it doubles from failure to failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long it is left alone at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Loads that failed, and when each may be tried again. Bounded by the experts that are given.
#[derive(Debug, Default)]
pub(crate) struct Failures(BTreeMap<ExpertId, Failure>);

#[derive(Debug)]
struct Failure {
    again: Duration,
    pause: Duration,
}

impl Failures {
    /// Loading `expert` failed at `now`.
    pub(crate) fn note(&mut self, expert: ExpertId, now: Duration) {
        let failure = self.0.entry(expert).or_insert(Failure { again: now, pause: FIRST_PAUSE / 2 });
        failure.pause = (failure.pause * 2).min(LONGEST_PAUSE);
        failure.again = now + failure.pause;
    }

    /// The first of `load` that may be tried at `now`; else when one may be, if there is one.
    pub(crate) fn next(&mut self, load: &[ExpertId], now: Duration) -> Result<ExpertId, Option<Duration>> {
        self.0.retain(|expert, _| load.contains(expert));
        let due = |expert: &&ExpertId| self.0.get(expert).is_none_or(|failure| failure.again <= now);
        load.iter().find(due).copied().ok_or_else(|| self.0.values().map(|failure| failure.again).min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const E: [ExpertId; 3] = [ExpertId::new(0, 0), ExpertId::new(0, 1), ExpertId::new(1, 0)];

    #[test]
    fn a_load_that_fails_is_tried_again_later_and_the_others_go_on() {
        let mut failures = Failures::default();
        let at = Duration::from_secs;
        assert_eq!(failures.next(&E, at(0)), Ok(E[0]));
        failures.note(E[0], at(0));
        assert_eq!(failures.next(&E, at(0)), Ok(E[1]));
        assert_eq!(failures.next(&E[..1], at(0)), Err(Some(FIRST_PAUSE)));
        assert_eq!(failures.next(&E[..1], FIRST_PAUSE), Ok(E[0]));
        for _ in 0..20 {
            failures.note(E[0], at(10));
        }
        assert_eq!(failures.next(&E[..1], at(10)), Err(Some(at(10) + LONGEST_PAUSE)));
        // Forgotten once it is not wanted any more.
        assert_eq!(failures.next(&[], at(10)), Err(None));
        assert_eq!(failures.next(&E[..1], at(10)), Ok(E[0]));
    }
}
