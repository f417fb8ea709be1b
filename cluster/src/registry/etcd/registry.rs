//! The registry itself: what a process asks of etcd.

use std::sync::Arc;

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp, TxnOpResponse};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tramontane_router::placement::{Order, Orders, Placement, follows, may_take};
use tramontane_router::{ClusterView, Epoch, ModelId, NodeId, NodeRecord, NumericProfile};

use super::follow::Follower;
use super::keys::{Keys, decode, encode};
use super::leader::{Leading, lead, leader_in};
use super::options::{EtcdOptions, kv};
use super::seen::SeenCluster;
use super::{count, farewell, node, orders, refused, within};
use crate::registry::{Accepted, Health, Leadership, Lease, Registry, RegistryError, Watch, nothing_to_restore, rules};

/// A cluster's registry in etcd.
pub struct EtcdRegistry {
    client: Client,
    keys: Keys,
    model: ModelId,
    profile: NumericProfile,
    ttl_seconds: i64,
    leading: Leading,
    views: watch::Receiver<Arc<ClusterView>>,
    health: watch::Receiver<Health>,
    /// Those that keep leases and leaderships, and give them back when they are dropped.
    tasks: TaskTracker,
}

/// A placement in etcd, and the revision that wrote it (0 for none).
struct Stored {
    placement: Option<Placement>,
    revision: i64,
}

impl EtcdRegistry {
    /// Connects for a process that serves `model` to the bits `profile` stands for. The first one writes the profile; who
    /// comes with another is refused. Must be called on a tokio runtime, which then carries the registry's streams.
    ///
    /// # Errors
    /// [`RegistryError::Refused`] for another profile, or when etcd lets us not in; [`RegistryError::Lost`].
    pub async fn connect(
        options: &EtcdOptions,
        model: ModelId,
        profile: NumericProfile,
    ) -> Result<Self, RegistryError> {
        let client = options.client().await?;
        let keys = Keys::new(&options.cluster, model.clone());
        agree(&client, &keys, &profile).await?;
        let (views, watched) = watch::channel(Arc::default());
        let (healths, health) = watch::channel(Health::Connected);
        let follower = Follower { client: client.clone(), views, health: healths };
        let mut seen = SeenCluster::new(keys.clone(), profile.clone());
        // Before anybody acts on a view, there is one.
        let revision = follower.list(&mut seen).await?;
        tokio::spawn(follower.follow(seen, revision));
        let (ttl_seconds, leading, tasks) = (options.ttl_seconds(), Leading::default(), TaskTracker::new());
        Ok(Self { client, keys, model, profile, ttl_seconds, leading, views: watched, health, tasks })
    }

    async fn stored(&self) -> Result<Stored, RegistryError> {
        let read = within(kv(&self.client).get(self.keys.placement(), None)).await?;
        let Some(kv) = read.kvs().first() else { return Ok(Stored { placement: None, revision: 0 }) };
        let placement = Some(decode(&self.keys.placement(), kv.value())?);
        Ok(Stored { placement, revision: kv.mod_revision() })
    }

    /// Writes `placement` over what was written at `revision`, if this process leads.
    async fn write(&self, placement: &Placement, revision: i64) -> Result<Accepted, RegistryError> {
        let (keys, epoch) = (&self.keys, placement.epoch);
        let value = encode(&format!("placement {epoch}"), placement)?;
        let Some(token) = self.leading.token() else {
            let read = within(self.client.clone().txn(Txn::new().and_then([TxnOp::get(keys.leader(), None)]))).await?;
            return Err(RegistryError::NotLeader { why: leader_in(keys, read.op_responses().first()) });
        };
        let mut checks = token.holds(keys).to_vec();
        checks.push(Compare::mod_revision(keys.placement(), CompareOp::Equal, revision));
        let txn = Txn::new()
            .when(checks)
            .and_then([TxnOp::put(keys.placement(), value, None)])
            .or_else([TxnOp::get(keys.placement(), None), TxnOp::get(keys.leader(), None)]);
        let written = within(kv(&self.client).txn(txn)).await?;
        if written.succeeded() {
            return Ok(Accepted { epoch });
        }
        let answers = written.op_responses();
        let found = match answers.first() {
            Some(TxnOpResponse::Get(read)) => read.kvs().first(),
            _ => None,
        };
        if found.map_or(0, |kv| kv.mod_revision()) == revision {
            return Err(RegistryError::NotLeader { why: leader_in(keys, answers.get(1)) });
        }
        let current = found.map(|kv| decode::<Placement>(&keys.placement(), kv.value())).transpose()?;
        Err(RegistryError::Fenced { current: current.map_or(Epoch(0), |placement| placement.epoch) })
    }
}

/// Writes the cluster's profile if nobody has; refuses to go on when it is another.
async fn agree(client: &Client, keys: &Keys, profile: &NumericProfile) -> Result<(), RegistryError> {
    let key = keys.profile();
    let txn = Txn::new()
        .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(key.as_str(), encode("profile", profile)?, None)])
        .or_else([TxnOp::get(key.as_str(), None)]);
    let answer = within(client.clone().txn(txn)).await?;
    if answer.succeeded() {
        return Ok(());
    }
    let answers = answer.op_responses();
    let Some(TxnOpResponse::Get(read)) = answers.first() else { return Ok(()) };
    let Some(kv) = read.kvs().first() else { return Ok(()) };
    let theirs: NumericProfile = decode(&key, kv.value())?;
    match theirs.difference(profile) {
        None => Ok(()),
        Some(why) => Err(RegistryError::Refused { what: format!("profile of {key}"), why }),
    }
}

impl Registry for EtcdRegistry {
    fn join(&self, record: NodeRecord) -> BoxFuture<'_, Result<Box<dyn Lease>, RegistryError>> {
        async move {
            // Counted before it is written: nodes that join at the same moment may be a few too many.
            rules::admit(&self.profile, count(&self.client, &self.keys.nodes()).await?, &record)?;
            let (id, profile) = (record.id.clone(), self.profile.clone());
            let joined = node::join(&self.client, &self.keys, self.ttl_seconds, profile, record, &self.tasks);
            let lease = joined.await?;
            if self.views.borrow().refused.contains_key(&id) {
                refused::forget(&self.client, &self.keys, &id).await;
            }
            Ok(Box::new(lease) as Box<dyn Lease>)
        }
        .boxed()
    }

    fn watch(&self) -> Watch {
        let mut receiver = self.views.clone();
        receiver.mark_changed();
        Watch(receiver)
    }

    fn propose(&self, placement: Placement) -> BoxFuture<'_, Result<Accepted, RegistryError>> {
        async move {
            // Seen first and read afterwards: a proposal that wins between the two is no step back.
            let seen = self.views.borrow().placement.clone();
            let Stored { placement: current, revision } = self.stored().await?;
            let epoch = placement.epoch;
            if let Err(went_back) = may_take(seen.as_ref(), current.as_ref()) {
                return Err(RegistryError::Refused { what: format!("placement {epoch}"), why: went_back.to_string() });
            }
            follows(&self.model, current.as_ref(), &placement).map_err(|denied| rules::denied(epoch, denied))?;
            self.write(&placement, revision).await
        }
        .boxed()
    }

    fn order(&self, order: Order) -> BoxFuture<'_, Result<Orders, RegistryError>> {
        async move {
            let seen = self.views.borrow().orders.clone();
            orders::order(&self.client, &self.keys, &seen, &order).await
        }
        .boxed()
    }

    fn tell_refused(&self, node: NodeId, why: String) -> BoxFuture<'_, ()> {
        async move { refused::tell(&self.client, &self.keys, &node, why).await }.boxed()
    }

    fn lead(&self, name: &str) -> BoxFuture<'_, Result<Box<dyn Leadership>, RegistryError>> {
        let name = name.to_owned();
        async move {
            let led = lead(&self.client, &self.keys, self.ttl_seconds, &self.leading, &name, &self.tasks).await?;
            Ok(Box::new(led) as Box<dyn Leadership>)
        }
        .boxed()
    }

    fn restore(&self) -> BoxFuture<'_, Result<Accepted, RegistryError>> {
        async move {
            let Some(live) = self.views.borrow().placement.clone() else { return Err(nothing_to_restore()) };
            let Stored { placement: found, revision } = self.stored().await?;
            if may_take(Some(&live), found.as_ref()).is_ok() {
                return Err(nothing_to_restore());
            }
            let newest = live.epoch.max(found.map_or(Epoch(0), |placement| placement.epoch));
            let restored = self.write(&Placement { epoch: newest.next(), parent: newest, ..live }, revision).await?;
            let seen = self.views.borrow().orders.clone();
            orders::restore(&self.client, &self.keys, &seen).await?;
            Ok(restored)
        }
        .boxed()
    }

    fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    fn farewell(&self) -> BoxFuture<'_, ()> {
        farewell(&self.tasks).boxed()
    }
}
