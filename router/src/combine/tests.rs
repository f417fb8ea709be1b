//! `combine` against a direct dense computation, and what it refuses.

use std::collections::BTreeSet;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::testing::{random_f32, routing, view};
use crate::{Costs, Rows, plan};

const WIDTH: usize = 5;

/// Column `i` of what `expert` answers for `token`.
fn answer_value(seed: u64, expert: u32, token: u32, i: usize) -> f32 {
    let y = random_f32(seed, u64::from(expert) << 40 | u64::from(token) << 20 | i as u64);
    // What bf16 keeps, so that both formats carry the same value.
    f32::from_bits(y.to_bits() & 0xffff_0000)
}

fn answer(seed: u64, dispatch: &Dispatch, format: RowFormat) -> ExpertRows {
    let mut data = Vec::new();
    for pair in dispatch.pairs() {
        for i in 0..WIDTH {
            let y = answer_value(seed, pair.expert, pair.token, i);
            match format {
                RowFormat::Bf16 => data.extend(((y.to_bits() >> 16) as u16).to_le_bytes()),
                _ => data.extend(y.to_le_bytes()),
            }
        }
    }
    ExpertRows { rows: Rows { format, width: WIDTH, data: Bytes::from(data) } }
}

fn dense(seed: u64, routing: &Routing, hidden: &mut [f32]) {
    for token in 0..routing.rows() {
        let (experts, weights) = routing.row(token);
        for i in 0..WIDTH {
            let term = |at: usize| weights[at] * answer_value(seed, experts[at], token as u32, i);
            let mut acc = term(0);
            for at in 1..experts.len() {
                acc += term(at);
            }
            hidden[token * WIDTH + i] += acc;
        }
    }
}

fn residual(rows: usize) -> Vec<f32> {
    (0..rows * WIDTH).map(|i| random_f32(99, i as u64)).collect()
}

proptest! {
    #[test]
    fn plan_then_combine_equals_the_dense_computation(seed: u64, rows in 0usize..24, k in 1usize..5, rotate in 0usize..3) {
        let routing = routing(seed, rows, 6, k);
        let holders: [&[&str]; 6] = [&["a", "b"], &["c"], &["a", "c"], &["b"], &["a", "b", "c"], &["c", "b"]];
        let experts: Vec<_> = (0..).zip(holders).collect();
        let plan = plan(0, &routing, &view(&["a", "b", "c"], &experts), &BTreeSet::new(), &Costs::new()).unwrap();
        // Nodes may answer in either format, in any order.
        let format = |i: usize| if i.is_multiple_of(2) { RowFormat::F32 } else { RowFormat::Bf16 };
        let rows_of: Vec<_> = plan.dispatches.iter().enumerate().map(|(i, d)| answer(seed, d, format(i))).collect();
        let mut answers: Vec<_> = plan.dispatches.iter().zip(&rows_of).collect();
        let by = rotate.min(answers.len());
        answers.rotate_left(by);
        let (mut combined, mut expected) = (residual(rows), residual(rows));
        combine(&routing, &answers, &mut combined).unwrap();
        dense(seed, &routing, &mut expected);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&combined), bits(&expected));
    }
}

/// Two tokens, two experts each of three; node `a` has experts 0 and 1, node `b` has 2.
fn small() -> (Routing, Vec<Dispatch>, Vec<ExpertRows>) {
    let routing = routing(5, 6, 3, 2);
    let plan = plan(
        0,
        &routing,
        &view(&["a", "b"], &[(0, &["a"]), (1, &["a"]), (2, &["b"])]),
        &BTreeSet::new(),
        &Costs::new(),
    )
    .unwrap();
    let answers = plan.dispatches.iter().map(|d| answer(5, d, RowFormat::F32)).collect();
    (routing, plan.dispatches, answers)
}

/// Combines what `small` gives after `damage`, which must fail and leave the residual alone.
fn refused(damage: impl FnOnce(&mut Vec<Dispatch>, &mut Vec<ExpertRows>)) -> CombineError {
    let (routing, mut dispatches, mut answers) = small();
    damage(&mut dispatches, &mut answers);
    let mut hidden = residual(6);
    let pairs: Vec<_> = dispatches.iter().zip(&answers).collect();
    let error = combine(&routing, &pairs, &mut hidden).unwrap_err();
    assert_eq!(hidden, residual(6));
    error
}

fn with_value(rows: &mut ExpertRows, at: usize, bytes: &[u8]) {
    let mut data = rows.rows.data.to_vec();
    data[at..at + bytes.len()].copy_from_slice(bytes);
    rows.rows.data = Bytes::from(data);
}

#[test]
fn a_missing_answer_names_the_pair() {
    let error = refused(|dispatches, answers| {
        dispatches.pop();
        answers.pop();
    });
    assert!(matches!(error, CombineError::Missing { expert: 2, .. }), "{error}");
    assert_eq!(error.node(), None);
}

#[test]
fn a_pair_answered_twice_is_refused() {
    let error = refused(|dispatches, answers| {
        dispatches.push(dispatches[1].clone());
        answers.push(answers[1].clone());
        dispatches[2].node = "c".into();
    });
    assert!(matches!(&error, CombineError::Duplicate { expert: 2, node, .. } if node.as_str() == "c"), "{error}");
}

#[test]
fn a_pair_nobody_asked_for_is_refused() {
    let error = refused(|dispatches, _| dispatches[1].work[0].expert = 9);
    assert!(matches!(error, CombineError::Unrouted { expert: 9, .. }), "{error}");
    let error = refused(|dispatches, _| dispatches[1].tokens[0] = 77);
    assert!(matches!(error, CombineError::Unrouted { token: 77, .. }), "{error}");
    let error = refused(|dispatches, _| dispatches[1].work[0].rows[0] = 77);
    assert!(matches!(error, CombineError::Malformed { .. }), "{error}");
}

#[test]
fn wrong_sizes_and_formats_name_the_node() {
    let damages: [fn(&mut Rows); 4] = [
        |rows| rows.width += 1,
        |rows| rows.format = RowFormat::Q8,
        |rows| rows.format = RowFormat::Bf16,
        |rows| rows.data.truncate(rows.data.len() - 1),
    ];
    for damage in damages {
        let error = refused(|_, answers| damage(&mut answers[1].rows));
        assert!(matches!(error, CombineError::Malformed { .. }), "{error}");
        assert_eq!(error.node().map(NodeId::as_str), Some("b"));
    }
}

#[test]
fn values_that_are_not_finite_name_the_node_and_the_expert() {
    let token = small().1[1].tokens[0];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = refused(|_, answers| with_value(&mut answers[1], 8, &bad.to_le_bytes()));
        assert_eq!(error, CombineError::NotFinite { node: "b".into(), expert: 2, token });
        let error = refused(|dispatches, answers| {
            answers[1] = answer(5, &dispatches[1], RowFormat::Bf16);
            with_value(&mut answers[1], 8, &((bad.to_bits() >> 16) as u16).to_le_bytes());
        });
        assert_eq!(error, CombineError::NotFinite { node: "b".into(), expert: 2, token });
    }
}

#[test]
fn hidden_states_must_be_whole_rows() {
    let (routing, ..) = small();
    for values in [0, 29] {
        let refused = combine(&routing, &[], &mut vec![0.0; values]);
        assert_eq!(refused, Err(CombineError::Shape { values, rows: 6 }));
    }
}
