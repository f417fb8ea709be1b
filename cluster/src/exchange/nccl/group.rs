//! The coordinator's end of one communicator, from the first question to its members to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::Sender as Notes;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::communicate_reply::Step as Reply;
use tramontane_proto::v1::communicate_request::Step as Request;
use tramontane_proto::v1::experts_client::ExpertsClient;
use tramontane_router::{ExpertBatch, ExpertRows, NodeId, NumericProfile, RowFormat, Rows};

use super::communicator::{Rooms, Seat, Transfer, unique_id};
use super::rank::{Event, Order, Rank};
use super::{COORDINATOR, JOIN_LIMIT, OFFER_LIMIT, ORDERS_PER_MEMBER, STALL_LIMIT, wire};
use crate::Malformed;
use crate::due::at;
use crate::exchange::grpc::client::Note;
use crate::exchange::grpc::link::Job;
use crate::exchange::grpc::wire as rows_wire;
use crate::exchange::{Completion, DispatchId, ExchangeError, MAX_IN_FLIGHT, MAX_PAYLOAD};
use crate::metrics::ExchangeMetrics;
use crate::tls::{Role, Security};
use crate::transport::{self, MAX_MESSAGE, causes};

/// What all generations share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) profile: NumericProfile,
    pub(super) security: Security,
    pub(super) metrics: ExchangeMetrics,
    pub(super) notes: Notes<Note>,
    pub(super) rooms: Arc<Rooms>,
}

impl Shared {
    /// Has `job` sent over gRPC.
    pub(super) fn over_grpc(&self, node: NodeId, job: Job) {
        // Fails only when the exchange is gone, and then nobody asks.
        let _ = self.notes.send(Note::Send(node, job));
    }
}

/// Why a communicator is no more.
#[derive(Debug)]
pub(super) struct Broken {
    /// Who broke it, if that is known.
    pub(super) by: Option<NodeId>,
    pub(super) why: String,
}

impl Broken {
    fn of(node: &NodeId, why: impl Into<String>) -> Self {
        Self { by: Some(node.clone()), why: why.into() }
    }

    fn here(why: impl Into<String>) -> Self {
        Self { by: None, why: why.into() }
    }
}

/// A node that can be a member.
pub(super) struct Candidate {
    node: NodeId,
    requests: mpsc::Sender<pb::CommunicateRequest>,
    replies: Streaming<pb::CommunicateReply>,
}

impl Candidate {
    /// Asks `node` at `addr` whether it can be a member of `generation`.
    pub(super) async fn ask(
        node: NodeId,
        addr: &str,
        security: &Security,
        generation: u64,
    ) -> Result<Self, (NodeId, String)> {
        match timeout(OFFER_LIMIT, offer(addr, security, generation)).await {
            Ok(Ok((requests, replies))) => Ok(Self { node, requests, replies }),
            Ok(Err(why)) => Err((node, why)),
            Err(_) => Err((node, format!("no answer within {OFFER_LIMIT:?}"))),
        }
    }
}

type Streams = (mpsc::Sender<pb::CommunicateRequest>, Streaming<pb::CommunicateReply>);

async fn offer(addr: &str, security: &Security, generation: u64) -> Result<Streams, String> {
    let channel = transport::connect(addr, security, Role::ExpertNode).await?;
    let mut client =
        ExpertsClient::new(channel).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    // With room for the beginning, and for all that may be in flight.
    let (requests, requested) = mpsc::channel(ORDERS_PER_MEMBER + 2);
    let offer = wire::request(Request::Offer(pb::CommunicatorOffer { generation }));
    requests.try_send(offer).map_err(|_| "no place for the offer")?;
    let opened = client.communicate(ReceiverStream::new(requested)).await.map_err(|status| causes(&status))?;
    let mut replies = opened.into_inner();
    match next(&mut replies).await? {
        Reply::Able(able) if able == generation => Ok((requests, replies)),
        other => Err(format!("{other:?} in answer to an offer")),
    }
}

/// The next step of a member. Safe to cancel.
async fn next(replies: &mut Streaming<pb::CommunicateReply>) -> Result<Reply, String> {
    match replies.message().await {
        Ok(Some(message)) => wire::opened_reply(message).map_err(|Malformed(why)| why),
        Ok(None) => Err("the node ended the stream".into()),
        Err(status) => Err(causes(&status)),
    }
}

/// A communicator that stands. When dropped, all its members abort.
pub(super) struct Group {
    shared: Shared,
    /// Of rank 1 and the following.
    members: Vec<Member>,
    rank: Rank,
    events: mpsc::UnboundedReceiver<Event>,
    /// What members say, by rank; an error is a member's last.
    replies: mpsc::Receiver<(usize, Result<Reply, String>)>,
    pending: BTreeMap<u64, Pending>,
    /// Nodes whose rows came.
    proved: BTreeSet<NodeId>,
    _readers: JoinSet<()>,
}

struct Member {
    node: NodeId,
    requests: mpsc::Sender<pb::CommunicateRequest>,
    in_flight: usize,
}

/// A dispatch in flight.
struct Pending {
    member: usize,
    batch: ExpertBatch,
    sent: Instant,
    /// What its answer is, once it is on its way.
    answer: Option<(RowFormat, u32)>,
}

impl Group {
    /// Makes `candidates` members of one communicator.
    pub(super) async fn form(candidates: Vec<Candidate>, shared: Shared) -> Result<Self, Broken> {
        let id = tokio::task::spawn_blocking(unique_id).await.map_err(|_| Broken::here("the check panicked"))?;
        let id = id.map_err(|error| Broken::here(error.to_string()))?;
        // Far from any bound of u32: there are not so many nodes.
        let ranks = candidates.len() as u32 + 1;
        let (said, replies) = mpsc::channel(candidates.len());
        let (mut members, mut readers) = (Vec::new(), JoinSet::new());
        for (index, Candidate { node, requests, mut replies }) in candidates.into_iter().enumerate() {
            let join = pb::CommunicatorJoin { id: id.to_vec().into(), rank: index as u32 + 1, ranks };
            let sent = requests.try_send(wire::request(Request::Join(join)));
            sent.map_err(|_| Broken::of(&node, "it takes no seat"))?;
            let said = said.clone();
            readers.spawn(async move {
                let mut is_open = true;
                while is_open {
                    let reply = next(&mut replies).await;
                    is_open = reply.is_ok();
                    is_open &= said.send((index, reply)).await.is_ok();
                }
            });
            members.push(Member { node, requests, in_flight: 0 });
        }
        let (heard, events) = mpsc::unbounded_channel();
        let seat = Seat { id, rank: COORDINATOR, ranks };
        let rank = Rank::start(seat, members.len(), shared.rooms.clone(), heard);
        let (pending, proved) = (BTreeMap::new(), BTreeSet::new());
        let mut group = Self { shared, members, rank, events, replies, pending, proved, _readers: readers };
        let joined = timeout(JOIN_LIMIT, group.joined()).await;
        joined.unwrap_or_else(|_| Err(Broken::here(format!("not all joined within {JOIN_LIMIT:?}"))))?;
        Ok(group)
    }

    /// Waits until all ranks say that they have joined. When the coordinator's does so, all have met it.
    async fn joined(&mut self) -> Result<(), Broken> {
        let (mut until, mut there) = (None, BTreeSet::new());
        while until.is_none() || there.len() < self.members.len() {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(Event::Joined) => until = Some(Instant::now() + STALL_LIMIT),
                    Some(Event::Broken { by, why }) => return Err(self.broken_by_rank(by, why)),
                    Some(Event::Received { .. }) | None => return Err(Broken::here("rows before anybody joined")),
                },
                Some((member, reply)) = self.replies.recv() => match reply {
                    Ok(Reply::Joined(_)) => drop(there.insert(member)),
                    Ok(other) => return Err(self.broken_by(member, format!("{other:?} before it joined"))),
                    Err(why) => return Err(self.broken_by(member, why)),
                },
                () = at(until) => {
                    // Fewer are there than there are members.
                    let silent = (0..self.members.len()).find(|member| !there.contains(member)).unwrap_or_default();
                    return Err(self.broken_by(silent, format!("it does not say within {STALL_LIMIT:?} that it has joined")));
                }
            }
        }
        Ok(())
    }

    pub(super) fn nodes(&self) -> BTreeSet<NodeId> {
        self.members.iter().map(|member| member.node.clone()).collect()
    }

    /// Carries `jobs` until it breaks; returns nothing when no more will come. Safe to cancel.
    pub(super) async fn run(&mut self, jobs: &mut mpsc::Receiver<(NodeId, Job)>) -> Option<Broken> {
        loop {
            let done = tokio::select! {
                job = jobs.recv() => {
                    let (node, job) = job?;
                    self.give(node, job)
                }
                Some((member, reply)) = self.replies.recv() => match reply {
                    Ok(reply) => self.hear(member, reply),
                    Err(why) => Err(self.broken_by(member, why)),
                },
                event = self.events.recv() => match event {
                    Some(Event::Received { sequence, payload }) => self.received(sequence, payload),
                    Some(Event::Broken { by, why }) => Err(self.broken_by_rank(by, why)),
                    Some(Event::Joined) | None => Err(Broken::here("the communicator's thread has ended")),
                },
            };
            if let Err(broken) = done {
                return Some(broken);
            }
        }
    }

    /// What is under way goes over gRPC. Returns the nodes that did as they should.
    pub(super) fn hand_over(self) -> BTreeSet<NodeId> {
        for (sequence, Pending { member, batch, .. }) in self.pending {
            self.shared.over_grpc(self.members[member].node.clone(), (DispatchId(sequence), batch));
        }
        self.proved
    }

    fn broken_by(&self, member: usize, why: String) -> Broken {
        Broken::of(&self.members[member].node, why)
    }

    /// By the member of that rank, where the coordinator's names one.
    fn broken_by_rank(&self, rank: Option<u32>, why: String) -> Broken {
        let member = rank.and_then(|rank| self.members.get((rank as usize).checked_sub(1)?));
        Broken { by: member.map(|member| member.node.clone()), why }
    }

    /// Sends a dispatch; one that NCCL cannot carry goes over gRPC.
    fn give(&mut self, node: NodeId, job: Job) -> Result<(), Broken> {
        let (DispatchId(sequence), batch) = &job;
        let (sequence, payload) = (*sequence, batch.rows.data.clone());
        let member = self.members.iter().position(|member| member.node == node && member.in_flight < MAX_IN_FLIGHT);
        let Some(index) = member.filter(|_| (1..=MAX_PAYLOAD).contains(&payload.len())) else {
            self.shared.over_grpc(node, job);
            return Ok(());
        };
        let head = Some(rows_wire::dispatch_head(batch.clone(), &self.shared.profile));
        let (bytes, sum) = (payload.len() as u64, wire::sum(&payload));
        self.shared.metrics.sent(payload.len());
        self.shared.metrics.through_nccl(payload.len());
        self.members[index].in_flight += 1;
        let pending = Pending { member: index, batch: job.1, sent: Instant::now(), answer: None };
        self.pending.insert(sequence, pending);
        self.tell(index, Request::Rows(pb::RowsComing { sequence, head, bytes, sum }))?;
        self.order(Order { sequence, transfer: Transfer::Send { to: index as u32 + 1, payload } })
    }

    fn tell(&self, member: usize, step: Request) -> Result<(), Broken> {
        let told = self.members[member].requests.try_send(wire::request(step));
        told.map_err(|_| self.broken_by(member, "it takes no more messages".into()))
    }

    fn order(&self, order: Order) -> Result<(), Broken> {
        if self.rank.order(order) { Ok(()) } else { Err(Broken::here("the communicator takes nothing more")) }
    }

    fn hear(&mut self, member: usize, reply: Reply) -> Result<(), Broken> {
        match reply {
            Reply::Ready(pb::RowsReady { sequence, head, sum }) => {
                let nonsense = |why: String| self.broken_by(member, why);
                let pending = self.pending.get(&sequence).filter(|p| p.member == member && p.answer.is_none());
                let pending = pending.ok_or_else(|| nonsense(format!("dispatch {sequence} is not in flight")))?;
                let head = head.ok_or_else(|| nonsense("an answer without head".into()))?;
                let (answers, width) = (pending.batch.answers(), pending.batch.rows.width);
                let (format, bytes) =
                    rows_wire::answer_head(head, answers, width).map_err(|error| nonsense(error.0))?;
                self.pending.entry(sequence).and_modify(|pending| pending.answer = Some((format, sum)));
                self.tell(member, Request::Fetch(sequence))?;
                self.order(Order { sequence, transfer: Transfer::Receive { from: member as u32 + 1, bytes } })
            }
            Reply::Refused(pb::RowsRefused { sequence, error }) => {
                let asked = self.pending.get(&sequence).is_some_and(|p| p.member == member && p.answer.is_none());
                let Some(error) = error.filter(|_| asked) else {
                    return Err(self.broken_by(member, format!("dispatch {sequence} cannot be refused")));
                };
                let error = rows_wire::error_from_pb(error, &self.members[member].node);
                self.complete(sequence, Err(error));
                Ok(())
            }
            Reply::Able(_) | Reply::Joined(_) => Err(self.broken_by(member, "it joins twice".into())),
        }
    }

    fn received(&mut self, sequence: u64, payload: bytes::Bytes) -> Result<(), Broken> {
        let pending = self.pending.get(&sequence);
        let Some((pending, (format, sum))) = pending.and_then(|pending| Some((pending, pending.answer?))) else {
            return Err(Broken::here("rows that nobody waits for"));
        };
        wire::check_sum(&payload, sum).map_err(|Malformed(why)| self.broken_by(pending.member, why))?;
        let (width, bytes) = (pending.batch.rows.width, payload.len());
        self.proved.insert(self.members[pending.member].node.clone());
        self.shared.metrics.received(bytes);
        self.shared.metrics.through_nccl(bytes);
        self.complete(sequence, Ok(ExpertRows { rows: Rows { format, width, data: payload } }));
        Ok(())
    }

    fn complete(&mut self, sequence: u64, result: Result<ExpertRows, ExchangeError>) {
        let Some(Pending { member, sent, .. }) = self.pending.remove(&sequence) else { return };
        let member = &mut self.members[member];
        member.in_flight -= 1;
        self.shared.metrics.answered(member.node.as_str(), sent.elapsed());
        let completion = Completion { dispatch: DispatchId(sequence), node: member.node.clone(), result };
        // Fails only when the exchange is gone, and then nobody asks.
        let _ = self.shared.notes.send(Note::Completed(completion));
    }
}
