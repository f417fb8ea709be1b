//! Expert load: how many tokens a second each expert receives, as an exponential moving average.

use std::collections::BTreeMap;
use std::time::Duration;

use tramontane_kernels::math::exp;

use crate::ExpertId;

/// Tokens a second of every expert that has received any; at most one entry an expert of the model.
#[derive(Clone, Debug)]
pub struct ExpertLoad {
    memory: Duration,
    rates: BTreeMap<ExpertId, (f32, Duration)>,
}

impl ExpertLoad {
    /// Averages over about `memory` (the time constant; at least a millisecond).
    pub fn new(memory: Duration) -> Self {
        Self { memory: memory.max(Duration::from_millis(1)), rates: BTreeMap::new() }
    }

    /// Counts `tokens` that `expert` received at `now`, a time since any fixed moment.
    pub fn record(&mut self, expert: ExpertId, tokens: usize, now: Duration) {
        let rate = self.rate(expert, now) + tokens as f32 / self.memory.as_secs_f32();
        self.rates.insert(expert, (rate, now));
    }

    /// Tokens a second of `expert` around `now`: each token counts `exp(−age ÷ memory) ÷ memory`.
    pub fn rate(&self, expert: ExpertId, now: Duration) -> f32 {
        let Some(&(rate, at)) = self.rates.get(&expert) else { return 0.0 };
        rate * exp(-now.saturating_sub(at).as_secs_f32() / self.memory.as_secs_f32())
    }

    /// Tokens a second of all experts around `now`.
    pub fn rates(&self, now: Duration) -> BTreeMap<ExpertId, f32> {
        self.rates.keys().map(|&expert| (expert, self.rate(expert, now))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_stream_shows_its_rate_and_silence_fades() {
        let (mut load, expert) = (ExpertLoad::new(Duration::from_secs(2)), ExpertId::new(3, 1));
        for i in 1..=2000 {
            load.record(expert, 5, Duration::from_millis(10 * i));
        }
        let now = Duration::from_secs(20);
        assert!((load.rate(expert, now) - 500.0).abs() < 5.0, "{}", load.rate(expert, now));
        let later = load.rate(expert, now + Duration::from_secs(2));
        assert!((later / load.rate(expert, now) - (-1.0f32).exp()).abs() < 1e-3);
        assert_eq!(load.rate(ExpertId::new(0, 0), now), 0.0);
    }
}
