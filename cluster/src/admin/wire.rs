//! Statuses, rehearsals and histories to messages and back, checked.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tramontane_proto::v1 as pb;
use tramontane_router::NodeId;
use tramontane_router::peers::Traffic;
use tramontane_router::placement::{Change, Kind, Placement};

use super::{ClusterStatus, DispatchCounts, Finding, Move, PeerNote, Rehearsal, Severity};
use crate::Malformed;
use crate::convert::{expert_from_pb, expert_to_pb};
use crate::engine::EngineStatus;
use crate::registry::wire::{placement_from_pb, placement_to_pb, view_from_pb, view_to_pb};

pub(super) fn status_to_pb(status: &ClusterStatus) -> pb::StatusReply {
    let DispatchCounts { sent, resent, hedged, rescued } = status.dispatches;
    let rates = status.rates.iter();
    let peers = status.peers.iter().map(|(node, note)| pb::PeerNote {
        node: node.as_str().to_owned(),
        what: note.what.clone(),
        quarantined: note.quarantined,
    });
    pb::StatusReply {
        coordinator: status.coordinator.clone(),
        view: Some(view_to_pb(&status.view)),
        layers: status.layers,
        experts: status.experts,
        replicas: u32::try_from(status.replicas).unwrap_or(u32::MAX),
        findings: status.findings.iter().map(finding_to_pb).collect(),
        rates: rates
            .map(|(&expert, &rows_per_second)| pb::ExpertRate { expert: Some(expert_to_pb(expert)), rows_per_second })
            .collect(),
        peers: peers.collect(),
        dispatches: Some(pb::DispatchCounts { sent, resent, hedged, rescued }),
        engine: status.engine.map(|engine| pb::EngineCounts {
            running: engine.running as u64,
            waiting: engine.waiting as u64,
            kv_used: engine.kv_used as u64,
            kv_total: engine.kv_total as u64,
            generated: engine.generated,
        }),
        traffic: status.traffic.iter().map(|(node, traffic)| traffic_to_pb(node, traffic)).collect(),
    }
}

pub(super) fn status_from_pb(status: pb::StatusReply) -> Result<ClusterStatus, Malformed> {
    let rate = |rate: pb::ExpertRate| Ok((expert_from_pb(rate.expert)?, rate.rows_per_second));
    let peer =
        |peer: pb::PeerNote| (NodeId::from(peer.node), PeerNote { what: peer.what, quarantined: peer.quarantined });
    let pb::DispatchCounts { sent, resent, hedged, rescued } = status.dispatches.unwrap_or_default();
    let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    Ok(ClusterStatus {
        coordinator: status.coordinator,
        view: Arc::new(view_from_pb(status.view.ok_or_else(|| Malformed::missing("view"))?)?),
        layers: status.layers,
        experts: status.experts,
        replicas: status.replicas as usize,
        findings: status.findings.into_iter().map(finding_from_pb).collect::<Result<_, _>>()?,
        rates: status.rates.into_iter().map(rate).collect::<Result<_, Malformed>>()?,
        peers: status.peers.into_iter().map(peer).collect(),
        dispatches: DispatchCounts { sent, resent, hedged, rescued },
        engine: status.engine.map(|engine| EngineStatus {
            running: count(engine.running),
            waiting: count(engine.waiting),
            kv_used: count(engine.kv_used),
            kv_total: count(engine.kv_total),
            generated: engine.generated,
            ..EngineStatus::default()
        }),
        traffic: status.traffic.into_iter().map(traffic_from_pb).collect(),
    })
}

fn traffic_to_pb(node: &NodeId, traffic: &Traffic) -> pb::NodeTraffic {
    let &Traffic { answers, rows, predicted, observed } = traffic;
    pb::NodeTraffic { node: node.as_str().to_owned(), answers, rows, predicted, observed }
}

fn traffic_from_pb(traffic: pb::NodeTraffic) -> (NodeId, Traffic) {
    let pb::NodeTraffic { node, answers, rows, predicted, observed } = traffic;
    (node.into(), Traffic { answers, rows, predicted, observed })
}

fn finding_to_pb(finding: &Finding) -> pb::Finding {
    let severity = match finding.severity {
        Severity::Warn => pb::Severity::Warn,
        Severity::Err => pb::Severity::Err,
    };
    pb::Finding { severity: severity.into(), what: finding.what.clone() }
}

fn finding_from_pb(finding: pb::Finding) -> Result<Finding, Malformed> {
    let severity = match finding.severity() {
        pb::Severity::Warn => Severity::Warn,
        pb::Severity::Err => Severity::Err,
        pb::Severity::Unspecified => return Err(Malformed::missing("severity")),
    };
    Ok(Finding { severity, what: finding.what })
}

pub(super) fn rehearsal_to_pb(rehearsal: &Rehearsal) -> pb::RehearseReply {
    let changes = rehearsal.moves.iter().map(|Move { change, bytes, why }| pb::PlannedChange {
        expert: Some(expert_to_pb(change.expert)),
        node: change.node.as_str().to_owned(),
        load: change.kind == Kind::Add,
        bytes: *bytes,
        why: why.clone(),
    });
    pb::RehearseReply { why: rehearsal.why.clone(), changes: changes.collect() }
}

pub(super) fn rehearsal_from_pb(rehearsal: pb::RehearseReply) -> Result<Rehearsal, Malformed> {
    let change = |change: pb::PlannedChange| {
        let kind = if change.load { Kind::Add } else { Kind::Remove };
        let expert = expert_from_pb(change.expert)?;
        let moved = Change { expert, node: NodeId::from(change.node), kind };
        Ok(Move { change: moved, bytes: change.bytes, why: change.why })
    };
    let moves = rehearsal.changes.into_iter().map(change).collect::<Result<_, Malformed>>()?;
    Ok(Rehearsal { why: rehearsal.why, moves })
}

pub(super) fn past_to_pb((seen, placement): &(SystemTime, Arc<Placement>)) -> pb::PastPlacement {
    let seen = seen.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    pb::PastPlacement { placement: Some(placement_to_pb(placement)), seen }
}

pub(super) fn past_from_pb(past: pb::PastPlacement) -> Result<(SystemTime, Arc<Placement>), Malformed> {
    let placement = placement_from_pb(past.placement.ok_or_else(|| Malformed::missing("placement"))?)?;
    let seen = UNIX_EPOCH.checked_add(Duration::from_secs(past.seen));
    Ok((seen.ok_or_else(|| Malformed("a time that is none".into()))?, Arc::new(placement)))
}

#[cfg(test)]
mod tests {
    use tramontane_router::{ClusterView, Epoch, ExpertId, ModelId};

    use super::*;

    #[test]
    fn what_is_told_survives_the_wire() {
        let e = ExpertId::new(1, 2);
        let replicas = [(e, vec![NodeId::from("a"), NodeId::from("b")])].into();
        let placement = Placement { model: ModelId::from("m"), epoch: Epoch(3), parent: Epoch(2), replicas };
        let view = ClusterView { placement: Some(placement.clone()), ..ClusterView::default() };
        let finding = |severity, what: &str| Finding { severity, what: what.into() };
        let status = ClusterStatus {
            coordinator: "c".into(),
            view: Arc::new(view),
            layers: 2,
            experts: 8,
            replicas: 2,
            findings: vec![finding(Severity::Err, "x"), finding(Severity::Warn, "y")],
            rates: [(e, 2.5)].into(),
            peers: [(NodeId::from("a"), PeerNote { what: "late".into(), quarantined: true })].into(),
            dispatches: DispatchCounts { sent: 4, resent: 3, hedged: 2, rescued: 1 },
            engine: Some(EngineStatus {
                running: 1,
                waiting: 2,
                kv_used: 3,
                kv_total: 4,
                generated: 5,
                ..EngineStatus::default()
            }),
            traffic: [(NodeId::from("a"), Traffic { answers: 1, rows: 2, predicted: 0.5, observed: 0.25 })].into(),
        };
        assert_eq!(status_from_pb(status_to_pb(&status)), Ok(status));
        let change = |kind| Change { expert: e, node: NodeId::from("a"), kind };
        let moved = |kind| Move { change: change(kind), bytes: 7, why: "balance".into() };
        let rehearsal = Rehearsal { why: "x".into(), moves: [Kind::Add, Kind::Remove].map(moved).into() };
        assert_eq!(rehearsal_from_pb(rehearsal_to_pb(&rehearsal)), Ok(rehearsal));
        let past = (UNIX_EPOCH + Duration::from_secs(9), Arc::new(placement));
        assert_eq!(past_from_pb(past_to_pb(&past)), Ok(past));
        assert!(past_from_pb(pb::PastPlacement::default()).is_err());
        assert!(finding_from_pb(pb::Finding::default()).is_err());
    }
}
