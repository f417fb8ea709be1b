//! What a cluster's status looks like: as text for people, as JSON for programs. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tramontane_cluster::admin::{ClusterStatus, Move, Rehearsal, Severity};
use tramontane_router::placement::{Change, Kind, Placement};
use tramontane_router::{ExpertId, NodeId};

use super::table::table;
use crate::output::bytes;

/// From no load to the most, a fifth each.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];

/// One word for how the cluster fares.
pub(super) fn health(status: &ClusterStatus) -> &'static str {
    match status.findings.iter().map(|finding| finding.severity).max() {
        None => "HEALTH_OK",
        Some(Severity::Warn) => "HEALTH_WARN",
        Some(Severity::Err) => "HEALTH_ERR",
    }
}

pub(super) fn status(status: &ClusterStatus) -> String {
    let mut text = format!("{}\n", health(status));
    for finding in &status.findings {
        let mark = match finding.severity {
            Severity::Warn => "warn",
            Severity::Err => "ERR ",
        };
        _ = writeln!(text, "  {mark}  {}", finding.what);
    }
    let placement = status.view.placement.as_ref();
    let model = placement.map_or("no placement yet", |placement| placement.model.as_str());
    let epoch = placement.map_or_else(|| "none".to_owned(), |placement| placement.epoch.to_string());
    let nodes = status.view.nodes.len();
    let leaving = status.view.nodes.values().filter(|node| node.draining).count();
    let least = least_holders(status);
    _ = writeln!(text, "\nmodel      {model}: {} layers of {} experts", status.layers, status.experts);
    let cordoned = status.view.nodes.keys().filter(|id| status.view.orders.cordoned.contains(*id)).count();
    _ = writeln!(text, "nodes      {nodes}, of which {leaving} leave and {cordoned} are cordoned");
    _ = writeln!(text, "experts    each on {least} or more nodes; {} are wanted", status.replicas);
    let moving = if status.view.orders.rebalance.is_some() { ", a rebalance is under way" } else { "" };
    _ = writeln!(text, "placement  epoch {epoch}{moving}");
    let engine = status.engine.map_or_else(
        || "loading".to_owned(),
        |engine| {
            let kv = (engine.kv_used * 100).checked_div(engine.kv_total).unwrap_or(0);
            format!("{} sequences run, {} wait, {kv} % of the KV cache is used", engine.running, engine.waiting)
        },
    );
    _ = writeln!(text, "engine     {engine} (coordinator {})", status.coordinator);
    let counts = status.dispatches;
    _ = writeln!(
        text,
        "dispatches {} sent: {} again, {} hedged, {} with a load first",
        counts.sent, counts.resent, counts.hedged, counts.rescued
    );
    text
}

pub(super) fn status_json(status: &ClusterStatus) -> Value {
    json!({
        "health": health(status),
        "findings": status.findings,
        "coordinator": status.coordinator,
        "model": status.view.placement.as_ref().map(|placement| placement.model.as_str()),
        "layers": status.layers,
        "experts": status.experts,
        "replicas": {"wanted": status.replicas, "least": least_holders(status)},
        "epoch": status.view.placement.as_ref().map(|placement| placement.epoch.0),
        "nodes": nodes_json(status),
        "cordoned": status.view.orders.cordoned,
        "rebalancing": status.view.orders.rebalance.is_some(),
        "engine": status.engine.map(|engine| json!({"running": engine.running, "waiting": engine.waiting,
            "kv_used": engine.kv_used, "kv_total": engine.kv_total, "generated": engine.generated})),
        "dispatches": status.dispatches,
    })
}

/// Experts that are placed on each node.
fn placed(status: &ClusterStatus) -> BTreeMap<&NodeId, usize> {
    let mut counts = BTreeMap::new();
    for node in status.view.placement.iter().flat_map(|placement| placement.replicas.values().flatten()) {
        *counts.entry(node).or_default() += 1;
    }
    counts
}

fn holders(status: &ClusterStatus, expert: ExpertId) -> Vec<&NodeId> {
    status.view.live_holders(expert).map(|node| &node.id).collect()
}

fn least_holders(status: &ClusterStatus) -> usize {
    status.expert_ids().map(|expert| holders(status, expert).len()).min().unwrap_or(0)
}

pub(super) fn state(status: &ClusterStatus, node: &NodeId) -> &'static str {
    match (status.view.nodes.get(node), status.peers.get(node)) {
        (None, _) if status.view.refused.contains_key(node) => "refused",
        (None, _) => "gone",
        (_, Some(note)) if note.quarantined => "quarantined",
        (Some(node), _) if node.draining => "leaving",
        (Some(node), _) if status.view.orders.cordoned.contains(&node.id) => "cordoned",
        (_, Some(_)) => "avoided",
        _ => "up",
    }
}

pub(super) fn nodes(status: &ClusterStatus, wide: bool, width: Option<usize>) -> String {
    let placed = placed(status);
    let mut names: Vec<&NodeId> =
        status.view.nodes.keys().chain(placed.keys().copied()).chain(status.view.refused.keys()).collect();
    names.sort();
    names.dedup();
    let row = |id: &&NodeId| {
        let node = status.view.nodes.get(*id);
        let held = node.map_or(0, |node| node.held.len());
        let mut row = vec![
            id.to_string(),
            state(status, id).to_owned(),
            format!("{held}/{}", placed.get(*id).copied().unwrap_or(0)),
            node.map_or_else(
                String::new,
                |node| if node.addr.is_empty() { "in process".into() } else { node.addr.clone() },
            ),
            node.map_or_else(String::new, |node| node.zone.clone()),
        ];
        if wide {
            let capacity = |capacity: u64| if capacity == u64::MAX { "unbounded".to_owned() } else { bytes(capacity) };
            row.push(node.map_or_else(String::new, |node| capacity(node.capacity)));
            row.push(node.map_or_else(String::new, |node| node.profile.quantization.clone()));
            row.push(node.filter(|node| node.speed > 0).map_or_else(String::new, |node| node.speed.to_string()));
            row.push(note(status, id).unwrap_or_default());
        }
        row
    };
    let rows: Vec<Vec<String>> = names.iter().map(row).collect();
    let head = ["NODE", "STATE", "HELD/PLACED", "ADDRESS", "ZONE", "CAPACITY", "EXPERTS AS", "SPEED", "NOTE"];
    table(if wide { &head } else { &head[..5] }, &rows, width)
}

/// What is to be said of a node beside its state.
fn note(status: &ClusterStatus, node: &NodeId) -> Option<String> {
    let refused = status.view.refused.get(node).map(|why| format!("refused: {why}"));
    let peer = status.peers.get(node).map(|note| note.what.clone());
    let both: Vec<String> = peer.into_iter().chain(refused).collect();
    (!both.is_empty()).then(|| both.join("; "))
}

pub(super) fn nodes_json(status: &ClusterStatus) -> Value {
    let placed = placed(status);
    let node = |node: &tramontane_router::NodeRecord| {
        json!({"id": node.id, "state": state(status, &node.id), "addr": node.addr, "zone": node.zone,
            "cordoned": status.view.orders.cordoned.contains(&node.id),
            "held": node.held.len(), "placed": placed.get(&node.id).copied().unwrap_or(0),
            "capacity": (node.capacity != u64::MAX).then_some(node.capacity), "speed": (node.speed > 0).then_some(node.speed),
            "quantization": node.profile.quantization, "note": note(status, &node.id)})
    };
    let away = status.view.refused.iter().filter(|(id, _)| !status.view.nodes.contains_key(*id));
    let refused = away.map(|(id, _)| json!({"id": id, "state": state(status, id), "note": note(status, id)}));
    status.view.nodes.values().map(node).chain(refused).collect()
}

/// Each layer a line, each expert a letter, darker the more rows it receives; experts that nobody holds stand out.
/// Layers that are wider than the terminal go on in the next line.
pub(super) fn experts(status: &ClusterStatus, width: Option<usize>) -> String {
    let across = width.map_or(usize::MAX, |width| (width.saturating_sub(5) / 2).max(1));
    let most = status.rates.values().copied().fold(0.0, f32::max);
    let mut text = String::new();
    for layer in 0..status.layers {
        let cell = |expert| {
            let id = ExpertId::new(layer, expert);
            let rate = status.rates.get(&id).copied().unwrap_or(0.0);
            let shade = if most > 0.0 { (rate / most * 4.0).ceil() as usize } else { 0 };
            if holders(status, id).is_empty() { '!' } else { SHADES[shade.min(4)] }
        };
        let cells: Vec<String> = (0..status.experts).map(|expert| cell(expert).to_string()).collect();
        for (i, line) in cells.chunks(across.min(cells.len().max(1))).enumerate() {
            let label = if i == 0 { format!("L{layer}") } else { String::new() };
            _ = writeln!(text, "{label:<5}{}", line.join(" "));
        }
    }
    _ = writeln!(text, "\n· no rows … █ {most:.0} rows a second   ! held by no node");
    text
}

pub(super) fn experts_wide(status: &ClusterStatus, width: Option<usize>) -> String {
    let row = |expert: ExpertId| {
        let held: Vec<String> = holders(status, expert).iter().map(ToString::to_string).collect();
        let rate = status.rates.get(&expert).copied().unwrap_or(0.0);
        vec![expert.to_string(), held.len().to_string(), format!("{rate:.1}"), held.join(" ")]
    };
    let rows: Vec<Vec<String>> = status.expert_ids().map(row).collect();
    table(&["EXPERT", "HOLDERS", "ROWS/S", "NODES"], &rows, width)
}

pub(super) fn experts_json(status: &ClusterStatus) -> Value {
    let expert = |id: ExpertId| {
        json!({"layer": id.layer, "expert": id.expert, "holders": holders(status, id),
            "rows_per_second": status.rates.get(&id).copied().unwrap_or(0.0)})
    };
    status.expert_ids().map(expert).collect()
}

pub(super) fn placement(placement: &Placement, width: Option<usize>) -> String {
    let names = |nodes: &[NodeId]| nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let rows: Vec<Vec<String>> =
        placement.replicas.iter().map(|(expert, nodes)| vec![expert.to_string(), names(nodes)]).collect();
    let head = format!("model {}, epoch {}, after {}\n\n", placement.model, placement.epoch, placement.parent);
    head + &table(&["EXPERT", "NODES"], &rows, width)
}

pub(super) fn history(past: &[(SystemTime, Arc<Placement>)], width: Option<usize>) -> String {
    let before = std::iter::once(None).chain(past.iter().map(|(_, placement)| Some(placement.as_ref())));
    let rows = past.iter().zip(before).map(|((seen, placement), before)| {
        let changes = tramontane_router::placement::changes(before, placement);
        let adds = changes.iter().filter(|change| change.kind == Kind::Add).count();
        let ago = SystemTime::now().duration_since(*seen).map_or(0, |ago| ago.as_secs());
        vec![placement.epoch.to_string(), format!("{ago} s ago"), adds.to_string(), (changes.len() - adds).to_string()]
    });
    table(&["EPOCH", "SEEN", "ADDS", "REMOVES"], &rows.collect::<Vec<_>>(), width)
}

pub(super) fn history_json(past: &[(SystemTime, Arc<Placement>)]) -> Value {
    let entry = |(seen, placement): &(SystemTime, Arc<Placement>)| {
        let seen = seen.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        json!({"seen": seen, "placement": placement.as_ref()})
    };
    past.iter().map(entry).collect()
}

pub(super) fn changes(changes: &[Change]) -> String {
    let line = |change: &Change| {
        let sign = if change.kind == Kind::Add { '+' } else { '-' };
        format!("{sign} {} on {}\n", change.expert, change.node)
    };
    changes.iter().map(line).collect()
}

pub(super) fn changes_json(changes: &[Change]) -> Value {
    changes.iter().map(change_json).collect()
}

fn change_json(change: &Change) -> Value {
    let what = if change.kind == Kind::Add { "load" } else { "give_up" };
    json!({"layer": change.expert.layer, "expert": change.expert.expert, "node": change.node, "change": what})
}

pub(super) fn moves_json(plan: &Rehearsal) -> Value {
    let json = |moved: &Move| {
        let mut value = change_json(&moved.change);
        value["bytes"] = moved.bytes.into();
        value["why"] = moved.why.as_str().into();
        value
    };
    plan.moves.iter().map(json).collect()
}

/// What nodes have to read to follow the plan.
pub(super) fn bytes_to_load(plan: &Rehearsal) -> u64 {
    plan.moves.iter().filter(|moved| moved.change.kind == Kind::Add).map(|moved| moved.bytes).sum()
}

pub(super) fn rehearsal(plan: &Rehearsal, width: Option<usize>) -> String {
    if plan.moves.is_empty() {
        return format!("nothing to move: {}\n", plan.why);
    }
    let row = |Move { change, bytes: size, why }: &Move| {
        let what = if change.kind == Kind::Add { "load" } else { "give up" };
        vec![change.expert.to_string(), change.node.to_string(), what.to_owned(), bytes(*size), why.clone()]
    };
    let rows: Vec<Vec<String>> = plan.moves.iter().map(row).collect();
    let loads = plan.moves.iter().filter(|moved| moved.change.kind == Kind::Add).count();
    let mut text = table(&["EXPERT", "NODE", "CHANGE", "BYTES", "WHY"], &rows, width);
    let (total, gone) = (bytes(bytes_to_load(plan)), plan.moves.len() - loads);
    _ = writeln!(text, "\n{loads} to load, {total}; {gone} to give up once that is done");
    text
}
