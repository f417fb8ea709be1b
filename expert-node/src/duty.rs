//! What the placement asks of a node. Pure.

use std::collections::BTreeSet;

use tramontane_router::{ClusterView, ExpertId, NodeId};

/// What a node does to hold what it is given, in this order: it loads, publishes what it holds, and forgets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duty {
    /// Experts to load, ascending. When they are held, ask again what is to be done.
    pub load: Vec<ExpertId>,
    /// What it holds, without what is to be loaded and what is to be forgotten.
    pub publish: BTreeSet<ExpertId>,
    /// What others hold. (What is loaded meanwhile, to rescue a layer, is not to be forgotten.)
    pub forget: BTreeSet<ExpertId>,
}

impl Duty {
    /// The same, but the experts in `asked` are kept: others rely on them now, whatever the view says.
    #[must_use]
    pub fn sparing(mut self, asked: &BTreeSet<ExpertId>) -> Self {
        let (kept, forget) = self.forget.into_iter().partition(|expert| asked.contains(expert));
        let kept: BTreeSet<ExpertId> = kept;
        self.publish.extend(kept);
        Self { forget, ..self }
    }
}

/// What a node keeps of what it holds and is not given: moved away, or loaded to rescue a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// An expert that nobody holds who is given it: it may be the last copy.
    LastCopies,
    /// Nothing: there is no room.
    Nothing,
}

/// What `node` has to do by `view`, which holds `held` and whose record says `published`; `None` when nothing is placed yet,
/// or nothing is to be done.
pub fn duty(
    view: &ClusterView,
    node: &NodeId,
    held: &BTreeSet<ExpertId>,
    published: &BTreeSet<ExpertId>,
    keep: Keep,
) -> Option<Duty> {
    let placement = view.placement.as_ref()?;
    let given = placement.replicas.iter().filter(|(_, nodes)| nodes.contains(node));
    let given: BTreeSet<ExpertId> = given.map(|(&expert, _)| expert).collect();
    let is_last = |expert: &ExpertId| view.holders(*expert).all(|holder| holder == node);
    let stays = |expert: &ExpertId| given.contains(expert) || keep == Keep::LastCopies && is_last(expert);
    let (publish, forget): (BTreeSet<_>, BTreeSet<_>) = held.iter().partition(|expert| stays(expert));
    let load: Vec<ExpertId> = given.difference(held).copied().collect();
    let is_done = load.is_empty() && forget.is_empty() && publish == *published;
    (!is_done).then_some(Duty { load, publish, forget })
}

#[cfg(test)]
mod tests {
    use tramontane_router::placement::Placement;
    use tramontane_router::{CPU_ARITHMETIC, Epoch, NodeRecord, NumericProfile};

    use super::*;

    const E: [ExpertId; 3] = [ExpertId::new(0, 0), ExpertId::new(0, 1), ExpertId::new(0, 2)];

    fn record(id: &str, held: &[ExpertId]) -> NodeRecord {
        let arithmetic = CPU_ARITHMETIC.to_owned();
        let profile = NumericProfile { contract: 1, weights: "w".into(), quantization: "f32".into(), arithmetic };
        let (held, zone) = (held.iter().copied().collect(), String::new());
        NodeRecord { id: id.into(), addr: "x:1".into(), held, profile, capacity: 9, speed: 0, zone, draining: false }
    }

    /// Expert 0 is placed on a, 1 on b, 2 on nobody.
    fn view(b_holds: &[ExpertId]) -> ClusterView {
        let replicas = [(E[0], vec!["a".into()]), (E[1], vec!["b".into()])].into();
        let placement = Placement { model: "m".into(), epoch: Epoch(2), parent: Epoch(1), replicas };
        let nodes = [record("a", &[]), record("b", b_holds)].map(|record| (record.id.clone(), record)).into();
        ClusterView { placement: Some(placement), nodes, ..ClusterView::default() }
    }

    fn of_a(view: &ClusterView, held: &[ExpertId], published: &[ExpertId], keep: Keep) -> Option<Duty> {
        let set = |experts: &[ExpertId]| experts.iter().copied().collect();
        duty(view, &"a".into(), &set(held), &set(published), keep)
    }

    #[test]
    fn what_is_given_is_loaded_and_what_its_new_holder_has_is_forgotten() {
        let duty = of_a(&view(&[E[1]]), &[E[1]], &[E[1]], Keep::LastCopies);
        assert_eq!(duty, Some(Duty { load: vec![E[0]], publish: [].into(), forget: [E[1]].into() }));
        assert_eq!(of_a(&view(&[]), &[E[0]], &[E[0]], Keep::LastCopies), None);
        assert_eq!(of_a(&ClusterView::default(), &[E[0]], &[], Keep::LastCopies), None);
    }

    #[test]
    fn what_is_asked_for_is_not_forgotten_though_its_new_holder_has_it() {
        let duty = of_a(&view(&[E[1], E[2]]), &[E[0], E[1]], &[E[0]], Keep::LastCopies).expect("something to do");
        assert_eq!(duty.forget, [E[1]].into());
        let spared = duty.clone().sparing(&[E[0], E[1]].into());
        assert_eq!(spared, Duty { load: vec![], publish: [E[0], E[1]].into(), forget: [].into() });
        assert_eq!(duty.clone().sparing(&BTreeSet::new()), duty);
    }

    #[test]
    fn an_expert_is_kept_and_published_until_who_is_given_it_holds_it() {
        let duty = of_a(&view(&[]), &[E[0], E[1], E[2]], &[E[0]], Keep::LastCopies);
        assert_eq!(duty, Some(Duty { load: vec![], publish: E.into(), forget: [].into() }));
        let tight = of_a(&view(&[]), &[E[1], E[2]], &[], Keep::Nothing);
        let forget = [E[1], E[2]].into();
        assert_eq!(tight, Some(Duty { load: vec![E[0]], publish: [].into(), forget }), "there is no room for it");
    }

    #[test]
    fn what_a_rescue_has_loaded_before_it_was_given_is_published() {
        let duty = of_a(&view(&[]), &[E[0]], &[], Keep::LastCopies);
        assert_eq!(duty, Some(Duty { load: vec![], publish: [E[0]].into(), forget: [].into() }));
    }
}
