//! How long a dispatch should take, learned from those that came back.
//!
//! A dispatch is [`units`] of work; a node takes so many seconds a unit, an average that moves. What a prediction is worth
//! shows in the ratio of observed to predicted time: its 99th percentile over the last answers of all nodes stretches every
//! prediction, so that a cluster which is noisy as a whole is not taken for one that is late.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::{Costs, Dispatch, NodeId};

/// Work of a dispatch that has nothing in it: the way there and back.
const DISPATCH_UNITS: f64 = 8.0;
/// Work of an expert beside its rows: its weights are read once.
const EXPERT_UNITS: f64 = 4.0;
/// Answers of a node before its own average counts.
const MIN_ANSWERS: u32 = 4;
/// What an unknown node takes a unit: slow, so that nobody is suspected before it is known.
const UNKNOWN_SECONDS: f64 = 0.05;
/// A new answer's share of the average.
const NEW: f64 = 0.125;
/// Ratios that are remembered.
const RATIOS: usize = 256;
/// Answers between two looks at the ratios.
const LOOK: u32 = 16;
/// The ratio beyond which a node is late, whatever others do.
pub const MAX_RATIO: f64 = 10.0;
/// The longest that is predicted.
const LONGEST: Duration = Duration::from_secs(60);

/// The work of `rows` answer rows of `experts` experts.
pub fn units(rows: usize, experts: usize) -> f64 {
    DISPATCH_UNITS + EXPERT_UNITS * experts as f64 + rows as f64
}

fn units_of(dispatch: &Dispatch) -> f64 {
    units(dispatch.work.iter().map(|w| w.rows.len()).sum(), dispatch.work.len())
}

#[derive(Clone, Copy, Debug)]
struct Node {
    answers: u32,
    /// Seconds a unit.
    pace: f64,
    traffic: Traffic,
}

/// What a node has done, for whoever shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Dispatches answered.
    pub answers: u64,
    /// Rows of these.
    pub rows: u64,
    /// Seconds that a dispatch was predicted to take, on a moving average.
    pub predicted: f64,
    /// Seconds that it took.
    pub observed: f64,
}

impl Traffic {
    fn note(&mut self, rows: usize, predicted: Duration, observed: Duration) {
        let new = if self.answers == 0 { 1.0 } else { NEW };
        self.answers += 1;
        self.rows += rows as u64;
        self.predicted += (predicted.as_secs_f64() - self.predicted) * new;
        self.observed += (observed.as_secs_f64() - self.observed) * new;
    }
}

/// Estimates of all nodes.
#[derive(Clone, Debug)]
pub struct Estimates {
    nodes: BTreeMap<NodeId, Node>,
    ratios: VecDeque<f64>,
    since_look: u32,
    stretch: f64,
}

impl Default for Estimates {
    fn default() -> Self {
        Self { nodes: BTreeMap::new(), ratios: VecDeque::new(), since_look: 0, stretch: 1.0 }
    }
}

impl Estimates {
    /// Seconds a unit of work at `node`; `None` while little is known of it.
    pub fn pace(&self, node: &NodeId) -> Option<f64> {
        self.nodes.get(node).filter(|n| n.answers >= MIN_ANSWERS).map(|n| n.pace)
    }

    /// What `node` has done.
    pub fn traffic(&self, node: &NodeId) -> Option<Traffic> {
        self.nodes.get(node).map(|n| n.traffic)
    }

    /// The paces of those nodes for which `wanted` says yes, as far as they are known well enough.
    pub fn costs(&self, wanted: impl Fn(&NodeId) -> bool) -> Costs {
        let known = self.nodes.iter().filter(|(node, n)| n.answers >= MIN_ANSWERS && wanted(node));
        known.map(|(node, n)| (node.clone(), n.pace)).collect()
    }

    /// How long `dispatch` should take, at the 99th percentile.
    pub fn predict(&self, dispatch: &Dispatch) -> Duration {
        let (pace, stretch) = self.pace(&dispatch.node).map_or((UNKNOWN_SECONDS, 1.0), |pace| (pace, self.stretch));
        Duration::try_from_secs_f64(pace * units_of(dispatch) * stretch).unwrap_or(LONGEST).min(LONGEST)
    }

    /// Takes in that `dispatch` was answered after `took`.
    pub fn observe(&mut self, dispatch: &Dispatch, took: Duration) {
        let (units, predicted) = (units_of(dispatch), self.predict(dispatch));
        let pace = took.as_secs_f64() / units;
        if let Some(expected) = self.pace(&dispatch.node) {
            self.ratios.push_back((pace / expected.max(f64::MIN_POSITIVE)).clamp(1.0, MAX_RATIO));
            if self.ratios.len() > RATIOS {
                self.ratios.pop_front();
            }
            self.since_look += 1;
        }
        let node =
            self.nodes.entry(dispatch.node.clone()).or_insert(Node { answers: 0, pace, traffic: Traffic::default() });
        node.answers = node.answers.saturating_add(1);
        node.traffic.note(dispatch.work.iter().map(|w| w.rows.len()).sum(), predicted, took);
        node.pace += (pace - node.pace) * NEW;
        if self.since_look >= LOOK {
            self.since_look = 0;
            let mut sorted: Vec<f64> = self.ratios.iter().copied().collect();
            sorted.sort_by(f64::total_cmp);
            self.stretch = sorted.get(sorted.len() * 99 / 100).copied().unwrap_or(1.0);
        }
    }

    /// Forgets the nodes for which `keep` says no.
    pub fn retain(&mut self, keep: impl Fn(&NodeId) -> bool) {
        self.nodes.retain(|node, _| keep(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExpertWork;

    fn dispatch(node: &str, rows: u32) -> Dispatch {
        let work = vec![ExpertWork { expert: 0, rows: (0..rows).collect() }];
        Dispatch { node: node.into(), tokens: (0..rows).collect(), work }
    }

    #[test]
    fn a_node_is_predicted_by_what_it_took_and_twice_the_work_takes_longer() {
        let mut estimates = Estimates::default();
        assert!(estimates.predict(&dispatch("a", 4)) >= Duration::from_millis(500), "nothing is known");
        for _ in 0..40 {
            estimates.observe(&dispatch("a", 4), Duration::from_millis(16));
        }
        assert_eq!(estimates.predict(&dispatch("a", 4)).as_millis(), 16);
        let traffic = estimates.traffic(&"a".into()).expect("it is known");
        assert_eq!((traffic.answers, traffic.rows), (40, 160));
        assert!((traffic.observed - 0.016).abs() < 1e-9 && traffic.predicted < 0.03, "{traffic:?}");
        assert_eq!(estimates.predict(&dispatch("a", 20)).as_millis(), 32);
        assert!(estimates.pace(&"b".into()).is_none());
    }

    #[test]
    fn noise_stretches_predictions_up_to_a_bound() {
        let mut estimates = Estimates::default();
        for i in 0..400 {
            let took = if i % 20 == 0 { 80 } else { 16 };
            estimates.observe(&dispatch("a", 4), Duration::from_millis(took));
        }
        let predicted = estimates.predict(&dispatch("a", 4));
        assert!(predicted > Duration::from_millis(60), "{predicted:?}");
        for _ in 0..400 {
            estimates.observe(&dispatch("a", 4), Duration::from_secs(3600));
        }
        assert!(estimates.stretch <= MAX_RATIO && estimates.predict(&dispatch("a", 4)) <= LONGEST);
    }
}
