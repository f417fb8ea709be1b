//! An answer as server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use serde::Serialize;

use super::super::reply::ErrorBody;
use super::Manner;
use crate::error::ApiError;
use crate::frontdoor::{Answer, Step, UsageSoFar};

/// How often a comment says that the connection lives, when nothing else does.
const PING: Duration = Duration::from_secs(15);

/// Writes an answer's chunks.
pub(crate) trait Render: Send + 'static {
    /// A chunk.
    type Chunk: Serialize;

    /// The chunks of a step; `usage` where each is to say it.
    fn step(&mut self, step: Step, usage: Option<UsageSoFar>) -> Result<Vec<Self::Chunk>, ApiError>;

    /// The last chunk, which says the usage.
    fn usage(&self, usage: UsageSoFar) -> Self::Chunk;
}

/// Answers with a stream, once the engine's first event has come: until then an error has a status of its own.
///
/// # Errors
/// What the first event says.
pub(crate) async fn stream<R: Render>(mut answer: Answer, manner: Manner, render: R) -> Result<Response, ApiError> {
    let first = answer.next().await.transpose()?;
    let mut stream = Stream { answer, manner, render, chunks: VecDeque::new(), state: State::Running };
    if let Some(step) = first {
        stream.take(step)?;
    }
    let events = futures::stream::unfold(stream, |mut stream| async move {
        let event = stream.next().await?;
        Some((Ok::<_, Infallible>(event), stream))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(PING).text("ping")).into_response();
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

struct Stream<R> {
    answer: Answer,
    manner: Manner,
    render: R,
    chunks: VecDeque<String>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// Everything has been said but `[DONE]`.
    Ending,
    Ended,
}

impl<R: Render> Stream<R> {
    /// The next event; `None` after the last. Dropping the future loses nothing.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(chunk) = self.chunks.pop_front() {
                return Some(Event::default().data(chunk));
            }
            match self.state {
                State::Ended => return None,
                State::Ending => {
                    self.state = State::Ended;
                    return Some(Event::default().data("[DONE]"));
                }
                State::Running => {}
            }
            let taken = match self.answer.next().await {
                Some(Ok(step)) => self.take(step),
                Some(Err(error)) => Err(error),
                None => self.end(),
            };
            if let Err(error) = taken {
                self.answer.failed_in_mid_stream(&error);
                self.state = State::Ended;
                self.chunks.clear();
                return Some(Event::default().data(json(&ErrorBody::from(&error)).unwrap_or_default()));
            }
        }
    }

    fn take(&mut self, step: Step) -> Result<(), ApiError> {
        let usage = self.manner.options.continuous_usage_stats.unwrap_or(false).then(|| self.answer.usage());
        for chunk in self.render.step(step, usage)? {
            self.chunks.push_back(json(&chunk)?);
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), ApiError> {
        self.state = State::Ending;
        if self.manner.options.include_usage == Some(true) {
            self.chunks.push_back(json(&self.render.usage(self.answer.usage()))?);
        }
        Ok(())
    }
}

fn json(value: &impl Serialize) -> Result<String, ApiError> {
    serde_json::to_string(value).map_err(|_| ApiError::Internal { why: "an answer is not JSON" })
}
