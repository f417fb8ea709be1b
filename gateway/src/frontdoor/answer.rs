//! An answer on its way: the choices' events as they come, merged, counted, and collected for who wants them whole.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use futures::stream::SelectAll;
use futures::{Stream, StreamExt};
use tramontane_cluster::engine::{EngineError, Event, EventStream, Token};

use super::choice::{Choice, ChoiceUsage, End, Piece, Reason, SpokenToken, TextPiece};
use super::job::Length;
use super::tools::{ToolCall, ToolPiece};
use crate::error::ApiError;
use crate::metering::Charge;
use crate::metrics::{ChoiceMetrics, FrontMetrics};
use crate::shown::ShownAnswer;

/// What the choices of a request have in common.
pub(super) struct Group {
    pub(super) prompts: Vec<Arc<[u32]>>,
    /// Choices generated, a prompt; and of these, the number that is answered.
    pub(super) each: usize,
    pub(super) n: u32,
    /// The parameter that holds the constraint.
    pub(super) constraint: Option<&'static str>,
}

/// One event of one choice, in pieces; there may be none.
#[derive(Debug, PartialEq)]
pub struct Step {
    /// The choice's number: those of the first prompt come first.
    pub choice: usize,
    /// What it brought.
    pub pieces: Vec<Piece>,
    /// Tokens that the choice has generated so far.
    pub generated: usize,
}

/// Tokens so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageSoFar {
    /// Of all prompts.
    pub prompt: usize,
    /// Generated, by all choices.
    pub completion: usize,
    /// Of the prompts, found in the prefix cache; `None` when no engine was asked.
    pub cached: Option<usize>,
}

/// A choice's events until its end. After it the engine is not listened to: dropping its stream cancels what is left.
pub(super) struct ChoiceEvents {
    number: usize,
    events: Option<EventStream>,
    choice: Choice,
    length: Length,
    metrics: ChoiceMetrics,
}

impl ChoiceEvents {
    pub(super) fn new(
        number: usize,
        events: EventStream,
        choice: Choice,
        length: Length,
        metrics: ChoiceMetrics,
    ) -> Self {
        Self { number, events: Some(events), choice, length, metrics }
    }

    fn on(&mut self, event: Event) -> Result<Step, ApiError> {
        let now = Instant::now();
        self.metrics.on(&event, now);
        let prompt_came = matches!(event, Event::Prompt(_));
        let mut pieces = self.choice.take(event)?;
        if prompt_came && self.length == Length::PromptOnly {
            pieces.push(Piece::End(nothing(self.choice.cached())));
            self.events = None;
        }
        if self.choice.has_ended() {
            self.events = None;
        }
        for piece in &pieces {
            if let Piece::End(End { reason, .. }) = piece {
                self.metrics.end(reason.name(), now);
            }
        }
        Ok(Step { choice: self.number, pieces, generated: self.choice.generated() })
    }
}

impl Stream for ChoiceEvents {
    type Item = Result<Step, ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(events) = &mut self.events else { return Poll::Ready(None) };
            // An engine ends each stream with an event that says how.
            let event = ready!(events.poll_next_unpin(context)).unwrap_or(Event::Failed(EngineError::Stopped));
            let starts = matches!(event, Event::Started { .. });
            let step = self.on(event);
            if step.is_err() {
                self.events = None;
            }
            // That it starts is nobody's news: a stream begins, and has its status, with what comes of it.
            if !starts {
                return Poll::Ready(Some(step));
            }
        }
    }
}

/// The end of a choice of which only the prompt was wanted.
fn nothing(cached: Option<usize>) -> End {
    End { reason: Reason::Length, usage: ChoiceUsage { completion: 0, cached } }
}

/// An answer. Dropping it cancels what it still waits for.
pub struct Answer {
    group: Group,
    choices: SelectAll<ChoiceEvents>,
    /// Steps that no engine has to make.
    ready: VecDeque<Step>,
    /// Tokens generated, a choice.
    generated: Vec<usize>,
    /// Tokens found in the prefix cache, a prompt.
    cached: Vec<Option<usize>>,
    /// Prompts of which something has come.
    begun: Vec<bool>,
    metrics: FrontMetrics,
    charge: Charge,
    /// What is shown of it, if anything is.
    shown: Option<Box<ShownAnswer>>,
}

/// A choice that has ended, whole.
#[derive(Debug, Default)]
pub struct Whole {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<SpokenToken>,
    /// The calls of tools in it.
    pub calls: Vec<ToolCall>,
    /// The prompt's log-probabilities, where they were asked for, with the prompt's first choice.
    pub prompt: Option<Vec<Option<Token>>>,
    /// The prompt's embedding, where it was asked for.
    pub embedding: Vec<f32>,
    /// Why it ended.
    pub reason: Option<Reason>,
}

impl Answer {
    pub(super) fn new(
        group: Group,
        choices: SelectAll<ChoiceEvents>,
        metrics: FrontMetrics,
        charge: Charge,
        shown: Option<Box<ShownAnswer>>,
    ) -> Self {
        let generated = vec![0; group.prompts.len() * group.each];
        let (cached, begun) = (vec![None; group.prompts.len()], vec![false; group.prompts.len()]);
        Self { group, choices, ready: VecDeque::new(), generated, cached, begun, metrics, charge, shown }
    }

    /// Of prompts after which nothing is wanted, not even their log-probabilities.
    pub(super) fn of_prompts_alone(
        group: Group,
        metrics: FrontMetrics,
        charge: Charge,
        shown: Option<Box<ShownAnswer>>,
    ) -> Self {
        let mut answer = Self::new(group, SelectAll::new(), metrics, charge, shown);
        let step = |choice| Step { choice, pieces: vec![Piece::End(nothing(None))], generated: 0 };
        answer.ready = (0..answer.generated.len()).map(step).collect();
        answer
    }

    /// The next event's pieces; `None` when all choices have ended. After an error there is nothing more.
    pub async fn next(&mut self) -> Option<Result<Step, ApiError>> {
        if let Some(step) = self.ready.pop_front() {
            self.count(&step);
            self.shown.iter_mut().for_each(|shown| shown.step(&step));
            return Some(Ok(step));
        }
        match self.choices.next().await? {
            Ok(step) => {
                self.count(&step);
                self.shown.iter_mut().for_each(|shown| shown.step(&step));
                Some(Ok(step))
            }
            Err(error) => {
                self.choices.clear();
                Some(Err(self.blame(error)))
            }
        }
    }

    fn count(&mut self, step: &Step) {
        self.generated[step.choice] = step.generated;
        self.begun[step.choice / self.group.each] = true;
        for piece in &step.pieces {
            if let Piece::End(End { usage, .. }) = piece {
                self.generated[step.choice] = usage.completion;
                let cached = &mut self.cached[step.choice / self.group.each];
                *cached = cached.or(usage.cached);
            }
        }
    }

    /// It failed when its status had been sent: nobody else counts that.
    pub(crate) fn failed_in_mid_stream(&self, error: &ApiError) {
        self.metrics.reject(error.names().reason());
        self.shown.iter().for_each(|shown| shown.fail(error.names().reason()));
    }

    /// Tokens so far.
    pub fn usage(&self) -> UsageSoFar {
        UsageSoFar {
            prompt: self.group.prompts.iter().map(|prompt| prompt.len()).sum(),
            completion: self.generated.iter().sum(),
            cached: self.cached.iter().copied().sum(),
        }
    }

    /// The prompts' ids.
    pub fn prompts(&self) -> &[Arc<[u32]>] {
        &self.group.prompts
    }

    /// Reads to the end: `n` choices a prompt, of more the best, and what they took together.
    ///
    /// # Errors
    /// The first that a choice brings; the others are cancelled.
    pub async fn whole(mut self) -> Result<(Vec<Whole>, UsageSoFar), ApiError> {
        let mut choices: Vec<Whole> = self.generated.iter().map(|_| Whole::default()).collect();
        while let Some(step) = self.next().await {
            let Step { choice, pieces, .. } = step?;
            pieces.into_iter().for_each(|piece| choices[choice].add(piece));
        }
        let (each, n) = (self.group.each, self.group.n as usize);
        let mut chosen = Vec::with_capacity(self.group.prompts.len() * n);
        while !choices.is_empty() {
            let rest = choices.split_off(each.min(choices.len()));
            chosen.extend(best(std::mem::replace(&mut choices, rest), n));
        }
        Ok((chosen, self.usage()))
    }

    /// An engine's refusal of a constraint names the parameter that it came in.
    fn blame(&self, error: ApiError) -> ApiError {
        match (error, self.group.constraint) {
            (ApiError::Engine(EngineError::InvalidConstraint { why }), Some(param)) => ApiError::param(param, why),
            (error, _) => error,
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let usage = self.usage();
        self.shown.iter_mut().for_each(|shown| shown.end(usage));
        // Of prompts that no engine has come to nothing is charged.
        let begun = self.group.prompts.iter().zip(&self.begun).filter(|(_, begun)| **begun);
        let prompts = begun.map(|(prompt, _)| prompt.len()).reduce(|sum, length| sum + length);
        if let Some(tokens) = prompts {
            self.charge.used(tokens, usage.completion);
        }
    }
}

/// The `n` choices whose tokens have the highest mean log-probability, best first; all of them as they stand if there are no more.
fn best(mut choices: Vec<Whole>, n: usize) -> Vec<Whole> {
    if choices.len() <= n {
        return choices;
    }
    let prompt = choices.first_mut().and_then(|choice| choice.prompt.take());
    choices.sort_by(|a, b| b.mean_logprob().total_cmp(&a.mean_logprob()));
    choices.truncate(n);
    if let Some(first) = choices.first_mut() {
        first.prompt = prompt;
    }
    choices
}

impl Whole {
    fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Prompt(tokens) => self.prompt = Some(tokens),
            Piece::Embedding(values) => self.embedding = values,
            Piece::Text(TextPiece { text, tokens }) => {
                self.text.push_str(&text);
                self.tokens.extend(tokens);
            }
            Piece::Tool(ToolPiece::Begin { id, name, .. }) => {
                self.calls.push(ToolCall { id, name, arguments: String::new() });
            }
            Piece::Tool(ToolPiece::Arguments { text, .. }) => {
                self.calls.last_mut().into_iter().for_each(|call| call.arguments.push_str(&text));
            }
            Piece::Tool(ToolPiece::Content(text)) => self.text.push_str(&text),
            Piece::End(End { reason, .. }) => self.reason = Some(reason),
        }
    }

    fn mean_logprob(&self) -> f32 {
        let sum: f32 = self.tokens.iter().map(|spoken| spoken.token.logprob).sum();
        sum / self.tokens.len().max(1) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(logprobs: &[f32]) -> Whole {
        let tokens =
            logprobs.iter().map(|&logprob| SpokenToken { token: Token { id: 1, logprob, top: vec![] }, offset: 0 });
        Whole { text: format!("{logprobs:?}"), tokens: tokens.collect(), ..Whole::default() }
    }

    #[test]
    fn the_best_have_the_highest_mean_and_the_prompt_stays_with_the_first() {
        let mut choices = vec![whole(&[-3.0]), whole(&[-1.0, -1.0, -1.0]), whole(&[-0.5, -2.5]), whole(&[-0.1])];
        choices[0].prompt = Some(vec![None]);
        let texts: Vec<_> = choices.iter().map(|choice| choice.text.clone()).collect();
        let best = best(choices, 2);
        assert_eq!(best.iter().map(|choice| &choice.text).collect::<Vec<_>>(), [&texts[3], &texts[1]]);
        assert_eq!(best[0].prompt, Some(vec![None]));
    }

    #[test]
    fn as_many_as_asked_for_stay_in_their_order() {
        let best = best(vec![whole(&[-3.0]), whole(&[-1.0])], 2);
        assert_eq!(best[0].text, "[-3.0]");
    }
}
