//! The exchange with nodes in this process: the calling thread computes.
//!
//! There is no thread hop on purpose: the caller is the engine's thread, which owns the compute pool.

use std::collections::{BTreeMap, VecDeque};
use std::slice;
use std::sync::Arc;
use std::time::Instant;

use tramontane_router::{ClusterView, ExpertBatch, ExpertId, ExpertRows, NodeId};

use super::{
    Completion, DispatchId, Exchange, ExchangeError, ExpertServer, MAX_IN_FLIGHT, ServeError, check_answer, check_batch,
};

/// Dispatches wait in a queue; [`Exchange::next`] computes the oldest.
pub struct InProcessExchange {
    nodes: BTreeMap<NodeId, Arc<dyn ExpertServer>>,
    waiting: VecDeque<Waiting>,
    next_id: u64,
}

/// A dispatch not yet completed: what to compute, or why not to.
struct Waiting {
    dispatch: DispatchId,
    node: NodeId,
    work: Result<ExpertBatch, ExchangeError>,
    /// Experts to load first.
    load: Vec<ExpertId>,
}

impl InProcessExchange {
    /// An exchange with `nodes`.
    pub fn new(nodes: BTreeMap<NodeId, Arc<dyn ExpertServer>>) -> Self {
        Self { nodes, waiting: VecDeque::new(), next_id: 0 }
    }

    fn enqueue(&mut self, node: &NodeId, batch: ExpertBatch, load: Vec<ExpertId>) -> DispatchId {
        let dispatch = DispatchId(self.next_id);
        self.next_id += 1;
        let there = self.waiting.iter().filter(|w| w.node == *node && w.work.is_ok()).count();
        let work =
            if there < MAX_IN_FLIGHT { Ok(batch) } else { Err(ExchangeError::Overloaded { node: node.clone() }) };
        self.waiting.push_back(Waiting { dispatch, node: node.clone(), work, load });
        dispatch
    }

    fn compute(&self, node: &NodeId, batch: &ExpertBatch, load: &[ExpertId]) -> Result<ExpertRows, ExchangeError> {
        let server = self.nodes.get(node).ok_or_else(|| ExchangeError::NodeGone {
            node: node.clone(),
            why: "no such node in this process".into(),
        })?;
        if !load.is_empty() {
            server.ensure_held(&batch.model, load).map_err(|error| error.at(node))?;
        }
        answer(server.as_ref(), batch).map_err(|error| error.at(node))
    }
}

fn answer(server: &dyn ExpertServer, batch: &ExpertBatch) -> Result<ExpertRows, ServeError> {
    let corrupt = |why: String| ServeError::Corrupt { why };
    check_batch(batch).map_err(|malformed| corrupt(malformed.0))?;
    let rows =
        server.serve(slice::from_ref(batch)).pop().unwrap_or_else(|| Err(corrupt("the node gave no answer".into())))?;
    check_answer(batch.answers(), batch.rows.width, &rows).map_err(|malformed| corrupt(malformed.0))?;
    Ok(rows)
}

impl Exchange for InProcessExchange {
    fn submit(&mut self, node: &NodeId, batch: ExpertBatch) -> DispatchId {
        self.enqueue(node, batch, Vec::new())
    }

    fn rescue(&mut self, node: &NodeId, batch: ExpertBatch, experts: Vec<ExpertId>) -> DispatchId {
        self.enqueue(node, batch, experts)
    }

    /// Nodes of one process neither come nor go.
    fn follow(&mut self, _: &ClusterView) {}

    /// Computes the oldest dispatch, here and now, whatever the deadline says.
    fn next(&mut self, _deadline: Instant) -> Option<Completion> {
        let Waiting { dispatch, node, work, load } = self.waiting.pop_front()?;
        let result = work.and_then(|batch| self.compute(&node, &batch, &load));
        Some(Completion { dispatch, node, result })
    }

    fn cancel(&mut self, dispatch: DispatchId) {
        self.waiting.retain(|waiting| waiting.dispatch != dispatch);
    }
}
