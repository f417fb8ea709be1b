//! The exchange with nodes in this process: the calling thread computes.
//!
//! There is no thread hop on purpose: the caller is the engine's thread, which owns the compute pool. What several nodes are asked for
//! they compute together: a job of the pool that begins costs more than a node is worth here.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tramontane_router::{ClusterView, ExpertBatch, ExpertId, ExpertRows, NodeId};

use super::{
    Completion, DispatchId, Exchange, ExchangeError, ExpertServer, MAX_IN_FLIGHT, ServeError, check_answer, check_batch,
};

/// Batches for each node.
pub type Batches = BTreeMap<NodeId, Vec<ExpertBatch>>;
/// Each node's answers, in the order of its batches.
pub type Answers = BTreeMap<NodeId, Vec<Result<ExpertRows, ServeError>>>;

/// The nodes of a process.
pub trait LocalNodes: Send {
    /// The node of this name.
    fn node(&self, id: &NodeId) -> Option<&dyn ExpertServer>;

    /// What each node answers to its batches, as [`ExpertServer::serve`] says. All of these nodes are here.
    fn serve(&self, batches: &Batches) -> Answers;
}

/// One after the other: for servers that have nothing in common.
impl LocalNodes for BTreeMap<NodeId, Arc<dyn ExpertServer>> {
    fn node(&self, id: &NodeId) -> Option<&dyn ExpertServer> {
        self.get(id).map(|node| &**node)
    }

    fn serve(&self, batches: &Batches) -> Answers {
        let served = |id: &NodeId, own: &[ExpertBatch]| self.get(id).map(|node| node.serve(own)).unwrap_or_default();
        batches.iter().map(|(id, own)| (id.clone(), served(id, own))).collect()
    }
}

/// Dispatches wait in a queue; [`Exchange::next`] computes all that wait when nothing is computed yet.
pub struct InProcessExchange {
    nodes: Box<dyn LocalNodes>,
    waiting: Vec<Waiting>,
    computed: VecDeque<Completion>,
    next_id: u64,
}

/// A dispatch not yet computed: what to compute, or why not to.
struct Waiting {
    dispatch: DispatchId,
    node: NodeId,
    work: Result<ExpertBatch, ExchangeError>,
    /// Experts to load first.
    load: Vec<ExpertId>,
}

impl InProcessExchange {
    /// An exchange with `nodes`.
    pub fn new(nodes: impl LocalNodes + 'static) -> Self {
        Self { nodes: Box::new(nodes), waiting: Vec::new(), computed: VecDeque::new(), next_id: 0 }
    }

    fn enqueue(&mut self, node: &NodeId, batch: ExpertBatch, load: Vec<ExpertId>) -> DispatchId {
        let dispatch = DispatchId(self.next_id);
        self.next_id += 1;
        let there = self.waiting.iter().filter(|w| w.node == *node && w.work.is_ok()).count()
            + self.computed.iter().filter(|c| c.node == *node && !is_overloaded(&c.result)).count();
        let work =
            if there < MAX_IN_FLIGHT { Ok(batch) } else { Err(ExchangeError::Overloaded { node: node.clone() }) };
        self.waiting.push(Waiting { dispatch, node: node.clone(), work, load });
        dispatch
    }

    /// Computes all that waits.
    fn compute(&mut self) {
        let mut batches = Batches::new();
        // How many rows of which width each is to be answered with.
        let mut expected = Vec::new();
        for Waiting { dispatch, node, work, load } in self.waiting.drain(..) {
            let admitted = work.and_then(|batch| {
                let rows = (batch.answers(), batch.rows.width);
                admit(&*self.nodes, &node, &batch, &load)?;
                batches.entry(node.clone()).or_default().push(batch);
                Ok(rows)
            });
            expected.push((dispatch, node, admitted));
        }
        let mut answers: BTreeMap<NodeId, _> =
            self.nodes.serve(&batches).into_iter().map(|(node, answers)| (node, answers.into_iter())).collect();
        for (dispatch, node, admitted) in expected {
            let result = admitted.and_then(|(rows, width)| {
                let answer = answers.get_mut(&node).and_then(Iterator::next);
                check(answer, rows, width).map_err(|error| error.at(&node))
            });
            self.computed.push_back(Completion { dispatch, node, result });
        }
    }
}

fn is_overloaded(result: &Result<ExpertRows, ExchangeError>) -> bool {
    matches!(result, Err(ExchangeError::Overloaded { .. }))
}

/// Whether `node` can be given `batch`, once it has loaded the experts `load`.
fn admit(nodes: &dyn LocalNodes, node: &NodeId, batch: &ExpertBatch, load: &[ExpertId]) -> Result<(), ExchangeError> {
    let Some(server) = nodes.node(node) else {
        return Err(ExchangeError::NodeGone { node: node.clone(), why: "no such node in this process".into() });
    };
    let loaded = if load.is_empty() { Ok(()) } else { server.ensure_held(&batch.model, load) };
    let checked = || check_batch(batch).map_err(|malformed| ServeError::Corrupt { why: malformed.0 });
    loaded.and_then(|()| checked()).map_err(|error| error.at(node))
}

/// A node's answer, if it is one: `rows` rows of `width` values.
fn check(answer: Option<Result<ExpertRows, ServeError>>, rows: usize, width: usize) -> Result<ExpertRows, ServeError> {
    let corrupt = |why: String| ServeError::Corrupt { why };
    let answer = answer.unwrap_or_else(|| Err(corrupt("the node gave no answer".into())))?;
    check_answer(rows, width, &answer).map_err(|malformed| corrupt(malformed.0))?;
    Ok(answer)
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

    /// What was submitted first; where nothing is computed yet, all that waits is, here and now, whatever the deadline says. So
    /// answers come when the last of them does, and experts that are to be loaded first hold all of them up.
    fn next(&mut self, _deadline: Instant) -> Option<Completion> {
        if self.computed.is_empty() {
            self.compute();
        }
        self.computed.pop_front()
    }

    fn cancel(&mut self, dispatch: DispatchId) {
        self.waiting.retain(|waiting| waiting.dispatch != dispatch);
        self.computed.retain(|computed| computed.dispatch != dispatch);
    }
}
