//! The dispatcher over two nodes that hold everything, behind an exchange that goes wrong as it is told.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tramontane_cluster::exchange::{Completion, DispatchId, ExpertServer, InProcessExchange, ServeError};
use tramontane_cluster::registry::{EmbeddedRegistry, Lease, Registry};
use tramontane_router::placement::Placement;
use tramontane_router::{
    Epoch, ExpertBatch, ExpertId, ExpertRows, GateWeights, NodeRecord, NumericProfile, RowFormat, gate,
};

use tramontane_router::flight::AbandonReason;
use tramontane_router::peers::Quarantine;

use super::*;

const EXPERTS: u32 = 4;
const WIDTH: usize = 8;

/// Multiplies each row by its expert's number, from 1.
struct Multiplier;

impl ExpertServer for Multiplier {
    fn serve(&self, batches: &[ExpertBatch]) -> Vec<Result<ExpertRows, ServeError>> {
        let answer = |batch: &ExpertBatch| {
            let pairs = batch.work.iter().flat_map(|w| w.rows.iter().map(move |&row| (w.expert, row)));
            let values = pairs.flat_map(|(expert, row)| {
                let row = batch.rows.row(row as usize).as_chunks::<4>().0.to_vec();
                row.into_iter().map(move |v| f32::from_le_bytes(v) * (expert + 1) as f32)
            });
            rows_of(&values.collect::<Vec<_>>())
        };
        batches.iter().map(|batch| Ok(ExpertRows { rows: answer(batch) })).collect()
    }

    fn ensure_held(&self, _: &ModelId, _: &[ExpertId]) -> Result<(), ServeError> {
        Ok(())
    }

    fn received(&self) -> BTreeMap<ExpertId, u64> {
        BTreeMap::new()
    }

    fn leave(&self) {}
}

fn rows_of(values: &[f32]) -> Rows {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    Rows { format: RowFormat::F32, width: WIDTH, data: Bytes::from(data) }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    Gone,
    Overloaded,
    NotANumber,
    RowMissing,
    /// Finite, and another.
    OtherValue,
    Twice,
}

/// Spoils the completions, in their order, as the script says; when it ends, all is well.
struct Faulty {
    inner: InProcessExchange,
    script: VecDeque<Fault>,
    again: Option<Completion>,
    nodes: Arc<std::sync::Mutex<Vec<NodeId>>>,
}

impl Exchange for Faulty {
    fn submit(&mut self, node: &NodeId, batch: ExpertBatch) -> DispatchId {
        self.nodes.lock().unwrap().push(node.clone());
        self.inner.submit(node, batch)
    }

    fn rescue(&mut self, node: &NodeId, batch: ExpertBatch, experts: Vec<ExpertId>) -> DispatchId {
        self.nodes.lock().unwrap().push(node.clone());
        self.inner.rescue(node, batch, experts)
    }

    fn follow(&mut self, view: &ClusterView) {
        self.inner.follow(view);
    }

    fn next(&mut self, deadline: Instant) -> Option<Completion> {
        if let Some(again) = self.again.take() {
            return Some(again);
        }
        let mut completion = self.inner.next(deadline)?;
        let node = completion.node.clone();
        match self.script.pop_front().unwrap_or(Fault::None) {
            Fault::None => {}
            Fault::Gone => completion.result = Err(ExchangeError::NodeGone { node, why: "told to".into() }),
            Fault::Overloaded => completion.result = Err(ExchangeError::Overloaded { node }),
            Fault::NotANumber => {
                if let Ok(rows) = &mut completion.result {
                    let mut data = rows.rows.data.to_vec();
                    data[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
                    rows.rows.data = Bytes::from(data);
                }
            }
            Fault::OtherValue => {
                if let Ok(rows) = &mut completion.result {
                    let mut data = rows.rows.data.to_vec();
                    data[3] ^= 0x80;
                    rows.rows.data = Bytes::from(data);
                }
            }
            Fault::RowMissing => {
                if let Ok(rows) = &mut completion.result {
                    rows.rows.data = rows.rows.data.slice(WIDTH * 4..);
                }
            }
            Fault::Twice => self.again = Some(completion.clone()),
        }
        Some(completion)
    }

    fn cancel(&mut self, dispatch: DispatchId) {
        self.inner.cancel(dispatch);
    }
}

/// What came of one layer: the hidden states, and the nodes asked.
struct Outcome {
    result: Result<(), DispatchError>,
    hidden: Vec<f32>,
    nodes: Vec<NodeId>,
    report: PeerReport,
}

/// What nodes hold of what is placed on them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    Everything,
    /// All of it is on the first node.
    ByTheFirst,
    Nothing,
}

fn run(replicas: usize, script: &[Fault]) -> Outcome {
    run_where(replicas, script, Held::Everything)
}

fn run_where(replicas: usize, script: &[Fault], what: Held) -> Outcome {
    run_at(replicas, script, what, "", Auditing::Never)
}

/// Runs a layer over nodes at `addr`.
fn run_at(replicas: usize, script: &[Fault], what: Held, addr: &str, auditing: Auditing) -> Outcome {
    let model = ModelId::from("m");
    let profile =
        NumericProfile { contract: 1, weights: "w".into(), quantization: "f32".into(), arithmetic: "cpu".into() };
    let registry = EmbeddedRegistry::new(model.clone(), profile.clone());
    let names: Vec<NodeId> = (0..replicas).map(|i| NodeId::from(format!("n{i}"))).collect();
    let experts = || (0..EXPERTS).map(|e| ExpertId::new(0, e));
    let _leases: Vec<Box<dyn Lease>> = names
        .iter()
        .map(|id| {
            let holds = what == Held::Everything || what == Held::ByTheFirst && *id == names[0];
            let held = experts().filter(|_| holds).collect();
            let record = NodeRecord {
                id: id.clone(),
                addr: addr.to_owned(),
                held,
                profile: profile.clone(),
                capacity: 9,
                speed: 0,
                zone: String::new(),
                draining: false,
            };
            block_on(registry.join(record)).unwrap()
        })
        .collect();
    let replicas = experts().map(|e| (e, names.clone())).collect();
    block_on(registry.propose(Placement { model: model.clone(), epoch: Epoch(1), parent: Epoch(0), replicas }))
        .unwrap();
    let servers: BTreeMap<NodeId, Arc<dyn ExpertServer>> =
        names.iter().map(|id| (id.clone(), Arc::new(Multiplier) as Arc<dyn ExpertServer>)).collect();
    let nodes = Arc::default();
    let exchange = Faulty {
        inner: InProcessExchange::new(servers),
        script: script.iter().copied().collect(),
        again: None,
        nodes: Arc::clone(&nodes),
    };
    let policy = Policy { max_resends: 8, timeout: Duration::from_secs(60), ..Policy::default() };
    let mut dispatcher = Dispatcher::new(model, Box::new(exchange), registry.watch(), policy).auditing(auditing);
    let logits: Vec<f32> = (0..6 * EXPERTS).map(|i| ((i * 7) % 5) as f32).collect();
    let routing = gate(&logits, EXPERTS as usize, 2, GateWeights::Renormalised).unwrap();
    let values: Vec<f32> = (0..6 * WIDTH).map(|i| i as f32 * 0.25).collect();
    let mut hidden = vec![1.0; values.len()];
    let result = dispatcher.experts(0, &routing, &rows_of(&values), &mut hidden);
    let nodes = nodes.lock().unwrap().clone();
    let report = dispatcher.report().borrow().clone();
    Outcome { result, hidden, nodes, report }
}

/// The embedded registry's futures are ready at once.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[test]
fn whatever_one_node_does_the_other_makes_it_good() {
    let quiet = run(2, &[]);
    quiet.result.unwrap();
    assert!(quiet.hidden.iter().any(|&h| h != 1.0));
    for fault in [Fault::Gone, Fault::Overloaded, Fault::NotANumber, Fault::RowMissing, Fault::Twice] {
        for script in [vec![fault], vec![Fault::None, fault], vec![fault, Fault::None, fault]] {
            let outcome = run(2, &script);
            outcome.result.unwrap_or_else(|error| panic!("{script:?}: {error}"));
            assert_eq!(outcome.hidden, quiet.hidden, "{script:?}");
            let resent = outcome.nodes.len() - quiet.nodes.len();
            assert_eq!(resent > 0, !matches!(fault, Fault::Twice), "{script:?}: {resent} resent");
        }
    }
}

#[test]
fn a_layer_that_nobody_answers_is_given_up_with_the_last_failure_and_changes_nothing() {
    let outcome = run(1, &[Fault::Overloaded; 64]);
    let error = outcome.result.unwrap_err();
    assert!(matches!(&error, DispatchError::Abandoned { why: AbandonReason::ResendsSpent, last: Some(_) }), "{error}");
    assert!(error.to_string().contains("node n0 has too much waiting"), "{error}");
    assert!(outcome.hidden.iter().all(|&h| h == 1.0));
    assert!(outcome.nodes.len() <= 1 + 8);
}

#[test]
fn a_row_that_nobody_answers_with_finite_values_is_blamed_and_no_node() {
    let outcome = run(2, &[Fault::NotANumber; 64]);
    let error = outcome.result.unwrap_err();
    assert!(matches!(error, DispatchError::NotFinite { row: _ }) && !error.may_run_again(), "{error}");
    assert_eq!(outcome.report.suspected, []);
    assert!(outcome.hidden.iter().all(|&h| h == 1.0));
}

#[test]
fn values_that_are_not_finite_are_one_nodes_fault_while_there_are_others_to_ask() {
    let quiet = run(2, &[]);
    let outcome = run_where(2, &[Fault::NotANumber], Held::ByTheFirst);
    outcome.result.unwrap();
    assert_eq!(outcome.hidden, quiet.hidden);
    assert!(outcome.report.rescued > 0, "the other loads it: {:?}", outcome.report);
    let alone = run(1, &[Fault::NotANumber; 64]);
    assert!(matches!(alone.result, Err(DispatchError::NotFinite { .. })), "{:?}", alone.result);
}

#[test]
fn an_answer_with_a_row_too_few_is_not_audited() {
    let quiet = run(3, &[]);
    let outcome = run_at(3, &[Fault::RowMissing], Held::Everything, "elsewhere:1", Auditing::OneIn(1));
    outcome.result.unwrap();
    assert_eq!(outcome.hidden, quiet.hidden);
}

#[test]
fn an_expert_that_nobody_holds_is_loaded_by_a_survivor() {
    let quiet = run(2, &[]);
    let rescued = run_where(2, &[], Held::Nothing);
    rescued.result.unwrap();
    assert_eq!(rescued.hidden, quiet.hidden);
    assert!(rescued.report.rescued > 0, "{:?}", rescued.report);
}

#[test]
fn suspects_are_reported() {
    let outcome = run(2, &[Fault::Gone]);
    outcome.result.unwrap();
    assert_eq!((outcome.report.suspected.len(), outcome.report.resent), (1, 1));
}

/// A layer of which two nodes must agree about every row.
fn confirmed(replicas: usize, script: &[Fault], what: Held) -> Outcome {
    run_at(replicas, script, what, "elsewhere:1", Auditing::Everything)
}

#[test]
fn where_everything_is_confirmed_whoever_lies_first_or_second_is_quarantined_and_nothing_of_it_used() {
    let quiet = run(3, &[]);
    let sound = confirmed(3, &[], Held::Everything);
    sound.result.unwrap();
    assert_eq!(sound.hidden, quiet.hidden);
    assert!(sound.nodes.len() > quiet.nodes.len() && sound.report.quarantined.is_empty(), "{:?}", sound.report);
    for at in 0..sound.nodes.len() {
        let mut script = vec![Fault::None; at];
        script.push(Fault::OtherValue);
        let outcome = confirmed(3, &script, Held::Everything);
        outcome.result.unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_eq!(outcome.hidden, quiet.hidden, "{at}");
        let quarantined: Vec<_> = outcome.report.quarantined.into_iter().collect();
        assert_eq!(quarantined, [(outcome.nodes[at].clone(), Quarantine::OtherBits)], "{at}");
    }
}

#[test]
fn where_everything_is_confirmed_failures_cost_nothing_but_time() {
    let quiet = run(3, &[]);
    for fault in [Fault::Gone, Fault::Overloaded, Fault::NotANumber, Fault::RowMissing, Fault::Twice] {
        for at in 0..6 {
            let mut script = vec![Fault::None; at];
            script.push(fault);
            let outcome = confirmed(3, &script, Held::Everything);
            outcome.result.unwrap_or_else(|error| panic!("{fault:?} {at}: {error}"));
            assert_eq!(outcome.hidden, quiet.hidden, "{fault:?} {at}");
            assert!(outcome.report.unconfirmed.is_empty() && outcome.report.quarantined.is_empty());
        }
    }
}

#[test]
fn what_nobody_can_confirm_is_used_and_named_and_what_two_dispute_is_not_used() {
    let quiet = run(2, &[]);
    let alone = confirmed(1, &[], Held::Everything);
    alone.result.unwrap();
    assert_eq!(alone.hidden, quiet.hidden);
    assert!(!alone.report.unconfirmed.is_empty(), "{:?}", alone.report);
    let disputed = confirmed(2, &[Fault::OtherValue], Held::Everything);
    let error = disputed.result.unwrap_err();
    assert!(matches!(error, DispatchError::Disputed { .. }) && error.may_run_again(), "{error}");
    assert!(disputed.hidden.iter().all(|&h| h == 1.0));
    assert_eq!((disputed.report.disputed.len(), disputed.report.quarantined.len()), (2, 0));
}
