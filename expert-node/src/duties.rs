//! What a node should do next by the view it sees: which experts to load, which to give up. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tramontane_router::{ClusterView, ExpertId, NodeId};

/// How long a load that failed is left alone the first time; it doubles from failure to failure.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long it is left alone at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Duties {
    /// Given to the node and not held, ascending.
    pub(crate) load: Vec<ExpertId>,
    /// Held, not given, and held by another node that it is given to.
    pub(crate) give_up: BTreeSet<ExpertId>,
}

/// The duties of `node`, which holds `held`. What it loaded to help out (rescue) it keeps until somebody who is placed to
/// hold it does: it may be the only one who has it.
pub(crate) fn duties(view: &ClusterView, node: &NodeId, held: &BTreeSet<ExpertId>) -> Duties {
    let Some(placement) = &view.placement else { return Duties::default() };
    let given = |expert: &ExpertId| placement.replicas.get(expert).is_some_and(|nodes| nodes.contains(node));
    let load = placement.replicas.keys().filter(|expert| given(expert) && !held.contains(expert));
    let elsewhere = |expert: &ExpertId| view.holders(*expert).any(|holder| holder != node);
    let give_up = held.iter().filter(|expert| !given(expert) && elsewhere(expert));
    Duties { load: load.copied().collect(), give_up: give_up.copied().collect() }
}

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
    use tramontane_router::placement::Placement;
    use tramontane_router::{Epoch, NodeRecord, NumericProfile};

    use super::*;

    const E: [ExpertId; 3] = [ExpertId::new(0, 0), ExpertId::new(0, 1), ExpertId::new(1, 0)];

    fn record(id: &str, held: &[ExpertId]) -> NodeRecord {
        let profile = NumericProfile { contract: 1, weights: "w".into(), quantization: "f32".into() };
        let (held, zone) = (held.iter().copied().collect(), String::new());
        NodeRecord { id: id.into(), addr: id.into(), held, profile, capacity: 9, speed: 0, zone, draining: false }
    }

    fn view(placed: &[(ExpertId, &[&str])], nodes: &[NodeRecord]) -> ClusterView {
        let replicas = placed.iter().map(|(e, nodes)| (*e, nodes.iter().map(|&n| n.into()).collect())).collect();
        let placement = Placement { model: "m".into(), epoch: Epoch(1), parent: Epoch(0), replicas };
        ClusterView {
            placement: Some(placement),
            nodes: nodes.iter().map(|node| (node.id.clone(), node.clone())).collect(),
        }
    }

    #[test]
    fn nothing_is_done_before_there_is_a_placement() {
        assert_eq!(duties(&ClusterView::default(), &"a".into(), &E.into()), Duties::default());
    }

    #[test]
    fn what_is_given_is_loaded_and_what_another_holds_instead_is_given_up() {
        let placed: [(ExpertId, &[&str]); 3] = [(E[0], &["a"]), (E[1], &["b"]), (E[2], &["b", "c"])];
        let of_a = |nodes: &[NodeRecord], held: &[ExpertId]| {
            let held = held.iter().copied().collect();
            duties(&view(&placed, nodes), &"a".into(), &held)
        };
        let a = record("a", &E[1..]);
        // b is placed to hold two experts: until its record says that it does, a keeps them.
        let wait = of_a(&[a.clone(), record("b", &[])], &E[1..]);
        assert_eq!(wait, Duties { load: vec![E[0]], give_up: [].into() });
        let one = of_a(&[a.clone(), record("b", &[E[1]])], &E[1..]);
        assert_eq!(one.give_up, [E[1]].into());
        // One placed holder is enough; one that holds without being placed is none.
        let both = of_a(&[a.clone(), record("c", &[E[1], E[2]])], &E[1..]);
        assert_eq!(both.give_up, [E[2]].into());
        // Held by the placement's word, whoever else has it.
        assert_eq!(of_a(&[a, record("b", &E)], &E).give_up, [E[1], E[2]].into());
    }

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
