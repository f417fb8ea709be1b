//! One layer's rows to the experts and back: drives the pure `flight` machine over an exchange, with what was learned of
//! the nodes (`router::peers`).

mod auditor;
mod clock;
mod confirm;
mod layer;
mod outcome;
mod shown;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tramontane_cluster::exchange::{Completion, Exchange, ExchangeError};
use tramontane_cluster::registry::Watch;
use tramontane_cluster::trace::TraceContext;
use tramontane_router::flight::{Action, DispatchNo, Event, Failure, Flight, HedgeBudget, Policy, Suspicion};
use tramontane_router::peers::{Estimates, Health, Roster, Stand};
use tramontane_router::{
    ClusterView, CombineError, Dispatch, DispatchPlan, ExpertId, ModelId, NodeId, NodeRecord, PlanError, Routing, Rows,
    plan, rescue_plan,
};

use auditor::Auditor;
pub use auditor::{AUDIT_EVERY, Auditing};
pub use clock::{Clock, SystemClock};
use layer::{Layer, Submitted};
use outcome::failure;
pub use outcome::{DispatchError, PeerReport};
use shown::Cause;

/// Sends rows to experts by the cluster's view, and combines what comes back.
pub struct Dispatcher {
    model: ModelId,
    exchange: Box<dyn Exchange>,
    watch: Watch,
    policy: Policy,
    budget: HedgeBudget,
    clock: Box<dyn Clock>,
    started: Instant,
    estimates: Estimates,
    health: Health,
    roster: Roster,
    /// The registry's newest view, and what is dispatched by: with nodes that only lost their lease, without quarantined ones.
    shown: Option<Arc<ClusterView>>,
    view: Arc<ClusterView>,
    auditing: Auditing,
    auditor: Auditor,
    unconfirmed: BTreeSet<ExpertId>,
    disputed: BTreeSet<NodeId>,
    report: watch::Sender<PeerReport>,
    /// Where dispatches are shown, if they are.
    trace: Option<TraceContext>,
}

impl Dispatcher {
    /// A dispatcher for `model` over `exchange`, which reaches the nodes of the views that `watch` shows.
    pub fn new(model: ModelId, exchange: Box<dyn Exchange>, watch: Watch, policy: Policy) -> Self {
        Self::with_clock(model, exchange, watch, policy, Box::new(SystemClock))
    }

    /// The same, on another clock.
    pub fn with_clock(
        model: ModelId,
        exchange: Box<dyn Exchange>,
        watch: Watch,
        policy: Policy,
        clock: Box<dyn Clock>,
    ) -> Self {
        let started = clock.now();
        Self {
            model,
            exchange,
            watch,
            policy,
            budget: HedgeBudget::default(),
            clock,
            started,
            estimates: Estimates::default(),
            health: Health::default(),
            roster: Roster::default(),
            shown: None,
            view: Arc::default(),
            auditing: Auditing::OneIn(AUDIT_EVERY),
            auditor: Auditor::new(Auditing::OneIn(AUDIT_EVERY)),
            unconfirmed: BTreeSet::new(),
            disputed: BTreeSet::new(),
            report: watch::Sender::default(),
            trace: None,
        }
    }

    /// The same, which has so much computed by second nodes.
    #[must_use]
    pub fn auditing(self, auditing: Auditing) -> Self {
        Self { auditing, auditor: Auditor::new(auditing), ..self }
    }

    /// What is held against nodes, as it changes.
    pub fn report(&self) -> watch::Receiver<PeerReport> {
        self.report.subscribe()
    }

    /// Shows what is dispatched from now on under `trace`; nowhere where that is nothing.
    pub fn show_under(&mut self, trace: Option<&TraceContext>) {
        self.trace = trace.cloned();
    }

    /// Has every (row, expert) pair of `routing` computed from `rows` (encoded for the experts), and adds the results to
    /// `hidden` (rows × width).
    ///
    /// # Errors
    /// [`DispatchError`]; `hidden` is untouched then.
    pub fn experts(
        &mut self,
        number: u32,
        routing: &Routing,
        rows: &Rows,
        hidden: &mut [f32],
    ) -> Result<(), DispatchError> {
        if self.auditing != Auditing::Everything {
            return self.attempt(number, routing, rows, hidden).map(|_| ());
        }
        let untouched = hidden.to_vec();
        loop {
            let outcome = self.attempt(number, routing, rows, hidden);
            if !matches!(outcome, Ok(Stand::Taken)) {
                hidden.copy_from_slice(&untouched);
            }
            // It ends: who was wrong is in no later plan.
            if !matches!(outcome, Ok(Stand::Refuted)) {
                return outcome.map(|_| ());
            }
        }
    }

    /// The layer once, and whether what was added to `hidden` stands.
    fn attempt(
        &mut self,
        number: u32,
        routing: &Routing,
        rows: &Rows,
        hidden: &mut [f32],
    ) -> Result<Stand, DispatchError> {
        self.look();
        let plan = self.plan(number, routing)?;
        let (epoch, now) = (plan.epoch, self.now());
        let (view, estimates) = (self.view.clone(), &self.estimates);
        let predicted = |dispatch: &Dispatch| predict(&view, estimates, dispatch);
        let (flight, actions) = Flight::new(plan, self.policy.clone(), predicted, &view, &mut self.budget, now);
        let mut layer = Layer::new(number, epoch, rows, flight);
        let outcome = self.fly(&mut layer, actions, routing, hidden).and_then(|answers| {
            self.audit(&layer);
            self.confirm(&layer, &answers)
        });
        for id in layer.unanswered() {
            self.exchange.cancel(id);
        }
        self.tell();
        outcome
    }

    /// Who computes what: the holders that would be done first, or survivors that load what nobody holds.
    fn plan(&self, number: u32, routing: &Routing) -> Result<DispatchPlan, PlanError> {
        let (view, avoid) = (self.view.as_ref(), self.health.avoid());
        // Nodes of this process compute as one: what one of them took is the time of all.
        let costs = self.estimates.costs(|node| !is_local(view, node));
        plan(number, routing, view, &avoid, &costs)
            .or_else(|_| rescue_plan(number, routing.pairs().collect::<Vec<_>>(), view, &avoid))
    }

    /// Until the layer is combined, of which answers is returned, or cannot be.
    fn fly(
        &mut self,
        layer: &mut Layer<'_>,
        mut actions: Vec<Action>,
        routing: &Routing,
        hidden: &mut [f32],
    ) -> Result<Vec<DispatchNo>, DispatchError> {
        loop {
            let mut failed = Vec::new();
            for action in std::mem::take(&mut actions) {
                match action {
                    Action::Done { answers } => match layer.combine(&answers, routing, hidden) {
                        Ok(()) => {
                            layer.answers_of(&answers).for_each(|(dispatch, _)| self.health.answered(&dispatch.node));
                            return Ok(answers);
                        }
                        Err((Some(damaged), error)) => {
                            if let Some((row, nodes)) = layer.blame(&error, &self.view) {
                                nodes.iter().for_each(|node| self.health.answered(node));
                                return Err(DispatchError::NotFinite { row });
                            }
                            let failure = match error {
                                CombineError::NotFinite { expert, .. } => Failure::NotFinite { expert },
                                _ => Failure::Corrupt,
                            };
                            failed.push((damaged, failure));
                        }
                        Err((None, error)) => return Err(DispatchError::Combine(error)),
                    },
                    Action::Abandon { why } => {
                        return Err(DispatchError::Abandoned { why, last: layer.last_error.take() });
                    }
                    other => self.act(other, layer),
                }
            }
            let event = if failed.is_empty() { Some(self.wait(layer)) } else { None };
            self.look();
            let failed = failed.into_iter().map(|(dispatch, failure)| Event::Failed { dispatch, failure });
            for event in event.into_iter().chain(failed) {
                let now = self.now();
                actions.extend(layer.flight.on(event, &self.view, &mut self.budget, now));
            }
        }
    }

    /// Does what the flight asks.
    fn act(&mut self, action: Action, layer: &mut Layer<'_>) {
        match action {
            Action::Send { id, dispatch } => self.send(layer, id, &dispatch, Vec::new(), Cause::First),
            Action::Hedge { id, dispatch, .. } => {
                self.count(|report| &mut report.hedged);
                self.send(layer, id, &dispatch, Vec::new(), Cause::Hedge);
            }
            Action::Resend { id, dispatch } => {
                self.count(|report| &mut report.resent);
                self.send(layer, id, &dispatch, Vec::new(), Cause::Resend);
            }
            Action::Rescue { id, dispatch, load } => {
                self.count(|report| &mut report.rescued);
                tracing::warn!(node = %dispatch.node, layer = layer.number, experts = ?load, "nobody holds them: loading");
                self.send(layer, id, &dispatch, load, Cause::Rescue);
            }
            Action::Suspect { node, why } => {
                match why {
                    // On a busy machine that is everyday's, and costs a resent row at most.
                    Suspicion::Late => tracing::info!(%node, ?why, layer = layer.number, "expert node suspected"),
                    _ => tracing::warn!(%node, ?why, layer = layer.number, "expert node suspected"),
                }
                self.suspect(node, why);
            }
            Action::Done { .. } | Action::Abandon { .. } => {}
        }
    }

    fn send(&mut self, layer: &mut Layer<'_>, id: DispatchNo, dispatch: &Dispatch, load: Vec<u32>, cause: Cause) {
        self.count(|report| &mut report.dispatches);
        let shown = shown::begin(self.trace.as_ref(), layer.number, dispatch, cause);
        let mut batch = dispatch.batch(self.model.clone(), layer.epoch, layer.number, layer.rows);
        batch.trace = shown.context().map(TraceContext::ids);
        let submitted = if load.is_empty() {
            self.exchange.submit(&dispatch.node, batch)
        } else {
            let experts = load.into_iter().map(|expert| ExpertId::new(layer.number, expert)).collect();
            layer.rescues.insert(id);
            self.exchange.rescue(&dispatch.node, batch, experts)
        };
        layer.submitted.insert(submitted, Submitted { id, sent: self.clock.now(), shown });
    }

    /// Shows what `node` has done; who watches the report sees it with the next change of what is held against nodes.
    fn show(&self, node: &NodeId) {
        let Some(traffic) = self.estimates.traffic(node) else { return };
        self.report.send_if_modified(|report| {
            match report.traffic.get_mut(node) {
                Some(shown) => *shown = traffic,
                None => _ = report.traffic.insert(node.clone(), traffic),
            }
            false
        });
    }

    /// Counts one; who watches the report sees it with the next change of what is held against nodes.
    fn count(&self, counter: fn(&mut PeerReport) -> &mut u64) {
        self.report.send_if_modified(|report| {
            *counter(report) += 1;
            false
        });
    }

    fn suspect(&mut self, node: NodeId, why: Suspicion) {
        let now = self.now();
        self.health.suspect(node, why, now);
    }

    /// The flight's next event.
    fn wait(&mut self, layer: &mut Layer<'_>) -> Event {
        loop {
            let due = layer.flight.deadline().and_then(|at| self.started.checked_add(at));
            let Some(completion) = self.exchange.next(due.unwrap_or_else(|| self.clock.now())) else {
                return Event::Tick;
            };
            if matches!(completion.result, Err(ExchangeError::NodeGone { .. })) {
                self.lost(&completion.node);
            }
            let Some(completion) = self.audited(completion) else { continue };
            let Completion { dispatch, result, .. } = completion;
            // What was submitted for another layer, and could not be cancelled in time, is nobody's any more.
            let Some(submitted) = layer.submitted.get_mut(&dispatch) else { continue };
            let (dispatch, sent) = (submitted.id, submitted.sent);
            shown::end(&mut submitted.shown, result.as_ref().err());
            return match result {
                Ok(rows) => {
                    let timed = layer.flight.dispatch(dispatch).filter(|_| !layer.rescues.contains(&dispatch));
                    if let Some(timed) = timed {
                        self.estimates.observe(timed, self.clock.now().saturating_duration_since(sent));
                        self.show(&timed.node);
                    }
                    layer.answers.insert(dispatch, rows);
                    Event::Reply { dispatch }
                }
                Err(error) => {
                    let failure = failure(&error);
                    layer.last_error = Some(error);
                    Event::Failed { dispatch, failure }
                }
            };
        }
    }

    /// Takes the registry's newest view, if it is another.
    fn look(&mut self) {
        let current = self.watch.current();
        if self.shown.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, &current)) {
            return;
        }
        for renewed in self.roster.see(&current) {
            self.estimates.retain(|node| *node != renewed);
            self.health.release(&renewed);
        }
        let complete = self.roster.complete(&current);
        self.estimates.retain(|node| complete.nodes.contains_key(node));
        self.report.send_if_modified(|report| {
            report.traffic.retain(|node, _| complete.nodes.contains_key(node));
            false
        });
        self.exchange.follow(&current);
        self.shown = Some(current);
        self.see();
    }

    /// Makes the view anew after the roster or the quarantine changed.
    fn see(&mut self) {
        if let Some(shown) = &self.shown {
            let mut view = self.roster.complete(shown);
            self.health.without_quarantined(&mut view);
            self.view = Arc::new(view);
        }
    }

    fn lost(&mut self, node: &NodeId) {
        self.roster.broke(node);
        self.see();
    }

    fn now(&self) -> Duration {
        self.clock.now().saturating_duration_since(self.started)
    }

    /// Shows what has changed.
    fn tell(&self) {
        let suspected: Vec<NodeId> = self.health.avoid().into_iter().collect();
        self.report.send_if_modified(|report| {
            let changed = report.suspected != suspected
                || report.quarantined != *self.health.quarantined()
                || report.unconfirmed != self.unconfirmed
                || report.disputed != self.disputed;
            if changed {
                report.suspected = suspected;
                report.quarantined.clone_from(self.health.quarantined());
                report.unconfirmed.clone_from(&self.unconfirmed);
                report.disputed.clone_from(&self.disputed);
            }
            changed
        });
    }
}

/// How long `dispatch` should take. A node in this process computes on this thread, when its answer is asked for: it is
/// never late.
fn predict(view: &ClusterView, estimates: &Estimates, dispatch: &Dispatch) -> Duration {
    if is_local(view, &dispatch.node) { Duration::MAX } else { estimates.predict(dispatch) }
}

fn is_local(view: &ClusterView, node: &NodeId) -> bool {
    view.nodes.get(node).is_some_and(NodeRecord::is_in_process)
}

#[cfg(test)]
mod tests;
