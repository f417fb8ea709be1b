//! The role `expert-node`: a process that joins a registry and serves its experts over gRPC.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tramontane_cluster::ServerError;
use tramontane_cluster::exchange::ExpertServer;
use tramontane_cluster::exchange::grpc::serve_experts;
use tramontane_cluster::registry::RegistryError;
use tramontane_expert_node::{ExpertStore, Node, NodeError, NodeOptions};
use tramontane_kernels::{Compute, Isa};
use tramontane_router::NodeId;

use crate::args::NodeArgs;
use crate::model::Model;
use crate::registry::{open, take_name, tell_refused};
use crate::signals::Signals;

/// How long a node that has left still answers coordinators that have not heard of it.
const LINGER: Duration = Duration::from_secs(1);

/// Runs until it is told to stop and others have its experts, or until its registry is gone for good.
pub(crate) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let addr = reached_at(&args, listener.local_addr()?)?;
    let mut signals = Signals::new()?;
    let model = Model::open(&args.model)?;
    let id = NodeId::from(args.id.clone().unwrap_or_else(|| addr.clone()));
    let registry = match open(&args.registry, &model).await {
        Ok(registry) => registry,
        Err(error) => {
            tell_refused(&args.registry, &model, &id, &error).await;
            return Err(error);
        }
    };
    let threads = args.threads.unwrap_or_else(cores);
    let capacity = args.capacity.unwrap_or(u64::MAX);
    let store = model.expert_store(capacity, Compute::new(Isa::detect(), threads));
    let (profile, zone) = (model.profile.clone(), args.zone);
    let options = NodeOptions { id: id.clone(), addr: addr.clone(), capacity, zone, profile: profile.clone() };
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { _ = stopped.await };
    let mut served = tokio::spawn(serve_experts(store.clone(), profile, listener, shutdown));
    let is_taken = |error: &_| matches!(error, NodeError::Registry { source: RegistryError::Taken { .. }, .. });
    let join = async || Node::join(options.clone(), store.clone(), registry.as_ref()).await;
    let node = tokio::select! {
        joined = take_name(&args.registry, is_taken, join) => match joined {
            Ok(node) => node,
            Err(error) => {
                if let Some(why) = refusal(&error, &addr) {
                    registry.tell_refused(id, why).await;
                }
                return Err(error.into());
            }
        },
        () = signals.next() => return Ok(()),
    };
    tracing::info!(node = %id, %addr, cluster = args.registry.cluster, "joined");
    tokio::select! {
        failed = end_of(&mut served) => return failed,
        left = stay(node, store.as_ref(), &mut signals, Duration::from_secs(args.drain_timeout)) => left?,
    }
    registry.farewell().await;
    sleep(LINGER).await;
    _ = stop.send(());
    tokio::select! {
        ended = end_of(&mut served) => ended,
        () = signals.next() => Ok(()),
    }
}

/// Why a node at `addr` may not be in the cluster, if that is what is wrong.
fn refusal(error: &NodeError, addr: &str) -> Option<String> {
    let NodeError::Registry { source, .. } = error else { return None };
    match source {
        RegistryError::Taken { .. } => {
            Some(format!("a node of this name is in the cluster; the one refused is at {addr}"))
        }
        RegistryError::Refused { why, .. } => Some(why.clone()),
        _ => None,
    }
}

/// Where coordinators reach the node.
fn reached_at(args: &NodeArgs, listening: SocketAddr) -> anyhow::Result<String> {
    match &args.advertise {
        Some(addr) => Ok(addr.clone()),
        None if listening.ip().is_unspecified() => {
            bail!(
                "--listen {listening} is no address to be reached at: say with --advertise HOST:PORT where others reach this node"
            )
        }
        None => Ok(listening.to_string()),
    }
}

/// How serving ended.
async fn end_of(served: &mut JoinHandle<Result<(), ServerError>>) -> anyhow::Result<()> {
    served.await.context("the experts' server")?.context("the experts' server")
}

/// Follows the placement until an operator has it leave; after a signal leaves when others have what the node holds, at the
/// latest after `patience` or with a second signal.
async fn stay(node: Node, store: &ExpertStore, signals: &mut Signals, patience: Duration) -> Result<(), NodeError> {
    let following = node.follow();
    tokio::pin!(following);
    tokio::select! {
        ended = &mut following => return ended,
        () = signals.next() => store.leave(),
    }
    tracing::info!("leaving when others hold what this node does; once more to leave at once");
    tokio::select! {
        drained = timeout(patience, following) => drained.unwrap_or_else(|_| {
            tracing::warn!(seconds = patience.as_secs(), "leaving although others do not hold everything yet");
            Ok(())
        }),
        () = signals.next() => Ok(()),
    }
}

/// Cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
