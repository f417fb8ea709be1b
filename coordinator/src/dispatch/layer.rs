//! A layer on its way: what was sent, what came, and whom a wrong answer is to be blamed on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use tramontane_cluster::exchange::{DispatchId, ExchangeError};
use tramontane_cluster::trace::TraceSpan;
use tramontane_router::flight::{DispatchNo, Flight};
use tramontane_router::{
    ClusterView, CombineError, Dispatch, Epoch, ExpertId, ExpertRows, NodeId, Routing, Rows, combine,
};

/// Answers that are not finite, for one pair, after which the row is at fault, if they come from as many nodes as there are to
/// ask, up to this number.
const MAX_NOT_FINITE: usize = 3;

/// A layer on its way.
pub(super) struct Layer<'a> {
    pub(super) number: u32,
    pub(super) epoch: Epoch,
    pub(super) rows: &'a Rows,
    pub(super) flight: Flight,
    pub(super) submitted: BTreeMap<DispatchId, Submitted>,
    /// Dispatches whose node loads first: how long that takes says nothing of the node.
    pub(super) rescues: BTreeSet<DispatchNo>,
    pub(super) answers: BTreeMap<DispatchNo, ExpertRows>,
    pub(super) last_error: Option<ExchangeError>,
    /// Who answered what is not finite, by token and expert, as often as they did.
    not_finite: BTreeMap<(u32, u32), Vec<NodeId>>,
}

/// A dispatch that was handed to the exchange.
pub(super) struct Submitted {
    pub(super) id: DispatchNo,
    pub(super) sent: Instant,
    /// Until it is answered.
    pub(super) shown: TraceSpan,
}

impl<'a> Layer<'a> {
    pub(super) fn new(number: u32, epoch: Epoch, rows: &'a Rows, flight: Flight) -> Self {
        Self {
            number,
            epoch,
            rows,
            flight,
            submitted: BTreeMap::new(),
            rescues: BTreeSet::new(),
            answers: BTreeMap::new(),
            last_error: None,
            not_finite: BTreeMap::new(),
        }
    }

    /// Dispatches of `ids` with their answers.
    pub(super) fn answers_of(&self, ids: &[DispatchNo]) -> impl Iterator<Item = (&Dispatch, &ExpertRows)> {
        ids.iter().filter_map(|&no| Some((self.flight.dispatch(no)?, self.answers.get(&no)?)))
    }

    /// All dispatches that were answered with as many rows as were asked for, with their answers.
    pub(super) fn answered(&self) -> impl Iterator<Item = (&Dispatch, &ExpertRows)> {
        let all = self.answers.iter().filter_map(|(&no, rows)| Some((self.flight.dispatch(no)?, rows)));
        all.filter(|(dispatch, rows)| rows.rows.count() == Some(dispatch.pairs().count()))
    }

    /// What was submitted and has not been answered.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = DispatchId> {
        self.submitted.iter().filter(|(_, submitted)| !self.answers.contains_key(&submitted.id)).map(|(&id, _)| id)
    }

    /// # Errors
    /// With the dispatch whose answer is wrong, if one is.
    pub(super) fn combine(
        &self,
        answers: &[DispatchNo],
        routing: &Routing,
        hidden: &mut [f32],
    ) -> Result<(), (Option<DispatchNo>, CombineError)> {
        let found: Vec<_> =
            answers.iter().filter_map(|&no| Some((no, self.flight.dispatch(no)?, self.answers.get(&no)?))).collect();
        let rows: Vec<_> = found.iter().map(|&(_, dispatch, rows)| (dispatch, rows)).collect();
        combine(routing, &rows, hidden).map_err(|error| {
            // One node may have answered several dispatches: the one that the error is about is at fault.
            let is_about = |dispatch: &Dispatch, rows: &ExpertRows| match error.pair() {
                Some(pair) => dispatch.pairs().any(|asked| asked == pair),
                None => rows.rows.count() != Some(dispatch.pairs().count()),
            };
            let blamed = error.node().and_then(|node| {
                let of_node = || found.iter().filter(|(_, d, _)| d.node == *node);
                of_node().find(|(_, dispatch, rows)| is_about(dispatch, rows)).or_else(|| of_node().next())
            });
            (blamed.map(|(no, ..)| *no), error)
        })
    }

    /// Whether `error`, after those before it, says that a row is at fault and no node: the row, and the nodes that were
    /// suspected for nothing. One node alone may be at fault however often it answers, while `view` has others to ask.
    pub(super) fn blame(&mut self, error: &CombineError, view: &ClusterView) -> Option<(usize, Vec<NodeId>)> {
        let CombineError::NotFinite { node, expert, token } = error else { return None };
        let by = self.not_finite.entry((*token, *expert)).or_default();
        by.push(node.clone());
        let id = ExpertId::new(self.number, *expert);
        let may_answer = view.nodes.values().filter(|node| !node.draining || node.held.contains(&id)).count();
        let distinct = by.iter().collect::<BTreeSet<_>>().len();
        let is_at_fault = by.len() >= MAX_NOT_FINITE && distinct >= may_answer.min(MAX_NOT_FINITE);
        is_at_fault.then(|| (*token as usize, by.clone()))
    }
}
