//! Who holds which expert: placed once where nodes neither come nor go, else by a loop that any coordinator may lead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::time::timeout;
use tramontane_cluster::registry::Registry;
use tramontane_cluster::tls::Security;
use tramontane_coordinator::placement::{control, follow_loads};
use tramontane_router::placement::{ControllerPolicy, Desire, ExpertSize, NodeRoom, Problem, solve};
use tramontane_router::{ClusterView, ExpertId};

use crate::model::Model;
use crate::progress::Progress;

/// How often it is said what is waited for.
const SAY_AGAIN: Duration = Duration::from_secs(10);
/// Experts that are named when some are missing, at most.
const NAMED: usize = 5;

/// Places the model's experts on the nodes that are there, each on one.
pub(crate) async fn place_once(model: &Model, registry: &dyn Registry) -> anyhow::Result<()> {
    let view = registry.watch().current();
    let problem = Problem { model: model.id.clone(), experts: sizes(model), nodes: NodeRoom::all(&view), replicas: 1 };
    let failed = || format!("the experts do not fit on {} nodes", view.nodes.len());
    registry.propose(solve(&problem, None).with_context(failed)?).await?;
    Ok(())
}

/// Rows a second that each expert receives.
pub(crate) type Rates = watch::Sender<BTreeMap<ExpertId, f32>>;

/// That each of the model's experts should be held by `replicas` nodes.
pub(crate) fn desire(model: &Model, replicas: usize) -> Desire {
    Desire { model: model.id.clone(), experts: sizes(model), replicas }
}

/// Leads the cluster as `name` when it is this process's turn, and then sees to it that it
/// looks as is `desire`d. The nodes are asked for the experts' loads meanwhile, which go into `rates`.
pub(crate) fn lead(
    registry: Arc<dyn Registry>,
    security: Security,
    name: String,
    desire: Desire,
    policy: ControllerPolicy,
    rates: Rates,
) -> impl Future<Output = ()> + Send + 'static {
    let rated = rates.subscribe();
    async move {
        let loads = follow_loads(registry.watch(), security, rates);
        tokio::join!(control(registry.clone(), &name, desire, policy, rated), loads);
    }
}

/// Waits until every expert is held by a node that lives.
pub(crate) async fn until_held(model: &Model, registry: &dyn Registry) -> anyhow::Result<()> {
    let total = model.config.layers * model.config.experts;
    let progress = Progress::start("loading experts", total as u64);
    let mut watch = registry.watch();
    loop {
        let all_held = |view: &ClusterView| {
            let missing = missing(model, view).count();
            progress.set((total - missing) as u64);
            missing == 0
        };
        match timeout(SAY_AGAIN, watch.until(all_held)).await {
            Ok(view) => return view.map(|_| ()).map_err(Into::into),
            Err(_) => {
                let view = watch.current();
                let (count, nodes) = (missing(model, &view).count(), view.nodes.len());
                let some: Vec<String> = missing(model, &view).take(NAMED).map(|expert| expert.to_string()).collect();
                tracing::warn!(nodes, count, ?some, "no node holds these experts yet");
            }
        }
    }
}

/// Experts that no live node holds.
fn missing<'a>(model: &'a Model, view: &'a ClusterView) -> impl Iterator<Item = ExpertId> + 'a {
    model.expert_ids().filter(|expert| view.live_holders(*expert).next().is_none())
}

fn sizes(model: &Model) -> Vec<ExpertSize> {
    let bytes = model.expert_bytes();
    model.expert_ids().map(|id| ExpertSize { id, bytes }).collect()
}
