//! The coordinator's end of one stream: a task that sends dispatches to one node and takes its answers, until the stream
//! breaks or the link is dropped. Every dispatch it was given completes, then or before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::Sender as Notes;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::experts_client::ExpertsClient;
use tramontane_router::{ExpertBatch, ExpertRows, NodeId, NumericProfile};

use super::client::Note;
use super::read::{AnswerReader, Asked};
use super::{CHUNKS_AHEAD, wire};
use crate::exchange::{Completion, DispatchId, ExchangeError, MAX_IN_FLIGHT};
use crate::metrics::ExchangeMetrics;
use crate::tls::{Role, Security};
use crate::transport::{self, CONNECT_TIMEOUT, MAX_MESSAGE, causes};

/// One dispatch on its way to the task.
pub(in crate::exchange) type Job = (DispatchId, ExpertBatch);

/// A stream to one node. When dropped, what is in flight on it completes as [`ExchangeError::NodeGone`].
pub(super) struct Link {
    addr: String,
    jobs: mpsc::Sender<Job>,
    /// Tells the task, by being dropped, to end.
    _stop: oneshot::Sender<()>,
}

/// Why a link took no dispatch.
pub(super) enum NotTaken {
    /// Too many are in flight on it.
    Full,
    /// Its stream broke: here is the dispatch, for another link.
    Broken(Box<Job>),
}

/// Where a link leads, and where what comes of it goes.
pub(super) struct Peer {
    pub(super) node: NodeId,
    /// `host:port`.
    pub(super) addr: String,
    /// What the node's answers are expected to be.
    pub(super) profile: NumericProfile,
    pub(super) security: Security,
    pub(super) metrics: ExchangeMetrics,
    pub(super) notes: Notes<Note>,
}

impl Link {
    /// Starts to connect to `peer`; dispatches may be given at once.
    pub(super) fn open(runtime: &Handle, peer: Peer) -> Self {
        let (jobs, given) = mpsc::channel(MAX_IN_FLIGHT);
        let (stop, stopped) = oneshot::channel();
        let addr = peer.addr.clone();
        runtime.spawn(drive(peer, given, stopped));
        Self { addr, jobs, _stop: stop }
    }

    /// Where it leads.
    pub(super) fn addr(&self) -> &str {
        &self.addr
    }

    pub(super) fn is_broken(&self) -> bool {
        self.jobs.is_closed()
    }

    pub(super) fn send(&self, job: Job) -> Result<(), NotTaken> {
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Full,
            mpsc::error::TrySendError::Closed(job) => NotTaken::Broken(Box::new(job)),
        })
    }
}

async fn drive(peer: Peer, mut jobs: mpsc::Receiver<Job>, stop: oneshot::Receiver<()>) {
    let mut pending = BTreeMap::new();
    let why = tokio::select! {
        _ = stop => "the coordinator closed the stream".to_owned(),
        why = exchange(&peer, &mut jobs, &mut pending) => why,
    };
    tracing::debug!(node = %peer.node, addr = peer.addr, why, in_flight = pending.len(), "exchange stream ended");
    jobs.close();
    let mut lost: Vec<DispatchId> = pending.into_values().map(|expected| expected.dispatch).collect();
    while let Some((dispatch, _)) = jobs.recv().await {
        lost.push(dispatch);
    }
    for dispatch in lost {
        let gone = ExchangeError::NodeGone { node: peer.node.clone(), why: why.clone() };
        peer.complete(dispatch, Err(gone));
    }
}

/// Connects, sends and receives until that is no longer possible; returns why.
async fn exchange(peer: &Peer, jobs: &mut mpsc::Receiver<Job>, pending: &mut BTreeMap<u64, Expected>) -> String {
    let (outbound, requests) = mpsc::channel(CHUNKS_AHEAD);
    let opened = tokio::time::timeout(CONNECT_TIMEOUT, open(peer, requests));
    let mut replies = match opened.await {
        Ok(Ok(stream)) => Replies { stream, reader: AnswerReader::new(peer.node.clone()) },
        Ok(Err(why)) => return why,
        Err(_) => return format!("{} did not answer within {CONNECT_TIMEOUT:?}", peer.addr),
    };
    let mut unsent = VecDeque::new();
    loop {
        tokio::select! {
            place = outbound.reserve(), if !unsent.is_empty() => match (place, unsent.pop_front()) {
                (Ok(place), Some(message)) => place.send(message),
                _ => return "the stream closed".into(),
            },
            job = jobs.recv(), if unsent.is_empty() && pending.len() < MAX_IN_FLIGHT => {
                let Some((dispatch, batch)) = job else { return "the coordinator closed the stream".into() };
                peer.metrics.sent(batch.rows.data.len());
                pending.insert(dispatch.0, Expected::of(dispatch, &batch));
                unsent.extend(wire::requests(dispatch.0, batch, &peer.profile));
            }
            next = replies.next(pending) => match next {
                Ok(Answered { dispatch, after, result }) => {
                    peer.metrics.answered(peer.node.as_str(), after);
                    peer.metrics.received(result.as_ref().map_or(0, |rows| rows.rows.data.len()));
                    peer.complete(dispatch, result);
                }
                Err(why) => return why,
            },
        }
    }
}

async fn open(
    peer: &Peer,
    requests: mpsc::Receiver<pb::DispatchRequest>,
) -> Result<Streaming<pb::DispatchReply>, String> {
    let mut client = ExpertsClient::new(transport::connect(&peer.addr, &peer.security, Role::ExpertNode).await?)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let opened = client.exchange(ReceiverStream::new(requests)).await;
    opened.map(tonic::Response::into_inner).map_err(|status| causes(&status))
}

impl Peer {
    fn complete(&self, dispatch: DispatchId, result: Result<ExpertRows, ExchangeError>) {
        // Fails only when the exchange is gone, and then nobody asks.
        let _ = self.notes.send(Note::Completed(Completion { dispatch, node: self.node.clone(), result }));
    }
}

/// A dispatch in flight: what its answer must be.
struct Expected {
    dispatch: DispatchId,
    asked: Asked,
    sent: Instant,
}

impl Expected {
    fn of(dispatch: DispatchId, batch: &ExpertBatch) -> Self {
        let asked = Asked { answers: batch.answers(), width: batch.rows.width };
        Self { dispatch, asked, sent: Instant::now() }
    }
}

/// One node's answers.
struct Replies {
    stream: Streaming<pb::DispatchReply>,
    reader: AnswerReader,
}

/// A dispatch's answer, and how long it took.
struct Answered {
    dispatch: DispatchId,
    after: Duration,
    result: Result<ExpertRows, ExchangeError>,
}

impl Replies {
    /// The next answer, whole and checked. Fails, with the reason, when the stream cannot go on. Safe to cancel: nothing
    /// is awaited but the next message.
    async fn next(&mut self, pending: &mut BTreeMap<u64, Expected>) -> Result<Answered, String> {
        loop {
            let reply = match self.stream.message().await {
                Ok(Some(reply)) => reply,
                Ok(None) => return Err("the node ended the stream".into()),
                Err(status) => return Err(causes(&status)),
            };
            let asked = |sequence: u64| pending.get(&sequence).map(|expected| expected.asked);
            let pushed = self.reader.push(reply, asked).map_err(|broken| broken.to_string())?;
            let Some((sequence, result)) = pushed else { continue };
            if let Some(Expected { dispatch, sent, .. }) = pending.remove(&sequence) {
                return Ok(Answered { dispatch, after: sent.elapsed(), result });
            }
        }
    }
}
