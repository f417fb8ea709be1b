//! A token bucket: it is full at first, is filled again evenly over a minute, and what was taken too much is filled first. Pure.

use std::time::{Duration, Instant};

/// What a bucket counts in: a unit of what it holds is this many, so that a millisecond fills whole ones, `limit` of them.
const PARTS: u64 = 60_000;

/// A bucket. It does not hold its limit, which may change: it knows what is missing to its being full.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// In [`PARTS`]; more than the limit is a debt.
    missing: u64,
    /// When that was so.
    at: Instant,
}

/// How a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// What it holds when it is full.
    pub(crate) limit: u32,
    /// What it holds.
    pub(crate) remaining: u32,
    /// When it is full, if nobody takes anything.
    pub(crate) reset: Duration,
}

impl Bucket {
    /// A full one.
    pub(super) const fn new(now: Instant) -> Self {
        Self { missing: 0, at: now }
    }

    /// Takes `amount` out of what may hold `limit`. Of more than that, `limit` has to be there and the rest is a debt.
    ///
    /// # Errors
    /// It is not there; when it will be.
    pub(super) fn take(&mut self, amount: u64, limit: u32, now: Instant) -> Result<(), Duration> {
        self.fill(limit, now);
        let must_be_there = amount.min(limit.into()).saturating_mul(PARTS);
        let lacking = self.missing.saturating_add(must_be_there).saturating_sub(full(limit));
        if lacking > 0 {
            return Err(time_to_fill(lacking, limit));
        }
        self.missing = self.missing.saturating_add(amount.saturating_mul(PARTS));
        Ok(())
    }

    /// Of what was `taken` before, `used` turned out to be right.
    pub(super) fn settle(&mut self, taken: u64, used: u64, limit: u32, now: Instant) {
        self.fill(limit, now);
        let (taken, used) = (taken.saturating_mul(PARTS), used.saturating_mul(PARTS));
        self.missing = self.missing.saturating_add(used).saturating_sub(taken);
    }

    /// How it stands.
    pub(super) fn window(&mut self, limit: u32, now: Instant) -> Window {
        self.fill(limit, now);
        let remaining = full(limit).saturating_sub(self.missing) / PARTS;
        let remaining = u32::try_from(remaining).unwrap_or(limit);
        Window { limit, remaining, reset: time_to_fill(self.missing, limit) }
    }

    fn fill(&mut self, limit: u32, now: Instant) {
        // Whole ones only: what is left of a millisecond counts next time.
        let passed = u64::try_from(now.saturating_duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        self.missing = self.missing.saturating_sub(passed.saturating_mul(limit.into()));
        self.at = if self.missing == 0 { now.max(self.at) } else { self.at + Duration::from_millis(passed) };
    }
}

fn full(limit: u32) -> u64 {
    u64::from(limit) * PARTS
}

fn time_to_fill(missing: u64, limit: u32) -> Duration {
    Duration::from_millis(missing.div_ceil(u64::from(limit.max(1))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Take(u64),
        /// Takes the first, then uses the second of it.
        Use(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0_u64..30_000).prop_map(Step::Wait),
            (1_u64..200).prop_map(Step::Take),
            (1_u64..200, 0_u64..400).prop_map(|(taken, used)| Step::Use(taken, used)),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// From a full bucket on: what was let out never is more than the bucket, and what has been filled since, and the one that was let
        /// go beyond what was there.
        #[test]
        fn what_is_used_keeps_to_the_rate(limit in 1_u32..500, steps in steps()) {
            let start = Instant::now();
            let (mut bucket, mut now, mut used, mut over) = (Bucket::new(start), start, 0_u64, 0_u64);
            for step in steps {
                let (taken, really) = match step {
                    Step::Wait(milliseconds) => {
                        now += Duration::from_millis(milliseconds);
                        continue;
                    }
                    Step::Take(amount) => (amount, amount),
                    Step::Use(taken, used) => (taken, used),
                };
                let before = bucket.window(limit, now);
                match bucket.take(taken, limit, now) {
                    Ok(()) => {
                        prop_assert!(u64::from(before.remaining) >= taken.min(limit.into()));
                        bucket.settle(taken, really, limit, now);
                        used += really;
                        over = over.max(really.saturating_sub(before.remaining.into()));
                    }
                    Err(wait) => {
                        prop_assert!(wait > Duration::ZERO && u64::from(before.remaining) < taken.min(limit.into()));
                        // Too early by a millisecond it is refused again, and then it is let through.
                        prop_assert!(bucket.clone().take(taken, limit, now + wait - Duration::from_millis(1)).is_err());
                        prop_assert!(bucket.clone().take(taken, limit, now + wait).is_ok());
                    }
                }
                let passed = u64::try_from((now - start).as_millis()).expect("a short time");
                let filled = (passed * u64::from(limit)).div_ceil(PARTS);
                prop_assert!(used <= u64::from(limit) + filled + over, "{used} {limit} {filled} {over}");
            }
        }

        #[test]
        fn a_window_says_when_the_bucket_is_full(limit in 1_u32..500, steps in steps()) {
            let start = Instant::now();
            let (mut now, mut bucket) = (start, Bucket::new(start));
            for step in steps {
                match step {
                    Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                    Step::Take(amount) => _ = bucket.take(amount, limit, now),
                    Step::Use(taken, used) if bucket.take(taken, limit, now).is_ok() => bucket.settle(taken, used, limit, now),
                    Step::Use(..) => {}
                }
                let window = bucket.window(limit, now);
                prop_assert!(window.remaining <= limit);
                let then = bucket.clone().window(limit, now + window.reset);
                prop_assert_eq!((then.remaining, then.reset), (limit, Duration::ZERO));
            }
        }
    }

    #[test]
    fn an_even_stream_at_the_rate_is_never_refused_and_one_above_it_is() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        for i in 0..600 {
            assert_eq!(bucket.take(1, 60, start + Duration::from_secs(i)), Ok(()), "{i}");
        }
        let granted = (0..6000)
            .filter(|i| bucket.take(1, 60, start + Duration::from_secs(600) + Duration::from_millis(100 * i)).is_ok());
        assert_eq!(granted.count(), 60 + 600 - 1);
    }

    #[test]
    fn what_is_larger_than_the_bucket_waits_until_it_is_full_and_leaves_a_debt() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        assert_eq!(bucket.take(150, 60, start), Ok(()));
        assert_eq!(bucket.window(60, start), Window { limit: 60, remaining: 0, reset: Duration::from_secs(150) });
        assert_eq!(bucket.take(1, 60, start), Err(Duration::from_secs(91)));
        bucket.settle(150, 20, 60, start);
        assert_eq!(bucket.window(60, start).remaining, 40);
    }
}
