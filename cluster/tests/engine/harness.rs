//! Engines whose loop is the test: it takes requests out of the inbox and sends their events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tramontane_cluster::engine::grpc::{GrpcEngine, serve_engine};
use tramontane_cluster::engine::{
    Engine, EngineError, EngineInbox, EngineInfo, EngineStatus, Event, EventSender, EventStream, Generation,
    InProcessEngine, Submission, Token, ValidRequest, in_process,
};
use tramontane_cluster::tls::Security;

/// By when anything that is to happen has happened; only a failing test waits for it.
pub(crate) const LONG: Duration = Duration::from_secs(30);
/// How often what nobody tells us of is looked at.
const POLL: Duration = Duration::from_millis(2);
/// Requests between a test and its loop.
pub(crate) const CAPACITY: usize = 2;

/// An engine as a front door sees it, and its loop's end.
pub(crate) struct Harness {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) inbox: Option<EngineInbox>,
    /// The same engine where its loop is.
    pub(crate) near: InProcessEngine,
    pub(crate) server: Option<Server>,
    /// Of the front door.
    runtime: Option<Runtime>,
}

/// An engine's server, in a runtime of its own, so that it can die.
pub(crate) struct Server {
    pub(crate) addr: String,
    runtime: Runtime,
    _shutdown: oneshot::Sender<()>,
}

pub(crate) fn info() -> EngineInfo {
    EngineInfo { model: "m".into(), context: 4096, vocab: 1000, fingerprint: "fp_0123".to_owned() }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

impl Server {
    pub(crate) fn start(engine: Arc<dyn Engine>) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let (shutdown, told) = oneshot::channel();
        let until = async {
            // Dropping the sender, too, shuts down.
            let _ = told.await;
        };
        runtime.spawn(serve_engine(engine, listener, Security::Plaintext, until));
        Self { addr, runtime, _shutdown: shutdown }
    }

    /// As a crash does: every connection breaks.
    pub(crate) fn kill(self) {
        self.runtime.shutdown_timeout(LONG);
    }
}

impl Harness {
    pub(crate) fn in_process() -> Self {
        let (near, inbox) = in_process(info(), CAPACITY);
        Self { engine: Arc::new(near.clone()), inbox: Some(inbox), near, server: None, runtime: None }
    }

    pub(crate) fn grpc() -> Self {
        let (near, inbox) = in_process(info(), CAPACITY);
        let (server, runtime) = (Server::start(Arc::new(near.clone())), runtime());
        let engine = runtime.block_on(GrpcEngine::connect(&server.addr, &Security::Plaintext)).expect("an engine");
        Self { engine: Arc::new(engine), inbox: Some(inbox), near, server: Some(server), runtime: Some(runtime) }
    }

    pub(crate) fn submit(&self, request: ValidRequest) -> Vec<EventStream> {
        self.engine.submit(request).expect("the engine takes it")
    }

    /// The next request at the loop.
    pub(crate) fn submission(&self) -> Submission {
        let inbox = self.inbox.as_ref().expect("the loop is there");
        inbox.recv_timeout(LONG).expect("a front door is there").expect("a request comes")
    }

    /// Why `request` is refused, be it at once or by events: then every choice hears the same, and nothing else.
    pub(crate) fn refusal(&self, request: ValidRequest) -> EngineError {
        let streams = match self.engine.submit(request) {
            Ok(streams) => streams,
            Err(error) => return error,
        };
        let mut heard: Vec<Vec<Event>> = streams.into_iter().map(rest).collect();
        let first = heard.pop().expect("a choice");
        assert!(heard.iter().all(|events| *events == first), "{first:?}, {heard:?}");
        match first.as_slice() {
            [Event::Failed(error)] => error.clone(),
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Waits until the engine's status is as `condition` wants it.
    pub(crate) fn status_when(&self, condition: impl Fn(&EngineStatus) -> bool) -> EngineStatus {
        until(|| Some(self.engine.status()).filter(&condition))
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if let Some(server) = self.server.take() {
            server.runtime.shutdown_background();
        }
    }
}

/// Looks until there is what is looked for.
pub(crate) fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < LONG, "it does not happen");
        std::thread::sleep(POLL);
    }
}

/// Waits until the reader of `events` is known to be gone.
pub(crate) fn until_closed(events: &EventSender) {
    until(|| events.is_closed().then_some(()));
}

/// Everything that still comes.
pub(crate) fn rest(mut stream: EventStream) -> Vec<Event> {
    std::iter::from_fn(|| stream.blocking_next()).collect()
}

pub(crate) fn token(id: u32) -> Token {
    Token { id, logprob: -0.1 * id as f32, top: vec![(id, -0.1), (id + 1, -1e-30)] }
}

pub(crate) fn request(id: u64) -> ValidRequest {
    ValidRequest::generate(id, vec![1, 2, 3], Generation::default())
}

pub(crate) fn of_choices(choices: u32) -> ValidRequest {
    ValidRequest::generate(0, vec![1, 2, 3], Generation { choices, ..Generation::default() })
}
