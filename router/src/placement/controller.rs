//! The controller: from what is (records, loads, the placement) to the next placement. The leader asks it again and again.
//!
//! A goal is where the solver wants every expert. The way there is walked in placements of three kinds: one adds the
//! new nodes beside the old, some wait until the new ones hold what they were given, one removes the old. So no expert is
//! without a live holder on the way, and `check`, which every step passes, never has to refuse one.

mod hot;
mod reason;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{ExpertSize, NodeRoom, Placement, Problem, SolveError, Wishes, check, solve_with};
use crate::{ClusterView, Epoch, ExpertId, ModelId, NodeId};
use hot::Hot;
pub use reason::Reason;

/// What the cluster should look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desire {
    /// The model.
    pub model: ModelId,
    /// Its experts.
    pub experts: Vec<ExpertSize>,
    /// Nodes that should hold each expert, where capacity allows.
    pub replicas: usize,
}

/// How patient the controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerPolicy {
    /// How long nobody must have come or gone before experts are moved for balance.
    pub settle: Duration,
    /// How long a node may be gone before its experts get new nodes. (What nobody else holds does not wait.)
    pub grace: Duration,
    /// An expert gets another replica at this many times its layer's mean rate, in percent,
    pub hot_percent: u32,
    /// and loses it below this many.
    pub cool_percent: u32,
    /// Replicas beyond the desired ones that heat can earn, at most.
    pub max_extra: usize,
    /// How long an expert's extra replicas stay as they are.
    pub hot_interval: Duration,
    /// Replicas to load by one placement, at most. (The first of an expert that nobody holds does not count.)
    pub max_adds: usize,
}

impl Default for ControllerPolicy {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(2),
            grace: Duration::from_secs(30),
            hot_percent: 200,
            cool_percent: 120,
            max_extra: 2,
            hot_interval: Duration::from_secs(60),
            max_adds: 256,
        }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Propose this; decide anew when the view shows it.
    Propose {
        /// It follows the view's placement, and passes `check`.
        placement: Placement,
        /// How it differs.
        changes: Vec<Change>,
    },
    /// Nothing: all is as it should be.
    Settled,
    /// Say that what this version of the orders asked for is done (or why nothing can be done); decide anew when the view shows that.
    Rebalanced {
        /// The version.
        order: u64,
        /// What stands in the way, if anything does.
        blocked: Option<String>,
    },
    /// Nothing yet. Decide anew when the view changes, or then.
    Wait {
        /// When, at the latest.
        until: Duration,
        /// What is waited for, for the operator.
        why: &'static str,
    },
    /// Nothing can be done: tell the operator. Decide anew when the view changes.
    Blocked {
        /// Why.
        why: String,
    },
}

/// Whether a node gets an expert or gives it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The node is to load it.
    Add,
    /// The node may forget it.
    Remove,
}

/// One difference between two placements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The expert.
    pub expert: ExpertId,
    /// The node.
    pub node: NodeId,
    /// What it does.
    pub kind: Kind,
}

/// How `next` differs from `before` (`None`: nothing is placed), by expert, then node.
pub fn changes(before: Option<&Placement>, next: &Placement) -> Vec<Change> {
    let mut all = Vec::new();
    let none = Vec::new();
    let experts: BTreeSet<ExpertId> =
        before.iter().flat_map(|p| p.replicas.keys()).chain(next.replicas.keys()).copied().collect();
    for expert in experts {
        let old = before.and_then(|p| p.replicas.get(&expert)).unwrap_or(&none);
        let new = next.replicas.get(&expert).unwrap_or(&none);
        for (kind, these, those) in [(Kind::Add, new, old), (Kind::Remove, old, new)] {
            let differ = these.iter().filter(|node| !those.contains(node));
            all.extend(differ.map(|node| Change { expert, node: node.clone(), kind }));
        }
    }
    all
}

/// Whether `node` may leave: no placement names it.
pub fn is_drained(view: &ClusterView, node: &NodeId) -> bool {
    view.placement.as_ref().is_none_or(|p| p.replicas.values().all(|nodes| !nodes.contains(node)))
}

/// Decides; remembers only what is about time, so that a new leader's controller goes on where the last one was.
#[derive(Clone, Debug)]
pub struct Controller {
    desire: Desire,
    policy: ControllerPolicy,
    /// Who is alive, and who was placed and is gone, since when.
    live: BTreeSet<NodeId>,
    gone: BTreeMap<NodeId, Duration>,
    /// When `live` was last another.
    changed: Option<Duration>,
    hot: Hot,
    /// The rebalance that is being followed.
    rebalance: Option<u64>,
    /// Where everything is to go, while it is under way, and for which nodes and extra replicas it was made.
    goal: Option<(Situation, Placement)>,
}

/// What a goal depends on.
type Situation = (Vec<NodeRoom>, Wishes, usize);

impl Controller {
    /// A controller that has seen nothing yet.
    pub fn new(desire: Desire, policy: ControllerPolicy) -> Self {
        let (live, gone, hot) = Default::default();
        Self { desire, policy, live, gone, changed: None, hot, rebalance: None, goal: None }
    }

    /// Decides by `view` and the experts' `rates` (rows a second; an expert left out has none) at `now`, a time since any
    /// fixed moment.
    pub fn decide(&mut self, view: &ClusterView, rates: &BTreeMap<ExpertId, f32>, now: Duration) -> Decision {
        self.observe(view, now);
        self.obey(view.orders.rebalance);
        // An operator who wants everything moved now has waited enough.
        let urgent = self.rebalance.is_some() || self.is_urgent(view);
        if let Some(wait) = self.patience(urgent, now) {
            return wait;
        }
        self.hot.observe(&self.desire, &self.policy, rates, now);
        let decision = match self.goal(view) {
            Ok(goal) => self.step(view, &goal, now),
            Err(SolveError::NoNodes) => {
                Decision::Wait { until: now.saturating_add(self.policy.grace), why: "nodes that take experts" }
            }
            Err(error) => Decision::Blocked { why: error.to_string() },
        };
        match (self.rebalance, decision) {
            (Some(order), Decision::Settled) => Decision::Rebalanced { order, blocked: None },
            (Some(order), Decision::Blocked { why }) => Decision::Rebalanced { order, blocked: Some(why) },
            (_, decision) => decision,
        }
    }

    /// What a rebalance would change by now, from the view's placement to where everything would be, and why; without regard to
    /// what was decided before.
    ///
    /// # Errors
    /// Why nothing can be done.
    pub fn rehearse(
        desire: Desire,
        policy: ControllerPolicy,
        view: &ClusterView,
        rates: &BTreeMap<ExpertId, f32>,
    ) -> Result<Vec<(Change, Reason)>, SolveError> {
        let mut controller = Self::new(desire, policy);
        controller.hot.observe(&controller.desire, &controller.policy, rates, Duration::ZERO);
        let goal = controller.goal(view)?;
        let because = |change: Change| {
            let reason = reason::reason(view, &goal, &controller.desire, &change);
            (change, reason)
        };
        Ok(changes(view.placement.as_ref(), &goal).into_iter().map(because).collect())
    }

    /// A rebalance that is new is followed from what is, not from what was thought before.
    fn obey(&mut self, rebalance: Option<u64>) {
        if rebalance.is_some() && rebalance != self.rebalance {
            (self.hot, self.goal) = (Hot::default(), None);
        }
        self.rebalance = rebalance;
    }

    fn observe(&mut self, view: &ClusterView, now: Duration) {
        if self.changed.is_none() || !self.live.iter().eq(view.nodes.keys()) {
            self.live = view.nodes.keys().cloned().collect();
            self.changed = Some(now);
        }
        let placed: BTreeSet<&NodeId> = view.placement.iter().flat_map(|p| p.replicas.values()).flatten().collect();
        self.gone.retain(|node, _| placed.contains(node) && !view.nodes.contains_key(node));
        for node in placed.into_iter().filter(|node| !view.nodes.contains_key(node)) {
            self.gone.entry(node.clone()).or_insert(now);
        }
    }

    /// Whether an expert has no live holder among its nodes, or a node wants to leave.
    fn is_urgent(&self, view: &ClusterView) -> bool {
        let Some(placement) = &view.placement else { return false };
        let placed = |expert| placement.replicas.get(expert).into_iter().flatten();
        let alive = |node: &NodeId| view.nodes.contains_key(node);
        let homeless = self.desire.experts.iter().any(|expert| !placed(&expert.id).any(alive));
        homeless || view.nodes.values().any(|node| node.draining && !is_drained(view, &node.id))
    }

    /// What is waited for before anything is done, if there is such a thing.
    fn patience(&self, urgent: bool, now: Duration) -> Option<Decision> {
        if urgent {
            return None;
        }
        let settled = self.changed.unwrap_or(now).saturating_add(self.policy.settle);
        if now < settled {
            return Some(Decision::Wait { until: settled, why: "nodes that come and go" });
        }
        let back =
            self.gone.values().map(|&since| since.saturating_add(self.policy.grace)).filter(|&until| now < until);
        back.min().map(|until| Decision::Wait { until, why: "a node that may come back" })
    }

    /// Where every expert should be, with as many replicas as there is room for.
    fn goal(&mut self, view: &ClusterView) -> Result<Placement, SolveError> {
        let nodes = NodeRoom::all(view);
        let zones = view.nodes.iter().map(|(id, n)| (id.clone(), n.zone.clone())).collect();
        let wishes = Wishes { zones, extra: self.hot.extra() };
        let situation = (nodes, wishes, self.desire.replicas);
        if let Some((_, goal)) = self.goal.as_ref().filter(|(of, _)| *of == situation) {
            return Ok(goal.clone());
        }
        let (nodes, wishes, _) = &situation;
        let mut refused = SolveError::NoReplicas;
        for replicas in (1..=self.desire.replicas).rev() {
            let problem = Problem {
                model: self.desire.model.clone(),
                experts: self.desire.experts.clone(),
                nodes: nodes.clone(),
                replicas,
            };
            match solve_with(&problem, wishes, view.placement.as_ref()) {
                Ok(goal) => {
                    self.goal = Some((situation, goal.clone()));
                    return Ok(goal);
                }
                Err(error @ SolveError::NoRoom { .. }) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    /// The next placement on the way from the view's to `goal`.
    fn step(&self, view: &ClusterView, goal: &Placement, now: Duration) -> Decision {
        let current = view.placement.as_ref();
        let none = Vec::new();
        let placed = |expert: &ExpertId| current.and_then(|p| p.replicas.get(expert)).unwrap_or(&none);
        let holds = |node: &NodeId, expert: &ExpertId| view.nodes.get(node).is_some_and(|n| n.held.contains(expert));
        let mut rooms = Rooms::of(view, &self.desire.experts);
        let (mut replicas, mut adds, mut loading, mut postponed) = (BTreeMap::new(), 0, false, false);
        for (expert, wanted) in &goal.replicas {
            let old = placed(expert);
            // What a node holds without being given it, it is about to forget: that does not count.
            if wanted.iter().all(|node| old.contains(node) && holds(node, expert)) {
                // Experts held and not placed any more are forgotten; the room is there when the record says so.
                replicas.insert(*expert, wanted.clone());
                continue;
            }
            let alive = old.iter().filter(|node| view.nodes.contains_key(node));
            let mut next: BTreeSet<NodeId> = alive.cloned().collect();
            for node in wanted.iter().filter(|node| !old.contains(node)) {
                // Somebody has to hold it, however many there are.
                let may_add = adds < self.policy.max_adds || next.is_empty() || holds(node, expert);
                if may_add && rooms.take(node, *expert) {
                    next.insert(node.clone());
                    adds += usize::from(!holds(node, expert));
                } else {
                    postponed = true;
                }
            }
            loading |= next.iter().any(|node| !holds(node, expert));
            // With nobody alive and no room yet, the dead stay placed: they may come back.
            let next = if next.is_empty() { old.clone() } else { next.into_iter().collect() };
            replicas.insert(*expert, next);
        }
        if current.is_some_and(|p| p.replicas == replicas) {
            return match (loading, postponed) {
                (true, _) => Decision::Wait { until: now.saturating_add(self.policy.grace), why: "nodes that load" },
                (false, true) => Decision::Blocked { why: "no node has room for an expert that is to move".into() },
                (false, false) => Decision::Settled,
            };
        }
        let parent = current.map_or(Epoch::default(), |p| p.epoch);
        let placement = Placement { model: self.desire.model.clone(), epoch: parent.next(), parent, replicas };
        match check(view, &placement).first() {
            None => Decision::Propose { changes: changes(current, &placement), placement },
            Some(violation) => Decision::Blocked { why: violation.to_string() },
        }
    }
}

/// Bytes that nodes have left, beside what they hold and what is placed on them.
struct Rooms<'v> {
    free: BTreeMap<&'v NodeId, u64>,
    bytes: BTreeMap<ExpertId, u64>,
    view: &'v ClusterView,
}

impl<'v> Rooms<'v> {
    fn of(view: &'v ClusterView, experts: &[ExpertSize]) -> Self {
        let bytes: BTreeMap<ExpertId, u64> = experts.iter().map(|e| (e.id, e.bytes)).collect();
        let mut used: BTreeMap<&NodeId, BTreeSet<ExpertId>> =
            view.nodes.iter().map(|(id, node)| (id, node.held.clone())).collect();
        for (&expert, nodes) in view.placement.iter().flat_map(|p| &p.replicas) {
            for node in nodes {
                used.get_mut(node).map(|held| held.insert(expert));
            }
        }
        let size = |experts: &BTreeSet<ExpertId>| {
            experts.iter().fold(0u64, |sum, e| sum.saturating_add(bytes.get(e).copied().unwrap_or(0)))
        };
        let free = view.nodes.iter().map(|(id, n)| (id, n.capacity.saturating_sub(used.get(id).map_or(0, size))));
        Self { free: free.collect(), bytes, view }
    }

    /// Takes room for `expert` on `node`, if there is any; one that holds it has it already.
    fn take(&mut self, node: &NodeId, expert: ExpertId) -> bool {
        if self.view.nodes.get(node).is_some_and(|n| n.held.contains(&expert)) {
            return true;
        }
        let needed = self.bytes.get(&expert).copied().unwrap_or(0);
        let Some(free) = self.free.get_mut(node).filter(|free| **free >= needed) else { return false };
        *free -= needed;
        true
    }
}

#[cfg(test)]
mod tests;
