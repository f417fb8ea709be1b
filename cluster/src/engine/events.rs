//! A request's events on their way to its reader, who may be a little behind but holds nobody up.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::Stream;
use tokio::sync::mpsc;

use super::{EngineError, Event, FinishReason, MAX_EVENTS_BEHIND, Token, Usage};

/// A request's events, as whoever runs it sends them. Dropped before the request's end, it fails it as
/// [`EngineError::Stopped`].
#[derive(Debug)]
pub struct EventSender {
    events: mpsc::Sender<Event>,
    started: bool,
    /// The place of the last event, so that there always is one; `None` once it is sent.
    end: Option<mpsc::OwnedPermit<Event>>,
}

/// Nobody reads the request's events: drop its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the request's events any more")]
pub struct ReaderGone;

/// A request's events from whoever runs it to its reader, [`MAX_EVENTS_BEHIND`] and the last one between them.
pub fn event_channel() -> (EventSender, EventStream) {
    let (events, stream) = mpsc::channel(MAX_EVENTS_BEHIND + 1);
    // A fresh channel has room, so there is a place.
    let end = events.clone().try_reserve_owned().ok();
    (EventSender { events, started: false, end }, EventStream(stream))
}

impl EventSender {
    /// Says that the prompt is computed, with so many of its tokens from the prefix cache. Only the first call does: a sequence
    /// that lost its blocks computes its prompt again.
    ///
    /// # Errors
    /// As [`EventSender::send`].
    pub fn start(&mut self, cached_tokens: usize) -> Result<(), ReaderGone> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        self.send_event(Event::Started { cached_tokens })
    }

    /// Sends a token; never waits.
    ///
    /// # Errors
    /// The reader dropped its stream, or is more than [`MAX_EVENTS_BEHIND`] tokens behind and has been told so.
    pub fn send(&mut self, token: Token) -> Result<(), ReaderGone> {
        self.send_event(Event::Token(token))
    }

    /// Sends the prompt's log-probabilities, before any token.
    ///
    /// # Errors
    /// As [`EventSender::send`].
    pub fn send_prompt(&mut self, tokens: Vec<Option<Token>>) -> Result<(), ReaderGone> {
        self.send_event(Event::Prompt(tokens))
    }

    /// Sends the prompt's embedding.
    ///
    /// # Errors
    /// As [`EventSender::send`].
    pub fn send_embedding(&mut self, values: Vec<f32>) -> Result<(), ReaderGone> {
        self.send_event(Event::Embedding(values))
    }

    /// Sends any event; one that is the last ends the events.
    ///
    /// # Errors
    /// As [`EventSender::send`].
    pub fn send_event(&mut self, event: Event) -> Result<(), ReaderGone> {
        if event.is_last() {
            self.end_with(event);
            return Ok(());
        }
        if self.end.is_none() {
            return Err(ReaderGone);
        }
        self.events.try_send(event).map_err(|error| {
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

    /// Completes when the reader has dropped the stream.
    pub async fn closed(&self) {
        self.events.closed().await;
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

/// A request's events, to their end: after [`Event::Finished`] or [`Event::Failed`] there are none. Dropping it cancels
/// the request. Read it from a task as a [`Stream`], or with [`EventStream::blocking_next`] from a thread.
#[derive(Debug)]
pub struct EventStream(mpsc::Receiver<Event>);

impl EventStream {
    /// The next event, for a thread of its own; `None` after the last.
    ///
    /// # Panics
    /// Inside an async context, where it would block the runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        let event = self.0.blocking_recv();
        self.close_after(event.as_ref());
        event
    }

    /// Nothing is waited for after the last event, though its sender may be kept.
    fn close_after(&mut self, event: Option<&Event>) {
        if event.is_some_and(Event::is_last) {
            self.0.close();
        }
    }
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = ready!(self.0.poll_recv(context));
        self.close_after(event.as_ref());
        Poll::Ready(event)
    }
}
