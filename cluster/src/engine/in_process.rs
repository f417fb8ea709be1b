//! The engine in this process: requests go through a bounded queue to the loop of a thread that owns the model.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{
    Engine, EngineError, EngineInfo, EngineStatus, EventSender, EventStream, Phase, ValidRequest, event_channel,
};

/// How long whoever finds the queue to the loop full should wait: the loop empties it at every step.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An engine that serves `info`, and the inbox of its loop, with at most `capacity` requests between them (at least one); a
/// request over that is refused as [`EngineError::Overloaded`].
pub fn in_process(info: EngineInfo, capacity: usize) -> (InProcessEngine, EngineInbox) {
    let (requests, submitted) = sync_channel(capacity.max(1));
    let shared = Arc::new(Shared { info, draining: AtomicBool::new(false), status: Mutex::default() });
    (InProcessEngine { requests, shared: shared.clone() }, EngineInbox { submitted, shared })
}

/// What both ends see.
#[derive(Debug)]
struct Shared {
    info: EngineInfo,
    draining: AtomicBool,
    status: Mutex<EngineStatus>,
}

/// The front door's end.
#[derive(Clone, Debug)]
pub struct InProcessEngine {
    requests: SyncSender<Submission>,
    shared: Arc<Shared>,
}

impl InProcessEngine {
    /// Takes no more requests; those it has go on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }
}

impl Engine for InProcessEngine {
    fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    fn status(&self) -> EngineStatus {
        let mut status = *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        if status.phase == Phase::Ready && self.shared.draining.load(Ordering::Relaxed) {
            status.phase = Phase::Draining;
        }
        status
    }

    fn submit(&self, request: ValidRequest) -> Result<Vec<EventStream>, EngineError> {
        if self.shared.draining.load(Ordering::Relaxed) {
            return Err(EngineError::Draining);
        }
        let mut events = Vec::with_capacity(request.streams());
        let mut streams = Vec::with_capacity(request.streams());
        for _ in 0..request.streams() {
            let (sender, stream) = event_channel();
            events.push(sender);
            streams.push(stream);
        }
        match self.requests.try_send(Submission { request, events }) {
            Ok(()) => Ok(streams),
            Err(TrySendError::Full(_)) => Err(EngineError::Overloaded { retry_after: RETRY_AFTER }),
            Err(TrySendError::Disconnected(_)) => Err(EngineError::Stopped),
        }
    }
}

/// The loop's end. When it is dropped, what still waits fails as [`EngineError::Stopped`].
#[derive(Debug)]
pub struct EngineInbox {
    submitted: Receiver<Submission>,
    shared: Arc<Shared>,
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

    /// The same, but not for longer than `patience`: `Ok(None)` when nothing came.
    ///
    /// # Errors
    /// [`EnginesGone`] when every [`InProcessEngine`] is gone.
    pub fn recv_timeout(&self, patience: Duration) -> Result<Option<Submission>, EnginesGone> {
        match self.submitted.recv_timeout(patience) {
            Ok(submission) => Ok(Some(submission)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(EnginesGone),
        }
    }

    /// What the engine serves.
    pub fn info(&self) -> &EngineInfo {
        &self.shared.info
    }

    /// Tells the front doors how the loop fares.
    pub fn publish(&self, status: EngineStatus) {
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl Drop for EngineInbox {
    fn drop(&mut self) {
        let mut status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner);
        *status = EngineStatus { phase: Phase::Stopped, running: 0, waiting: 0, kv_used: 0, ..*status };
    }
}

/// No front door can submit any more: finish and stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("every front door is gone")]
pub struct EnginesGone;

/// A request on its way into the loop.
#[derive(Debug)]
pub struct Submission {
    /// What to do.
    pub request: ValidRequest,
    /// Where its choices' events go, in order; as many as [`ValidRequest::streams`].
    pub events: Vec<EventSender>,
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::super::{Event, FinishReason, Generation, MAX_EVENTS_BEHIND, ReaderGone, Task, Token, Usage};
    use super::*;

    fn engine(capacity: usize) -> (InProcessEngine, EngineInbox) {
        let info = EngineInfo { model: "m".into(), context: 16, vocab: 8, fingerprint: "f".to_owned() };
        in_process(info, capacity)
    }

    fn request(id: u64) -> ValidRequest {
        ValidRequest::generate(id, vec![1, 2], Generation::default())
    }

    /// The only stream of a request with one choice.
    fn only(mut streams: Vec<EventStream>) -> EventStream {
        assert_eq!(streams.len(), 1);
        streams.remove(0)
    }

    /// The only sender of a request with one choice.
    fn sender(submission: Submission) -> EventSender {
        let mut events = submission.events;
        assert_eq!(events.len(), 1);
        events.remove(0)
    }

    fn token(id: u32) -> Token {
        Token { id, logprob: -0.5, top: Vec::new() }
    }

    const USAGE: Usage = Usage { prompt_tokens: 2, completion_tokens: 1, cached_tokens: 0 };

    #[tokio::test]
    async fn events_reach_a_task_that_reads_while_a_thread_sends() {
        let (engine, inbox) = engine(1);
        let engine_loop = std::thread::spawn(move || {
            while let Some(submission) = inbox.recv() {
                let prompt = submission.request.prompt.clone();
                let mut events = sender(submission);
                for id in prompt {
                    events.send(token(id)).expect("a reader");
                }
                events.finish(FinishReason::Length, USAGE);
            }
        });
        let events: Vec<_> = only(engine.submit(request(7)).expect("room")).collect().await;
        let end = Event::Finished { reason: FinishReason::Length, usage: USAGE };
        assert_eq!(events, [Event::Token(token(1)), Event::Token(token(2)), end]);
        drop(engine);
        engine_loop.join().expect("the loop ends when its engines are gone");
    }

    #[test]
    fn a_request_starts_once() {
        let (engine, inbox) = engine(1);
        let mut stream = only(engine.submit(request(0)).expect("room"));
        let mut events = sender(inbox.recv().expect("a submission"));
        assert_eq!((events.start(3), events.send(token(1)), events.start(0)), (Ok(()), Ok(()), Ok(())));
        events.finish(FinishReason::Length, USAGE);
        assert_eq!(stream.blocking_next(), Some(Event::Started { cached_tokens: 3 }));
        assert_eq!(stream.blocking_next(), Some(Event::Token(token(1))));
        assert!(matches!(stream.blocking_next(), Some(Event::Finished { .. })));
    }

    #[test]
    fn a_full_queue_refuses_and_order_is_kept() {
        let (engine, inbox) = engine(2);
        let streams: Vec<_> = (0..2).map(|id| engine.submit(request(id)).expect("room")).collect();
        assert_eq!(engine.submit(request(2)).expect_err("full"), EngineError::Overloaded { retry_after: RETRY_AFTER });
        assert_eq!(inbox.try_recv().map(|s| s.request.id), Some(0));
        let again = engine.submit(request(3)).expect("room again");
        assert_eq!(inbox.try_recv().map(|s| s.request.id), Some(1));
        assert_eq!(inbox.try_recv().map(|s| s.request.id), Some(3));
        assert!(inbox.try_recv().is_none());
        drop((streams, again));
    }

    #[test]
    fn dropping_the_stream_cancels() {
        let (engine, inbox) = engine(1);
        let stream = only(engine.submit(request(0)).expect("room"));
        let mut events = sender(inbox.recv().expect("a submission"));
        assert!(!events.is_closed());
        drop(stream);
        assert!(events.is_closed());
        assert_eq!(events.send(token(1)), Err(ReaderGone));
    }

    #[test]
    fn a_stopped_engine_fails_what_waits_and_refuses_the_rest() {
        let (engine, inbox) = engine(2);
        let (mut running, mut waiting) =
            (only(engine.submit(request(0)).expect("room")), only(engine.submit(request(1)).expect("room")));
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
        let (engine, inbox) = engine(1);
        let mut stream = only(engine.submit(request(0)).expect("room"));
        let mut events = sender(inbox.recv().expect("a submission"));
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
        let (engine, inbox) = engine(1);
        let mut stream = only(engine.submit(request(0)).expect("room"));
        let error = EngineError::InvalidRequest { why: "too long".into() };
        sender(inbox.recv().expect("a submission")).fail(error.clone());
        assert_eq!(stream.blocking_next(), Some(Event::Failed(error)));
        assert_eq!(stream.blocking_next(), None);
    }

    #[test]
    fn each_choice_has_a_stream_of_its_own() {
        let (engine, inbox) = engine(1);
        let mut request = request(0);
        let Task::Generate(generation) = &mut request.task else { panic!("a generation") };
        generation.choices = 3;
        let mut streams = engine.submit(request).expect("room");
        let Submission { events, .. } = inbox.recv().expect("a submission");
        assert_eq!((streams.len(), events.len()), (3, 3));
        drop(streams.remove(1));
        assert_eq!(events.iter().map(EventSender::is_closed).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn a_draining_engine_takes_nothing_and_says_so() {
        let (engine, inbox) = engine(2);
        let running = engine.submit(request(0)).expect("room");
        inbox.publish(EngineStatus { running: 1, ..EngineStatus::default() });
        engine.drain();
        assert_eq!(engine.submit(request(1)).expect_err("draining"), EngineError::Draining);
        assert_eq!((engine.status().phase, engine.status().running), (Phase::Draining, 1));
        assert!(inbox.try_recv().is_some(), "what was submitted before goes on");
        drop((inbox, running));
        assert_eq!((engine.status().phase, engine.status().running), (Phase::Stopped, 0));
    }
}
