//! Whom this coordinator avoids, and for how long. Suspicion is local and cheap: a suspect is used where nobody else can
//! serve, probed after a while, and forgiven when it answers rightly. Quarantine is for answers that others contradict.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::flight::Suspicion;
use crate::{ClusterView, NodeId};

/// How long a suspect is left alone at first; doubles with every probe that fails.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// How often that doubles, at most: a node is probed once a minute however long it is away.
const MAX_DOUBLINGS: u32 = 6;

/// Why a node's answers are not taken any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quarantine {
    /// Two others answered the same rows with equal bits, and this one with others.
    OtherBits,
    /// It says itself that it serves other bits.
    WrongProfile,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspect {
    why: Suspicion,
    probes: u32,
    probe_at: Duration,
}

/// What is held against nodes.
#[derive(Clone, Debug, Default)]
pub struct Health {
    suspects: BTreeMap<NodeId, Suspect>,
    quarantined: BTreeMap<NodeId, Quarantine>,
}

impl Health {
    /// Holds `why` against `node`.
    pub fn suspect(&mut self, node: NodeId, why: Suspicion, now: Duration) {
        if why == Suspicion::WrongProfile {
            self.quarantine(node, Quarantine::WrongProfile);
            return;
        }
        let suspect = self.suspects.entry(node).or_insert(Suspect { why, probes: 0, probe_at: now });
        suspect.why = why;
        suspect.probe_at = suspect.probe_at.max(now + delay(suspect.probes));
    }

    /// `node` answered rightly: nothing is held against it any more, unless it is quarantined.
    pub fn answered(&mut self, node: &NodeId) {
        self.suspects.remove(node);
    }

    /// Never takes an answer of `node` again, until [`Health::release`] or another process of its name.
    pub fn quarantine(&mut self, node: NodeId, why: Quarantine) {
        self.suspects.remove(&node);
        self.quarantined.insert(node, why);
    }

    /// Gives `node` another chance.
    pub fn release(&mut self, node: &NodeId) {
        self.quarantined.remove(node);
        self.suspects.remove(node);
    }

    /// The nodes to use only where nobody else can serve.
    pub fn avoid(&self) -> BTreeSet<NodeId> {
        self.suspects.keys().cloned().collect()
    }

    /// The nodes never to use.
    pub fn quarantined(&self) -> &BTreeMap<NodeId, Quarantine> {
        &self.quarantined
    }

    /// The suspect whose probe is due the longest. It is due again later, at twice the distance.
    pub fn take_probe(&mut self, now: Duration) -> Option<NodeId> {
        let due = self.suspects.iter_mut().filter(|(_, suspect)| suspect.probe_at <= now);
        let (node, suspect) = due.min_by_key(|(_, suspect)| suspect.probe_at)?;
        suspect.probes = suspect.probes.saturating_add(1);
        suspect.probe_at = now + delay(suspect.probes);
        Some(node.clone())
    }

    /// Takes the quarantined nodes out of `view`.
    pub fn without_quarantined(&self, view: &mut ClusterView) {
        view.nodes.retain(|node, _| !self.quarantined.contains_key(node));
    }
}

fn delay(probes: u32) -> Duration {
    FIRST_PROBE * (1 << probes.min(MAX_DOUBLINGS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_suspect_is_probed_ever_more_seldom_and_forgiven_at_once() {
        let mut health = Health::default();
        health.suspect("a".into(), Suspicion::Late, s(10));
        assert_eq!(health.avoid(), BTreeSet::from(["a".into()]));
        assert_eq!(health.take_probe(s(10)), None);
        assert_eq!(health.take_probe(s(11)), Some("a".into()));
        assert_eq!(health.take_probe(s(12)), None);
        assert_eq!(health.take_probe(s(13)), Some("a".into()));
        assert_eq!(health.take_probe(s(16)), None);
        for _ in 0..100 {
            health.take_probe(s(1000));
        }
        assert_eq!(health.take_probe(s(1064)), Some("a".into()));
        health.answered(&"a".into());
        assert!(health.avoid().is_empty());
    }

    #[test]
    fn who_serves_other_bits_is_quarantined_until_released() {
        let mut health = Health::default();
        health.suspect("a".into(), Suspicion::WrongProfile, s(0));
        health.answered(&"a".into());
        let mut view = crate::testing::view(&["a", "b"], &[(0, &["a", "b"])]);
        health.without_quarantined(&mut view);
        assert_eq!(view.nodes.len(), 1);
        assert_eq!(health.take_probe(s(100)), None);
        health.release(&"a".into());
        assert!(health.quarantined().is_empty());
    }
}
