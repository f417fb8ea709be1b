//! The node's end: all streams feed one queue, one thread computes what waits in it together and answers each stream.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tramontane_proto::v1 as pb;
use tramontane_proto::v1::experts_server::{Experts, ExpertsServer};
use tramontane_router::{ExpertBatch, ExpertRows, ModelId, NumericProfile};

use super::read::{BrokenStream, DispatchReader};
use super::shown::Shown;
use super::{MAX_MERGED, QUEUE, wire};
use crate::convert::{expert_from_pb, expert_to_pb};
use crate::exchange::{ExpertServer, MAX_IN_FLIGHT, ServeError, nccl};
use crate::tls::{Role, Security};
use crate::transport::{self, MAX_MESSAGE, ServerError, Stop};

/// Serves `server`'s experts to coordinators on `listener`, until `shutdown` completes: then no more dispatches are
/// read, and it returns when those that were have been answered.
///
/// `profile` is the node's own; a dispatch that expects another is refused.
///
/// # Errors
/// The transport broke, or the compute thread panicked.
pub async fn serve_experts(
    server: Arc<dyn ExpertServer>,
    profile: NumericProfile,
    listener: TcpListener,
    security: Security,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServerError> {
    let incoming = transport::incoming(listener, &security, Role::Coordinator)?;
    let (queue, waiting) = sync_channel(QUEUE);
    let (alive, died) = oneshot::channel::<()>();
    let (signal, stop) = Stop::after(async move {
        tokio::select! {
            () = shutdown => {}
            _ = died => {}
        }
    });
    let experts = server.clone();
    let compute = thread::Builder::new()
        .name("experts".into())
        .spawn(move || {
            // Dropped when the thread ends, in whatever way.
            let _alive = alive;
            compute(server.as_ref(), &waiting);
        })
        .map_err(|error| ServerError::Transport { why: format!("no compute thread: {error}") })?;
    let service = Service { server: experts, profile, queue, stop, places: nccl::Places::default() };
    let service =
        ExpertsServer::new(service).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
    transport::server().serve_with_incoming_shutdown(service, incoming, signal).await?;
    // The service is gone, and its queue with it: the thread is ending.
    let ended = tokio::task::spawn_blocking(move || compute.join()).await;
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) | Err(_) => Err(ServerError::ComputeDied),
    }
}

/// A batch that waits for the compute thread, with a place in its stream's buffer for the answer.
pub(in crate::exchange) struct Job {
    pub(in crate::exchange) sequence: u64,
    pub(in crate::exchange) batch: ExpertBatch,
    pub(in crate::exchange) answer: AnswerSlot,
    pub(in crate::exchange) shown: Shown,
}

pub(in crate::exchange) type Answer = Result<(u64, Result<ExpertRows, ServeError>), Status>;
pub(in crate::exchange) type AnswerSlot = mpsc::OwnedPermit<Answer>;

/// Computes what waits, all of it together, until every sender is gone.
fn compute(server: &dyn ExpertServer, waiting: &Receiver<Job>) {
    while let Ok(first) = waiting.recv() {
        let mut batches = Vec::new();
        let mut answers = Vec::new();
        let jobs = std::iter::once(first).chain(waiting.try_iter()).take(MAX_MERGED);
        for Job { sequence, batch, answer, shown } in jobs {
            batches.push(batch);
            answers.push((sequence, answer, shown));
        }
        let merged = batches.len();
        answers.iter_mut().for_each(|(.., shown)| shown.computes(merged));
        let mut results = server.serve(&batches).into_iter();
        for (sequence, answer, shown) in answers {
            let missing = || Err(ServeError::Corrupt { why: "the node gave no answer".into() });
            let result = results.next().unwrap_or_else(missing);
            shown.end(&result);
            // Sending into a reserved place neither waits nor fails.
            answer.send(Ok((sequence, result)));
        }
    }
}

struct Service {
    server: Arc<dyn ExpertServer>,
    profile: NumericProfile,
    queue: SyncSender<Job>,
    stop: Stop,
    /// In communicators.
    places: nccl::Places,
}

#[tonic::async_trait]
impl Experts for Service {
    type ExchangeStream = BoxStream<'static, Result<pb::DispatchReply, Status>>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::DispatchRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let (answers, answered) = mpsc::channel(MAX_IN_FLIGHT);
        let requests = Requests { stream: request.into_inner(), reader: DispatchReader::new(self.profile.clone()) };
        let (queue, stop) = (self.queue.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.stopped() => {}
                () = read(requests, &queue, &answers) => {}
            }
        });
        let messages = ReceiverStream::new(answered)
            .map_ok(|(sequence, answer)| stream::iter(wire::replies(sequence, answer).map(Ok)))
            .try_flatten();
        Ok(Response::new(messages.boxed()))
    }

    type CommunicateStream = BoxStream<'static, Result<pb::CommunicateReply, Status>>;

    async fn communicate(
        &self,
        request: Request<Streaming<pb::CommunicateRequest>>,
    ) -> Result<Response<Self::CommunicateStream>, Status> {
        let place = self.places.take()?;
        let (replies, replied) = mpsc::channel(nccl::REPLIES);
        let (requests, queue) = (request.into_inner(), self.queue.clone());
        let (profile, stop) = (self.profile.clone(), self.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.stopped() => {}
                () = nccl::serve_member(place, requests, profile, &queue, replies) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(replied).boxed()))
    }

    async fn leave(&self, _: Request<pb::LeaveRequest>) -> Result<Response<pb::LeaveReply>, Status> {
        self.server.leave();
        Ok(Response::new(pb::LeaveReply {}))
    }

    async fn ensure_held(
        &self,
        request: Request<pb::EnsureHeldRequest>,
    ) -> Result<Response<pb::EnsureHeldReply>, Status> {
        let pb::EnsureHeldRequest { model, experts } = request.into_inner();
        let experts: Vec<_> = experts
            .into_iter()
            .map(|expert| expert_from_pb(Some(expert)))
            .collect::<Result<_, _>>()
            .map_err(|malformed| Status::invalid_argument(malformed.0))?;
        let server = self.server.clone();
        let loaded = tokio::task::spawn_blocking(move || server.ensure_held(&ModelId::from(model), &experts)).await;
        let error = loaded.map_err(|_| Status::internal("loading panicked"))?.err().map(wire::error_to_pb);
        Ok(Response::new(pb::EnsureHeldReply { error }))
    }

    async fn stats(&self, _: Request<pb::StatsRequest>) -> Result<Response<pb::StatsReply>, Status> {
        let received = self.server.received().into_iter();
        let experts = received.map(|(id, rows)| pb::ExpertCount { expert: Some(expert_to_pb(id)), rows }).collect();
        Ok(Response::new(pb::StatsReply { experts }))
    }
}

/// One coordinator's dispatches.
struct Requests {
    stream: Streaming<pb::DispatchRequest>,
    reader: DispatchReader,
}

impl Requests {
    /// The next dispatch, or why it is none; `None` when the stream has ended; an error when it must end.
    async fn next(&mut self) -> Result<Option<(u64, Result<ExpertBatch, ServeError>)>, Status> {
        while let Some(message) = self.stream.message().await? {
            let pushed = self.reader.push(message).map_err(|broken| match broken {
                BrokenStream::Damaged(_) => Status::data_loss(broken.to_string()),
                BrokenStream::OutOfOrder(_) | BrokenStream::Unasked { .. } => {
                    Status::invalid_argument(broken.to_string())
                }
            })?;
            if pushed.is_some() {
                return Ok(pushed);
            }
        }
        Ok(None)
    }
}

/// Queues a stream's dispatches until it ends. A place for the answer is reserved *before* a dispatch is read, so that
/// the compute thread never waits for a slow coordinator: such a one is not read from.
async fn read(mut requests: Requests, queue: &SyncSender<Job>, answers: &mpsc::Sender<Answer>) {
    while let Ok(answer) = answers.clone().reserve_owned().await {
        let (sequence, refused) = match requests.next().await {
            Ok(Some((sequence, Ok(batch)))) => {
                let shown = Shown::arrives(&batch);
                match queue.try_send(Job { sequence, batch, answer, shown }) {
                    Ok(()) => continue,
                    Err(TrySendError::Full(job)) => {
                        let full = Err(ServeError::Overloaded);
                        job.shown.end(&full);
                        job.answer.send(Ok((sequence, full)));
                        continue;
                    }
                    Err(TrySendError::Disconnected(_)) => return,
                }
            }
            Ok(Some((sequence, Err(refused)))) => (sequence, refused),
            Ok(None) => return,
            Err(status) => {
                answer.send(Err(status));
                return;
            }
        };
        answer.send(Ok((sequence, Err(refused))));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use bytes::Bytes;
    use tramontane_router::{Epoch, ExpertId, RowFormat, Rows};

    use super::*;

    /// Answers a batch's rows as they are, but only `answers` batches a call; notes how many batches it was given.
    struct Recorder {
        calls: Mutex<Vec<usize>>,
        answers: usize,
    }

    impl ExpertServer for Recorder {
        fn serve(&self, batches: &[ExpertBatch]) -> Vec<Result<ExpertRows, ServeError>> {
            self.calls.lock().expect("not poisoned").push(batches.len());
            batches.iter().take(self.answers).map(|batch| Ok(ExpertRows { rows: batch.rows.clone() })).collect()
        }

        fn ensure_held(&self, _: &ModelId, _: &[ExpertId]) -> Result<(), ServeError> {
            Ok(())
        }

        fn received(&self) -> BTreeMap<ExpertId, u64> {
            BTreeMap::new()
        }

        fn leave(&self) {}
    }

    fn run(server: &Recorder, jobs: u64) -> Vec<(u64, Result<ExpertRows, ServeError>)> {
        let (queue, waiting) = sync_channel(QUEUE);
        let (answers, mut answered) = mpsc::channel(QUEUE);
        for sequence in 0..jobs {
            let data = Bytes::from(sequence.to_le_bytes().to_vec());
            let rows = Rows { format: RowFormat::F32, width: 2, data };
            let (model, work) = (ModelId::from("m"), Vec::new());
            let batch = ExpertBatch { model, epoch: Epoch(0), layer: 0, rows, work, trace: None };
            let answer = answers.clone().try_reserve_owned().expect("a place");
            queue.try_send(Job { sequence, batch, answer, shown: Shown::default() }).expect("a place");
        }
        drop((queue, answers));
        compute(server, &waiting);
        std::iter::from_fn(|| answered.try_recv().ok()).map(|answer| answer.expect("no status")).collect()
    }

    #[test]
    fn what_waits_is_computed_together_and_answered_apart() {
        let server = Recorder { calls: Mutex::default(), answers: usize::MAX };
        let answers = run(&server, MAX_MERGED as u64 + 3);
        assert_eq!(*server.calls.lock().expect("not poisoned"), [MAX_MERGED, 3]);
        assert_eq!(answers.len(), MAX_MERGED + 3);
        for (sequence, answer) in answers {
            assert_eq!(answer.expect("rows").rows.data, sequence.to_le_bytes()[..]);
        }
    }

    #[test]
    fn a_batch_the_server_leaves_out_is_answered_with_an_error() {
        let answers = run(&Recorder { calls: Mutex::default(), answers: 1 }, 2);
        assert!(answers[0].1.is_ok());
        assert!(matches!(answers[1].1, Err(ServeError::Corrupt { .. })));
    }
}
