//! Votes: who is asked, what is decided, and what happens to those who fail, are late, or differ.

use super::*;
use crate::testing::view;
use crate::{ExpertWork, RowFormat};

/// `node` computes `experts`, each for rows 0 and 1.
fn asks(node: &str, experts: &[u32]) -> Dispatch {
    let work = experts.iter().map(|&expert| ExpertWork { expert, rows: vec![0, 1] }).collect();
    Dispatch { node: node.into(), tokens: vec![0, 1], work }
}

/// Rows of one value: each expert's number, changed by `lie`.
fn says(dispatch: &Dispatch, lie: f32) -> ExpertRows {
    let values = dispatch.pairs().map(|pair| pair.expert as f32 + 10.0 * pair.token as f32 + lie);
    let data: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    ExpertRows { rows: Rows { format: RowFormat::F32, width: 1, data: data.into() } }
}

fn begin(first: &[(Dispatch, f32)]) -> Vote {
    let answers: Vec<_> = first.iter().map(|(dispatch, lie)| (dispatch, says(dispatch, *lie))).collect();
    Vote::new(0, 1, answers.iter().map(|(dispatch, answer)| (*dispatch, answer)))
}

fn nodes(names: &[&str]) -> BTreeSet<NodeId> {
    names.iter().map(NodeId::from).collect()
}

/// What is asked next: by node, the experts, and those to load first.
fn asked(vote: &mut Vote, view: &ClusterView, avoid: &[&str]) -> Vec<Question> {
    match vote.next(view, &nodes(avoid)) {
        Next::Ask(questions) => questions,
        other => panic!("nobody is asked: {other:?}"),
    }
}

fn decided(vote: &mut Vote, view: &ClusterView) -> Decision {
    match vote.next(view, &BTreeSet::new()) {
        Next::Decided(decision) => decision,
        other => panic!("not decided: {other:?}"),
    }
}

fn answers(vote: &mut Vote, question: &Question, lie: f32) {
    assert!(vote.answer(&question.dispatch, &says(&question.dispatch, lie)));
}

#[test]
fn every_expert_is_asked_of_another_holder_and_equal_bits_are_taken() {
    let view = view(&["a", "b", "c"], &[(0, &["a", "b"]), (1, &["b", "c"]), (2, &["a", "c"])]);
    let mut vote = begin(&[(asks("a", &[0, 2]), 0.0), (asks("b", &[1]), 0.0)]);
    let questions = asked(&mut vote, &view, &[]);
    assert_eq!(vote.next(&view, &BTreeSet::new()), Next::Wait);
    let who: Vec<_> = questions.iter().map(|q| (q.dispatch.node.as_str(), q.dispatch.work.len())).collect();
    assert_eq!(who, [("b", 1), ("c", 2)]);
    questions.iter().for_each(|question| answers(&mut vote, question, 0.0));
    let decision = decided(&mut vote, &view);
    assert_eq!((decision.stand, decision.right), (Stand::Taken, nodes(&["a", "b", "c"])));
    assert!(decision.odd.is_empty() && decision.unconfirmed.is_empty());
}

#[test]
fn where_two_differ_a_third_decides_whoever_it_is_against() {
    let view = view(&["a", "b", "c"], &[(0, &["a", "b"])]);
    for (first, second, third, stand, odd) in [(0.5, 0.0, 0.0, Stand::Refuted, "a"), (0.0, 0.5, 0.0, Stand::Taken, "b")]
    {
        let mut vote = begin(&[(asks("a", &[0]), first)]);
        let question = asked(&mut vote, &view, &[]).remove(0);
        assert_eq!(question.dispatch.node, "b".into());
        answers(&mut vote, &question, second);
        // It holds nothing, and has to load it.
        let question = asked(&mut vote, &view, &[]).remove(0);
        assert_eq!((question.dispatch.node.as_str(), question.load.as_slice()), ("c", &[0][..]));
        answers(&mut vote, &question, third);
        let decision = decided(&mut vote, &view);
        assert_eq!((decision.stand, decision.odd), (stand, nodes(&[odd])));
        assert!(!decision.right.contains(&odd.into()));
    }
}

#[test]
fn without_a_third_nothing_is_used_and_three_answers_ask_for_a_fourth() {
    let two = view(&["a", "b"], &[(0, &["a", "b"])]);
    let mut vote = begin(&[(asks("a", &[0]), 0.0)]);
    let question = asked(&mut vote, &two, &[]).remove(0);
    answers(&mut vote, &question, 0.5);
    let decision = decided(&mut vote, &two);
    assert_eq!((decision.stand, decision.disputed), (Stand::Disputed, nodes(&["a", "b"])));
    let four = view(&["a", "b", "c", "d"], &[(0, &["a", "b", "c", "d"])]);
    for (lie, next) in [(0.25, "c"), (0.5, "d")] {
        let question = asked(&mut vote, &four, &[]).remove(0);
        assert_eq!(question.dispatch.node.as_str(), next);
        answers(&mut vote, &question, lie);
    }
    assert_eq!(decided(&mut vote, &four).odd, nodes(&["a", "c"]));
}

#[test]
fn one_replica_is_taken_unconfirmed_and_nobody_is_made_to_load_a_second() {
    let view = view(&["a", "b", "c"], &[(0, &["a"]), (1, &["b", "c"])]);
    let mut vote = begin(&[(asks("a", &[0]), 0.0), (asks("b", &[1]), 0.0)]);
    let question = asked(&mut vote, &view, &[]).remove(0);
    assert_eq!(question.dispatch.node, "c".into());
    answers(&mut vote, &question, 0.0);
    let decision = decided(&mut vote, &view);
    assert_eq!((decision.stand, decision.unconfirmed), (Stand::Taken, [ExpertId::new(0, 0)].into()));
}

#[test]
fn who_fails_or_answers_what_cannot_be_right_is_replaced_by_one_that_loads() {
    let view = view(&["a", "b", "c", "d"], &[(0, &["a", "b"])]);
    let mut vote = begin(&[(asks("a", &[0]), 0.0)]);
    let question = asked(&mut vote, &view, &[]).remove(0);
    assert!(!vote.answer(&question.dispatch, &says(&question.dispatch, f32::NAN)));
    for _ in 0..2 {
        let question = asked(&mut vote, &view, &[]).remove(0);
        assert_eq!(question.load, [0]);
        vote.failed(&question.dispatch);
    }
    // There is nobody left to ask.
    assert_eq!(decided(&mut vote, &view).unconfirmed, [ExpertId::new(0, 0)].into());
}

#[test]
fn the_late_are_heard_and_the_avoided_asked_where_nobody_else_is_left() {
    let view = view(&["a", "b", "c"], &[(0, &["a", "b", "c"])]);
    let mut vote = begin(&[(asks("a", &[0]), 0.0)]);
    let late = asked(&mut vote, &view, &["b"]).remove(0);
    assert_eq!(late.dispatch.node, "c".into());
    vote.late(&late.dispatch);
    let avoided = asked(&mut vote, &view, &["b"]).remove(0);
    assert_eq!((avoided.dispatch.node.as_str(), avoided.load.len()), ("b", 0));
    vote.late(&avoided.dispatch);
    assert_eq!(vote.next(&view, &BTreeSet::new()), Next::Wait, "both may answer yet");
    answers(&mut vote, &late, 0.0);
    assert_eq!(decided(&mut vote, &view).right, nodes(&["a", "c"]));
}
