//! What this coordinator tells operators, and does for them.

mod findings;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tramontane_cluster::admin::{
    Admin, AdminError, ClusterStatus, Cordon, DispatchCounts, Force, Move, PeerNote, Rebalance, Rehearsal,
};
use tramontane_cluster::engine::Engine;
use tramontane_cluster::exchange::ExchangeError;
use tramontane_cluster::exchange::grpc::NodeControl;
use tramontane_cluster::registry::accounts::Accounts;
use tramontane_cluster::registry::{Health, Registry, RegistryError};
use tramontane_cluster::tls::Security;
use tramontane_router::peers::Quarantine;
use tramontane_router::placement::{
    Controller, ControllerPolicy, Desire, NodeRoom, Order, Placement, Problem, SolveError, solve,
};
use tramontane_router::{ClusterView, Epoch, ExpertId, NodeId};

use crate::PeerReport;
use findings::{Doubts, findings};

/// Placements remembered, at most.
const MAX_HISTORY: usize = 64;

/// A coordinator, as operators meet it.
pub struct ClusterAdmin {
    name: String,
    registry: Arc<dyn Registry>,
    security: Security,
    desire: Desire,
    rates: watch::Receiver<BTreeMap<ExpertId, f32>>,
    accounts: Option<Arc<dyn Accounts>>,
    engine: OnceLock<(Arc<dyn Engine>, watch::Receiver<PeerReport>)>,
    history: Mutex<VecDeque<(SystemTime, Arc<Placement>)>>,
}

impl ClusterAdmin {
    /// The coordinator `name` of the cluster in `registry`, which should look as is `desire`d; `rates` are the experts' rows a
    /// second. Nodes are reached by `security`.
    pub fn new(
        name: String,
        registry: Arc<dyn Registry>,
        security: Security,
        desire: Desire,
        rates: watch::Receiver<BTreeMap<ExpertId, f32>>,
    ) -> Self {
        let (engine, history) = (OnceLock::new(), Mutex::default());
        Self { name, registry, security, desire, rates, accounts: None, engine, history }
    }

    /// Has it look after the keys in `accounts`, where the cluster keeps any.
    #[must_use]
    pub fn looking_after(self, accounts: Option<Arc<dyn Accounts>>) -> Self {
        Self { accounts, ..self }
    }

    /// The model is loaded: this is its engine, and what its dispatcher holds against nodes.
    pub fn serves(&self, engine: Arc<dyn Engine>, report: watch::Receiver<PeerReport>) {
        // Told once; a second engine would be a defect of the caller's, and the first one stays.
        _ = self.engine.set((engine, report));
    }

    /// How it stands with the registry.
    pub(crate) fn health(&self) -> Health {
        self.registry.health()
    }

    /// Remembers placements for as long as it is awaited, or the registry is there.
    pub async fn remember(&self) {
        let mut views = self.registry.watch();
        while let Ok(view) = views.changed().await {
            let Some(placement) = &view.placement else { continue };
            let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
            if history.back().is_some_and(|(_, last)| last.as_ref() == placement) {
                continue;
            }
            if history.len() == MAX_HISTORY {
                history.pop_front();
            }
            history.push_back((SystemTime::now(), Arc::new(placement.clone())));
        }
    }

    /// Whether the nodes but `node` have room for one replica of everything.
    fn fits_without(&self, view: &ClusterView, node: &NodeId) -> Result<(), AdminError> {
        let others = NodeRoom::all(view).into_iter().filter(|other| other.id != *node);
        let problem = Problem {
            model: self.desire.model.clone(),
            experts: self.desire.experts.clone(),
            nodes: others.collect(),
            replicas: 1,
        };
        let placed = solve(&problem, view.placement.as_ref());
        placed.map(|_| ()).map_err(|error| AdminError::NoRoom { node: node.clone(), why: error.to_string() })
    }
}

impl Admin for ClusterAdmin {
    fn status(&self) -> ClusterStatus {
        let view = self.registry.watch().current();
        let (engine, report) = match self.engine.get() {
            Some((engine, report)) => (Some(engine.status()), report.borrow().clone()),
            None => (None, PeerReport::default()),
        };
        let peers = peers(&report);
        let doubts = Doubts { unconfirmed: report.unconfirmed.clone(), disputed: report.disputed.clone() };
        let experts = |count: fn(&ExpertId) -> u32| {
            self.desire.experts.iter().map(|expert| count(&expert.id) + 1).max().unwrap_or(0)
        };
        ClusterStatus {
            coordinator: self.name.clone(),
            layers: experts(|expert| expert.layer),
            experts: experts(|expert| expert.expert),
            replicas: self.desire.replicas,
            findings: findings(&self.desire, &view, &self.registry.health(), &peers, engine.as_ref(), &doubts),
            rates: self.rates.borrow().clone(),
            peers,
            dispatches: DispatchCounts {
                sent: report.dispatches,
                resent: report.resent,
                hedged: report.hedged,
                rescued: report.rescued,
            },
            engine,
            traffic: report.traffic,
            view,
        }
    }

    fn drain(&self, node: NodeId, force: Force) -> BoxFuture<'_, Result<(), AdminError>> {
        async move {
            let view = self.registry.watch().current();
            let record = view.nodes.get(&node).ok_or_else(|| AdminError::UnknownNode { node: node.clone() })?;
            if force == Force::No {
                self.fits_without(&view, &node)?;
            }
            let unreachable = |why: String| AdminError::Unreachable { node: node.clone(), why };
            if record.is_in_process() {
                return Err(unreachable("it is part of the coordinator's process".to_owned()));
            }
            let why = |error: ExchangeError| match error {
                ExchangeError::NodeGone { why, .. } => unreachable(why),
                other => unreachable(other.to_string()),
            };
            let mut control = NodeControl::connect(node.clone(), &record.addr, &self.security).await.map_err(why)?;
            control.leave().await.map_err(why)
        }
        .boxed()
    }

    fn cordon(&self, node: NodeId, cordon: Cordon) -> BoxFuture<'_, Result<bool, AdminError>> {
        async move {
            let view = self.registry.watch().current();
            let is_cordoned = view.orders.cordoned.contains(&node);
            // One that is away can be uncordoned, and nothing that never was here cordoned by a slip of the pen.
            if !view.nodes.contains_key(&node) && !is_cordoned {
                return Err(AdminError::UnknownNode { node });
            }
            let order = match cordon {
                Cordon::Set => Order::Cordon(node),
                Cordon::Lift => Order::Uncordon(node),
            };
            let orders = self.registry.order(order).await?;
            Ok(orders.version != view.orders.version)
        }
        .boxed()
    }

    fn rehearse(&self) -> Rehearsal {
        let view = self.registry.watch().current();
        let rehearsed =
            Controller::rehearse(self.desire.clone(), ControllerPolicy::default(), &view, &self.rates.borrow());
        let bytes: BTreeMap<ExpertId, u64> = self.desire.experts.iter().map(|e| (e.id, e.bytes)).collect();
        let moves = match rehearsed {
            Ok(moves) => moves,
            Err(why @ SolveError::NoRoom { .. }) => return Rehearsal { why: why.to_string(), moves: Vec::new() },
            Err(why) => return Rehearsal { why: format!("waiting for nodes: {why}"), moves: Vec::new() },
        };
        let moves: Vec<Move> = moves
            .into_iter()
            .map(|(change, why)| {
                let bytes = bytes.get(&change.expert).copied().unwrap_or(0);
                Move { change, bytes, why: why.to_string() }
            })
            .collect();
        let why = if moves.is_empty() { "everything is where it should be" } else { "" };
        Rehearsal { why: why.to_owned(), moves }
    }

    fn rebalance(&self) -> BoxFuture<'_, Result<Rebalance, AdminError>> {
        async move {
            let plan = self.rehearse();
            if plan.moves.is_empty() {
                return Ok(Rebalance { plan, order: None });
            }
            let orders = self.registry.order(Order::Rebalance).await?;
            Ok(Rebalance { plan, order: orders.rebalance })
        }
        .boxed()
    }

    fn history(&self) -> Vec<(SystemTime, Arc<Placement>)> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn restore(&self) -> BoxFuture<'_, Result<Epoch, AdminError>> {
        async move {
            let restored: Result<_, RegistryError> = self.registry.restore().await;
            Ok(restored?.epoch)
        }
        .boxed()
    }

    fn accounts(&self) -> Option<Arc<dyn Accounts>> {
        self.accounts.clone()
    }
}

/// What is held against nodes, in words.
fn peers(report: &PeerReport) -> BTreeMap<NodeId, PeerNote> {
    let suspected = report.suspected.iter().map(|node| {
        let what = "it was late, gone or wrong, and is being probed".to_owned();
        (node.clone(), PeerNote { what, quarantined: false })
    });
    let quarantined = report.quarantined.iter().map(|(node, why)| {
        let what = match why {
            Quarantine::OtherBits => "two others answered the same rows with other bits",
            Quarantine::WrongProfile => "it serves other weights or another numeric contract",
        };
        (node.clone(), PeerNote { what: what.to_owned(), quarantined: true })
    });
    suspected.chain(quarantined).collect()
}
