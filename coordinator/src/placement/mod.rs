//! The placement's control loop: leads if nobody else does, asks the pure controller, proposes what it decides.

mod loads;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tramontane_cluster::registry::{Leadership, Registry, RegistryError};
use tramontane_router::ExpertId;
use tramontane_router::placement::{Controller, ControllerPolicy, Decision, Desire, Kind, Order};

pub use loads::follow_loads;

/// How long to wait before a proposal that failed, or was blocked, is decided anew, if the view does not change before.
const AGAIN: Duration = Duration::from_secs(5);
/// How long to wait before a campaign that was refused is begun again.
const CAMPAIGN_AGAIN: Duration = Duration::from_secs(5);

/// Leads and places for as long as it is awaited, as the process `name`. `rates` are the experts' rows a second.
pub async fn control(
    registry: Arc<dyn Registry>,
    name: &str,
    desire: Desire,
    policy: ControllerPolicy,
    rates: watch::Receiver<BTreeMap<ExpertId, f32>>,
) {
    loop {
        match registry.lead(name).await {
            Ok(leadership) => {
                tracing::info!(name, "leads the cluster");
                place(registry.as_ref(), leadership.as_ref(), &desire, &policy, &rates).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot lead");
                tokio::time::sleep(CAMPAIGN_AGAIN).await;
            }
        }
    }
}

/// Places while the leadership lasts.
async fn place(
    registry: &dyn Registry,
    leadership: &dyn Leadership,
    desire: &Desire,
    policy: &ControllerPolicy,
    rates: &watch::Receiver<BTreeMap<ExpertId, f32>>,
) {
    let started = Instant::now();
    let mut controller = Controller::new(desire.clone(), policy.clone());
    let (mut views, mut said) = (registry.watch(), String::new());
    let mut view = views.current();
    let mut refused = BTreeMap::new();
    loop {
        // Once a node and reason; as many are remembered as a view names.
        for (node, why) in view.refused.iter().filter(|&(node, why)| refused.get(node) != Some(why)) {
            tracing::warn!(%node, why, "a node was refused");
        }
        refused.clone_from(&view.refused);
        let rates = rates.borrow().clone();
        let now = started.elapsed();
        let decision = controller.decide(&view, &rates, now);
        let wait = match decision {
            Decision::Settled => policy.hot_interval,
            Decision::Rebalanced { order, blocked } => {
                match &blocked {
                    None => tracing::info!(order, "rebalanced"),
                    Some(why) => tracing::warn!(order, why, "the cluster cannot be rebalanced"),
                }
                if let Err(error) = registry.order(Order::Rebalanced { order, blocked }).await {
                    tracing::warn!(%error, "that it is rebalanced is not written");
                }
                AGAIN
            }
            Decision::Wait { until, .. } => until.saturating_sub(now),
            Decision::Blocked { why } => {
                if why != said {
                    tracing::warn!(why, "the placement cannot be mended");
                    said = why;
                }
                AGAIN
            }
            Decision::Propose { placement, changes } => {
                let adds = changes.iter().filter(|change| change.kind == Kind::Add).count();
                tracing::info!(epoch = %placement.epoch, adds, removes = changes.len() - adds, "proposing a placement");
                match registry.propose(placement).await {
                    Ok(_) | Err(RegistryError::Fenced { .. }) => AGAIN,
                    Err(RegistryError::NotLeader { why }) => {
                        tracing::warn!(why, "the leadership is over");
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the placement is not written");
                        AGAIN
                    }
                }
            }
        };
        view = tokio::select! {
            () = leadership.lost() => return,
            changed = views.changed() => match changed {
                Ok(view) => view,
                Err(_) => return,
            },
            () = tokio::time::sleep(wait) => views.current(),
        };
    }
}

#[cfg(test)]
mod tests {
    use tramontane_cluster::registry::{EmbeddedRegistry, Watch};
    use tramontane_router::placement::ExpertSize;
    use tramontane_router::{ClusterView, ModelId, NodeId, NodeRecord, NumericProfile};

    use super::*;

    fn record(id: &str, held: impl IntoIterator<Item = u32>) -> NodeRecord {
        let profile =
            NumericProfile { contract: 1, weights: "w".into(), quantization: "f32".into(), arithmetic: "cpu".into() };
        let held = held.into_iter().map(|e| ExpertId::new(0, e)).collect();
        let (addr, zone) = (String::new(), String::new());
        NodeRecord { id: id.into(), addr, held, profile, capacity: 100, speed: 0, zone, draining: false }
    }

    async fn until(watch: &mut Watch, condition: impl FnMut(&ClusterView) -> bool) {
        let shown = tokio::time::timeout(Duration::from_secs(30), watch.until(condition));
        shown.await.expect("in time").expect("a view");
    }

    #[tokio::test]
    async fn the_loop_places_moves_and_drains() {
        let profile = record("a", []).profile;
        let registry: Arc<dyn Registry> = Arc::new(EmbeddedRegistry::new(ModelId::from("m"), profile));
        let experts = (0..4).map(|e| ExpertSize { id: ExpertId::new(0, e), bytes: 1 }).collect();
        let desire = Desire { model: "m".into(), experts, replicas: 1 };
        let policy = ControllerPolicy { settle: Duration::ZERO, ..ControllerPolicy::default() };
        let (_rates, rates) = watch::channel(BTreeMap::new());
        let (mut watch, clone) = (registry.watch(), registry.clone());
        let a = registry.join(record("a", [])).await.expect("joined");
        let looping = tokio::spawn(async move { control(clone, "c", desire, policy, rates).await });
        let placed = |node: &'static str, count: usize| {
            move |view: &ClusterView| {
                let nodes = view.placement.iter().flat_map(|p| p.replicas.values()).flatten();
                nodes.filter(|id| **id == NodeId::from(node)).count() == count
            }
        };
        until(&mut watch, placed("a", 4)).await;
        let b = registry.join(record("b", [])).await.expect("joined");
        a.update(record("a", 0..4)).await.expect("updated");
        until(&mut watch, placed("b", 2)).await;
        b.update(record("b", 0..4)).await.expect("updated");
        until(&mut watch, placed("a", 2)).await;
        a.update(NodeRecord { draining: true, ..record("a", 0..4) }).await.expect("updated");
        until(&mut watch, placed("a", 0)).await;
        looping.abort();
    }
}
