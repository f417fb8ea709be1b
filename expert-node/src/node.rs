//! A node's life: it joins, loads what the placement gives it and publishes what it holds, while it serves; drained, it leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::{sleep, sleep_until};
use tramontane_cluster::registry::{Lease, Registry, RegistryError, Watch};
use tramontane_router::placement::is_drained;
use tramontane_router::{ClusterView, ExpertId, NodeId, NodeRecord, NumericProfile};

use crate::failures::Failures;
use crate::speed::{self, publish};
use crate::{Duty, ExpertStore, Keep, duty};

/// While experts are loaded, what is held is published this often.
const PUBLISH_EVERY: Duration = Duration::from_millis(200);
/// How long an expert that a rescue loaded is kept after it was last asked for, though the view says that another holds it. Who
/// asked could not reach that one; and without the registry the view is old.
const HELP_LASTS: Duration = Duration::from_secs(10);

/// Why a node ended.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The registry refused it, or is gone.
    #[error("expert node {node} is not in the cluster")]
    Registry {
        /// The node.
        node: NodeId,
        /// What the registry said.
        source: RegistryError,
    },
    /// A defect: the loading thread panicked.
    #[error("expert node {node}: loading ended abnormally")]
    Panicked {
        /// The node.
        node: NodeId,
        /// How.
        source: JoinError,
    },
}

/// What a node says of itself when it joins.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// Its name.
    pub id: NodeId,
    /// Where its `Experts` service listens; empty in the coordinator's process.
    pub addr: String,
    /// Bytes of experts it may hold.
    pub capacity: u64,
    /// What it shares its fate with; may be empty.
    pub zone: String,
    /// What decides its bits.
    pub profile: NumericProfile,
}

/// A node that has joined.
pub struct Node {
    options: NodeOptions,
    store: Arc<ExpertStore>,
    lease: Box<dyn Lease>,
    watch: Watch,
    published: NodeRecord,
    /// When its speed was published last.
    told_speed: Option<Instant>,
    failures: Failures,
    started: Instant,
}

/// What a node waits for when there is nothing to do.
enum Woken {
    /// The view, the store, or what is wanted of it is another.
    Changed,
    Over(RegistryError),
}

impl Node {
    /// Joins the cluster of `registry`, holding what `store` holds.
    ///
    /// # Errors
    /// [`NodeError::Registry`] when it is refused.
    pub async fn join(
        options: NodeOptions,
        store: Arc<ExpertStore>,
        registry: &dyn Registry,
    ) -> Result<Self, NodeError> {
        let published = record(&options, store.held(), 0, false);
        let watch = registry.watch();
        let joined = registry.join(published.clone()).await;
        let lease = joined.map_err(|source| NodeError::Registry { node: options.id.clone(), source })?;
        let (failures, started) = (Failures::default(), Instant::now());
        Ok(Self { options, store, lease, watch, published, told_speed: None, failures, started })
    }

    /// Follows the placement: loads what it gives, publishes what is held, gives up what others hold instead. A load that
    /// fails is tried again later; the rest goes on. Returns when it was told to leave ([`ExpertServer::leave`]) and is drained: it is out of
    /// the cluster then.
    ///
    /// # Errors
    /// [`NodeError`] says why it is over.
    ///
    /// [`ExpertServer::leave`]: tramontane_cluster::exchange::ExpertServer::leave
    pub async fn follow(mut self) -> Result<(), NodeError> {
        let mut leaving = self.store.leaving();
        let (mut last_published, mut keep) = (Instant::now(), Keep::LastCopies);
        loop {
            let (view, held, draining) = (self.watch.current(), self.store.held(), *leaving.borrow_and_update());
            if self.published.draining && is_drained(&view, &self.options.id) {
                return Ok(());
            }
            let (mut duty, asked) = (self.duty(&view, &held, keep), self.rescued());
            let mut look_again = None;
            if keep == Keep::LastCopies {
                let helped = asked.iter().filter(|(expert, _)| duty.forget.contains(expert));
                look_again = helped.map(|(_, &at)| at.saturating_duration_since(self.started) + HELP_LASTS).min();
                duty = duty.sparing(&asked.into_keys().collect());
            }
            let Duty { load, publish, forget } = duty;
            let next = self.failures.next(&load, self.started.elapsed());
            let record = record(&self.options, publish, self.speed(), draining);
            // In mid-load the record may lag a little; what is given up, and that the node leaves, must not.
            let urgent = next.is_err() || !forget.is_empty() || draining != self.published.draining;
            if record != self.published && (urgent || last_published.elapsed() >= PUBLISH_EVERY) {
                // What is given up is taken from the record first, so that nobody asks for it any more.
                self.lease.update(record.clone()).await.map_err(|source| self.over(source))?;
                if record.speed != self.published.speed {
                    self.told_speed = Some(Instant::now());
                }
                (self.published, last_published) = (record, Instant::now());
            }
            if !forget.is_empty() {
                self.store.retain(|expert| !forget.contains(&expert));
                continue;
            }
            match next {
                Ok(expert) => keep = self.load(expert, &view, &held, keep).await?,
                Err(again) => match self.wait(&mut leaving, again.into_iter().chain(look_again).min()).await {
                    Woken::Changed => {}
                    Woken::Over(source) => return Err(self.over(source)),
                },
            }
        }
    }

    /// What its record is to say of its speed.
    fn speed(&self) -> u32 {
        publish(self.published.speed, self.store.speed(), self.told_speed.map(|at| at.elapsed()))
    }

    /// Experts that a rescue loaded, and which were asked for lately; when each was last.
    fn rescued(&self) -> BTreeMap<ExpertId, Instant> {
        let now = Instant::now();
        self.store.rescued(now.checked_sub(HELP_LASTS).unwrap_or(now))
    }

    fn duty(&self, view: &ClusterView, held: &BTreeSet<ExpertId>, keep: Keep) -> Duty {
        let nothing = || Duty { load: Vec::new(), publish: held.clone(), forget: BTreeSet::new() };
        duty(view, &self.options.id, held, &self.published.held, keep).unwrap_or_else(nothing)
    }

    /// Loads `expert`; returns what is to be kept of what is not given to the node.
    async fn load(
        &mut self,
        expert: ExpertId,
        view: &ClusterView,
        held: &BTreeSet<ExpertId>,
        keep: Keep,
    ) -> Result<Keep, NodeError> {
        let store = Arc::clone(&self.store);
        let loaded = tokio::task::spawn_blocking(move || store.load(expert)).await;
        let Err(error) = loaded.map_err(|source| NodeError::Panicked { node: self.options.id.clone(), source })? else {
            return Ok(Keep::LastCopies);
        };
        // Beside what it keeps for others there may be no room for what it is given.
        if keep == Keep::LastCopies && !self.duty(view, held, Keep::Nothing).forget.is_empty() {
            return Ok(Keep::Nothing);
        }
        tracing::warn!(node = %self.options.id, %error, "an expert is not loaded; trying again later");
        self.failures.note(expert, self.started.elapsed());
        Ok(Keep::LastCopies)
    }

    /// Until something is another, or it is time to look `again`.
    async fn wait(&mut self, leaving: &mut watch::Receiver<bool>, again: Option<Duration>) -> Woken {
        let again = again.map(|at| (self.started + at).into());
        let due = async {
            match again {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.watch.changed() => match changed {
                Ok(_) => Woken::Changed,
                Err(source) => Woken::Over(source),
            },
            () = self.lease.lost() => Woken::Over(RegistryError::Lost { why: "the lease ended".to_owned() }),
            () = self.store.loaded() => Woken::Changed,
            _ = leaving.changed() => Woken::Changed,
            // Its speed may be another.
            () = sleep(speed::STANDS) => Woken::Changed,
            () = due => Woken::Changed,
        }
    }

    fn over(&self, source: RegistryError) -> NodeError {
        NodeError::Registry { node: self.options.id.clone(), source }
    }
}

fn record(options: &NodeOptions, held: BTreeSet<ExpertId>, speed: u32, draining: bool) -> NodeRecord {
    let NodeOptions { id, addr, capacity, zone, profile } = options.clone();
    NodeRecord { id, addr, held, profile, capacity, speed, zone, draining }
}
