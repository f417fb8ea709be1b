//! The role `expert-node`: a process that joins a registry and serves its experts over gRPC.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tramontane_cluster::ServerError;
use tramontane_cluster::exchange::ExpertServer;
use tramontane_cluster::exchange::grpc::serve_experts;
use tramontane_cluster::registry::RegistryError;
use tramontane_cluster::tls::Role;
use tramontane_expert_node::metrics::StoreCollector;
use tramontane_expert_node::{ExpertStore, Node, NodeError, NodeOptions};
use tramontane_kernels::{Compute, Isa};
use tramontane_model::device::Device;
use tramontane_router::NodeId;

use crate::args::{ModelArgs, host_and_port, threads};
use crate::metrics::{Metrics, MetricsArgs, ModelLabels};
use crate::model::Model;
use crate::registry::{RegistryArgs, open, reached_at, take_name, tell_refused};
use crate::signals::Signals;
use crate::telemetry::TraceArgs;
use crate::tls::TlsArgs;

const NODE_EXAMPLES: &str = "\
Examples:
  tramontane expert-node --registry etcd://127.0.0.1:2379
  tramontane expert-node --registry etcd://10.0.0.1:2379,10.0.0.2:2379 --cluster prod --model ./Mixtral-8x7B-v0.1 \\
    --listen 0.0.0.0:7071 --advertise node-3:7071 --id node-3 --zone rack-b --capacity 48000000000";

/// How long a node that has left still answers coordinators that have not heard of it.
const LINGER: Duration = Duration::from_secs(1);

/// Bytes of a GPU's memory that are left for rows, results and the library's own.
const DEVICE_RESERVE: u64 = 1 << 30;

/// Runs one expert node: it joins, loads the experts that the placement gives it, and computes them.
#[derive(Debug, Args)]
#[command(before_help = NODE_EXAMPLES)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, env = "TRAMONTANE_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:0", help_heading = "Node")]
    pub(crate) listen: SocketAddr,
    /// HOST:PORT at which coordinators reach it [default: the address it listens on]
    #[arg(long, env = "TRAMONTANE_ADVERTISE", value_name = "ADDR", help_heading = "Node", value_parser = host_and_port)]
    pub(crate) advertise: Option<String>,
    /// This node's name [default: the address at which it is reached]
    #[arg(long, env = "TRAMONTANE_ID", value_name = "ID", help_heading = "Node")]
    pub(crate) id: Option<String>,
    /// What it shares its fate with (a rack, a building): replicas of an expert are spread over zones
    #[arg(
        long,
        env = "TRAMONTANE_ZONE",
        value_name = "ZONE",
        default_value = "",
        hide_default_value = true,
        help_heading = "Node"
    )]
    pub(crate) zone: String,
    /// Bytes of experts it may hold [default: what a GPU has free now, less 1 GiB for its work; no bound on cores]
    #[arg(long, env = "TRAMONTANE_CAPACITY", value_name = "BYTES", help_heading = "Node")]
    pub(crate) capacity: Option<u64>,
    /// Threads that compute [default: all cores]
    #[arg(long, env = "TRAMONTANE_THREADS", value_name = "N", value_parser = threads, help_heading = "Node")]
    pub(crate) threads: Option<usize>,
    /// Seconds that others have to take over its experts once it is told to stop
    #[arg(
        long,
        env = "TRAMONTANE_DRAIN_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 45,
        value_parser = clap::value_parser!(u64).range(0..=3600),
        help_heading = "Node"
    )]
    pub(crate) drain_timeout: u64,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
}

/// Runs until it is told to stop and others have its experts, or until its registry is gone for good.
pub(crate) async fn run(args: NodeArgs) -> anyhow::Result<()> {
    args.tls.permit("--listen", args.listen)?;
    let security = args.tls.open(Role::ExpertNode, &args.registry.cluster)?;
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    let addr = reached_at(args.advertise.clone(), listener.local_addr()?)?;
    let metrics = Metrics::open(&args.metrics)?;
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
    let capacity = args.capacity.unwrap_or_else(|| room(&model.device));
    let store = model.expert_store(capacity, Compute::new(Isa::detect(), threads));
    let (profile, zone) = (model.profile.clone(), args.zone);
    let options = NodeOptions { id: id.clone(), addr: addr.clone(), capacity, zone, profile: profile.clone() };
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async { _ = stopped.await };
    let mut served = tokio::spawn(serve_experts(store.clone(), profile, listener, security.clone(), shutdown));
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
    let of = ModelLabels {
        model: model.id.as_str().to_owned(),
        hash: format!("blake3:{}", model.profile.weights),
        quantization: model.profile.quantization.clone(),
        license: model.checkpoint.license(),
    };
    metrics.show(of, &security, |registry| registry.register_collector(Box::new(StoreCollector(store.clone()))));
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

/// Bytes of experts that `device` has room for.
fn room(device: &Device) -> u64 {
    device.free_bytes().map_or(u64::MAX, |free| free.saturating_sub(DEVICE_RESERVE))
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
