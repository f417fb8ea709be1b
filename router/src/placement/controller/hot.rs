//! Which experts are hot, and for how long they have been taken for it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ControllerPolicy, Desire};
use crate::ExpertId;

/// Rows a second of a layer below which nothing is hot: a few requests say little about the next ones.
const MIN_LAYER_RATE: f32 = 10.0;

/// Replicas that heat has earned, and since when it is these.
#[derive(Clone, Debug, Default)]
pub(super) struct Hot {
    extra: BTreeMap<ExpertId, (usize, Duration)>,
}

impl Hot {
    /// Extra replicas, of experts that have any.
    pub(super) fn extra(&self) -> BTreeMap<ExpertId, usize> {
        self.extra.iter().filter(|(_, (extra, _))| *extra > 0).map(|(&expert, &(extra, _))| (expert, extra)).collect()
    }

    /// Takes the rates of now. An expert gains or loses one replica at a time, with an interval between.
    pub(super) fn observe(
        &mut self,
        desire: &Desire,
        policy: &ControllerPolicy,
        rates: &BTreeMap<ExpertId, f32>,
        now: Duration,
    ) {
        let rate = |expert: ExpertId| rates.get(&expert).copied().filter(|rate| rate.is_finite()).unwrap_or(0.0);
        let mut layers: BTreeMap<u32, (f32, usize)> = BTreeMap::new();
        for expert in &desire.experts {
            let (sum, count) = layers.entry(expert.id.layer).or_default();
            *sum += rate(expert.id);
            *count += 1;
        }
        for expert in &desire.experts {
            let (sum, count) = layers.get(&expert.id.layer).copied().unwrap_or((0.0, 1));
            if sum < MIN_LAYER_RATE {
                continue;
            }
            let percent = 100.0 * rate(expert.id) * count as f32 / sum;
            let (extra, since) = self.extra.get(&expert.id).copied().unwrap_or((0, Duration::ZERO));
            // Each further replica has to be earned, and is lost, by its own share of heat.
            let (gain, lose) = (policy.hot_percent * (extra as u32 + 1), policy.cool_percent * extra as u32);
            let wanted = if percent >= gain as f32 {
                (extra + 1).min(policy.max_extra)
            } else if percent < lose as f32 {
                extra - 1
            } else {
                extra
            };
            let rested = extra == 0 && since.is_zero() || now >= since.saturating_add(policy.hot_interval);
            if wanted != extra && rested {
                self.extra.insert(expert.id, (wanted, now));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::ExpertSize;

    fn desire() -> Desire {
        let experts = (0..4).map(|e| ExpertSize { id: ExpertId::new(0, e), bytes: 1 }).collect();
        Desire { model: "m".into(), experts, replicas: 1 }
    }

    fn after(hot: &mut Hot, rates: [f32; 4], seconds: u64) -> usize {
        let rates = (0..).zip(rates).map(|(e, rate)| (ExpertId::new(0, e), rate)).collect();
        hot.observe(&desire(), &ControllerPolicy::default(), &rates, Duration::from_secs(seconds));
        hot.extra().get(&ExpertId::new(0, 0)).copied().unwrap_or(0)
    }

    #[test]
    fn heat_earns_a_replica_and_only_a_clear_fall_loses_it() {
        let mut hot = Hot::default();
        assert_eq!(after(&mut hot, [1.0, 0.0, 0.0, 0.0], 1), 0, "too little to tell");
        assert_eq!(after(&mut hot, [40.0, 30.0, 20.0, 10.0], 1), 0, "1.6 times the mean");
        assert_eq!(after(&mut hot, [60.0, 20.0, 10.0, 10.0], 2), 1, "2.4 times the mean");
        assert_eq!(after(&mut hot, [60.0, 20.0, 10.0, 10.0], 90), 1, "a second one takes 4 times");
        assert_eq!(after(&mut hot, [40.0, 30.0, 20.0, 10.0], 91), 1, "1.6 times is warm still");
        assert_eq!(after(&mut hot, [25.0, 25.0, 25.0, 25.0], 92), 0);
        assert_eq!(after(&mut hot, [60.0, 20.0, 10.0, 10.0], 93), 0, "not again so soon");
        assert_eq!(after(&mut hot, [60.0, 20.0, 10.0, 10.0], 152), 1);
    }
}
