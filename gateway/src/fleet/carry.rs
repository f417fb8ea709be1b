//! One request on its way: to an engine, from there to its readers, and on to another engine when that one is gone.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use futures::future::join_all;
use tokio::time::{sleep_until, timeout_at};
use tramontane_cluster::engine::{EngineError, Event, EventSender, EventStream, Task, ValidRequest};
use tramontane_cluster::trace::{Kind, TraceSpan};

use super::choose::Beginning;
use super::members::{InFlight, Member, Members};
use super::resume::Told;
use super::{LOOK_AGAIN, MAX_LOSSES, MAX_OUTAGES, PATIENCE};
use crate::error::ApiError;
use crate::shown::names;

/// The span of a request's run at an engine.
const RUN: &str = "run";

/// A request, and who may run it.
pub(super) struct Carrier {
    members: Members,
    request: ValidRequest,
    beginning: Beginning,
}

/// A choice that an engine runs.
struct Running {
    /// An event that has come already.
    first: Option<Event>,
    events: EventStream,
    at: InFlight,
    /// What is shown of its run there.
    shown: TraceSpan,
}

/// Whether readers have been told anything yet: who has not can be refused, who has is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fresh,
    Begun,
}

/// What a request has cost so far.
#[derive(Clone, Copy, Debug, Default)]
struct Losses {
    /// Engines that were lost with it.
    engines: usize,
    /// Engines that found no experts for it.
    outages: usize,
}

/// What finding an engine has come to so far.
#[derive(Clone, Default)]
struct Search {
    losses: Losses,
    /// Engines not to be asked again before something changes.
    not: Vec<Arc<Member>>,
    /// Why the last one did not take it.
    refusal: Option<EngineError>,
}

impl Losses {
    fn count(&mut self, error: &EngineError) {
        self.engines += usize::from(*error == EngineError::Stopped);
        self.outages += usize::from(matches!(error, EngineError::ExpertsUnavailable { .. }));
    }

    fn are_too_many(self) -> bool {
        self.engines > MAX_LOSSES || self.outages > MAX_OUTAGES
    }
}

impl Running {
    async fn next(&mut self) -> Event {
        match self.first.take() {
            Some(event) => event,
            // An engine ends each stream with an event that says how.
            None => self.events.next().await.unwrap_or(Event::Failed(EngineError::Stopped)),
        }
    }
}

impl Carrier {
    pub(super) fn new(members: Members, request: ValidRequest) -> Self {
        let beginning = Beginning::of(&request);
        Self { members, request, beginning }
    }

    /// Carries the request to its end; `events` are its choices' readers.
    pub(super) async fn carry(&self, events: Vec<EventSender>) {
        let mut search = Search::default();
        let begun = tokio::select! {
            begun = self.begin(self.request.clone(), Stage::Fresh, &mut search) => begun,
            () = all_gone(&events) => return,
        };
        match begun {
            Ok(choices) => {
                let told = (0..).zip(choices).zip(events);
                let told = told.map(|((place, running), events)| self.tell(place, running, events, search.losses));
                join_all(told).await;
            }
            Err(error) => events.into_iter().for_each(|events| events.fail(error.clone())),
        }
    }

    /// Tells a choice's reader what an engine says, and what the next one says when that one is gone.
    async fn tell(&self, place: u32, mut running: Running, mut events: EventSender, losses: Losses) {
        let (mut told, mut losses) = (Told::default(), losses);
        loop {
            let event = tokio::select! {
                event = running.next() => event,
                () = events.closed() => return,
            };
            match &event {
                Event::Failed(error) if is_the_engines(error) => {
                    running.shown.fail(word(error));
                    let mut search = Search { losses, not: vec![running.at.member().clone()], refusal: None };
                    search.count(error);
                    if search.losses.are_too_many() {
                        return events.fail(error.clone());
                    }
                    let rest = told.rest_of(&self.request, place);
                    drop(running);
                    let found = tokio::select! {
                        found = self.begin(rest, Stage::Begun, &mut search) => found,
                        () = events.closed() => return,
                    };
                    losses = search.losses;
                    match found.map(|mut choices| choices.pop()) {
                        Ok(Some(next)) => running = next,
                        Ok(None) => return events.fail(EngineError::Stopped),
                        Err(error) => return events.fail(error),
                    }
                }
                event if !told.note(event) => {}
                _ => {
                    let last = event.is_last();
                    if events.send_event(event).is_err() || last {
                        return;
                    }
                }
            }
        }
    }

    /// Finds an engine that takes `request`: its choices, the first of which has brought an event.
    async fn begin(
        &self,
        request: ValidRequest,
        stage: Stage,
        search: &mut Search,
    ) -> Result<Vec<Running>, EngineError> {
        let until = Instant::now() + PATIENCE;
        let until = request.deadline.map_or(until, |deadline| deadline.min(until));
        let mut changes = self.members.changes();
        loop {
            changes.mark_unchanged();
            while let Some(member) = self.members.choose(&self.beginning, &search.not) {
                match attempt(&member, request.clone()).await {
                    Ok(choices) => return Ok(choices),
                    Err(error) if is_the_engines(&error) || matches!(error, EngineError::Overloaded { .. }) => {
                        search.count(&error);
                        search.not.push(member);
                        if search.losses.are_too_many() {
                            return Err(error);
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            match search.refusal.take() {
                Some(overloaded @ EngineError::Overloaded { .. }) if stage == Stage::Fresh => return Err(overloaded),
                // It has waited long enough there, and nobody else is there to ask.
                Some(unavailable @ EngineError::ExpertsUnavailable { .. }) => return Err(unavailable),
                _ if request.deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                    return Err(EngineError::DeadlineExceeded);
                }
                refusal if until <= Instant::now() => return Err(refusal.unwrap_or(EngineError::Stopped)),
                refusal => search.refusal = refusal,
            }
            let look = until.min(Instant::now() + LOOK_AGAIN);
            // An error means that it is time to look again, or that there is nothing to be heard of.
            if let Ok(Err(_)) = timeout_at(look.into(), changes.changed()).await {
                sleep_until(look.into()).await;
            }
            search.not.clear();
        }
    }
}

impl Search {
    /// Notes why an engine did not run the request (on).
    fn count(&mut self, error: &EngineError) {
        self.losses.count(error);
        // Of several that are overloaded, the one that will have room first.
        self.refusal = match (self.refusal.take(), error) {
            (Some(EngineError::Overloaded { retry_after: a }), EngineError::Overloaded { retry_after: b }) => {
                Some(EngineError::Overloaded { retry_after: a.min(*b) })
            }
            (Some(overloaded @ EngineError::Overloaded { .. }), _) => Some(overloaded),
            (
                Some(unavailable @ EngineError::ExpertsUnavailable { .. }),
                EngineError::Stopped | EngineError::Draining,
            ) => Some(unavailable),
            (_, error) => Some(error.clone()),
        };
    }
}

/// Whether `error` is the engine's affair, so that another may go on: it stops, leaves, or reaches no experts where another may.
fn is_the_engines(error: &EngineError) -> bool {
    matches!(error, EngineError::Stopped | EngineError::Draining | EngineError::ExpertsUnavailable { .. })
}

/// Asks `member` to run `request`: its choices, or why it does not. The first choice's first event says which: until it has
/// come nobody has been told anything, so that all of it can be asked of another engine.
async fn attempt(member: &Arc<Member>, mut request: ValidRequest) -> Result<Vec<Running>, EngineError> {
    let shown = show(member, &request);
    request.mark.trace = shown.context().cloned();
    let places = (0..request.streams()).map(|_| member.begin()).collect::<Vec<_>>();
    let streams = member.engine.submit(request).inspect_err(|error| shown.fail(word(error)))?;
    let running = |(events, at)| Running { first: None, events, at, shown: shown.clone() };
    let mut choices: Vec<Running> = streams.into_iter().zip(places).map(running).collect();
    let Some(first) = choices.first_mut() else { return Err(EngineError::Stopped) };
    match first.next().await {
        Event::Failed(error) => {
            shown.fail(word(&error));
            Err(error)
        }
        event => {
            first.first = Some(event);
            Ok(choices)
        }
    }
}

/// What is shown of `request`'s run at `member`.
fn show(member: &Member, request: &ValidRequest) -> TraceSpan {
    let shown = TraceSpan::begin(RUN, Kind::Client, request.mark.trace.as_ref());
    if shown.is_shown() {
        shown.set(names::ENGINE, member.id().to_owned());
        if let Task::Generate(generation) = &request.task {
            shown.count(names::RESUMED_AFTER, generation.resume_after.len());
        }
    }
    shown
}

/// The word for `error`.
fn word(error: &EngineError) -> &'static str {
    ApiError::Engine(error.clone()).names().reason()
}

async fn all_gone(events: &[EventSender]) {
    for events in events {
        events.closed().await;
    }
}
