//! The engine in this process: requests go through a bounded queue to the loop of a thread that owns the model.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tokio::sync::mpsc;

use super::{Engine, EngineError, Event, EventStream, FinishReason, MAX_EVENTS_BEHIND, Token, Usage, ValidRequest};

/// An engine and the inbox of its loop, with at most `capacity` requests between them (at least one); a request over
/// that is refused as [`EngineError::Overloaded`].
pub fn in_process(capacity: usize) -> (InProcessEngine, EngineInbox) {
    let (requests, submitted) = sync_channel(capacity.max(1));
    (InProcessEngine { requests }, EngineInbox { submitted })
}

/// The front door's end.
#[derive(Clone, Debug)]
pub struct InProcessEngine {
    requests: SyncSender<Submission>,
}

impl Engine for InProcessEngine {
    fn submit(&self, request: ValidRequest) -> Result<EventStream, EngineError> {
        let (events, stream) = event_channel()?;
        match self.requests.try_send(Submission { request, events }) {
            Ok(()) => Ok(stream),
            Err(TrySendError::Full(_)) => Err(EngineError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(EngineError::Stopped),
        }
    }
}

/// The loop's end. When it is dropped, what still waits fails as [`EngineError::Stopped`].
#[derive(Debug)]
pub struct EngineInbox {
    submitted: Receiver<Submission>,
}

impl EngineInbox {
    /// The next submission if one waits: for a loop that has work.
    pub fn try_recv(&self) -> Option<Submission> {
        self.submitted.try_recv().ok()
    }

    /// Waits for the next submission: for a loop that has none. `None` when every [`InProcessEngine`] is gone.
    pub fn recv(&self) -> Option<Submission> {
        self.submitted.recv().ok()
    }
}

/// A request on its way into the loop.
#[derive(Debug)]
pub struct Submission {
    /// What to do.
    pub request: ValidRequest,
    /// Where its events go.
    pub events: EventSender,
}

/// A request's events, as the loop sends them. Dropped before the request's end, it fails it as
/// [`EngineError::Stopped`].
#[derive(Debug)]
pub struct EventSender {
    events: mpsc::Sender<Event>,
    /// The place of the last event, so that there always is one; `None` once it is sent.
    end: Option<mpsc::OwnedPermit<Event>>,
}

/// Nobody reads the request's events: drop its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the request's events any more")]
pub struct ReaderGone;

fn event_channel() -> Result<(EventSender, EventStream), EngineError> {
    let (events, stream) = mpsc::channel(MAX_EVENTS_BEHIND + 1);
    // A fresh channel has room, so this does not fail.
    let end = events.clone().try_reserve_owned().map_err(|_| EngineError::Stopped)?;
    Ok((EventSender { events, end: Some(end) }, EventStream(stream)))
}

impl EventSender {
    /// Sends a token; never waits.
    ///
    /// # Errors
    /// The reader dropped its stream, or is more than [`MAX_EVENTS_BEHIND`] tokens behind and has been told so.
    pub fn send(&mut self, token: Token) -> Result<(), ReaderGone> {
        if self.end.is_none() {
            return Err(ReaderGone);
        }
        self.events.try_send(Event::Token(token)).map_err(|error| {
            self.end_with(match error {
                mpsc::error::TrySendError::Full(_) => Event::Failed(EngineError::SlowReader),
                mpsc::error::TrySendError::Closed(_) => Event::Failed(EngineError::Stopped),
            });
            ReaderGone
        })
    }

    /// Whether the request is cancelled: its reader has dropped the stream.
    pub fn is_closed(&self) -> bool {
        self.events.is_closed()
    }

    /// Ends the request's events well.
    pub fn finish(mut self, reason: FinishReason, usage: Usage) {
        self.end_with(Event::Finished { reason, usage });
    }

    /// Ends them badly.
    pub fn fail(mut self, error: EngineError) {
        self.end_with(Event::Failed(error));
    }

    fn end_with(&mut self, event: Event) {
        if let Some(place) = self.end.take() {
            place.send(event);
        }
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.end_with(Event::Failed(EngineError::Stopped));
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::super::Sampling;
    use super::*;

    fn request(id: u64) -> ValidRequest {
        let sampling = Sampling { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0 };
        ValidRequest { id, prompt: vec![1, 2], max_tokens: 3, sampling, stop_tokens: vec![0], logprobs: None }
    }

    fn token(id: u32) -> Token {
        Token { id, logprob: -0.5, top: Vec::new() }
    }

    const USAGE: Usage = Usage { prompt_tokens: 2, completion_tokens: 1 };

    #[tokio::test]
    async fn events_reach_a_task_that_reads_while_a_thread_sends() {
        let (engine, inbox) = in_process(1);
        let engine_loop = std::thread::spawn(move || {
            while let Some(Submission { request, mut events }) = inbox.recv() {
                for id in request.prompt {
                    events.send(token(id)).expect("a reader");
                }
                events.finish(FinishReason::Length, USAGE);
            }
        });
        let events: Vec<_> = engine.submit(request(7)).expect("room").collect().await;
        let end = Event::Finished { reason: FinishReason::Length, usage: USAGE };
        assert_eq!(events, [Event::Token(token(1)), Event::Token(token(2)), end]);
        drop(engine);
        engine_loop.join().expect("the loop ends when its engines are gone");
    }

    #[test]
    fn a_full_queue_refuses_and_order_is_kept() {
        let (engine, inbox) = in_process(2);
        let streams: Vec<_> = (0..2).map(|id| engine.submit(request(id)).expect("room")).collect();
        assert_eq!(engine.submit(request(2)).expect_err("full"), EngineError::Overloaded);
        assert_eq!(inbox.try_recv().map(|s| s.request.id), Some(0));
        let again = engine.submit(request(3)).expect("room again");
        assert_eq!(inbox.try_recv().map(|s| s.request.id), Some(1));
        assert_eq!(inbox.try_recv().map(|s| s.request.id), Some(3));
        assert!(inbox.try_recv().is_none());
        drop((streams, again));
    }

    #[test]
    fn dropping_the_stream_cancels() {
        let (engine, inbox) = in_process(1);
        let stream = engine.submit(request(0)).expect("room");
        let mut events = inbox.recv().expect("a submission").events;
        assert!(!events.is_closed());
        drop(stream);
        assert!(events.is_closed());
        assert_eq!(events.send(token(1)), Err(ReaderGone));
    }

    #[test]
    fn a_stopped_engine_fails_what_waits_and_refuses_the_rest() {
        let (engine, inbox) = in_process(2);
        let (mut running, mut waiting) =
            (engine.submit(request(0)).expect("room"), engine.submit(request(1)).expect("room"));
        let begun = inbox.recv().expect("a submission");
        drop((begun, inbox));
        for stream in [&mut running, &mut waiting] {
            assert_eq!(stream.blocking_next(), Some(Event::Failed(EngineError::Stopped)));
            assert_eq!(stream.blocking_next(), None);
        }
        assert_eq!(engine.submit(request(2)).expect_err("stopped"), EngineError::Stopped);
    }

    #[test]
    fn a_reader_too_far_behind_gets_what_was_sent_and_is_told() {
        let (engine, inbox) = in_process(1);
        let mut stream = engine.submit(request(0)).expect("room");
        let mut events = inbox.recv().expect("a submission").events;
        for id in 0..MAX_EVENTS_BEHIND as u32 {
            assert_eq!(events.send(token(id)), Ok(()));
        }
        assert_eq!(events.send(token(9)), Err(ReaderGone));
        for id in 0..MAX_EVENTS_BEHIND as u32 {
            assert_eq!(stream.blocking_next(), Some(Event::Token(token(id))));
        }
        assert_eq!(events.send(token(9)), Err(ReaderGone), "there is room, but the end has been sent");
        assert_eq!(stream.blocking_next(), Some(Event::Failed(EngineError::SlowReader)));
        drop(events);
        assert_eq!(stream.blocking_next(), None);
    }

    #[test]
    fn a_failure_is_the_last_event() {
        let (engine, inbox) = in_process(1);
        let mut stream = engine.submit(request(0)).expect("room");
        let error = EngineError::InvalidRequest { why: "too long".into() };
        inbox.recv().expect("a submission").events.fail(error.clone());
        assert_eq!(stream.blocking_next(), Some(Event::Failed(error)));
        assert_eq!(stream.blocking_next(), None);
    }
}
