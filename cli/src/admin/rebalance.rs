//! `tramontane rebalance`: experts go where they should be, at once.

use std::time::Duration;

use anyhow::bail;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tramontane_cluster::admin::{AdminClient, Rebalance, Rehearsal};
use tramontane_router::ClusterView;
use tramontane_router::placement::{Change, Kind};

use super::args::RebalanceArgs;
use super::print::printed;
use super::table::terminal_width;
use super::{LOOK, connect, failed, show};
use crate::output::out;
use crate::progress::Progress;

/// Says what moves, has it moved, and waits until it has.
pub(crate) async fn rebalance(args: &RebalanceArgs) -> anyhow::Result<u8> {
    let mut client = connect(&args.form).await?;
    let Rebalance { plan, order } = if args.dry_run {
        Rebalance { plan: client.rehearse().await.map_err(failed)?, order: None }
    } else {
        client.rebalance().await.map_err(failed)?
    };
    let say = |state: &str, not_needed: usize| {
        let value = || {
            json!({"state": state, "why": plan.why, "moves": show::moves_json(&plan),
            "bytes_to_load": show::bytes_to_load(&plan), "not_needed": not_needed})
        };
        printed(args.form.output(), value, || show::rehearsal(&plan, terminal_width()))
    };
    let Some(order) = order else {
        let state = if plan.moves.is_empty() { "nothing to move" } else { "not ordered" };
        return out(&say(state, 0)?).map(|()| 0);
    };
    let for_people = args.form.output().is_for_people();
    if args.detach || for_people {
        out(&say("ordered", 0)?)?;
    }
    if args.detach {
        return Ok(0);
    }
    let not_needed = moved(&mut client, &plan, order, Duration::from_secs(args.timeout)).await?;
    out(&match (for_people, not_needed) {
        (false, _) => say("moved", not_needed)?,
        (true, 0) => "moved\n".to_owned(),
        (true, _) => format!("moved, but for {not_needed} of {}, not needed any more\n", plan.moves.len()),
    })?;
    Ok(0)
}

/// Waits until the order of that version does not stand any more, `patience` at most, and returns how many of the plan's moves were not
/// made: the leader judges loads and nodes anew as it goes, so not all that was planned need still be right.
async fn moved(client: &mut AdminClient, plan: &Rehearsal, order: u64, patience: Duration) -> anyhow::Result<usize> {
    let end = Instant::now() + patience;
    let progress = Progress::start("moving experts", plan.moves.len() as u64);
    loop {
        let view = client.status().await.map_err(failed)?.view;
        let done = done(plan, &view);
        progress.set(done as u64);
        let left = plan.moves.len() - done;
        if view.orders.rebalance != Some(order) {
            if let Some(blocked) = view.orders.blocked.as_ref().filter(|blocked| blocked.order == order) {
                bail!("{left} of {} moves were not made: {}", plan.moves.len(), blocked.why);
            }
            return Ok(left);
        }
        if Instant::now() >= end {
            bail!("after {patience:?} {left} of {} moves are not made; they go on", plan.moves.len());
        }
        sleep(LOOK).await;
    }
}

/// How many of the plan's changes are made: who was to load an expert holds it, who was to give it up is not given it.
fn done(plan: &Rehearsal, view: &ClusterView) -> usize {
    let made = |change: &Change| match change.kind {
        Kind::Add => view.nodes.get(&change.node).is_some_and(|node| node.held.contains(&change.expert)),
        Kind::Remove => {
            let placed = view.placement.as_ref().and_then(|placement| placement.replicas.get(&change.expert));
            placed.is_none_or(|nodes| !nodes.contains(&change.node))
        }
    };
    plan.moves.iter().filter(|moved| made(&moved.change)).count()
}
