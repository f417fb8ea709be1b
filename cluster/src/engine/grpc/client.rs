//! The front door's end: an engine in another process.

use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use futures::future::select_all;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::engine_client::EngineClient;
use tramontane_proto::v1::engine_input::Input;

use super::event_wire::{event_from_pb, report_from_pb};
use super::mark_wire;
use super::request_wire::request_to_pb;
use super::{DEADLINE_GRACE, LEAVE, MAX_EVENT, MAX_RUNS, SILENCE};
use crate::due::at;
use crate::engine::{
    Engine, EngineError, EngineInfo, EngineStatus, EventSender, EventStream, Phase, ValidRequest, event_channel,
};
use crate::tls::{Role, Security};
use crate::transport::{self, CONNECT_TIMEOUT, MAX_MESSAGE, causes};

/// How long whoever has [`MAX_RUNS`] requests at an engine should wait with another.
const RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(1);

/// An engine over gRPC. When its connection breaks, or it says nothing for long, it has stopped for good: connect anew.
#[derive(Debug)]
pub struct GrpcEngine {
    info: EngineInfo,
    status: watch::Receiver<EngineStatus>,
    client: EngineClient<Channel>,
    runtime: Handle,
    places: Arc<Semaphore>,
}

/// Nobody answers as an engine there: try again later.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no engine at {addr}: {why}")]
pub struct Unreachable {
    /// Where.
    pub addr: String,
    /// What broke.
    pub why: String,
}

impl GrpcEngine {
    /// Connects to the engine at `addr` (`host:port`), and hears what it serves. Must be called on a tokio runtime, which then
    /// carries its streams.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub async fn connect(addr: &str, security: &Security) -> Result<Self, Unreachable> {
        let unreachable = |why: String| Unreachable { addr: addr.to_owned(), why };
        let channel = transport::connect(addr, security, Role::Coordinator).await.map_err(unreachable)?;
        let mut client =
            EngineClient::new(channel).max_decoding_message_size(MAX_EVENT).max_encoding_message_size(MAX_MESSAGE);
        let opened = timeout(CONNECT_TIMEOUT, async {
            let mut reports = client.watch(pb::EngineWatchRequest {}).await?.into_inner();
            Ok::<_, Status>((reports.message().await?, reports))
        });
        let (first, reports) = match opened.await {
            Ok(Ok((Some(first), reports))) => (first, reports),
            Ok(Ok((None, _))) => return Err(unreachable("it ends".into())),
            Ok(Err(status)) => return Err(unreachable(causes(&status))),
            Err(_) => return Err(unreachable(format!("it said nothing within {CONNECT_TIMEOUT:?}"))),
        };
        let (info, status) = report_from_pb(first).map_err(|malformed| unreachable(malformed.to_string()))?;
        if status.phase == Phase::Stopped {
            return Err(unreachable("it has stopped".into()));
        }
        let (tell, status) = watch::channel(status);
        tokio::spawn(follow(addr.to_owned(), reports, tell));
        let places = Arc::new(Semaphore::new(MAX_RUNS as usize));
        Ok(Self { info, status, client, runtime: Handle::current(), places })
    }

    /// Completes when it has stopped, for whatever reason.
    pub async fn stopped(&self) {
        stopped(self.status.clone()).await;
    }
}

impl Engine for GrpcEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn status(&self) -> EngineStatus {
        *self.status.borrow()
    }

    fn submit(&self, request: ValidRequest) -> Result<Vec<EventStream>, EngineError> {
        match self.status().phase {
            Phase::Ready => {}
            Phase::Draining => return Err(EngineError::Draining),
            Phase::Stopped => return Err(EngineError::Stopped),
        }
        let full = |_| EngineError::Overloaded { retry_after: RETRY_AFTER };
        let place = self.places.clone().try_acquire_owned().map_err(full)?;
        let (events, streams) = (0..request.streams()).map(|_| event_channel()).unzip();
        let run = Run { client: self.client.clone(), status: self.status.clone(), events, _place: place };
        self.runtime.spawn(run.carry(request));
        Ok(streams)
    }
}

/// Takes an engine's reports until there are no more, or nobody wants them.
async fn follow(addr: String, mut reports: Streaming<pb::EngineReport>, tell: watch::Sender<EngineStatus>) {
    let why = loop {
        let report = tokio::select! {
            () = tell.closed() => return,
            report = timeout(SILENCE, reports.message()) => report,
        };
        match report {
            Ok(Ok(Some(report))) => match report_from_pb(report) {
                Ok((_, status)) => {
                    tell.send_if_modified(|now| std::mem::replace(now, status) != status);
                }
                Err(malformed) => break malformed.to_string(),
            },
            Ok(Ok(None)) => break "it ended the reports".to_owned(),
            Ok(Err(status)) => break causes(&status),
            Err(_) => break format!("it said nothing for {SILENCE:?}"),
        }
    };
    tracing::warn!(addr, why, "an engine has stopped");
    tell.send_modify(|status| {
        *status = EngineStatus { phase: Phase::Stopped, running: 0, waiting: 0, kv_used: 0, ..*status };
    });
}

async fn stopped(mut status: watch::Receiver<EngineStatus>) {
    // An error means that nobody follows the engine any more.
    let _ = status.wait_for(|status| status.phase == Phase::Stopped).await;
}

/// One request at the engine. Its readers have events of their own, so that one who is slow holds neither the call up nor the
/// engine.
struct Run {
    client: EngineClient<Channel>,
    status: watch::Receiver<EngineStatus>,
    events: Vec<EventSender>,
    _place: OwnedSemaphorePermit,
}

impl Run {
    /// Carries the request to the engine and its events back. What is left when that ends fails as [`EngineError::Stopped`].
    async fn carry(mut self, request: ValidRequest) {
        let deadline = request.deadline.and_then(|deadline| deadline.checked_add(DEADLINE_GRACE));
        let gone = stopped(self.status.clone());
        let error = tokio::select! {
            error = self.exchange(request) => error,
            () = gone => Some(EngineError::Stopped),
            () = at(deadline) => Some(EngineError::DeadlineExceeded),
        };
        let Some(error) = error else { return };
        self.events.into_iter().for_each(|events| events.fail(error.clone()));
    }

    /// Carries until all choices have ended, or nobody reads them, or the call ends: then with what that means for those left.
    async fn exchange(&mut self, request: ValidRequest) -> Option<EngineError> {
        // The request, and a place for the cancelling of each choice.
        let (say, said) = mpsc::channel(1 + self.events.len());
        let mut call = tonic::Request::new(ReceiverStream::new(said));
        mark_wire::write(&request.mark, call.metadata_mut().as_mut());
        let first = Input::Request(request_to_pb(request, Instant::now()));
        let mut open: Vec<bool> = vec![true; self.events.len()];
        // A fresh channel has room.
        let _ = say.try_send(pb::EngineInput { input: Some(first) });
        let mut events = match self.client.run(call).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Some(refusal(&status)),
        };
        while open.contains(&true) {
            tokio::select! {
                event = events.message() => match event.map(|event| event.map(event_from_pb)) {
                    Ok(Some(Ok((place, event)))) => {
                        let Some(events) = self.events.get_mut(place).filter(|_| open[place]) else { continue };
                        let last = event.is_last();
                        if events.send_event(event).is_err() {
                            cancel(&say, place);
                            open[place] = false;
                        }
                        open[place] &= !last;
                    }
                    Ok(Some(Err(malformed))) => {
                        tracing::warn!(%malformed, "an engine's event makes no sense");
                        return Some(EngineError::Stopped);
                    }
                    Ok(None) => return Some(EngineError::Stopped),
                    Err(status) => return Some(refusal(&status)),
                },
                place = gone(&self.events, &open) => {
                    cancel(&say, place);
                    open[place] = false;
                }
            }
        }
        drop(say);
        // Broken off before its end a call would be an error to HTTP/2, which bears so many of them on one connection.
        _ = timeout(LEAVE, async { while let Ok(Some(_)) = events.message().await {} }).await;
        None
    }
}

fn cancel(say: &mpsc::Sender<pb::EngineInput>, place: usize) {
    // Each choice is cancelled once, so there is room; if the call is over nobody has to hear it.
    let _ = say.try_send(pb::EngineInput { input: Some(Input::Cancel(u32::try_from(place).unwrap_or(u32::MAX))) });
}

/// The next of the `open` choices that nobody reads any more.
async fn gone(events: &[EventSender], open: &[bool]) -> usize {
    let open = events.iter().enumerate().filter(|(place, _)| open[*place]);
    // There is one open at least, or nobody would ask.
    select_all(open.map(|(place, events)| events.closed().map(move |()| place).boxed())).await.0
}

/// What a call that the engine's side ended means. What it says of requests comes as events, so nearly always the engine is
/// gone.
fn refusal(status: &Status) -> EngineError {
    match status.code() {
        Code::InvalidArgument | Code::OutOfRange => EngineError::InvalidRequest { why: status.message().to_owned() },
        _ => EngineError::Stopped,
    }
}
