//! Who is asked to be in the next communicator. Pure: time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tramontane_router::NodeId;

use super::{FIRST_PAUSE, LAST_PAUSE};

/// Nodes, by where they listen.
pub(super) type Addrs = BTreeMap<NodeId, String>;

/// The nodes there are, and those of them that failed not long ago.
#[derive(Default)]
pub(super) struct Roster {
    wanted: Addrs,
    failed: BTreeMap<NodeId, Failed>,
}

struct Failed {
    /// Another process has another address, and a clean slate.
    addr: String,
    until: Instant,
    pause: Duration,
}

impl Roster {
    /// These are the nodes.
    pub(super) fn want(&mut self, wanted: Addrs) {
        self.failed.retain(|node, failed| wanted.get(node) == Some(&failed.addr));
        self.wanted = wanted;
    }

    /// Those whom to ask now.
    pub(super) fn candidates(&self, now: Instant) -> Addrs {
        let rests = |node| self.failed.get(node).is_some_and(|failed| failed.until > now);
        self.wanted.iter().filter(|(node, _)| !rests(*node)).map(|(node, addr)| (node.clone(), addr.clone())).collect()
    }

    /// Of those, the ones that are not `members`.
    pub(super) fn outsiders(&self, members: &BTreeSet<NodeId>, now: Instant) -> Addrs {
        let mut candidates = self.candidates(now);
        candidates.retain(|node, _| !members.contains(node));
        candidates
    }

    /// When somebody who failed is to be asked again.
    pub(super) fn next_try(&self, now: Instant) -> Option<Instant> {
        self.failed.values().map(|failed| failed.until).filter(|&until| until > now).min()
    }

    /// `node` could not be a member, or broke the communicator.
    pub(super) fn failed(&mut self, node: &NodeId, now: Instant) {
        let Some(addr) = self.wanted.get(node) else { return };
        let before = self.failed.get(node).map(|failed| failed.pause);
        let pause = before.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LAST_PAUSE));
        self.failed.insert(node.clone(), Failed { addr: addr.clone(), until: now + pause, pause });
    }

    /// Rows went to `node` and came back.
    pub(super) fn proved(&mut self, node: &NodeId) {
        self.failed.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(addrs: &[(&str, &str)]) -> Addrs {
        addrs.iter().map(|&(node, addr)| (NodeId::from(node), addr.to_owned())).collect()
    }

    #[test]
    fn who_fails_rests_longer_each_time_and_is_asked_again() {
        let (mut roster, mut now) = (Roster::default(), Instant::now());
        roster.want(addrs(&[("a", "1"), ("b", "2")]));
        let mut pauses = Vec::new();
        for _ in 0..9 {
            roster.failed(&NodeId::from("a"), now);
            assert_eq!(roster.candidates(now), addrs(&[("b", "2")]));
            let next = roster.next_try(now).expect("a's turn");
            pauses.push((next - now).as_secs());
            now = next;
            assert_eq!(roster.candidates(now), addrs(&[("a", "1"), ("b", "2")]));
            assert_eq!(roster.next_try(now), None);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(roster.outsiders(&[NodeId::from("b")].into(), now), addrs(&[("a", "1")]));
        roster.proved(&NodeId::from("a"));
        roster.failed(&NodeId::from("a"), now);
        assert_eq!(roster.next_try(now), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn another_process_of_the_name_has_a_clean_slate_and_a_node_that_left_has_none() {
        let (mut roster, now) = (Roster::default(), Instant::now());
        roster.want(addrs(&[("a", "1")]));
        roster.failed(&NodeId::from("a"), now);
        roster.want(addrs(&[("a", "2")]));
        assert_eq!(roster.candidates(now), addrs(&[("a", "2")]));
        roster.failed(&NodeId::from("a"), now);
        roster.want(Addrs::new());
        roster.failed(&NodeId::from("a"), now);
        assert_eq!((roster.candidates(now), roster.next_try(now)), (Addrs::new(), None));
    }
}
