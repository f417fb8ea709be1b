//! The exchange as the engine's thread sees it: NCCL to whoever is in the communicator, gRPC to the rest; and the task that
//! makes one communicator after another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tramontane_router::{ClusterView, ExpertBatch, ExpertId, NodeId, NumericProfile};

use super::group::{Broken, Candidate, Group, Shared};
use super::roster::{Addrs, Roster};
use crate::due::at;
use crate::exchange::grpc::GrpcExchange;
use crate::exchange::grpc::client::addrs;
use crate::exchange::grpc::link::Job;
use crate::exchange::{Completion, DispatchId, Exchange};
use crate::metrics::ExchangeMetrics;
use crate::tls::Security;

/// Dispatches that wait to be given to the communicator; what is over it goes over gRPC.
const WAITING: usize = 1024;

/// Sends batches through a communicator of the nodes that can be in one, and over gRPC where and while there is none.
pub(in crate::exchange) struct NcclExchange {
    grpc: GrpcExchange,
    wanted: watch::Sender<Addrs>,
    /// Who is in the communicator that stands.
    members: watch::Receiver<BTreeSet<NodeId>>,
    jobs: mpsc::Sender<(NodeId, Job)>,
}

impl NcclExchange {
    /// An exchange that knows no nodes yet.
    pub(in crate::exchange) fn new(
        runtime: &Handle,
        profile: NumericProfile,
        security: Security,
        metrics: ExchangeMetrics,
    ) -> Self {
        let grpc = GrpcExchange::new(runtime.clone(), profile.clone(), security.clone()).counted_by(metrics.clone());
        let (wanted, wants) = watch::channel(Addrs::new());
        let (stands, members) = watch::channel(BTreeSet::new());
        let (jobs, given) = mpsc::channel(WAITING);
        let shared = Shared { profile, security, metrics, notes: grpc.notes(), rooms: Arc::default() };
        let keeper = Keeper { shared, roster: Roster::default(), generation: 0, wants, stands, jobs: given };
        runtime.spawn(keeper.keep());
        Self { grpc, wanted, members, jobs }
    }
}

impl Exchange for NcclExchange {
    fn submit(&mut self, node: &NodeId, batch: ExpertBatch) -> DispatchId {
        let dispatch = self.grpc.begin();
        let mut job = (dispatch, batch);
        if self.members.borrow().contains(node) {
            match self.jobs.try_send((node.clone(), job)) {
                Ok(()) => return dispatch,
                Err(mpsc::error::TrySendError::Full((_, back)) | mpsc::error::TrySendError::Closed((_, back))) => {
                    job = back;
                }
            }
        }
        self.grpc.send_or_complete(node, job);
        dispatch
    }

    fn rescue(&mut self, node: &NodeId, batch: ExpertBatch, experts: Vec<ExpertId>) -> DispatchId {
        self.grpc.rescue(node, batch, experts)
    }

    fn follow(&mut self, view: &ClusterView) {
        self.grpc.follow(view);
        let now = addrs(view);
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != now;
            *wanted = now;
            changed
        });
    }

    fn next(&mut self, deadline: Instant) -> Option<Completion> {
        self.grpc.next(deadline)
    }

    fn cancel(&mut self, dispatch: DispatchId) {
        self.grpc.cancel(dispatch);
    }
}

/// Makes communicators, one after another, as long as there is an exchange.
struct Keeper {
    shared: Shared,
    roster: Roster,
    generation: u64,
    wants: watch::Receiver<Addrs>,
    stands: watch::Sender<BTreeSet<NodeId>>,
    jobs: mpsc::Receiver<(NodeId, Job)>,
}

/// The exchange is gone.
struct Gone;

impl Keeper {
    async fn keep(mut self) {
        while let Ok(()) = self.keep_one().await {}
    }

    /// One communicator's life; or the wait for nodes that could be in one.
    async fn keep_one(&mut self) -> Result<(), Gone> {
        self.roster.want(self.wants.borrow_and_update().clone());
        self.generation += 1;
        let candidates = self.roster.candidates(Instant::now());
        if candidates.is_empty() {
            return self.rest().await;
        }
        let (shared, roster, generation) = (&self.shared, &mut self.roster, self.generation);
        let formed = tokio::select! {
            formed = form(shared, roster, generation, candidates) => formed,
            gone = Self::over_grpc(&mut self.jobs, shared) => return Err(gone),
            changed = self.wants.changed() => return changed.map_err(|_| Gone),
        };
        match formed {
            Some(group) => self.serve(group).await,
            None => Ok(()),
        }
    }

    /// Nobody can be in a communicator now.
    async fn rest(&mut self) -> Result<(), Gone> {
        let next_try = self.roster.next_try(Instant::now());
        tokio::select! {
            () = at(next_try) => Ok(()),
            gone = Self::over_grpc(&mut self.jobs, &self.shared) => Err(gone),
            changed = self.wants.changed() => changed.map_err(|_| Gone),
        }
    }

    async fn serve(&mut self, mut group: Group) -> Result<(), Gone> {
        let (generation, nodes) = (self.generation, group.nodes());
        tracing::info!(generation, members = nodes.len(), "an NCCL communicator stands");
        self.shared.metrics.communicator_stands(nodes.len());
        self.stands.send_replace(nodes.clone());
        let ended = tokio::select! {
            broken = group.run(&mut self.jobs) => broken.map(Some).ok_or(Gone),
            changed = self.wants.changed() => changed.map(|()| here("the nodes have changed")).map_err(|_| Gone),
            () = knock(&self.shared, &mut self.roster, generation, &nodes) => Ok(here("another node can be in it")),
        };
        self.stands.send_replace(BTreeSet::new());
        self.shared.metrics.communicator_ended();
        for node in group.hand_over() {
            self.roster.proved(&node);
        }
        let Some(Broken { by, why }) = ended? else { return Ok(()) };
        tracing::warn!(generation, by = by.as_ref().map(NodeId::as_str), why, "an NCCL communicator broke");
        // Where nobody is known to have broken it everybody rests, so that a fault that stays costs little.
        let blamed = by.map_or(nodes, |node| [node].into());
        blamed.iter().for_each(|node| self.roster.failed(node, Instant::now()));
        Ok(())
    }

    /// Sends over gRPC what was given to a communicator that had just gone, until nothing more can come.
    async fn over_grpc(jobs: &mut mpsc::Receiver<(NodeId, Job)>, shared: &Shared) -> Gone {
        while let Some((node, job)) = jobs.recv().await {
            shared.over_grpc(node, job);
        }
        Gone
    }
}

/// It ends for no fault of anybody's.
fn here(why: &str) -> Option<Broken> {
    tracing::info!(why, "an NCCL communicator makes way for another");
    None
}

/// A communicator of those `candidates` who can; none where that fails.
async fn form(shared: &Shared, roster: &mut Roster, generation: u64, candidates: Addrs) -> Option<Group> {
    let nodes: BTreeSet<NodeId> = candidates.keys().cloned().collect();
    let able = ask(shared, roster, generation, candidates).await;
    if able.is_empty() {
        return None;
    }
    match Group::form(able, shared.clone()).await {
        Ok(group) => Some(group),
        Err(Broken { by, why }) => {
            tracing::warn!(generation, by = by.as_ref().map(NodeId::as_str), why, "no NCCL communicator");
            let blamed = by.map_or(nodes, |node| [node].into());
            blamed.iter().for_each(|node| roster.failed(node, Instant::now()));
            None
        }
    }
}

/// Those of `candidates` who can be members.
async fn ask(shared: &Shared, roster: &mut Roster, generation: u64, candidates: Addrs) -> Vec<Candidate> {
    let asked = candidates
        .into_iter()
        .map(async |(node, addr)| Candidate::ask(node, &addr, &shared.security, generation).await);
    let mut able = Vec::new();
    for answer in join_all(asked).await {
        match answer {
            Ok(candidate) => able.push(candidate),
            Err((node, why)) => {
                tracing::warn!(generation, node = node.as_str(), why, "not in the NCCL communicator");
                roster.failed(&node, Instant::now());
            }
        }
    }
    able
}

/// Asks those who are not `members` again when their time has come; returns when one of them can be.
async fn knock(shared: &Shared, roster: &mut Roster, generation: u64, members: &BTreeSet<NodeId>) {
    loop {
        let outsiders = roster.outsiders(members, Instant::now());
        if !outsiders.is_empty() && !ask(shared, roster, generation, outsiders).await.is_empty() {
            return;
        }
        at(roster.next_try(Instant::now())).await;
    }
}
