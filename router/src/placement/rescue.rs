//! Rescue: which survivor loads an expert that no live node holds. Everybody who sees the same nodes names the same one.

use super::Standing;
use crate::{ClusterView, ExpertId, NodeId};

/// The live node that should load `expert` when nobody holds it: the one of highest score among those that are not
/// draining (rendezvous hashing, Thaler and Ravishankar 1998), so that a node that comes or goes changes the answer
/// only for the experts it wins or had won. `None` when no such node lives.
///
/// A cordoned node is named only where all that stay are cordoned: a request that fails is worse than an expert that an operator
/// did not want there, and the expert goes when a node that is given it holds it.
pub fn rescue(view: &ClusterView, expert: ExpertId) -> Option<NodeId> {
    let of = |standing| {
        let survivors = view.nodes.iter().filter(move |(_, node)| view.standing(node) == standing);
        // Reversed, because `max_by_key` takes the last of equals: the lowest id wins.
        survivors.map(|(id, _)| id).rev().max_by_key(|id| score(id, expert)).cloned()
    };
    of(Standing::Open).or_else(|| of(Standing::Cordoned))
}

/// FNV-1a (64 bit) of the node's name, the layer and the expert (little endian), mixed by splitmix64's finaliser so that
/// names that differ in their last letter differ everywhere.
fn score(node: &NodeId, expert: ExpertId) -> u64 {
    let name = node.as_str().bytes();
    mix(fnv1a(name.chain(expert.layer.to_le_bytes()).chain(expert.expert.to_le_bytes())))
}

fn fnv1a(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::view;

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(fnv1a("foobar".bytes()), 0x8594_4171_f739_67e8);
        // splitmix64's first output from seed 0.
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn a_departure_changes_the_answer_only_for_what_the_departed_had_won() {
        let before = view(&["a", "b", "c", "d"], &[]);
        let mut after = before.clone();
        after.nodes.get_mut(&"b".into()).unwrap().draining = true;
        let mut won = [0; 4];
        for i in 0..400 {
            let expert = ExpertId::new(i / 8, i % 8);
            let (old, new) = (rescue(&before, expert).unwrap(), rescue(&after, expert).unwrap());
            won[usize::from(old.as_str().as_bytes()[0] - b'a')] += 1;
            assert_ne!(new.as_str(), "b");
            assert!(old == new || old.as_str() == "b");
        }
        assert!(won.iter().all(|&n| n > 60), "uneven: {won:?}");
    }

    #[test]
    fn a_cordoned_node_rescues_only_where_no_other_can() {
        let mut view = view(&["a", "b"], &[]);
        view.orders.cordoned.insert("a".into());
        assert!((0..50).all(|e| rescue(&view, ExpertId::new(0, e)) == Some("b".into())));
        view.nodes.get_mut(&"b".into()).unwrap().draining = true;
        assert_eq!(rescue(&view, ExpertId::new(0, 0)), Some("a".into()));
    }

    #[test]
    fn nobody_rescues_where_nobody_stays() {
        let mut view = view(&["a"], &[]);
        view.nodes.get_mut(&"a".into()).unwrap().draining = true;
        assert_eq!(rescue(&view, ExpertId::new(0, 0)), None);
    }
}
