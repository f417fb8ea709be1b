//! Double computation and probes: a few rows of an answered dispatch go to a second node, beside the flights. Nobody waits
//! for them; when they come they are compared bit for bit, and where they differ a third node decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tramontane_cluster::exchange::{Completion, DispatchId};
use tramontane_router::flight::Suspicion;
use tramontane_router::peers::{Audit, Quarantine, Verdict, judge, sample};
use tramontane_router::{Dispatch, Epoch, ExpertId, ExpertRows, NodeId, Pair, Rows, replan};

use super::layer::Layer;
use super::outcome::failure;
use super::{Dispatcher, is_local};

/// One dispatch in this many is audited, unless it is told otherwise.
pub const AUDIT_EVERY: u32 = 256;

/// What is computed by a second node too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auditing {
    /// Nothing.
    Never,
    /// A few rows of one dispatch in so many, beside the flights: who lies is found, and its values are taken until then.
    OneIn(u32),
    /// Everything, and no answer is used until two nodes agree (`confirm`).
    Everything,
}

impl From<u32> for Auditing {
    /// One dispatch in `every`; 0 is never.
    fn from(every: u32) -> Self {
        match every {
            0 => Self::Never,
            1 => Self::Everything,
            _ => Self::OneIn(every),
        }
    }
}

/// Audits under way at a time; while there are as many, none begins.
const MAX_SHADOWS: usize = 8;
/// After this an audit that was not answered is given up, and its node suspected. Not long: a node that never answers would
/// take all places meanwhile, and nobody would be audited.
const SHADOW_TIMEOUT: Duration = Duration::from_secs(5);

/// Rows by pair, as bytes.
type Answers = BTreeMap<Pair, Vec<u8>>;

/// Which answers are audited, and the audits under way.
pub(super) struct Auditor {
    audit: Audit,
    shadows: BTreeMap<DispatchId, Shadow>,
}

impl Auditor {
    /// Audits as `auditing` says. Where everything is confirmed anyway, only suspects are probed here.
    pub(super) fn new(auditing: Auditing) -> Self {
        let every = if let Auditing::OneIn(every) = auditing { every } else { 0 };
        Self { audit: Audit::new(every), shadows: BTreeMap::new() }
    }
}

/// Rows that were answered once, or twice and differently, and are computed again.
struct Shadow {
    layer: u32,
    epoch: Epoch,
    /// The layer's rows, whole: they share the layer's memory.
    rows: Rows,
    /// Who answered, and what.
    known: Vec<(NodeId, Answers)>,
    dispatch: Dispatch,
    sent: Instant,
}

impl Dispatcher {
    /// Begins what is due after `layer`: a suspect's probe, or the next audit.
    pub(super) fn audit(&mut self, layer: &Layer<'_>) {
        self.give_up_shadows();
        let mut begin: Vec<(Shadow, BTreeSet<NodeId>)> = Vec::new();
        for (dispatch, answer) in layer.answered() {
            if is_local(&self.view, &dispatch.node) || self.auditor.shadows.len() + begin.len() >= MAX_SHADOWS {
                continue;
            }
            let now = self.now();
            let probed = self.health.take_probe(now).filter(|node| *node != dispatch.node);
            if probed.is_none() && !self.auditor.audit.is_due() {
                continue;
            }
            let mut answers: Answers = sample(dispatch, &answer.rows).into_iter().collect();
            let mut avoid = self.health.avoid();
            avoid.insert(dispatch.node.clone());
            if let Some(node) = &probed {
                let holds = |pair: &Pair| {
                    let expert = ExpertId::new(layer.number, pair.expert);
                    self.view.nodes.get(node).is_some_and(|record| record.held.contains(&expert))
                };
                answers.retain(|pair, _| holds(pair));
                // Everybody but the suspect is avoided: it gets the rows.
                avoid = self.view.nodes.keys().filter(|other| *other != node).cloned().collect();
            }
            let (node, work) = (dispatch.node.clone(), Vec::new());
            let shadow = Shadow {
                layer: layer.number,
                epoch: layer.epoch,
                rows: layer.rows.clone(),
                known: vec![(node.clone(), answers)],
                dispatch: Dispatch { node, tokens: Vec::new(), work },
                sent: self.clock.now(),
            };
            begin.push((shadow, avoid));
        }
        for (shadow, avoid) in begin {
            self.shadow(shadow, &avoid);
        }
    }

    /// Takes a completion that belongs to an audit; others come back.
    pub(super) fn audited(&mut self, completion: Completion) -> Option<Completion> {
        let Some(mut shadow) = self.auditor.shadows.remove(&completion.dispatch) else { return Some(completion) };
        let node = completion.node;
        match completion.result {
            Ok(rows) => {
                let Some(answers) = answers(&shadow.dispatch, &rows) else {
                    self.suspect(node, Suspicion::Corrupt);
                    return None;
                };
                // Only what all have answered is compared.
                shadow.known.iter_mut().for_each(|(_, known)| known.retain(|pair, _| answers.contains_key(pair)));
                shadow.known.push((node, answers));
                self.decide(shadow);
            }
            Err(error) => {
                if let Some(why) = failure(&error).suspicion() {
                    self.suspect(node, why);
                }
            }
        }
        None
    }

    fn decide(&mut self, shadow: Shadow) {
        let known: Vec<(&NodeId, &Answers)> = shadow.known.iter().map(|(node, answers)| (node, answers)).collect();
        match judge(&known) {
            Verdict::Agreed => {
                let nodes: Vec<NodeId> = shadow.known.into_iter().map(|(node, _)| node).collect();
                nodes.iter().for_each(|node| self.health.answered(node));
            }
            Verdict::Odd(node) => {
                tracing::error!(%node, layer = shadow.layer, "two others answer other bits: quarantined");
                self.health.quarantine(node, Quarantine::OtherBits);
                self.see();
            }
            Verdict::Disputed => {
                let avoid: BTreeSet<NodeId> = shadow.known.iter().map(|(node, _)| node.clone()).collect();
                let nodes: Vec<String> = avoid.iter().map(ToString::to_string).collect();
                tracing::error!(?nodes, layer = shadow.layer, "two nodes answer different bits for the same rows");
                self.shadow(shadow, &avoid);
            }
            Verdict::Unclear => tracing::error!(layer = shadow.layer, "three nodes answer three different rows"),
        }
        self.tell();
    }

    /// Sends the rows of `shadow` to one node that is not in `avoid`, if one holds their experts.
    fn shadow(&mut self, mut shadow: Shadow, avoid: &BTreeSet<NodeId>) {
        let Some((_, answers)) = shadow.known.first().filter(|(_, answers)| !answers.is_empty()) else { return };
        let pairs: Vec<Pair> = answers.keys().copied().collect();
        let Ok(plan) = replan(shadow.layer, pairs, &self.view, avoid) else { return };
        // Of several nodes the one with the most rows; the rest goes uncompared.
        let rows = |dispatch: &Dispatch| dispatch.pairs().count();
        let fresh = plan.dispatches.into_iter().filter(|d| !avoid.contains(&d.node) && !is_local(&self.view, &d.node));
        let Some(dispatch) = fresh.max_by_key(rows) else { return };
        let batch = dispatch.batch(self.model.clone(), shadow.epoch, shadow.layer, &shadow.rows);
        let id = self.exchange.submit(&dispatch.node, batch);
        shadow.dispatch = dispatch;
        shadow.sent = self.clock.now();
        self.auditor.shadows.insert(id, shadow);
    }

    fn give_up_shadows(&mut self) {
        let now = self.clock.now();
        let old = |shadow: &Shadow| now.saturating_duration_since(shadow.sent) >= SHADOW_TIMEOUT;
        let late: Vec<DispatchId> = self.auditor.shadows.iter().filter(|(_, s)| old(s)).map(|(&id, _)| id).collect();
        for id in late {
            self.exchange.cancel(id);
            if let Some(shadow) = self.auditor.shadows.remove(&id) {
                self.suspect(shadow.dispatch.node, Suspicion::Late);
            }
        }
    }
}

/// The rows of an answer by pair; `None` when they are not as many as were asked for.
fn answers(dispatch: &Dispatch, answer: &ExpertRows) -> Option<Answers> {
    let rows: &Rows = &answer.rows;
    let pairs: Vec<Pair> = dispatch.pairs().collect();
    let row = |i| rows.row(i).to_vec();
    (rows.count() == Some(pairs.len())).then(|| pairs.into_iter().enumerate().map(|(i, pair)| (pair, row(i))).collect())
}
