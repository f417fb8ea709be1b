//! Requests come in: judged, given a grammar, and queued.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tramontane_cluster::engine::{
    EngineError, EventSender, FinishReason, Generation, Submission, Task, Tenant, Usage, ValidRequest,
};

use super::live::{Choice, Generating, Job, Live, Mean, PromptLogprobs, Stage};
use super::shown::{Shown, ShownStage};
use super::{Bounds, Work};
use crate::grammar::{Follower, Lookup};
use crate::{Origin, Refused, Reuse, Sequence, SequenceId};

/// How long a request may wait for its grammar, the time that others' are compiled before included.
const GRAMMAR_WAIT: Duration = Duration::from_secs(20);

/// A request whose constraint is not compiled yet.
pub(super) struct Compiling {
    request: ValidRequest,
    events: Vec<EventSender>,
    since: Instant,
    shown: Option<Box<Shown>>,
}

/// What becomes of a request that asks for tokens.
enum Start {
    /// It is to be computed.
    Run(Job),
    /// It has ended where it was resumed.
    Ended(FinishReason),
}

impl Bounds {
    /// What is wrong with `request`.
    fn judge(&self, request: &ValidRequest) -> Result<(), EngineError> {
        let (resumed, room) = match &request.task {
            // A token has to fit behind the prompt.
            Task::Generate(generation) => (&generation.resume_after[..], self.context.saturating_sub(1)),
            Task::Embed => (&[][..], self.context),
        };
        let prompt = request.prompt.len();
        let why = if prompt == 0 {
            "the prompt is empty".to_owned()
        } else if prompt > room {
            format!("{prompt} prompt tokens, and the context has room for {room}")
        } else if let Some(token) = request.prompt.iter().chain(resumed).find(|t| **t as usize >= self.vocab) {
            format!("token {token} is outside the vocabulary of {}", self.vocab)
        } else {
            return Ok(());
        };
        Err(EngineError::InvalidRequest { why })
    }
}

impl Work {
    /// Takes a request in.
    pub(super) fn submit(&mut self, submission: Submission, now: Instant) {
        let Submission { request, events } = submission;
        let mut shown = Shown::request(&request.mark, request.prompt.len());
        if let Err(error) = self.bounds.judge(&request) {
            return fail(events, shown, &error);
        }
        if request.deadline.is_some_and(|deadline| deadline <= now) {
            return fail(events, shown, &EngineError::DeadlineExceeded);
        }
        if let Task::Generate(generation) = &request.task
            && generation.constraint.is_some()
        {
            let mine = self.compiling.iter().filter(|c| c.request.tenant == request.tenant).count();
            // As in the scheduler's queue: one that has some waiting may have as many as there are places left.
            let left = self.bounds.max_waiting.saturating_sub(self.compiling.len());
            if left == 0 || request.tenant.0.is_some() && mine >= left {
                return fail(events, shown, &self.overloaded());
            }
            shown.iter_mut().for_each(|shown| shown.enter(ShownStage::Grammar));
            self.compiling.push_back(Compiling { request, events, since: now, shown });
        } else {
            self.start(request, events, None, shown);
        }
    }

    /// Starts those whose grammars are ready.
    pub(super) fn compiled(&mut self, now: Instant) {
        self.grammars.collect();
        for waiting in in_turns(std::mem::take(&mut self.compiling)) {
            let Compiling { request, events, since, shown } = waiting;
            if events.iter().all(EventSender::is_closed) {
                continue;
            }
            if request.deadline.is_some_and(|deadline| deadline <= now) {
                fail(events, shown, &EngineError::DeadlineExceeded);
                continue;
            }
            let Task::Generate(generation) = &request.task else { continue };
            let Some(constraint) = &generation.constraint else { continue };
            match self.grammars.get(constraint, now) {
                Lookup::Ready(follower) => self.start(request, events, Some(follower), shown),
                Lookup::Failed(why) => fail(events, shown, &EngineError::InvalidConstraint { why }),
                Lookup::Pending if now.saturating_duration_since(since) > GRAMMAR_WAIT => {
                    fail(events, shown, &self.overloaded());
                }
                Lookup::Pending => self.compiling.push_back(Compiling { request, events, since, shown }),
            }
        }
    }

    /// Queues a request, whose choices' events are `events`.
    fn start(
        &mut self,
        request: ValidRequest,
        events: Vec<EventSender>,
        follower: Option<Box<Follower>>,
        mut shown: Option<Box<Shown>>,
    ) {
        let ValidRequest { prompt, tenant, priority, cache_scope: scope, deadline, task, mark, .. } = request;
        let prompt_tokens = prompt.len();
        let mut origin = Origin { tenant, priority, scope, reuse: Reuse::Cached, choices: events.len() };
        let id = self.new_id();
        let (mut sequence, mut first, mut job) = (Sequence::new(id, prompt, 0), 0, Job::Embed(Mean::default()));
        if let Task::Generate(generation) = task {
            let max_tokens = generation.max_tokens.min(self.bounds.context - prompt_tokens);
            let resumed = generation.resume_after.len();
            first = generation.first_choice;
            sequence = sequence.allowed(max_tokens).resumed(&generation.resume_after);
            match generating(*generation, follower, prompt_tokens, max_tokens) {
                Ok(Start::Run(running)) => job = running,
                Ok(Start::Ended(reason)) => {
                    let usage = Usage { prompt_tokens, completion_tokens: resumed, cached_tokens: 0 };
                    shown.iter_mut().for_each(|shown| shown.finish(reason, usage));
                    return events.into_iter().for_each(|events| events.finish(reason, usage));
                }
                Err(error) => return fail(events, shown, &error),
            }
        }
        if matches!(&job, Job::Embed(_) | Job::Generate(Generating { prompt: Some(_), .. })) {
            origin.reuse = Reuse::Nothing;
        }
        if let Err(refused) = self.scheduler.submit(sequence.of(origin), &self.pool) {
            let error = match refused {
                Refused::QueueFull { .. } | Refused::ShareFull { .. } => self.overloaded(),
                refused => EngineError::InvalidRequest { why: refused.to_string() },
            };
            return fail(events, shown, &error);
        }
        shown.iter_mut().for_each(|shown| shown.enter(ShownStage::Queue));
        let choices = (first..).zip(events).map(|(number, events)| Choice { number, events }).collect();
        let stage = Stage::Queued(Instant::now());
        self.live.insert(id, Live { job, deadline, stage, choices, request: mark.id, shown });
    }

    pub(super) fn new_id(&mut self) -> SequenceId {
        self.next_id += 1;
        SequenceId(self.next_id)
    }

    fn overloaded(&self) -> EngineError {
        EngineError::Overloaded { retry_after: self.pace.retry_after(self.scheduler.waiting()) }
    }
}

/// Those that wait for a grammar, first each tenant's first, then each one's second, …; within a turn by arrival.
fn in_turns(waiting: VecDeque<Compiling>) -> Vec<Compiling> {
    let mut before: BTreeMap<Tenant, usize> = BTreeMap::new();
    let mut turns: Vec<(usize, Compiling)> = Vec::with_capacity(waiting.len());
    for compiling in waiting {
        let turn = before.entry(compiling.request.tenant.clone()).or_default();
        turns.push((*turn, compiling));
        *turn += 1;
    }
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, compiling)| compiling).collect()
}

/// A generation after a prompt of `prompt_len` tokens, at most `max_tokens` long, where `resume_after` ends.
fn generating(
    generation: Generation,
    mut follower: Option<Box<Follower>>,
    prompt_len: usize,
    max_tokens: usize,
) -> Result<Start, EngineError> {
    if let Some(follower) = &mut follower {
        for token in &generation.resume_after {
            follower.push(*token).map_err(|refusal| EngineError::InvalidRequest {
                why: format!("what was generated before does not match the constraint: {}", refusal.0),
            })?;
        }
    }
    if follower.as_ref().is_some_and(|follower| follower.is_finished()) {
        return Ok(Start::Ended(FinishReason::Stop { token: None }));
    }
    if generation.resume_after.len() >= max_tokens {
        return Ok(Start::Ended(FinishReason::Length));
    }
    // Whoever has had a token has had them.
    let wanted = generation.prompt_logprobs.filter(|_| generation.resume_after.is_empty());
    let prompt = wanted.map(|top| PromptLogprobs::new(prompt_len, top));
    Ok(Start::Run(Job::Generate(Generating { generation: Arc::new(generation), follower, prompt })))
}

/// Ends all of a request's choices with `error`.
fn fail(events: Vec<EventSender>, shown: Option<Box<Shown>>, error: &EngineError) {
    shown.into_iter().for_each(|mut shown| shown.fail(error));
    events.into_iter().for_each(|events| events.fail(error.clone()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_wait_for_grammars_in_turns() {
        let waiting = [(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c"), (6, "b")].map(|(id, tenant)| {
            let tenant = Tenant(Some(tenant.into()));
            let request = ValidRequest { tenant, ..ValidRequest::generate(id, vec![1], Generation::default()) };
            Compiling { request, events: Vec::new(), since: Instant::now(), shown: None }
        });
        let order: Vec<u64> = in_turns(waiting.into()).iter().map(|compiling| compiling.request.id).collect();
        assert_eq!(order, [1, 4, 5, 2, 6, 3]);
    }
}
