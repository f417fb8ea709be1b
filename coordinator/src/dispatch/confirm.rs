//! Everything computed twice: drives a [`Vote`] over the exchange, so that a layer is used only when two nodes have answered the
//! same bits for all of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tramontane_cluster::exchange::{DispatchId, ExchangeError};
use tramontane_router::ExpertId;
use tramontane_router::flight::{AbandonReason, DispatchNo, Suspicion};
use tramontane_router::peers::{Decision, Next, Quarantine, Question, Stand, Vote};

use super::layer::Layer;
use super::{Auditing, DispatchError, Dispatcher, failure, predict};

/// Questions on their way.
type Sent = BTreeMap<DispatchId, Out>;

struct Out {
    question: Question,
    sent: Instant,
    /// When its node is late; `None` when it is, or nobody knows how long it takes.
    late_at: Option<Duration>,
}

impl Dispatcher {
    /// Whether the `answers` that `layer` was combined of stand. Where not everything is to be confirmed, they do.
    ///
    /// # Errors
    /// [`DispatchError::Disputed`], or [`DispatchError::Abandoned`] when the others did not answer in time.
    pub(super) fn confirm(&mut self, layer: &Layer<'_>, answers: &[DispatchNo]) -> Result<Stand, DispatchError> {
        if self.auditing != Auditing::Everything {
            return Ok(Stand::Taken);
        }
        let mut vote = Vote::new(layer.number, layer.rows.width, layer.answers_of(answers));
        let (mut out, ends) = (Sent::new(), self.now().saturating_add(self.policy.timeout));
        let decision = loop {
            match vote.next(&self.view, &self.health.avoid()) {
                Next::Ask(questions) => questions.into_iter().for_each(|question| self.put(layer, question, &mut out)),
                Next::Wait if self.now() >= ends => break None,
                Next::Wait => self.hear(&mut vote, &mut out, ends),
                Next::Decided(decision) => break Some(decision),
            }
        };
        out.into_keys().for_each(|id| self.exchange.cancel(id));
        match decision {
            Some(decision) => self.heed(layer.number, decision),
            None => Err(DispatchError::Abandoned { why: AbandonReason::TimedOut, last: None }),
        }
    }

    fn put(&mut self, layer: &Layer<'_>, question: Question, out: &mut Sent) {
        self.count(|report| &mut report.dispatches);
        let Question { dispatch, load } = &question;
        let batch = dispatch.batch(self.model.clone(), layer.epoch, layer.number, layer.rows);
        let (id, late_at) = if load.is_empty() {
            let predicted = predict(&self.view, &self.estimates, dispatch).max(self.policy.shortest_prediction);
            let late_at = self.now().saturating_add(predicted.saturating_mul(self.policy.deadline_factor));
            (self.exchange.submit(&dispatch.node, batch), Some(late_at))
        } else {
            self.count(|report| &mut report.rescued);
            let experts = load.iter().map(|&expert| ExpertId::new(layer.number, expert)).collect();
            (self.exchange.rescue(&dispatch.node, batch, experts), None)
        };
        let sent = self.clock.now();
        out.insert(id, Out { question, sent, late_at });
    }

    /// Waits until something comes, or somebody is late.
    fn hear(&mut self, vote: &mut Vote, out: &mut Sent, ends: Duration) {
        let due = out.values().filter_map(|out| out.late_at).fold(ends, Duration::min);
        let until = self.started.checked_add(due).unwrap_or_else(|| self.clock.now());
        let completion = self.exchange.next(until);
        self.look();
        let Some(completion) = completion else {
            let now = self.now();
            for Out { question, late_at, .. } in out.values_mut().filter(|out| out.late_at.is_some_and(|at| at <= now))
            {
                *late_at = None;
                vote.late(&question.dispatch);
                self.suspect(question.dispatch.node.clone(), Suspicion::Late);
            }
            return;
        };
        if matches!(completion.result, Err(ExchangeError::NodeGone { .. })) {
            self.lost(&completion.node);
        }
        let Some(completion) = self.audited(completion) else { return };
        // The flight's, which was done without it.
        let Some(Out { question, sent, .. }) = out.remove(&completion.dispatch) else { return };
        match completion.result {
            Ok(rows) if vote.answer(&question.dispatch, &rows) => {
                if question.load.is_empty() {
                    let took = self.clock.now().saturating_duration_since(sent);
                    self.estimates.observe(&question.dispatch, took);
                }
            }
            Ok(_) => self.suspect(completion.node, Suspicion::Corrupt),
            Err(error) => {
                vote.failed(&question.dispatch);
                if let Some(why) = failure(&error).suspicion() {
                    self.suspect(completion.node, why);
                }
            }
        }
    }

    /// Does what follows from a decision about layer `number`.
    fn heed(&mut self, number: u32, decision: Decision) -> Result<Stand, DispatchError> {
        decision.right.iter().for_each(|node| self.health.answered(node));
        for node in decision.odd {
            tracing::error!(%node, layer = number, "two others answer other bits: quarantined");
            self.health.quarantine(node, Quarantine::OtherBits);
        }
        self.see();
        self.unconfirmed.retain(|expert| expert.layer != number);
        self.unconfirmed.extend(decision.unconfirmed);
        self.disputed = decision.disputed;
        match decision.stand {
            Stand::Disputed => Err(DispatchError::Disputed { nodes: self.disputed.clone() }),
            stand => Ok(stand),
        }
    }
}
