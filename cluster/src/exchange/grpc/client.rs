//! The exchange over gRPC, as the engine's thread sees it: links to nodes, and one channel their completions come from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use tokio::runtime::Handle;
use tramontane_router::{ExpertBatch, NodeId, NumericProfile};

use super::link::{Job, Link, NotTaken, Peer};
use crate::exchange::{Completion, DispatchId, Exchange, ExchangeError};

/// Sends batches over one stream a node. Connects when first needed, and again after a break.
///
/// The channel of completions is bounded by what is in flight: each dispatch puts one there.
pub struct GrpcExchange {
    runtime: Handle,
    profile: NumericProfile,
    addrs: BTreeMap<NodeId, String>,
    links: BTreeMap<NodeId, Link>,
    next_id: u64,
    /// Dispatches that will complete: not cancelled, not completed.
    in_flight: BTreeSet<DispatchId>,
    completions: Sender<Completion>,
    completed: Receiver<Completion>,
}

impl GrpcExchange {
    /// An exchange that knows no nodes yet. `runtime` carries its bytes; `profile` is what every answer must be of.
    pub fn new(runtime: Handle, profile: NumericProfile) -> Self {
        let (completions, completed) = channel();
        Self {
            runtime,
            profile,
            addrs: BTreeMap::new(),
            links: BTreeMap::new(),
            next_id: 0,
            in_flight: BTreeSet::new(),
            completions,
            completed,
        }
    }

    /// Says where each node listens (`host:port`). A node left out keeps its stream while that is healthy, for a lost
    /// lease is no broken stream; it is not connected to again. A node with a new address is another process: what is
    /// in flight to the old one completes as [`ExchangeError::NodeGone`].
    pub fn set_nodes(&mut self, addrs: BTreeMap<NodeId, String>) {
        self.links.retain(|node, link| match addrs.get(node) {
            Some(addr) => link.addr() == addr,
            None => !link.is_broken(),
        });
        self.addrs = addrs;
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
        let (profile, completions) = (self.profile.clone(), self.completions.clone());
        let link = Link::open(&self.runtime, Peer { node: node.clone(), addr, profile, completions });
        let sent = link.send(job).map_err(|_| gone("the runtime has stopped"));
        self.links.insert(node.clone(), link);
        sent
    }
}

impl Exchange for GrpcExchange {
    fn submit(&mut self, node: &NodeId, batch: ExpertBatch) -> DispatchId {
        let dispatch = DispatchId(self.next_id);
        self.next_id += 1;
        self.in_flight.insert(dispatch);
        if let Err(error) = self.send(node, (dispatch, batch)) {
            // Cannot fail: the other end is in our hands.
            let _ = self.completions.send(Completion { dispatch, node: node.clone(), result: Err(error) });
        }
        dispatch
    }

    fn next(&mut self, deadline: Instant) -> Option<Completion> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let completion = self.completed.recv_timeout(left).ok()?;
            if self.in_flight.remove(&completion.dispatch) {
                return Some(completion);
            }
        }
    }

    fn cancel(&mut self, dispatch: DispatchId) {
        self.in_flight.remove(&dispatch);
    }
}
