//! What is shown: from what coordinators say now, and said before, to rows of figures. Pure.

use std::cmp::Ordering;
use std::time::Instant;

use tramontane_cluster::admin::{ClusterStatus, Finding};
use tramontane_router::peers::Traffic;
use tramontane_router::{ExpertId, NodeId};

use crate::admin::show;

/// Experts that are shown, at most.
const HOTTEST: usize = 64;

/// What was said at one moment, by endpoint.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) all: Vec<(String, Result<ClusterStatus, String>)>,
}

/// A key that changes what is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Pause,
    NextColumn,
    ColumnBefore,
    Reverse,
}

/// By what nodes are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Node,
    State,
    Held,
    Rows,
    Dispatches,
    Observed,
    Late,
    Speed,
}

impl Column {
    pub(super) const ALL: [(Self, &str); 8] = [
        (Self::Node, "NODE"),
        (Self::State, "STATE"),
        (Self::Held, "HELD"),
        (Self::Rows, "ROWS/S"),
        (Self::Dispatches, "DISPATCHES/S"),
        (Self::Observed, "TAKES"),
        (Self::Late, "OF PREDICTED"),
        (Self::Speed, "SPEED"),
    ];
}

/// One coordinator.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CoordinatorRow {
    pub(super) name: String,
    /// Why there are no figures.
    pub(super) error: Option<String>,
    pub(super) running: usize,
    pub(super) waiting: usize,
    /// `None` until it was seen twice.
    pub(super) tokens: Option<f64>,
    pub(super) kv_percent: usize,
    pub(super) loading: bool,
}

/// One node, as the first coordinator sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeRow {
    pub(super) id: NodeId,
    pub(super) state: &'static str,
    pub(super) held: usize,
    pub(super) rows: Option<f64>,
    pub(super) dispatches: Option<f64>,
    pub(super) traffic: Option<Traffic>,
    pub(super) speed: u32,
}

impl NodeRow {
    /// Observed beside predicted time of a dispatch.
    pub(super) fn late(&self) -> Option<f64> {
        self.traffic.filter(|t| t.predicted > 0.0).map(|t| t.observed / t.predicted)
    }

    fn compare(&self, other: &Self, column: Column) -> Ordering {
        let by = |f: fn(&Self) -> Option<f64>| f(self).unwrap_or(-1.0).total_cmp(&f(other).unwrap_or(-1.0));
        match column {
            Column::Node => self.id.cmp(&other.id),
            Column::State => self.state.cmp(other.state),
            Column::Held => self.held.cmp(&other.held),
            Column::Rows => by(|row| row.rows),
            Column::Dispatches => by(|row| row.dispatches),
            Column::Observed => by(|row| row.traffic.map(|t| t.observed)),
            Column::Late => by(Self::late),
            Column::Speed => self.speed.cmp(&other.speed),
        }
    }
}

/// One expert that receives rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ExpertRow {
    pub(super) id: ExpertId,
    pub(super) rate: f32,
    pub(super) holders: String,
}

/// All of it.
pub(super) struct Model {
    now: Sample,
    before: Option<Sample>,
    /// What came while it stood still.
    held_back: Option<Sample>,
    pub(super) paused: bool,
    pub(super) column: Column,
    pub(super) descending: bool,
}

impl Model {
    pub(super) fn new(first: Sample) -> Self {
        let column = Column::Node;
        Self { now: first, before: None, held_back: None, paused: false, column, descending: false }
    }

    /// Takes the next sample.
    pub(super) fn see(&mut self, sample: Sample) {
        if self.paused {
            self.held_back = Some(sample);
        } else {
            self.before = Some(std::mem::replace(&mut self.now, sample));
        }
    }

    pub(super) fn press(&mut self, key: Key) {
        let columns = Column::ALL.len();
        let at = Column::ALL.iter().position(|(column, _)| *column == self.column).unwrap_or(0);
        match key {
            Key::Pause => {
                self.paused = !self.paused;
                if let Some(sample) = self.held_back.take().filter(|_| !self.paused) {
                    self.see(sample);
                }
            }
            Key::NextColumn => self.sort_by(Column::ALL[(at + 1) % columns].0),
            Key::ColumnBefore => self.sort_by(Column::ALL[(at + columns - 1) % columns].0),
            Key::Reverse => self.descending = !self.descending,
        }
    }

    /// Names from the first on, figures from the largest on.
    fn sort_by(&mut self, column: Column) {
        self.column = column;
        self.descending = !matches!(column, Column::Node | Column::State);
    }

    /// The first coordinator that answers: it is asked about nodes and experts.
    pub(super) fn status(&self) -> Option<&ClusterStatus> {
        self.now.all.iter().find_map(|(_, said)| said.as_ref().ok())
    }

    pub(super) fn health(&self) -> &'static str {
        self.status().map_or("UNREACHABLE", show::health)
    }

    pub(super) fn findings(&self) -> &[Finding] {
        self.status().map_or(&[], |status| &status.findings)
    }

    /// What `endpoint` said before, and how many seconds ago.
    fn before(&self, endpoint: &str) -> Option<(&ClusterStatus, f64)> {
        let before = self.before.as_ref()?;
        let (_, said) = before.all.iter().find(|(of, _)| of == endpoint)?;
        let seconds = self.now.at.saturating_duration_since(before.at).as_secs_f64();
        said.as_ref().ok().filter(|_| seconds > 0.0).map(|status| (status, seconds))
    }

    pub(super) fn coordinators(&self) -> Vec<CoordinatorRow> {
        let row = |(endpoint, said): &(String, Result<ClusterStatus, String>)| {
            let status = said.as_ref().ok();
            let engine = status.and_then(|status| status.engine);
            let generated = |status: &ClusterStatus| status.engine.map(|engine| engine.generated);
            let tokens = self
                .before(endpoint)
                .and_then(|(before, seconds)| rate(generated(before)?, status.and_then(generated)?, seconds));
            let engine_or_nothing = engine.unwrap_or_default();
            CoordinatorRow {
                name: status.map_or_else(|| endpoint.clone(), |status| status.coordinator.clone()),
                error: said.as_ref().err().cloned(),
                running: engine_or_nothing.running,
                waiting: engine_or_nothing.waiting,
                tokens,
                kv_percent: (engine_or_nothing.kv_used * 100).checked_div(engine_or_nothing.kv_total).unwrap_or(0),
                loading: status.is_some() && engine.is_none(),
            }
        };
        self.now.all.iter().map(row).collect()
    }

    /// Nodes, sorted.
    pub(super) fn nodes(&self) -> Vec<NodeRow> {
        let Some(status) = self.status() else { return Vec::new() };
        let endpoint = self.now.all.iter().find(|(_, said)| said.is_ok()).map_or("", |(endpoint, _)| endpoint);
        let before = self.before(endpoint).filter(|(before, _)| before.coordinator == status.coordinator);
        let placed = status.view.placement.iter().flat_map(|placement| placement.replicas.values().flatten());
        let known = status.view.nodes.keys().chain(placed).chain(status.view.refused.keys());
        let mut ids: Vec<&NodeId> = known.collect();
        ids.sort();
        ids.dedup();
        let row = |id: &NodeId| {
            let traffic = status.traffic.get(id).copied();
            let since = |count: fn(&Traffic) -> u64| {
                let (before, seconds) = before?;
                let then = before.traffic.get(id).map_or(0, count);
                rate(then, count(&traffic.unwrap_or_default()), seconds)
            };
            let node = status.view.nodes.get(id);
            NodeRow {
                id: id.clone(),
                state: show::state(status, id),
                held: node.map_or(0, |node| node.held.len()),
                rows: since(|traffic| traffic.rows),
                dispatches: since(|traffic| traffic.answers),
                traffic,
                speed: node.map_or(0, |node| node.speed),
            }
        };
        let mut rows: Vec<NodeRow> = ids.into_iter().map(row).collect();
        rows.sort_by(|a, b| {
            let order = a.compare(b, self.column);
            if self.descending { order.reverse() } else { order }
        });
        rows
    }

    /// Experts by falling rate.
    pub(super) fn hottest(&self) -> Vec<ExpertRow> {
        let Some(status) = self.status() else { return Vec::new() };
        let mut rates: Vec<(ExpertId, f32)> = status.rates.iter().map(|(&id, &rate)| (id, rate)).collect();
        rates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let row = |(id, rate): (ExpertId, f32)| {
            let holders: Vec<&str> = status.view.live_holders(id).map(|node| node.id.as_str()).collect();
            ExpertRow { id, rate, holders: holders.join(" ") }
        };
        rates.into_iter().filter(|(_, rate)| *rate >= 0.05).take(HOTTEST).map(row).collect()
    }
}

/// So much a second; a count that began anew has none.
fn rate(then: u64, now: u64, seconds: f64) -> Option<f64> {
    now.checked_sub(then).map(|more| more as f64 / seconds)
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::time::Duration;

    use tramontane_cluster::admin::Severity;
    use tramontane_cluster::engine::EngineStatus;
    use tramontane_router::{ClusterView, NodeRecord, NumericProfile};

    use super::*;

    fn node(id: &str, held: u32, speed: u32) -> NodeRecord {
        let profile =
            NumericProfile { contract: 1, weights: "w".into(), quantization: "f32".into(), arithmetic: "cpu".into() };
        let held = (0..held).map(|e| ExpertId::new(0, e)).collect();
        let (addr, zone) = ("x:1".into(), String::new());
        NodeRecord { id: id.into(), addr, held, profile, capacity: 9, speed, zone, draining: false }
    }

    /// A coordinator that has generated so many tokens, and whose nodes have computed so many rows.
    fn status(name: &str, generated: u64, rows: [u64; 2]) -> ClusterStatus {
        let nodes = [node("a", 2, 100), node("b", 4, 300)].map(|node| (node.id.clone(), node)).into();
        let mut view = ClusterView { nodes, ..ClusterView::default() };
        view.orders.cordoned.insert("b".into());
        let traffic = |rows: u64| Traffic { answers: rows / 2, rows, predicted: 0.010, observed: 0.015 };
        let traffic: BTreeMap<NodeId, Traffic> =
            ["a", "b"].into_iter().zip(rows).map(|(id, rows)| (id.into(), traffic(rows))).collect();
        let engine =
            EngineStatus { running: 3, waiting: 1, kv_used: 1, kv_total: 4, generated, ..EngineStatus::default() };
        ClusterStatus {
            coordinator: name.into(),
            view: Arc::new(view),
            layers: 1,
            experts: 4,
            replicas: 1,
            findings: vec![Finding { severity: Severity::Warn, what: "node b is cordoned".into() }],
            rates: (0..4u8).map(|e| (ExpertId::new(0, u32::from(e)), f32::from(e))).collect(),
            engine: Some(engine),
            traffic,
            ..ClusterStatus::default()
        }
    }

    /// Two looks at two coordinators, two seconds apart; the second one is away at the second look.
    pub(crate) fn model() -> Model {
        let at = Instant::now();
        let both = |one, two| vec![("c0:1".to_owned(), one), ("c1:1".to_owned(), two)];
        let all = both(Ok(status("c0", 100, [0, 10])), Ok(status("c1", 7, [0, 0])));
        let mut model = Model::new(Sample { at, all });
        let all = both(Ok(status("c0", 180, [40, 30])), Err("c1:1 cannot be reached".into()));
        model.see(Sample { at: at + Duration::from_secs(2), all });
        model
    }

    fn ids(model: &Model) -> Vec<String> {
        model.nodes().iter().map(|row| row.id.to_string()).collect()
    }

    #[test]
    fn counts_become_rates_and_who_is_away_has_none() {
        let model = model();
        let rows = model.coordinators();
        assert_eq!((rows[0].tokens, rows[0].kv_percent, rows[0].error.is_none()), (Some(40.0), 25, true));
        assert_eq!((rows[1].tokens, rows[1].name.as_str(), rows[1].error.is_some()), (None, "c1:1", true));
        let nodes = model.nodes();
        assert_eq!((nodes[0].rows, nodes[0].dispatches, nodes[1].rows), (Some(20.0), Some(10.0), Some(10.0)));
        assert_eq!(nodes[0].late().map(|late| (late * 10.0).round()), Some(15.0));
        let hottest: Vec<u32> = model.hottest().iter().map(|row| row.id.expert).collect();
        assert_eq!(hottest, [3, 2, 1], "who receives nothing is not hot");
    }

    #[test]
    fn a_coordinator_that_was_started_anew_has_no_rate_for_once() {
        let mut model = model();
        let all = vec![("c0:1".to_owned(), Ok(status("c0", 3, [0, 0])))];
        model.see(Sample { at: model.now.at + Duration::from_secs(1), all });
        assert_eq!((model.coordinators()[0].tokens, model.nodes()[0].rows), (None, None));
    }

    #[test]
    fn keys_sort_turn_round_and_pause() {
        let mut model = model();
        assert_eq!(ids(&model), ["a", "b"]);
        model.press(Key::NextColumn);
        model.press(Key::NextColumn);
        assert_eq!((model.column, ids(&model)), (Column::Held, vec!["b".to_owned(), "a".into()]));
        model.press(Key::Reverse);
        assert_eq!(ids(&model), ["a", "b"]);
        model.press(Key::ColumnBefore);
        assert_eq!(model.column, Column::State);
        model.press(Key::Pause);
        model.see(Sample { at: model.now.at, all: Vec::new() });
        assert_eq!(model.nodes().len(), 2, "it stands still");
        model.press(Key::Pause);
        assert_eq!((model.nodes().len(), model.health()), (0, "UNREACHABLE"), "and goes on with the newest");
    }
}
