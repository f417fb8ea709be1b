//! Exchanges with test nodes behind them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tramontane_cluster::ServerError;
use tramontane_cluster::exchange::grpc::{GrpcExchange, serve_experts};
use tramontane_cluster::exchange::{Completion, DispatchId, Exchange, ExpertServer, InProcessExchange};
use tramontane_cluster::tls::Security;
use tramontane_router::{NodeId, NumericProfile};

use crate::node::profile;

/// By when anything that is to happen has happened; only a failing test waits for it.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) type Nodes = BTreeMap<NodeId, Arc<dyn ExpertServer>>;

pub(crate) fn nodes<S: ExpertServer + 'static>(nodes: impl IntoIterator<Item = (&'static str, S)>) -> Nodes {
    nodes.into_iter().map(|(name, node)| (NodeId::from(name), Arc::new(node) as Arc<dyn ExpertServer>)).collect()
}

/// An exchange, and what must live as long as it.
pub(crate) struct Harness {
    pub(crate) exchange: Box<dyn Exchange>,
    _servers: Vec<GrpcNode>,
    _runtime: Option<Runtime>,
}

impl Harness {
    pub(crate) fn in_process(nodes: Nodes) -> Self {
        Self { exchange: Box::new(InProcessExchange::new(nodes)), _servers: Vec::new(), _runtime: None }
    }

    pub(crate) fn grpc(nodes: Nodes) -> Self {
        Self::over(nodes, |runtime, addrs| {
            let mut exchange = GrpcExchange::new(runtime.handle().clone(), profile(), Security::Plaintext);
            exchange.set_nodes(addrs);
            Box::new(exchange)
        })
    }

    /// Each of `nodes` behind a listener, and what `open` makes of where they listen.
    pub(crate) fn over(
        nodes: Nodes,
        open: impl FnOnce(&Runtime, BTreeMap<NodeId, String>) -> Box<dyn Exchange>,
    ) -> Self {
        let runtime = runtime();
        let servers: BTreeMap<_, _> =
            nodes.into_iter().map(|(id, node)| (id, GrpcNode::start(node, profile(), "127.0.0.1:0"))).collect();
        let addrs = servers.iter().map(|(id, server)| (id.clone(), server.addr.clone())).collect();
        Self { exchange: open(&runtime, addrs), _servers: servers.into_values().collect(), _runtime: Some(runtime) }
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// A node behind a listener, in a runtime of its own, so that it can die.
pub(crate) struct GrpcNode {
    pub(crate) addr: String,
    runtime: Runtime,
    shutdown: Option<oneshot::Sender<()>>,
    ended: JoinHandle<Result<(), ServerError>>,
}

impl GrpcNode {
    pub(crate) fn start(server: Arc<dyn ExpertServer>, profile: NumericProfile, addr: &str) -> Self {
        let runtime = runtime();
        let listener = runtime.block_on(TcpListener::bind(addr)).expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let (shutdown, told) = oneshot::channel();
        let until = async {
            // Dropping the sender, too, shuts down.
            let _ = told.await;
        };
        let ended = runtime.spawn(serve_experts(server, profile, listener, Security::Plaintext, until));
        Self { addr, runtime, shutdown: Some(shutdown), ended }
    }

    /// As a crash does: every connection breaks.
    pub(crate) fn kill(self) {
        self.runtime.shutdown_timeout(LONG);
    }

    /// Tells it to end.
    pub(crate) fn shut_down(&mut self) {
        self.shutdown.take();
    }

    /// How it ended.
    pub(crate) fn ended(self) -> Result<(), ServerError> {
        self.runtime.block_on(self.ended).expect("the server does not panic")
    }
}

/// The next completion, which must come.
pub(crate) fn next(exchange: &mut dyn Exchange) -> Completion {
    exchange.next(Instant::now() + LONG).expect("a completion")
}

/// The next `count` completions, by dispatch.
pub(crate) fn collect(exchange: &mut dyn Exchange, count: usize) -> BTreeMap<DispatchId, Completion> {
    let completions: BTreeMap<_, _> = (0..count).map(|_| next(exchange)).map(|c| (c.dispatch, c)).collect();
    assert_eq!(completions.len(), count, "a dispatch completed twice");
    completions
}

/// That nothing has completed.
pub(crate) fn assert_none(exchange: &mut dyn Exchange) {
    assert_eq!(exchange.next(Instant::now()), None);
}
