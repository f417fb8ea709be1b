//! How patient a flight is, and how much it may spend on impatience.

use std::time::Duration;

/// How long a flight waits before it acts, and how often it acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A dispatch is hedged after this many times its predicted duration.
    pub hedge_factor: u32,
    /// After this many times its predicted duration a dispatch is late: its node is suspected, its rows are sent elsewhere.
    pub deadline_factor: u32,
    /// Shorter predictions count as this: less is noise of the operating system.
    pub shortest_prediction: Duration,
    /// Hedges, in percent of first dispatches; kept by the [`HedgeBudget`].
    pub hedge_percent: u32,
    /// How long to wait before a node is asked again that has failed in this flight; doubles with every failure in a row.
    pub retry_delay: Duration,
    /// Dispatches a flight may send again, all together.
    pub max_resends: usize,
    /// After this a flight is abandoned, whatever it still waits for.
    pub timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            hedge_factor: 2,
            deadline_factor: 5,
            shortest_prediction: Duration::from_millis(10),
            hedge_percent: 5,
            retry_delay: Duration::from_millis(10),
            max_resends: 32,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Hedges that may be saved up in quiet times, at most.
pub const MAX_SAVED_HEDGES: u32 = 8;
/// What one hedge costs; a first dispatch earns [`Policy::hedge_percent`] of it.
const HEDGE_COST: u32 = 100;

/// What may still be spent on hedges. Carried from flight to flight, shared by those that overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HedgeBudget {
    credit: u32,
}

impl HedgeBudget {
    /// Credits `dispatches` first dispatches.
    pub(super) fn earn(&mut self, dispatches: usize, percent: u32) {
        let earned = u32::try_from(dispatches).unwrap_or(u32::MAX).saturating_mul(percent);
        self.credit = self.credit.saturating_add(earned).min(MAX_SAVED_HEDGES * HEDGE_COST);
    }

    /// Pays for `hedges`, if there is enough for all of them; says whether there was.
    #[must_use]
    pub(super) fn spend(&mut self, hedges: usize) -> bool {
        let cost = u32::try_from(hedges).unwrap_or(u32::MAX).saturating_mul(HEDGE_COST);
        let rest = self.credit.checked_sub(cost);
        self.credit = rest.unwrap_or(self.credit);
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dispatch_in_twenty_may_be_hedged_and_little_is_saved() {
        let mut budget = HedgeBudget::default();
        budget.earn(19, 5);
        assert!(!budget.spend(1));
        budget.earn(1, 5);
        assert!(!budget.spend(2));
        assert!(budget.spend(1));
        assert!(!budget.spend(1));
        budget.earn(usize::MAX, 5);
        assert!(budget.spend(MAX_SAVED_HEDGES as usize));
        assert!(!budget.spend(1));
    }
}
