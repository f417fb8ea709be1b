//! One layer's rows to the experts and back: drives the pure `flight` machine over an exchange.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tramontane_cluster::exchange::{DispatchId, Exchange, ExchangeError};
use tramontane_cluster::registry::Watch;
use tramontane_router::flight::{AbandonReason, Action, DispatchNo, Event, Failure, Flight, HedgeBudget, Policy};
use tramontane_router::{
    CombineError, Dispatch, Epoch, ExpertRows, ModelId, NodeId, PlanError, Routing, Rows, combine, plan,
};

/// Why a layer's experts brought nothing. The hidden states are as they were: the step may run again.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// Wait for nodes, or fail the step.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Run the step again, or fail it.
    #[error("{why}; the last failure: {}", last.as_ref().map_or("none".to_owned(), ToString::to_string))]
    Abandoned {
        /// What ended the flight.
        why: AbandonReason,
        /// What a node said last.
        last: Option<ExchangeError>,
    },
    /// A defect in planning: the answers do not fit the routing, and no node is to blame.
    #[error(transparent)]
    Combine(CombineError),
}

/// Sends rows to experts by the cluster's view, and combines what comes back.
pub struct Dispatcher {
    model: ModelId,
    exchange: Box<dyn Exchange>,
    watch: Watch,
    policy: Policy,
    budget: HedgeBudget,
    /// Nodes that failed and have not answered since.
    suspects: BTreeSet<NodeId>,
    started: Instant,
}

/// A layer on its way.
struct Layer<'a> {
    number: u32,
    epoch: Epoch,
    rows: &'a Rows,
    flight: Flight,
    submitted: BTreeMap<DispatchId, DispatchNo>,
    answers: BTreeMap<DispatchNo, ExpertRows>,
    last_error: Option<ExchangeError>,
}

impl Dispatcher {
    /// A dispatcher for `model` over `exchange`, which reaches the nodes of the views that `watch` shows.
    pub fn new(model: ModelId, exchange: Box<dyn Exchange>, watch: Watch, policy: Policy) -> Self {
        let (budget, suspects) = (HedgeBudget::default(), BTreeSet::new());
        Self { model, exchange, watch, policy, budget, suspects, started: Instant::now() }
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
        let view = self.watch.current();
        let plan = plan(number, routing, &view, &self.suspects)?;
        let epoch = plan.epoch;
        // How long a dispatch should take is not learned yet, so none is hedged or late before the flight's timeout.
        let unknown = |_: &Dispatch| Duration::MAX;
        let now = self.started.elapsed();
        let (flight, mut actions) = Flight::new(plan, self.policy.clone(), unknown, &view, &mut self.budget, now);
        let (submitted, answers) = (BTreeMap::new(), BTreeMap::new());
        let mut layer = Layer { number, epoch, rows, flight, submitted, answers, last_error: None };
        loop {
            let mut failed = Vec::new();
            for action in actions.drain(..) {
                match action {
                    Action::Done { answers } => match layer.combine(&answers, routing, hidden) {
                        Ok(()) => {
                            self.forget(layer);
                            return Ok(());
                        }
                        Err((Some(damaged), _)) => failed.push((damaged, Failure::Corrupt)),
                        Err((None, error)) => {
                            self.forget(layer);
                            return Err(DispatchError::Combine(error));
                        }
                    },
                    Action::Abandon { why } => {
                        let last = layer.last_error.take();
                        self.forget(layer);
                        return Err(DispatchError::Abandoned { why, last });
                    }
                    other => failed.extend(self.act(other, &mut layer)),
                }
            }
            let view = self.watch.current();
            if failed.is_empty() {
                let event = self.wait(&mut layer);
                actions = layer.flight.on(event, &view, &mut self.budget, self.started.elapsed());
            }
            for (dispatch, failure) in failed {
                let event = Event::Failed { dispatch, failure };
                actions.extend(layer.flight.on(event, &view, &mut self.budget, self.started.elapsed()));
            }
        }
    }

    /// Does what the flight asks; a dispatch that cannot even be sent comes back with the reason.
    fn act(&mut self, action: Action, layer: &mut Layer<'_>) -> Option<(DispatchNo, Failure)> {
        match action {
            Action::Send { id, dispatch } | Action::Hedge { id, dispatch, .. } | Action::Resend { id, dispatch } => {
                let batch = dispatch.batch(self.model.clone(), layer.epoch, layer.number, layer.rows);
                layer.submitted.insert(self.exchange.submit(&dispatch.node, batch), id);
                None
            }
            // Loading on demand comes with the cluster issue; until then nobody can be asked to hold what is not held.
            Action::Rescue { id, load, .. } => load.first().map(|&expert| (id, Failure::NotHeld { expert })),
            Action::Suspect { node, why } => {
                tracing::warn!(%node, ?why, layer = layer.number, "expert node suspected");
                self.suspects.insert(node);
                None
            }
            Action::Done { .. } | Action::Abandon { .. } => None,
        }
    }

    /// The flight's next event.
    fn wait(&mut self, layer: &mut Layer<'_>) -> Event {
        loop {
            let due = layer.flight.deadline().and_then(|at| self.started.checked_add(at));
            let Some(completion) = self.exchange.next(due.unwrap_or_else(Instant::now)) else { return Event::Tick };
            // What was submitted for another layer, and could not be cancelled in time, is nobody's any more.
            let Some(&dispatch) = layer.submitted.get(&completion.dispatch) else { continue };
            match completion.result {
                Ok(rows) => {
                    self.suspects.remove(&completion.node);
                    layer.answers.insert(dispatch, rows);
                    return Event::Reply { dispatch };
                }
                Err(error) => {
                    let failure = failure(&error);
                    layer.last_error = Some(error);
                    return Event::Failed { dispatch, failure };
                }
            }
        }
    }

    /// Cancels what a layer still waits for.
    fn forget(&mut self, layer: Layer<'_>) {
        for (id, no) in layer.submitted {
            if !layer.answers.contains_key(&no) {
                self.exchange.cancel(id);
            }
        }
    }
}

impl Layer<'_> {
    /// # Errors
    /// With the dispatch whose answer is wrong, if one is.
    fn combine(
        &self,
        answers: &[DispatchNo],
        routing: &Routing,
        hidden: &mut [f32],
    ) -> Result<(), (Option<DispatchNo>, CombineError)> {
        let pairs: Vec<_> =
            answers.iter().filter_map(|&no| Some((no, self.flight.dispatch(no)?, self.answers.get(&no)?))).collect();
        let rows: Vec<_> = pairs.iter().map(|&(_, dispatch, rows)| (dispatch, rows)).collect();
        combine(routing, &rows, hidden).map_err(|error| {
            let blamed = error.node().and_then(|node| pairs.iter().find(|(_, d, _)| d.node == *node));
            (blamed.map(|(no, ..)| *no), error)
        })
    }
}

fn failure(error: &ExchangeError) -> Failure {
    match error {
        ExchangeError::NodeGone { .. } => Failure::NodeGone,
        ExchangeError::NotHeld { expert, .. } => Failure::NotHeld { expert: expert.expert },
        ExchangeError::WrongProfile { .. } => Failure::WrongProfile,
        ExchangeError::Overloaded { .. } => Failure::Overloaded,
        ExchangeError::Corrupt { .. } => Failure::Corrupt,
    }
}

#[cfg(test)]
mod tests;
