//! One layer's dispatches from sending to combining: what to do when a reply comes, fails or is late. Pure: the caller
//! sends, waits and tells the time.
//!
//! A flight is a forest. Its roots are the plan's dispatches; the children of a dispatch are alternatives which together ask
//! for exactly its pairs: a hedge, or what was sent again. A dispatch is *resolved* when it is answered or all its children
//! are resolved, and the flight is done when all roots are. Hence every pair is answered exactly once, by the topmost
//! answered dispatch that asks for it, whatever came, failed or came twice.

mod event;
mod learned;
mod policy;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::{ClusterView, Dispatch, DispatchPlan, ExpertId, NodeId, replan, rescue_plan};
use learned::Learned;

pub use event::{AbandonReason, Action, DispatchNo, Event, Failure, Suspicion};
pub use policy::{HedgeBudget, MAX_SAVED_HEDGES, Policy};

/// How it stands with one dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Sent.
    Waiting,
    /// Sent, and overdue: heard if it answers yet, but not counted on.
    Late,
    Answered,
    /// From `retry_at` on, nodes that failed before may be asked again.
    Failed {
        retry_at: Duration,
    },
}

/// A dispatch that was sent.
#[derive(Clone, Debug)]
struct Sent {
    dispatch: Dispatch,
    /// Experts its node had to load first.
    load: Vec<u32>,
    parent: Option<usize>,
    children: Vec<usize>,
    predicted: Duration,
    state: State,
    /// When to hedge; `None` when that is past or not wanted.
    hedge_at: Option<Duration>,
    /// When it is late; `None` when nobody knows how long it takes.
    late_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Done,
    Abandoned,
}

/// The dispatches of one layer of one micro-batch.
///
/// It ends: a flight sends at most `plan + max_resends` dispatches and what the hedge budget pays for, and is abandoned
/// when its timeout has passed, if it is told the time at every [`Flight::deadline`].
#[derive(Clone, Debug)]
pub struct Flight {
    layer: u32,
    policy: Policy,
    /// Parents before children.
    sent: Vec<Sent>,
    learned: Learned,
    resends: usize,
    ends: Duration,
    phase: Phase,
}

/// How often the retry delay doubles, at most.
const MAX_DOUBLINGS: usize = 6;
/// The shortest retry delay that a policy can ask for: without one, a tick would be due at once, again and again.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(1);

impl Flight {
    /// Starts `plan`, as made with `view`: the flight, and the actions that send its dispatches (experts that a dispatch's
    /// node does not hold in `view`, see [`rescue_plan`], make it a [`Action::Rescue`]). `predicted` is how long a
    /// dispatch should take; times here and later are since any fixed moment. A plan of nothing is done at once.
    pub fn new(
        plan: DispatchPlan,
        policy: Policy,
        predicted: impl Fn(&Dispatch) -> Duration,
        view: &ClusterView,
        budget: &mut HedgeBudget,
        now: Duration,
    ) -> (Self, Vec<Action>) {
        budget.earn(plan.dispatches.len(), policy.hedge_percent);
        let mut flight = Self {
            layer: plan.layer,
            sent: Vec::with_capacity(plan.dispatches.len()),
            learned: Learned::default(),
            resends: 0,
            ends: now.saturating_add(policy.timeout),
            phase: Phase::Open,
            policy: Policy { retry_delay: policy.retry_delay.max(MIN_RETRY_DELAY), ..policy },
        };
        let mut actions = Vec::new();
        for dispatch in plan.dispatches {
            let predicted = predicted(&dispatch).max(flight.policy.shortest_prediction);
            let load = flight.to_load(&dispatch, view);
            let id = flight.push(dispatch.clone(), load.clone(), None, predicted, now);
            let action =
                if load.is_empty() { Action::Send { id, dispatch } } else { Action::Rescue { id, dispatch, load } };
            actions.push(action);
        }
        flight.finish(now, &mut actions);
        (flight, actions)
    }

    /// The layer.
    pub fn layer(&self) -> u32 {
        self.layer
    }

    /// What was sent as `id`; `None` for another flight's number.
    pub fn dispatch(&self, id: DispatchNo) -> Option<&Dispatch> {
        self.sent.get(id.0).map(|s| &s.dispatch)
    }

    /// When the next [`Event::Tick`] is due; `None` when the flight is done or abandoned.
    pub fn deadline(&self) -> Option<Duration> {
        if self.phase != Phase::Open {
            return None;
        }
        let due = self.unresolved().into_iter().filter_map(|n| match self.sent[n].state {
            State::Waiting => [self.sent[n].hedge_at, self.sent[n].late_at].into_iter().flatten().min(),
            State::Failed { retry_at } => self.is_uncovered(n).then_some(retry_at),
            State::Late | State::Answered => None,
        });
        Some(due.fold(self.ends, Duration::min))
    }

    /// Takes one event and says what to do. Replies and failures of unknown, dropped and ended dispatches change nothing.
    pub fn on(&mut self, event: Event, view: &ClusterView, budget: &mut HedgeBudget, now: Duration) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.phase == Phase::Abandoned {
            return actions;
        }
        match event {
            Event::Reply { dispatch } => self.answered(dispatch),
            Event::Failed { dispatch, failure } => self.failed(dispatch, failure, now, &mut actions),
            Event::Tick => {}
        }
        if self.finish(now, &mut actions) {
            return actions;
        }
        if now >= self.ends {
            self.abandon(AbandonReason::TimedOut, &mut actions);
            return actions;
        }
        for n in self.unresolved() {
            self.check_time(n, view, budget, now, &mut actions);
        }
        for n in self.unresolved() {
            if self.phase == Phase::Open && self.is_uncovered(n) {
                self.cover(n, view, now, &mut actions);
            }
        }
        actions
    }

    fn answered(&mut self, id: DispatchNo) {
        if let Some(sent) = self.sent.get_mut(id.0)
            && matches!(sent.state, State::Waiting | State::Late)
        {
            sent.state = State::Answered;
        }
    }

    fn failed(&mut self, id: DispatchNo, failure: Failure, now: Duration, actions: &mut Vec<Action>) {
        let doublings = self.ancestors(id.0).count().min(MAX_DOUBLINGS);
        let Some(sent) = self.sent.get_mut(id.0).filter(|s| !matches!(s.state, State::Failed { .. })) else { return };
        let delay = self.policy.retry_delay.saturating_mul(1 << doublings);
        sent.state = State::Failed { retry_at: now.saturating_add(delay) };
        self.learned.note(&sent.dispatch, &sent.load, failure);
        if let Some(why) = failure.suspicion() {
            actions.push(Action::Suspect { node: sent.dispatch.node.clone(), why });
        }
    }

    /// Says whether nothing is left to do, and if that is news, that it is done.
    fn finish(&mut self, now: Duration, actions: &mut Vec<Action>) -> bool {
        if !self.unresolved().is_empty() {
            self.phase = Phase::Open;
            return false;
        }
        if self.phase == Phase::Open {
            self.phase = Phase::Done;
            actions.push(Action::Done { answers: self.answers() });
            // The caller cancels the losers; should an answer turn out damaged, they are not to be waited for.
            for sent in self.sent.iter_mut().filter(|s| s.state != State::Answered) {
                sent.state = State::Failed { retry_at: now };
            }
        }
        true
    }

    fn abandon(&mut self, why: AbandonReason, actions: &mut Vec<Action>) {
        self.phase = Phase::Abandoned;
        // What was to be sent in this very step is not wanted any more.
        actions.retain(|a| matches!(a, Action::Suspect { .. }));
        actions.push(Action::Abandon { why });
    }

    /// Hedges `n` when it is slow, suspects its node when it is late.
    fn check_time(
        &mut self,
        n: usize,
        view: &ClusterView,
        budget: &mut HedgeBudget,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let sent = &mut self.sent[n];
        if sent.state != State::Waiting {
            return;
        }
        if due(sent.late_at) {
            sent.state = State::Late;
            self.learned.avoid.insert(sent.dispatch.node.clone());
            actions.push(Action::Suspect { node: sent.dispatch.node.clone(), why: Suspicion::Late });
        } else if due(sent.hedge_at) {
            sent.hedge_at = None;
            self.hedge(n, view, budget, now, actions);
        }
    }

    /// Sends the rows of `n` to second nodes too, if there are healthy ones and the budget pays.
    fn hedge(
        &mut self,
        n: usize,
        view: &ClusterView,
        budget: &mut HedgeBudget,
        now: Duration,
        actions: &mut Vec<Action>,
    ) {
        let slow = &self.sent[n].dispatch;
        let mut avoid = self.learned.avoid.clone();
        avoid.insert(slow.node.clone());
        let Ok(plan) = replan(self.layer, slow.pairs(), &self.learned.correct(view, self.layer), &avoid) else {
            return;
        };
        if is_fresh(&plan, &avoid) && budget.spend(plan.dispatches.len()) {
            for dispatch in plan.dispatches {
                let id = self.push(dispatch.clone(), Vec::new(), Some(n), self.sent[n].predicted, now);
                actions.push(Action::Hedge { id, of: DispatchNo(n), dispatch });
            }
        }
    }

    /// Finds other nodes for the pairs of `n`, which nobody is counted on for. If `n` failed, and only nodes that failed
    /// before could serve, they are asked again after the retry delay; if it is only late, they are not.
    fn cover(&mut self, n: usize, view: &ClusterView, now: Duration, actions: &mut Vec<Action>) {
        let seen = self.learned.correct(view, self.layer);
        let pairs: Vec<_> = self.sent[n].dispatch.pairs().collect();
        let plan = rescue_plan(self.layer, pairs, &seen, &self.learned.avoid);
        let may_retry = matches!(self.sent[n].state, State::Failed { retry_at } if retry_at <= now);
        let Some(plan) = plan.ok().filter(|plan| may_retry || is_fresh(plan, &self.learned.avoid)) else {
            if may_retry {
                self.learned.forgive();
                self.sent[n].state = State::Failed { retry_at: now.saturating_add(self.policy.retry_delay) };
            }
            return;
        };
        if self.resends + plan.dispatches.len() > self.policy.max_resends {
            let lineage = || std::iter::once(n).chain(self.ancestors(n));
            if !lineage().any(|a| self.sent[a].state == State::Late) {
                self.abandon(AbandonReason::ResendsSpent, actions);
            } else if may_retry {
                // A late node may answer yet; until then there is nothing to do but wait.
                self.sent[n].state = State::Failed { retry_at: self.ends };
            }
            return;
        }
        self.resends += plan.dispatches.len();
        let loads: Vec<_> = plan.dispatches.iter().map(|dispatch| self.to_load(dispatch, &seen)).collect();
        for (dispatch, load) in plan.dispatches.into_iter().zip(loads) {
            let id = self.push(dispatch.clone(), load.clone(), Some(n), self.sent[n].predicted, now);
            let action =
                if load.is_empty() { Action::Resend { id, dispatch } } else { Action::Rescue { id, dispatch, load } };
            actions.push(action);
        }
    }

    fn push(
        &mut self,
        dispatch: Dispatch,
        load: Vec<u32>,
        parent: Option<usize>,
        predicted: Duration,
        now: Duration,
    ) -> DispatchNo {
        let id = self.sent.len();
        let after = |factor| Some(now.saturating_add(predicted.saturating_mul(factor)));
        // A hedge, and what goes beside a late dispatch, has an alternative already. How long loading takes, nobody knows.
        let alone = parent.is_none_or(|p| matches!(self.sent[p].state, State::Failed { .. }));
        let hedge_at = if alone && load.is_empty() { after(self.policy.hedge_factor) } else { None };
        let late_at = if load.is_empty() { after(self.policy.deadline_factor) } else { None };
        let (state, children) = (State::Waiting, Vec::new());
        self.sent.push(Sent { dispatch, load, parent, children, predicted, state, hedge_at, late_at });
        if let Some(parent) = parent {
            self.sent[parent].children.push(id);
        }
        DispatchNo(id)
    }

    /// The experts of `dispatch` that its node does not hold in `view`.
    fn to_load(&self, dispatch: &Dispatch, view: &ClusterView) -> Vec<u32> {
        let held = view.nodes.get(&dispatch.node).map(|record| &record.held);
        let holds = |expert| held.is_some_and(|held| held.contains(&ExpertId::new(self.layer, expert)));
        dispatch.work.iter().map(|w| w.expert).filter(|&expert| !holds(expert)).collect()
    }

    /// From the parent of `n` to its root.
    fn ancestors(&self, n: usize) -> impl Iterator<Item = usize> + '_ {
        let parent = |n: usize| self.sent.get(n).and_then(|s| s.parent);
        std::iter::successors(parent(n), move |&n| parent(n))
    }

    fn is_resolved(&self, n: usize) -> bool {
        let Sent { state, children, .. } = &self.sent[n];
        *state == State::Answered || (!children.is_empty() && children.iter().all(|&c| self.is_resolved(c)))
    }

    /// Whether nobody is counted on for the pairs of `n`: it has no alternatives, and it and all before it failed or are late.
    fn is_uncovered(&self, n: usize) -> bool {
        let hopeless = |n: usize| matches!(self.sent[n].state, State::Failed { .. } | State::Late);
        self.sent[n].children.is_empty() && hopeless(n) && self.ancestors(n).all(hopeless)
    }

    /// The dispatches that the flight still waits for, or has to replace; parents before children.
    fn unresolved(&self) -> Vec<usize> {
        self.walk(|n| !self.is_resolved(n))
    }

    /// The topmost answered dispatches; when all roots are resolved they hold every pair once.
    fn answers(&self) -> Vec<DispatchNo> {
        let is_answer = |n: &usize| self.sent[*n].state == State::Answered;
        // Below an answer nothing is looked at.
        let seen = self.walk(|n| self.ancestors(n).all(|a| !is_answer(&a)));
        seen.into_iter().filter(is_answer).map(DispatchNo).collect()
    }

    /// All dispatches that are `wanted` and whose ancestors are.
    fn walk(&self, wanted: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut seen = BTreeSet::new();
        for (n, sent) in self.sent.iter().enumerate() {
            if sent.parent.is_none_or(|p| seen.contains(&p)) && wanted(n) {
                seen.insert(n);
            }
        }
        seen.into_iter().collect()
    }
}

/// Whether `plan` needs none of `avoid`.
fn is_fresh(plan: &DispatchPlan, avoid: &BTreeSet<NodeId>) -> bool {
    plan.dispatches.iter().all(|d| !avoid.contains(&d.node))
}

#[cfg(test)]
mod tests;
