//! The operator's commands: they ask a coordinator, and print what it says.

mod args;
mod keys;
mod print;
mod rebalance;
mod show;
mod table;
mod top;
mod usage;

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tramontane_cluster::admin::{AdminClient, AdminClientError, ClusterStatus, Cordon, Force};
use tramontane_cluster::tls::Role;
use tramontane_router::NodeId;
use tramontane_router::placement::changes;

pub(crate) use args::{
    AskArgs, CordonArgs, DEFAULT_ADMIN, DrainArgs, EXPERTS_EXAMPLES, NODES_EXAMPLES, PlacementArgs, RebalanceArgs,
    STATUS_EXAMPLES, TopArgs,
};
use args::{FormArgs, Output, PlacementCommand};
pub(crate) use keys::{KeysArgs, keys};
use print::{Look, print, printed};
pub(crate) use rebalance::rebalance;
use table::terminal_width;
pub(crate) use top::top;
pub(crate) use usage::{UsageArgs, usage};

use crate::output::out;
use crate::{EXIT_DEGRADED, Unreachable};

/// How often what was asked for is looked after.
const LOOK: Duration = Duration::from_millis(250);

/// What can be said of a status.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Topic {
    Status,
    Nodes,
    Experts,
}

/// Says how the cluster fares; the exit code tells whether all is as it should be.
pub(crate) async fn tell(args: &AskArgs, topic: Topic) -> anyhow::Result<u8> {
    let form = args.form.output();
    let look = async |client: &mut AdminClient| {
        let status = client.status().await.map_err(failed)?;
        let text = printed(form, || as_value(topic, &status), || as_text(topic, &status, form))?;
        let degraded = matches!(topic, Topic::Status) && !status.findings.is_empty();
        Ok(Look { text, code: if degraded { EXIT_DEGRADED } else { 0 } })
    };
    print(args, look).await
}

fn as_text(topic: Topic, status: &ClusterStatus, form: Output) -> String {
    let (wide, width) = (form == Output::Wide, terminal_width());
    match topic {
        Topic::Status => show::status(status),
        Topic::Nodes => show::nodes(status, wide, width),
        Topic::Experts if wide => show::experts_wide(status, width),
        Topic::Experts => show::experts(status, width),
    }
}

fn as_value(topic: Topic, status: &ClusterStatus) -> Value {
    match topic {
        Topic::Status => show::status_json(status),
        Topic::Nodes => show::nodes_json(status),
        Topic::Experts => show::experts_json(status),
    }
}

/// The placement: as it is, as it was, how two differ; or writes it over an older one.
pub(crate) async fn placement(args: &PlacementArgs) -> anyhow::Result<u8> {
    let form = args.ask.form.output();
    if let Some(PlacementCommand::Restore { .. }) = args.what {
        let epoch = connect(&args.ask.form).await?.restore().await.map_err(failed)?;
        out(&printed(form, || json!({"epoch": epoch.0}), || format!("restored as epoch {epoch}\n"))?)?;
        return Ok(0);
    }
    let look = async |client: &mut AdminClient| {
        let text = placed(client, args.what.as_ref(), form).await?;
        Ok(Look { text, code: 0 })
    };
    print(&args.ask, look).await
}

async fn placed(client: &mut AdminClient, what: Option<&PlacementCommand>, form: Output) -> anyhow::Result<String> {
    let width = terminal_width();
    match what {
        Some(PlacementCommand::History) => {
            let past = client.history().await.map_err(failed)?;
            printed(form, || show::history_json(&past), || show::history(&past, width))
        }
        Some(&PlacementCommand::Diff { from, to }) => {
            let past = client.history().await.map_err(failed)?;
            let find = |epoch: u64| {
                let found = past.iter().find(|(_, placement)| placement.epoch.0 == epoch);
                found.map(|(_, placement)| placement).with_context(|| format!("epoch {epoch} is not remembered"))
            };
            let changes = changes(Some(find(from)?), find(to)?);
            printed(form, || show::changes_json(&changes), || show::changes(&changes))
        }
        Some(PlacementCommand::Restore { .. }) | None => {
            let view = client.status().await.map_err(failed)?.view;
            let placement = view.placement.as_ref().context("nothing is placed yet")?;
            printed(form, || json!(placement), || show::placement(placement, width))
        }
    }
}

/// Has a node get no new experts, or get them again.
pub(crate) async fn cordon(args: &CordonArgs, cordon: Cordon) -> anyhow::Result<u8> {
    let node = NodeId::from(args.node.clone());
    let changed = connect(&args.form).await?.cordon(&node, cordon).await.map_err(failed)?;
    let (is_cordoned, words) = match cordon {
        Cordon::Set => (true, "is cordoned: it keeps what it holds, and gets nothing new"),
        Cordon::Lift => (false, "is not cordoned"),
    };
    let value = || json!({"node": node, "cordoned": is_cordoned, "changed": changed});
    let again = if changed { "" } else { " (as before)" };
    out(&printed(args.form.output(), value, || format!("node {node} {words}{again}\n"))?)?;
    Ok(0)
}

/// Has a node leave, and waits until it has.
pub(crate) async fn drain(args: &DrainArgs) -> anyhow::Result<u8> {
    let node = NodeId::from(args.node.clone());
    let force = if args.force { Force::Yes } else { Force::No };
    let mut client = connect(&args.form).await?;
    client.drain(&node, force).await.map_err(failed)?;
    if !args.detach {
        left(&mut client, &node, Duration::from_secs(args.deadline)).await?;
    }
    let said = if args.detach { "is leaving" } else { "has left" };
    let value = || json!({"node": node, "left": !args.detach});
    out(&printed(args.form.output(), value, || format!("node {node} {said}\n"))?)?;
    Ok(0)
}

/// Waits until `node` is out of the cluster, `patience` at most.
async fn left(client: &mut AdminClient, node: &NodeId, patience: Duration) -> anyhow::Result<()> {
    let end = Instant::now() + patience;
    loop {
        let view = client.status().await.map_err(failed)?.view;
        let Some(record) = view.nodes.get(node) else { return Ok(()) };
        if Instant::now() >= end {
            bail!("after {patience:?} node {node} still holds {} experts; it goes on leaving", record.held.len());
        }
        sleep(LOOK).await;
    }
}

async fn connect(args: &FormArgs) -> anyhow::Result<AdminClient> {
    AdminClient::connect(&args.endpoint, &args.tls.load(Role::Admin)?).await.map_err(failed)
}

fn failed(error: AdminClientError) -> anyhow::Error {
    match error {
        AdminClientError::Unreachable { .. } => Unreachable(error.into()).into(),
        AdminClientError::Refused(why) => anyhow!(why),
        error @ AdminClientError::Malformed { .. } => error.into(),
    }
}
