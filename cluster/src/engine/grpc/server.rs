//! The engine's end: any engine, served to front doors in other processes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::time::{interval, timeout};
use tonic::{Request, Response, Status, Streaming};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::engine_input::Input;
use tramontane_proto::v1::engine_server::{Engine as Service, EngineServer};

use super::event_wire::{event_to_pb, report_to_pb};
use super::mark_wire;
use super::request_wire::request_from_pb;
use super::{FIRST_MESSAGE, MAX_EVENT, MAX_RUNS, REPORT_EVERY, SIGN_OF_LIFE};
use crate::engine::{Engine, EngineStatus, Event, EventStream, ValidRequest};
use crate::tls::{Role, Security};
use crate::transport::{self, MAX_MESSAGE, ServerError, Stop};

/// Serves `engine` on `listener` until `shutdown` completes: then what runs is broken off.
///
/// # Errors
/// The transport broke.
pub async fn serve_engine(
    engine: Arc<dyn Engine>,
    listener: TcpListener,
    security: Security,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServerError> {
    let (signal, stop) = Stop::after(shutdown);
    let service = EngineServer::new(Served { engine, stop })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_EVENT);
    let incoming = transport::incoming(listener, &security, Role::Gateway)?;
    // A call a request, and the reports.
    let server = transport::server().max_concurrent_streams(MAX_RUNS + 1);
    Ok(server.serve_with_incoming_shutdown(service, incoming, signal).await?)
}

struct Served {
    engine: Arc<dyn Engine>,
    stop: Stop,
}

#[tonic::async_trait]
impl Service for Served {
    type WatchStream = BoxStream<'static, Result<pb::EngineReport, Status>>;
    type RunStream = BoxStream<'static, Result<pb::EngineEvent, Status>>;

    async fn watch(&self, _: Request<pb::EngineWatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let reports = reports(self.engine.clone());
        Ok(Response::new(reports.take_until(self.stop.clone().stopped()).boxed()))
    }

    async fn run(&self, request: Request<Streaming<pb::EngineInput>>) -> Result<Response<Self::RunStream>, Status> {
        let mark = mark_wire::read(request.metadata().as_ref());
        let mut inputs = request.into_inner();
        let first = timeout(FIRST_MESSAGE, inputs.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded(format!("no request within {FIRST_MESSAGE:?}")))??;
        let Some(pb::EngineInput { input: Some(Input::Request(request)) }) = first else {
            return Err(Status::invalid_argument("the first message is no request"));
        };
        let request = request_from_pb(request, Instant::now())
            .map_err(|malformed| Status::invalid_argument(malformed.to_string()))?;
        let choices = request.streams();
        let run = match self.engine.submit(ValidRequest { mark, ..request }) {
            Ok(streams) => Run::new(inputs, streams).boxed(),
            Err(error) => {
                let failed = move |place| Ok(event_to_pb(place, Event::Failed(error.clone())));
                stream::iter((0..choices).map(failed)).boxed()
            }
        };
        Ok(Response::new(run.take_until(self.stop.clone().stopped()).boxed()))
    }
}

/// How `engine` fares: at once, when it changes, and as a sign of life.
fn reports(engine: Arc<dyn Engine>) -> impl Stream<Item = Result<pb::EngineReport, Status>> + Send {
    let last: Option<(EngineStatus, Instant)> = None;
    stream::unfold((engine, interval(REPORT_EVERY), last), |(engine, mut ticks, mut last)| async move {
        loop {
            ticks.tick().await;
            let (status, now) = (engine.status(), Instant::now());
            if last.is_none_or(|(before, at)| before != status || now.duration_since(at) >= SIGN_OF_LIFE) {
                last = Some((status, now));
                return Some((Ok(report_to_pb(engine.info(), status)), (engine, ticks, last)));
            }
        }
    })
}

/// The events of a request's choices, as fast as they are taken, until all have ended or are cancelled. What is not taken stays
/// with the engine, which loses its patience with slow readers by itself.
struct Run<I> {
    /// `None` when nothing more is said.
    inputs: Option<I>,
    /// `None` where a choice has ended, or nobody wants it.
    choices: Vec<Option<EventStream>>,
    /// Whose turn it is.
    next: usize,
}

impl<I: Stream<Item = Result<pb::EngineInput, Status>> + Unpin> Run<I> {
    fn new(inputs: I, choices: Vec<EventStream>) -> Self {
        Self { inputs: Some(inputs), choices: choices.into_iter().map(Some).collect(), next: 0 }
    }

    /// Takes what the front door says. An error when it is none of what it may say, or the front door is gone.
    fn listen(&mut self, context: &mut Context<'_>) -> Result<(), Status> {
        while let Some(inputs) = &mut self.inputs {
            match inputs.poll_next_unpin(context) {
                Poll::Pending => break,
                Poll::Ready(None) => self.inputs = None,
                Poll::Ready(Some(Err(gone))) => return Err(gone),
                Poll::Ready(Some(Ok(pb::EngineInput { input: Some(Input::Cancel(place)) }))) => {
                    // One that has ended meanwhile, or was never there, is as good as cancelled.
                    self.choices.get_mut(place as usize).into_iter().for_each(|choice| *choice = None);
                }
                Poll::Ready(Some(Ok(_))) => return Err(Status::invalid_argument("a second request in one call")),
            }
        }
        Ok(())
    }
}

impl<I: Stream<Item = Result<pb::EngineInput, Status>> + Unpin> Stream for Run<I> {
    type Item = Result<pb::EngineEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Err(status) = self.listen(context) {
            self.choices.clear();
            self.inputs = None;
            return Poll::Ready(Some(Err(status)));
        }
        let choices = self.choices.len();
        for place in (self.next..choices).chain(0..self.next) {
            let Some(events) = &mut self.choices[place] else { continue };
            let Poll::Ready(event) = events.poll_next_unpin(context) else { continue };
            // An engine ends each stream with an event that says how.
            let event = event.unwrap_or(Event::Failed(crate::engine::EngineError::Stopped));
            if event.is_last() {
                self.choices[place] = None;
            }
            self.next = (place + 1) % choices;
            return Poll::Ready(Some(Ok(event_to_pb(place, event))));
        }
        if self.choices.iter().all(Option::is_none) { Poll::Ready(None) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::engine::{EventSender, Token, event_channel};

    type Said = Result<pb::EngineInput, Status>;

    fn run(choices: usize) -> (mpsc::Sender<Said>, Vec<EventSender>, Run<ReceiverStream<Said>>) {
        let (inputs, said) = mpsc::channel(8);
        let (senders, streams) = (0..choices).map(|_| event_channel()).unzip();
        (inputs, senders, Run::new(ReceiverStream::new(said), streams))
    }

    fn token(id: u32) -> Token {
        Token { id, logprob: 0.0, top: Vec::new() }
    }

    fn cancel(place: u32) -> Result<pb::EngineInput, Status> {
        Ok(pb::EngineInput { input: Some(Input::Cancel(place)) })
    }

    #[tokio::test]
    async fn choices_take_turns_and_a_cancelled_one_is_dropped() {
        let (inputs, mut senders, mut run) = run(3);
        for sender in &mut senders {
            (0..2).for_each(|id| sender.send(token(id)).expect("a reader"));
        }
        let mut order = Vec::new();
        for _ in 0..4 {
            order.push(run.next().await.expect("an event").expect("no status").choice);
        }
        assert_eq!(order, [0, 1, 2, 0]);
        inputs.send(cancel(1)).await.expect("it listens");
        inputs.send(cancel(7)).await.expect("it listens");
        assert_eq!(run.next().await.expect("an event").expect("no status").choice, 2);
        assert_eq!(senders.iter().map(EventSender::is_closed).collect::<Vec<_>>(), [false, true, false]);
        assert!(run.next().now_or_never().is_none(), "two go on");
        drop(senders);
        assert_eq!(run.by_ref().collect::<Vec<_>>().await.len(), 2, "both have an end");
    }

    #[tokio::test]
    async fn a_front_door_that_goes_or_says_what_it_may_not_cancels_all() {
        let second = Ok(pb::EngineInput { input: Some(Input::Request(pb::EngineRequest::default())) });
        for wrong in [Err(Status::cancelled("gone")), second, Ok(pb::EngineInput::default())] {
            let (inputs, senders, mut run) = run(2);
            inputs.send(wrong).await.expect("it listens");
            assert!(run.next().await.expect("an answer").is_err());
            assert!(senders.iter().all(EventSender::is_closed));
            assert!(run.next().await.is_none());
        }
    }

    #[tokio::test]
    async fn a_front_door_that_has_said_everything_is_answered() {
        let (inputs, mut senders, mut run) = run(1);
        drop(inputs);
        senders[0].send(token(5)).expect("a reader");
        assert!(run.next().await.expect("an event").is_ok());
    }
}
