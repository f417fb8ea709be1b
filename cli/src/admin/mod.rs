//! The operator's commands: they ask a coordinator, and print what it says.

mod args;
mod show;
mod table;

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tramontane_cluster::admin::{AdminClient, AdminClientError, ClusterStatus, Force};
use tramontane_cluster::tls::Role;
use tramontane_router::NodeId;
use tramontane_router::placement::changes;

pub(crate) use args::{AskArgs, DEFAULT_ADMIN, DrainArgs, PlacementArgs, RebalanceArgs};
use args::{Output, PlacementCommand};
use table::terminal_width;

use crate::output::out;
use crate::{EXIT_DEGRADED, Unreachable};

/// How often `--watch` prints.
const AGAIN: Duration = Duration::from_secs(2);
/// How often a drain is looked after.
const LOOK: Duration = Duration::from_millis(250);
/// Clears a terminal, and goes to its first line.
const CLEAR: &str = "\x1b[2J\x1b[H";

/// What can be said of a status.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Topic {
    Status,
    Nodes,
    Experts,
}

/// Says how the cluster fares; the exit code tells whether all is as it should be.
pub(crate) async fn tell(args: &AskArgs, topic: Topic) -> anyhow::Result<u8> {
    loop {
        let mut client = connect(args).await?;
        let status = client.status().await.map_err(failed)?;
        let text = match args.output() {
            Output::Json => pretty(&in_json(topic, &status)),
            form => in_words(topic, &status, form),
        };
        if !args.watch {
            out(&text)?;
            let degraded = matches!(topic, Topic::Status) && !status.findings.is_empty();
            return Ok(if degraded { EXIT_DEGRADED } else { 0 });
        }
        let clear = if terminal_width().is_some() { CLEAR } else { "" };
        out(&format!("{clear}{text}"))?;
        sleep(AGAIN).await;
    }
}

fn in_words(topic: Topic, status: &ClusterStatus, form: Output) -> String {
    let (wide, width) = (form == Output::Wide, terminal_width());
    match topic {
        Topic::Status => show::status(status),
        Topic::Nodes => show::nodes(status, wide, width),
        Topic::Experts if wide => show::experts_wide(status, width),
        Topic::Experts => show::experts(status),
    }
}

fn in_json(topic: Topic, status: &ClusterStatus) -> Value {
    match topic {
        Topic::Status => show::status_json(status),
        Topic::Nodes => show::nodes_json(status),
        Topic::Experts => show::experts_json(status),
    }
}

/// The placement: as it is, as it was, how two differ; or writes it over an older one.
pub(crate) async fn placement(args: &PlacementArgs) -> anyhow::Result<u8> {
    let (mut client, width) = (connect(&args.ask).await?, terminal_width());
    let as_json = args.ask.output() == Output::Json;
    let text = match args.what {
        None => {
            let view = client.status().await.map_err(failed)?.view;
            let placement = view.placement.as_ref().context("nothing is placed yet")?;
            if as_json { pretty(&json!(placement)) } else { show::placement(placement, width) }
        }
        Some(PlacementCommand::History) => {
            let past = client.history().await.map_err(failed)?;
            if as_json { pretty(&show::history_json(&past)) } else { show::history(&past, width) }
        }
        Some(PlacementCommand::Diff { from, to }) => {
            let past = client.history().await.map_err(failed)?;
            let find = |epoch: u64| {
                let found = past.iter().find(|(_, placement)| placement.epoch.0 == epoch);
                found.map(|(_, placement)| placement).with_context(|| format!("epoch {epoch} is not remembered"))
            };
            let changes = changes(Some(find(from)?), find(to)?);
            if as_json { pretty(&show::changes_json(changes.iter())) } else { show::changes(&changes) }
        }
        Some(PlacementCommand::Restore { .. }) => {
            let epoch = client.restore().await.map_err(failed)?;
            if as_json { pretty(&json!({"epoch": epoch.0})) } else { format!("restored as epoch {epoch}\n") }
        }
    };
    out(&text)?;
    Ok(0)
}

/// Says what the leader would do next.
pub(crate) async fn rebalance(args: &RebalanceArgs) -> anyhow::Result<u8> {
    let rehearsal = connect(&args.ask).await?.rehearse().await.map_err(failed)?;
    out(&match args.ask.output() {
        Output::Json => pretty(&json!({
            "why": rehearsal.why,
            "changes": show::changes_json(rehearsal.changes.iter().map(|(change, _)| change)),
            "bytes_to_load": rehearsal.changes.iter().filter(|(change, _)| change.kind == tramontane_router::placement::Kind::Add)
                .map(|(_, bytes)| bytes).sum::<u64>(),
        })),
        _ => show::rehearsal(&rehearsal, terminal_width()),
    })?;
    Ok(0)
}

/// Has a node leave, and waits until it has.
pub(crate) async fn drain(args: &DrainArgs) -> anyhow::Result<u8> {
    let node = NodeId::from(args.node.clone());
    let force = if args.force { Force::Yes } else { Force::No };
    let mut client = connect(&args.ask).await?;
    client.drain(&node, force).await.map_err(failed)?;
    if !args.detach {
        left(&mut client, &node, Duration::from_secs(args.deadline)).await?;
    }
    let said = if args.detach { "is leaving" } else { "has left" };
    out(&match args.ask.output() {
        Output::Json => pretty(&json!({"node": node, "left": !args.detach})),
        _ => format!("node {node} {said}\n"),
    })?;
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

async fn connect(args: &AskArgs) -> anyhow::Result<AdminClient> {
    AdminClient::connect(&args.endpoint, &args.tls.open(Role::Admin)?).await.map_err(failed)
}

fn failed(error: AdminClientError) -> anyhow::Error {
    match error {
        AdminClientError::Unreachable { .. } => Unreachable(error.into()).into(),
        AdminClientError::Refused(why) => anyhow!(why),
        error @ AdminClientError::Malformed { .. } => error.into(),
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
