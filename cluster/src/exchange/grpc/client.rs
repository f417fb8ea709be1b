//! The exchange over gRPC, as the engine's thread sees it: links to nodes, and one channel their completions come from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use tokio::runtime::Handle;
use tramontane_router::{ClusterView, ExpertBatch, ExpertId, NodeId, NumericProfile};

use super::control::NodeControl;
use super::link::{Job, Link, NotTaken, Peer};
use crate::exchange::{Completion, DispatchId, Exchange, ExchangeError};
use crate::metrics::ExchangeMetrics;
use crate::tls::Security;

/// Sends batches over one stream a node. Connects when first needed, and again after a break.
///
/// The channel of completions is bounded by what is in flight: each dispatch puts one there.
pub struct GrpcExchange {
    runtime: Handle,
    profile: NumericProfile,
    security: Security,
    metrics: ExchangeMetrics,
    addrs: BTreeMap<NodeId, String>,
    links: BTreeMap<NodeId, Link>,
    next_id: u64,
    /// Dispatches that will complete: not cancelled, not completed.
    in_flight: BTreeSet<DispatchId>,
    notes: Sender<Note>,
    noted: Receiver<Note>,
}

/// What the runtime's tasks tell the engine's thread.
pub(in crate::exchange) enum Note {
    /// A dispatch is over.
    Completed(Completion),
    /// A dispatch is to be sent over its node's stream: the node holds now what it was to load, or NCCL did not carry it.
    Send(NodeId, Job),
}

impl GrpcExchange {
    /// An exchange that knows no nodes yet. `runtime` carries its bytes; `profile` is what every answer must be of.
    pub fn new(runtime: Handle, profile: NumericProfile, security: Security) -> Self {
        let (notes, noted) = channel();
        Self {
            runtime,
            profile,
            security,
            metrics: ExchangeMetrics::default(),
            addrs: BTreeMap::new(),
            links: BTreeMap::new(),
            next_id: 0,
            in_flight: BTreeSet::new(),
            notes,
            noted,
        }
    }

    /// Has its dispatches counted by `metrics`.
    pub fn counted_by(self, metrics: ExchangeMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// Says where each node listens (`host:port`). A node left out keeps its stream while that is healthy, for a lost
    /// lease is no broken stream; it is not connected to again. A node with a new address is another process: what is
    /// in flight to the old one completes as [`ExchangeError::NodeGone`].
    pub fn set_nodes(&mut self, addrs: BTreeMap<NodeId, String>) {
        self.links.retain(|node, link| match addrs.get(node) {
            Some(addr) => link.addr() == addr,
            None if link.is_broken() => {
                self.metrics.forget(node.as_str());
                false
            }
            None => true,
        });
        self.addrs = addrs;
    }

    /// Where tasks leave their notes.
    pub(in crate::exchange) fn notes(&self) -> Sender<Note> {
        self.notes.clone()
    }

    pub(in crate::exchange) fn begin(&mut self) -> DispatchId {
        let dispatch = DispatchId(self.next_id);
        self.next_id += 1;
        self.in_flight.insert(dispatch);
        dispatch
    }

    pub(in crate::exchange) fn send_or_complete(&mut self, node: &NodeId, job: Job) {
        let dispatch = job.0;
        if let Err(error) = self.send(node, job) {
            let failed = Completion { dispatch, node: node.clone(), result: Err(error) };
            // Cannot fail: the other end is in our hands.
            let _ = self.notes.send(Note::Completed(failed));
        }
    }

    /// Gives `job` to `node`'s link, opening one if there is none or it broke.
    fn send(&mut self, node: &NodeId, mut job: Job) -> Result<(), ExchangeError> {
        if let Some(link) = self.links.get(node) {
            match link.send(job) {
                Ok(()) => return Ok(()),
                Err(NotTaken::Full) => return Err(ExchangeError::Overloaded { node: node.clone() }),
                Err(NotTaken::Broken(returned)) => job = *returned,
            }
            self.links.remove(node);
        }
        let gone = |why: &str| ExchangeError::NodeGone { node: node.clone(), why: why.into() };
        let addr = self.addrs.get(node).ok_or_else(|| gone("its address is not known"))?.clone();
        let (profile, security) = (self.profile.clone(), self.security.clone());
        let (metrics, notes) = (self.metrics.clone(), self.notes.clone());
        let link = Link::open(&self.runtime, Peer { node: node.clone(), addr, profile, security, metrics, notes });
        let sent = link.send(job).map_err(|_| gone("the runtime has stopped"));
        self.links.insert(node.clone(), link);
        sent
    }
}

impl Exchange for GrpcExchange {
    fn submit(&mut self, node: &NodeId, batch: ExpertBatch) -> DispatchId {
        let dispatch = self.begin();
        self.send_or_complete(node, (dispatch, batch));
        dispatch
    }

    fn rescue(&mut self, node: &NodeId, batch: ExpertBatch, experts: Vec<ExpertId>) -> DispatchId {
        let dispatch = self.begin();
        let (node, security, notes) = (node.clone(), self.security.clone(), self.notes.clone());
        let Some(addr) = self.addrs.get(&node).cloned() else {
            self.send_or_complete(&node, (dispatch, batch));
            return dispatch;
        };
        self.runtime.spawn(async move {
            let loaded = async {
                let mut control = NodeControl::connect(node.clone(), &addr, &security).await?;
                control.ensure_held(&batch.model, &experts).await
            };
            let note = match loaded.await {
                Ok(()) => Note::Send(node, (dispatch, batch)),
                Err(error) => Note::Completed(Completion { dispatch, node, result: Err(error) }),
            };
            // Fails only when the exchange is gone, and then nobody asks.
            let _ = notes.send(note);
        });
        dispatch
    }

    fn follow(&mut self, view: &ClusterView) {
        self.set_nodes(addrs(view));
    }

    fn next(&mut self, deadline: Instant) -> Option<Completion> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.noted.recv_timeout(left).ok()? {
                Note::Completed(completion) => {
                    if self.in_flight.remove(&completion.dispatch) {
                        return Some(completion);
                    }
                }
                Note::Send(node, job) => {
                    if self.in_flight.contains(&job.0) {
                        self.send_or_complete(&node, job);
                    }
                }
            }
        }
    }

    fn cancel(&mut self, dispatch: DispatchId) {
        self.in_flight.remove(&dispatch);
    }
}

/// Where the view's nodes listen.
pub(in crate::exchange) fn addrs(view: &ClusterView) -> BTreeMap<NodeId, String> {
    let elsewhere = view.nodes.values().filter(|node| !node.is_in_process());
    elsewhere.map(|node| (node.id.clone(), node.addr.clone())).collect()
}
