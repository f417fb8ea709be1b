//! How fast a node computes, as it measures itself. Pure.

use std::time::Duration;

use tramontane_router::peers::units;

/// Seconds of computing that the measure remembers.
const MEMORY: f64 = 60.0;
/// Seconds of computing before there is a measure: a few small batches say little.
const ENOUGH: f64 = 10.0;
/// By how much a measure differs from the published one when it is worth telling.
const NEWS: f64 = 1.25;
/// How long what was told stands at least: each time is a write to the registry, and experts may move for it.
pub(crate) const STANDS: Duration = Duration::from_secs(60);

/// Work and the time that it took, the older the less.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Speedometer {
    units: f64,
    seconds: f64,
    /// All of the time, up to what is enough.
    measured: f64,
}

impl Speedometer {
    /// `rows` of `experts` experts, in all, were computed in `took`.
    pub(crate) fn note(&mut self, rows: usize, experts: usize, took: Duration) {
        let seconds = took.as_secs_f64().min(MEMORY);
        // The way there and back is the network's.
        let work = units(rows, experts) - units(0, 0);
        let kept = 1.0 - seconds / MEMORY;
        (self.units, self.seconds) = (self.units * kept + work, self.seconds * kept + seconds);
        self.measured = (self.measured + seconds).min(ENOUGH);
    }

    /// Rows a second, an expert's weights counted as a few rows; 0 until enough is measured.
    pub(crate) fn speed(&self) -> u32 {
        if self.measured < ENOUGH || self.seconds <= 0.0 {
            0
        } else {
            (self.units / self.seconds).round().max(1.0) as u32
        }
    }
}

/// What is to stand in the record where `told` does, `since` it was told (`None`: never).
pub(crate) fn publish(told: u32, measured: u32, since: Option<Duration>) -> u32 {
    let rested = since.is_none_or(|since| since >= STANDS);
    let (low, high) = (f64::from(told.min(measured)), f64::from(told.max(measured)));
    if measured > 0 && rested && (told == 0 || high >= low * NEWS) { measured } else { told }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(meter: &mut Speedometer, rows: usize, millis: u64, times: usize) -> u32 {
        (0..times).for_each(|_| meter.note(rows, 1, Duration::from_millis(millis)));
        meter.speed()
    }

    #[test]
    fn a_speed_is_known_when_enough_is_measured_and_follows_what_changes() {
        let mut meter = Speedometer::default();
        assert_eq!(after(&mut meter, 96, 100, 99), 0, "too little to tell");
        assert_eq!(after(&mut meter, 96, 100, 2), 1000, "96 rows and an expert in 0.1 s");
        let half = after(&mut meter, 96, 200, 100);
        assert!((600..1000).contains(&half), "{half}");
        let settled = after(&mut meter, 96, 200, 2000);
        assert!((500..510).contains(&settled), "{settled}");
        // Whether the rows come one by one or together.
        let mut single = Speedometer::default();
        assert_eq!(after(&mut single, 1, 5, 4000), 1000);
    }

    #[test]
    fn no_time_and_endless_time_are_borne() {
        let mut meter = Speedometer::default();
        meter.note(5, 1, Duration::ZERO);
        assert_eq!(meter.speed(), 0);
        meter.note(usize::MAX, 1, Duration::from_secs(u64::MAX));
        assert!(meter.speed() > 0);
        meter.note(0, 0, Duration::from_secs(3600));
        assert_eq!(meter.speed(), 1);
    }

    #[test]
    fn only_news_is_told_and_seldom() {
        let minute = Some(STANDS);
        assert_eq!(publish(0, 0, None), 0);
        assert_eq!(publish(0, 900, None), 900);
        assert_eq!(publish(900, 1100, minute), 900, "much the same");
        assert_eq!(publish(900, 1200, minute), 1200);
        assert_eq!(publish(900, 600, minute), 600);
        assert_eq!(publish(900, 9, Some(STANDS / 2)), 900, "not so soon");
        assert_eq!(publish(900, 0, minute), 900);
    }
}
