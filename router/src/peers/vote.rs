//! Answers that are used only once two nodes have given the same bits: who is asked besides, and what is decided. Pure: the
//! caller sends, waits, and tells what comes.
//!
//! The unit is an expert, for a flight has all of an expert's rows from one node.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::combine::is_sound;
use crate::placement::rescue;
use crate::plan::dispatch;
use crate::{ClusterView, Dispatch, ExpertId, ExpertRows, NodeId, Rows};

/// How it stands with a node that was asked for an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Counted on.
    Waiting,
    /// Overdue: heard if it answers yet, but others are asked too.
    Late,
    /// It answered, or failed.
    Over,
}

/// One expert's rows.
#[derive(Clone, Debug, Default)]
struct Ballots {
    /// What was answered, and by whom; the first is what is to be used.
    cast: Vec<(NodeId, Bytes)>,
    asked: BTreeMap<NodeId, Asked>,
}

/// The answers of one layer, until two nodes agree about each.
///
/// It ends: a node is asked for an expert once.
#[derive(Clone, Debug)]
pub struct Vote {
    layer: u32,
    width: usize,
    /// By expert: the rows it computes, ascending.
    tokens: BTreeMap<u32, Vec<u32>>,
    experts: BTreeMap<u32, Ballots>,
}

/// What a further node is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What to send.
    pub dispatch: Dispatch,
    /// What its node has to load first: experts within the layer, ascending.
    pub load: Vec<u32>,
}

/// What the caller does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send these, and see what is next then.
    Ask(Vec<Question>),
    /// Wait for an answer, a failure, or a node to be late.
    Wait,
    /// Nothing more is asked.
    Decided(Decision),
}

/// Whether the answers are to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Nobody contradicts them.
    Taken,
    /// Two others agree that one is wrong: have the layer computed again, without the odd ones.
    Refuted,
    /// Two answer different bits, and there is no third to say which are right.
    Disputed,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the answers are to be used.
    pub stand: Stand,
    /// Who answered as another node did.
    pub right: BTreeSet<NodeId>,
    /// Who answered otherwise than two others.
    pub odd: BTreeSet<NodeId>,
    /// Who contradict one another where there is no third.
    pub disputed: BTreeSet<NodeId>,
    /// What one node alone answered, for there was no second one.
    pub unconfirmed: BTreeSet<ExpertId>,
}

impl Vote {
    /// Begins with what one flight brought for `layer`: rows of `width` values, checked.
    pub fn new<'a>(
        layer: u32,
        width: usize,
        answers: impl IntoIterator<Item = (&'a Dispatch, &'a ExpertRows)>,
    ) -> Self {
        let mut vote = Self { layer, width, tokens: BTreeMap::new(), experts: BTreeMap::new() };
        for (dispatch, answer) in answers {
            for work in &dispatch.work {
                let tokens = work.rows.iter().map(|&row| dispatch.tokens[row as usize]).collect();
                vote.tokens.insert(work.expert, tokens);
                vote.experts.insert(work.expert, Ballots::default());
            }
            vote.cast(dispatch, &answer.rows);
        }
        vote
    }

    /// Takes the answer to a question, if it can be right; says whether it can.
    #[must_use]
    pub fn answer(&mut self, dispatch: &Dispatch, answer: &ExpertRows) -> bool {
        let is_sound = is_sound(dispatch, answer, self.width);
        if is_sound {
            self.cast(dispatch, &answer.rows);
        } else {
            self.failed(dispatch);
        }
        is_sound
    }

    /// A question will not be answered.
    pub fn failed(&mut self, dispatch: &Dispatch) {
        self.mark(dispatch, Asked::Over);
    }

    /// A question is overdue.
    pub fn late(&mut self, dispatch: &Dispatch) {
        self.mark(dispatch, Asked::Late);
    }

    /// What to do. Nodes in `avoid` are asked where there is nobody else.
    pub fn next(&mut self, view: &ClusterView, avoid: &BTreeSet<NodeId>) -> Next {
        let mut decision = self.count();
        if decision.stand == Stand::Refuted {
            return Next::Decided(decision);
        }
        let (mut waits, mut shares) = (false, BTreeMap::<NodeId, Share>::new());
        for (&expert, ballots) in &mut self.experts {
            if ballots.agreed().is_some() {
                continue;
            }
            let is = |state| ballots.asked.values().any(|&asked| asked == state);
            if is(Asked::Waiting) {
                waits = true;
                continue;
            }
            let id = ExpertId::new(self.layer, expert);
            let rows = |node: &NodeId| shares.get(node).map_or(0, |share| share.rows);
            if let Some(node) = ballots.whom(id, view, avoid, rows) {
                let share = shares.entry(node.clone()).or_default();
                share.rows += self.tokens[&expert].len();
                share.experts.insert(expert);
                if !holds(view, &node, id) {
                    share.load.push(expert);
                }
                ballots.asked.insert(node, Asked::Waiting);
            } else if is(Asked::Late) {
                waits = true;
            } else if ballots.cast.len() == 1 {
                decision.unconfirmed.insert(id);
            } else {
                decision.disputed.extend(ballots.cast.iter().map(|(node, _)| node.clone()));
                decision.stand = Stand::Disputed;
            }
        }
        if !shares.is_empty() {
            let question = |(node, share): (NodeId, Share)| Question {
                dispatch: dispatch(&node, &share.experts, &self.tokens),
                load: share.load,
            };
            return Next::Ask(shares.into_iter().map(question).collect());
        }
        if waits { Next::Wait } else { Next::Decided(decision) }
    }

    /// What the answers say so far.
    fn count(&self) -> Decision {
        let (mut stand, mut right, mut odd) = (Stand::Taken, BTreeSet::new(), BTreeSet::new());
        for ballots in self.experts.values() {
            let Some(agreed) = ballots.agreed() else { continue };
            for (place, (node, answer)) in ballots.cast.iter().enumerate() {
                let side = if answer == agreed { &mut right } else { &mut odd };
                side.insert(node.clone());
                if place == 0 && answer != agreed {
                    stand = Stand::Refuted;
                }
            }
        }
        right.retain(|node| !odd.contains(node));
        Decision { stand, right, odd, disputed: BTreeSet::new(), unconfirmed: BTreeSet::new() }
    }

    fn cast(&mut self, dispatch: &Dispatch, rows: &Rows) {
        self.mark(dispatch, Asked::Over);
        let (row, mut at) = (rows.format.row_bytes(rows.width), 0);
        for work in &dispatch.work {
            let answer = rows.data.slice(at..at + work.rows.len() * row);
            at += answer.len();
            if let Some(ballots) = self.experts.get_mut(&work.expert) {
                ballots.cast.push((dispatch.node.clone(), answer));
            }
        }
    }

    fn mark(&mut self, dispatch: &Dispatch, state: Asked) {
        for work in &dispatch.work {
            if let Some(ballots) = self.experts.get_mut(&work.expert) {
                ballots.asked.insert(dispatch.node.clone(), state);
            }
        }
    }
}

/// What one node is to be asked.
#[derive(Default)]
struct Share {
    rows: usize,
    experts: BTreeSet<u32>,
    load: Vec<u32>,
}

impl Ballots {
    /// What two nodes have answered alike.
    fn agreed(&self) -> Option<&Bytes> {
        let answers = || self.cast.iter().map(|(_, answer)| answer);
        answers().enumerate().find(|(at, answer)| answers().skip(at + 1).any(|other| other == *answer)).map(|(_, a)| a)
    }

    /// Whom to ask for `expert` next: another holder, the one with the fewest of the `rows` that are given out now. Where the
    /// others are avoided, late or at odds, one that loads it; one that is avoided at last. With one replica nobody is made to load a second.
    fn whom(
        &self,
        expert: ExpertId,
        view: &ClusterView,
        avoid: &BTreeSet<NodeId>,
        rows: impl Fn(&NodeId) -> usize,
    ) -> Option<NodeId> {
        let first = self.cast.first().map(|(node, _)| node);
        let holders: Vec<&NodeId> = view.nodes.keys().filter(|node| holds(view, node, expert)).collect();
        let unasked = || holders.iter().copied().filter(|node| !self.asked.contains_key(*node));
        let trusted = unasked().filter(|node| !avoid.contains(*node));
        if let Some(node) = trusted.min_by_key(|node| (rows(node), *node)) {
            return Some(node.clone());
        }
        let placed = view.placement.as_ref().and_then(|placement| placement.replicas.get(&expert));
        let is_single = placed.is_none_or(|nodes| nodes.len() < 2) && holders.iter().all(|node| Some(*node) == first);
        if is_single && self.cast.len() < 2 {
            return None;
        }
        let mut others = view.clone();
        others.nodes.retain(|node, _| !self.asked.contains_key(node) && !avoid.contains(node));
        rescue(&others, expert).or_else(|| unasked().next().cloned())
    }
}

fn holds(view: &ClusterView, node: &NodeId, expert: ExpertId) -> bool {
    view.nodes.get(node).is_some_and(|record| record.held.contains(&expert))
}

#[cfg(test)]
mod tests;
