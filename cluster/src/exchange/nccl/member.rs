//! A node's end of one communicator: receives the rows it is told of, has them computed beside what came over gRPC, and
//! sends the answers that are fetched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::{Status, Streaming};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::communicate_reply::Step as Reply;
use tramontane_proto::v1::communicate_request::Step as Request;
use tramontane_router::{ExpertBatch, ExpertRows, NumericProfile};

use super::communicator::{self, Rooms, Transfer};
use super::rank::{Event, Order, Rank};
use super::{COORDINATOR, PLACES, wire};
use crate::Malformed;
use crate::exchange::grpc::server::{Answer, Job};
use crate::exchange::grpc::shown::Shown;
use crate::exchange::grpc::wire as rows_wire;
use crate::exchange::{MAX_IN_FLIGHT, ServeError};

/// Replies on their way to the coordinator, at most: one a dispatch in flight, two before the first, and why it ends.
pub(in crate::exchange) const REPLIES: usize = MAX_IN_FLIGHT + 3;

/// A node's places in communicators.
#[derive(Clone)]
pub(in crate::exchange) struct Places {
    free: Arc<Semaphore>,
    rooms: Arc<Rooms>,
}

/// One of them, until it is dropped.
pub(in crate::exchange) struct Place {
    rooms: Arc<Rooms>,
    _taken: OwnedSemaphorePermit,
}

impl Default for Places {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(PLACES)), rooms: Arc::default() }
    }
}

impl Places {
    /// Takes one; each takes one of the runtime's blocking threads.
    pub(in crate::exchange) fn take(&self) -> Result<Place, Status> {
        let full = |_| Status::resource_exhausted(format!("in {PLACES} communicators already"));
        let taken = self.free.clone().try_acquire_owned().map_err(full)?;
        Ok(Place { rooms: self.rooms.clone(), _taken: taken })
    }
}

/// Follows one coordinator's control stream until it ends, or until the communicator breaks: then `replies` ends with why.
pub(in crate::exchange) async fn serve_member(
    place: Place,
    requests: Streaming<pb::CommunicateRequest>,
    profile: NumericProfile,
    queue: &SyncSender<Job>,
    replies: mpsc::Sender<Result<pb::CommunicateReply, Status>>,
) {
    if let Err(status) = follow(&place, requests, profile, queue, &replies).await {
        tracing::debug!(why = status.message(), "an NCCL communicator has ended");
        // Where it has no place the coordinator sees the stream end all the same.
        let _ = replies.try_send(Err(status));
    }
}

async fn follow(
    place: &Place,
    mut requests: Streaming<pb::CommunicateRequest>,
    profile: NumericProfile,
    queue: &SyncSender<Job>,
    replies: &mpsc::Sender<Result<pb::CommunicateReply, Status>>,
) -> Result<(), Status> {
    let Some(Request::Offer(pb::CommunicatorOffer { generation })) = next(&mut requests).await? else {
        return Err(Status::invalid_argument("an offer comes first"));
    };
    let able = tokio::task::spawn_blocking(communicator::check).await;
    able.map_err(|_| Status::internal("the check panicked"))?
        .map_err(|error| Status::failed_precondition(error.to_string()))?;
    say(replies, Reply::Able(generation))?;
    let seat = match next(&mut requests).await? {
        Some(Request::Join(join)) => wire::seat(&join).map_err(refused)?,
        // The coordinator has thought better of it.
        None => return Ok(()),
        Some(_) => return Err(Status::invalid_argument("a seat comes second")),
    };
    let (heard, mut events) = mpsc::unbounded_channel();
    let rank = Rank::start(seat, 1, place.rooms.clone(), heard);
    let (answers, mut answered) = mpsc::channel(MAX_IN_FLIGHT);
    let mut member = Member { rank, profile, queue, answers, replies, coming: BTreeMap::new(), ready: BTreeMap::new() };
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Joined) => say(replies, Reply::Joined(generation))?,
                Some(Event::Received { sequence, payload }) => member.take(sequence, payload)?,
                Some(Event::Broken { why, .. }) => return Err(Status::aborted(why)),
                None => return Err(Status::internal("the communicator's thread has ended")),
            },
            step = next(&mut requests) => match step? {
                Some(Request::Rows(rows)) => member.announced(rows)?,
                Some(Request::Fetch(sequence)) => member.send(sequence)?,
                Some(Request::Offer(_) | Request::Join(_)) => return Err(Status::invalid_argument("a second beginning")),
                None => return Ok(()),
            },
            Some(answer) = answered.recv() => {
                let (sequence, result) = answer?;
                member.answer(sequence, result)?;
            }
        }
    }
}

/// The next step; `None` when the coordinator has ended the stream. Safe to cancel.
async fn next(requests: &mut Streaming<pb::CommunicateRequest>) -> Result<Option<Request>, Status> {
    requests.message().await?.map(wire::opened_request).transpose().map_err(refused)
}

fn say(replies: &mpsc::Sender<Result<pb::CommunicateReply, Status>>, step: Reply) -> Result<(), Status> {
    replies.try_send(Ok(wire::reply(step))).map_err(|_| Status::resource_exhausted("replies are not taken"))
}

fn refused(Malformed(why): Malformed) -> Status {
    Status::invalid_argument(why)
}

/// One communicator's dispatches here.
struct Member<'a> {
    rank: Rank,
    profile: NumericProfile,
    queue: &'a SyncSender<Job>,
    /// Where the compute thread leaves answers.
    answers: mpsc::Sender<Answer>,
    replies: &'a mpsc::Sender<Result<pb::CommunicateReply, Status>>,
    /// Dispatches whose rows are on their way.
    coming: BTreeMap<u64, Coming>,
    /// Answers that wait to be fetched.
    ready: BTreeMap<u64, Bytes>,
}

struct Coming {
    head: Result<ExpertBatch, ServeError>,
    sum: u32,
}

impl Member<'_> {
    /// Has the rows of a dispatch received, whatever its head is worth: the coordinator sends them.
    fn announced(&mut self, rows: pb::RowsComing) -> Result<(), Status> {
        let pb::RowsComing { sequence, head, bytes, sum } = rows;
        let bytes = wire::size(bytes).map_err(refused)?;
        let head = head.ok_or_else(|| refused(Malformed::missing("head")))?;
        let head = rows_wire::batch_head(head, &self.profile).and_then(|(batch, declared)| match declared == bytes {
            true => Ok(batch),
            false => Err(ServeError::Corrupt { why: format!("a payload of {bytes} bytes, not {declared}") }),
        });
        let computing = self.answers.max_capacity() - self.answers.capacity();
        if self.coming.len() + computing + self.ready.len() >= MAX_IN_FLIGHT {
            return Err(Status::resource_exhausted("too many dispatches in flight"));
        }
        if self.coming.insert(sequence, Coming { head, sum }).is_some() {
            return Err(Status::invalid_argument(format!("dispatch {sequence} comes twice")));
        }
        self.order(sequence, Transfer::Receive { from: COORDINATOR, bytes })
    }

    fn order(&self, sequence: u64, transfer: Transfer) -> Result<(), Status> {
        let taken = self.rank.order(Order { sequence, transfer });
        if taken { Ok(()) } else { Err(Status::aborted("the communicator takes nothing more")) }
    }

    /// Queues a dispatch whose rows have come.
    fn take(&mut self, sequence: u64, payload: Bytes) -> Result<(), Status> {
        let coming = self.coming.remove(&sequence);
        let Coming { head, sum } = coming.ok_or_else(|| Status::internal("rows that nobody waits for"))?;
        wire::check_sum(&payload, sum).map_err(|Malformed(why)| Status::data_loss(why))?;
        let batch = head.and_then(|head| rows_wire::batch(head, payload));
        let refused = match (batch, self.answers.clone().try_reserve_owned()) {
            (Ok(batch), Ok(answer)) => {
                let shown = Shown::arrives(&batch);
                match self.queue.try_send(Job { sequence, batch, answer, shown }) {
                    Ok(()) => return Ok(()),
                    Err(TrySendError::Full(job)) => {
                        job.shown.end(&Err(ServeError::Overloaded));
                        ServeError::Overloaded
                    }
                    Err(TrySendError::Disconnected(_)) => return Err(Status::unavailable("the node is ending")),
                }
            }
            (Ok(_), Err(_)) => ServeError::Overloaded,
            (Err(refused), _) => refused,
        };
        self.refuse(sequence, refused)
    }

    fn refuse(&self, sequence: u64, error: ServeError) -> Result<(), Status> {
        let error = Some(rows_wire::error_to_pb(error));
        say(self.replies, Reply::Refused(pb::RowsRefused { sequence, error }))
    }

    fn answer(&mut self, sequence: u64, result: Result<ExpertRows, ServeError>) -> Result<(), Status> {
        match result {
            Ok(ExpertRows { rows }) => {
                let (head, sum) = (Some(rows_wire::head_of(&rows)), wire::sum(&rows.data));
                self.ready.insert(sequence, rows.data);
                say(self.replies, Reply::Ready(pb::RowsReady { sequence, head, sum }))
            }
            Err(error) => self.refuse(sequence, error),
        }
    }

    /// Sends the answer that is fetched.
    fn send(&mut self, sequence: u64) -> Result<(), Status> {
        let unknown = || Status::invalid_argument(format!("dispatch {sequence} has no answer here"));
        let payload = self.ready.remove(&sequence).ok_or_else(unknown)?;
        self.order(sequence, Transfer::Send { to: COORDINATOR, payload })
    }
}
