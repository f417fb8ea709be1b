//! The role `coordinator`: an engine and its front door, on experts that other processes hold. Any of a cluster's coordinators
//! may lead it, that is, place the experts.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::runtime::Handle;
use tramontane_cluster::exchange::Carrier;
use tramontane_cluster::metrics::ExchangeMetrics;
use tramontane_cluster::registry::Registry;
use tramontane_cluster::tls::{Role, Security};
use tramontane_coordinator::ClusterAdmin;
use tramontane_coordinator::metrics::ClusterCollector;
use tramontane_gateway::metrics::EngineCollector;
use tramontane_kernels::{Compute, Isa};
use tramontane_router::placement::ControllerPolicy;

use crate::args::{KvArgs, ModelArgs, ServeArgs, host_and_port, replicas, threads};
use crate::door::{Announce, Door, front_door};
use crate::engine::{KvRoom, Started, start_engine};
use crate::expert_node::cores;
use crate::metrics::MetricsArgs;
use crate::model::Model;
use crate::offer::{Listener, Offer};
use crate::office::{AdminArgs, Office};
use crate::placing::{Rates, desire, lead, until_held};
use crate::registry::{RegistryArgs, open, open_accounts, open_directory};
use crate::telemetry::TraceArgs;
use crate::tls::TlsArgs;

const COORDINATOR_EXAMPLES: &str = "\
Examples:
  tramontane coordinator --registry etcd://127.0.0.1:2379
  tramontane coordinator --registry etcd://10.0.0.1:2379,10.0.0.2:2379 --cluster prod --model ./Mixtral-8x7B-v0.1 \\
    --replicas 2 --http 10.0.1.1:8080 --api-keys-file /etc/tramontane/keys
  tramontane coordinator --config /etc/tramontane.toml --id c1";

/// Runs one coordinator: it computes attention, samples, and serves; the experts are the nodes'.
#[derive(Debug, Args)]
#[command(before_help = COORDINATOR_EXAMPLES)]
pub(crate) struct CoordinatorArgs {
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// Address at which gateways reach its engine, for them alone: it asks for no keys; port 0 takes a free one
    #[arg(
        long,
        env = "TRAMONTANE_LISTEN",
        value_name = "ADDR",
        default_value = "127.0.0.1:0",
        help_heading = "Cluster"
    )]
    pub(crate) listen: SocketAddr,
    /// HOST:PORT at which gateways reach its engine [default: the address it listens on]
    #[arg(long, env = "TRAMONTANE_ADVERTISE", value_name = "ADDR", help_heading = "Cluster", value_parser = host_and_port)]
    pub(crate) advertise: Option<String>,
    #[command(flatten)]
    pub(crate) admin: AdminArgs,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Nodes that should hold each expert, where there is room
    #[arg(long, env = "TRAMONTANE_REPLICAS", value_name = "R", default_value_t = 2, value_parser = replicas, help_heading = "Cluster")]
    pub(crate) replicas: usize,
    /// This coordinator's name [default: the address it serves HTTP on]
    #[arg(long, env = "TRAMONTANE_ID", value_name = "ID", help_heading = "Cluster")]
    pub(crate) id: Option<String>,
    /// Have one dispatch in N computed by a second node too; 0: none; 1: all, and answers are used only when two nodes agree to the bit [default: 256; 0 where nodes compute on GPUs]
    #[arg(long, env = "TRAMONTANE_AUDIT", value_name = "N", help_heading = "Cluster")]
    pub(crate) audit: Option<u32>,
    /// Arithmetic of its expert nodes, where it is not its own: cpu, candle-cpu or candle-cuda; nodes of another are refused [default: that of --device]
    #[arg(long, env = "TRAMONTANE_PROFILE", value_name = "ARITHMETIC", help_heading = "Cluster", value_parser = ["cpu", "candle-cpu", "candle-cuda"])]
    pub(crate) profile: Option<String>,
    /// What carries rows to nodes and back: grpc, or nccl between GPUs (in builds with --features nccl; the GPU is the first of CUDA_VISIBLE_DEVICES). Where and while NCCL cannot, gRPC does
    #[arg(long, env = "TRAMONTANE_EXCHANGE", value_name = "CARRIER", default_value = Carrier::Grpc.name(), help_heading = "Cluster", value_parser = carrier)]
    pub(crate) exchange: Carrier,
    #[command(flatten)]
    pub(crate) kv: KvArgs,
    /// Threads that compute [default: all cores]
    #[arg(long, env = "TRAMONTANE_THREADS", value_name = "N", value_parser = threads, help_heading = "Engine")]
    pub(crate) threads: Option<usize>,
    /// Print one JSON object with the addresses once it serves
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Runs until it is told to stop.
pub(crate) async fn run(args: CoordinatorArgs) -> anyhow::Result<()> {
    args.exchange.available().with_context(|| format!("--exchange {}", args.exchange.name()))?;
    let mut door = Door::open(&args.serve, &args.metrics, Announce::json(args.json)).await?;
    args.tls.permit("--listen", args.listen)?;
    args.tls.permit("--admin", args.admin.admin)?;
    let security = args.tls.open(Role::Coordinator, &args.registry.cluster)?;
    let listener = Listener::bind(args.listen, args.advertise.clone(), security.clone()).await?;
    let model = Model::open(&args.model)?.with_experts(args.profile.as_deref());
    let registry = open(&args.registry, &model).await?;
    let directory = open_directory(&args.registry).await?;
    let accounts = open_accounts(&args.registry).await?;
    if let Some(accounts) = &accounts {
        door.look_after(accounts.clone());
    }
    let id = args.id.clone().unwrap_or_else(|| door.addr().to_string());
    let (desire, rates) = (desire(&model, args.replicas), Rates::default());
    let admin = ClusterAdmin::new(id.clone(), registry.clone(), security.clone(), desire.clone(), rates.subscribe());
    let admin = Arc::new(admin.looking_after(accounts));
    let mut office = Office::open(&args.admin, security.clone(), admin.clone(), &mut door).await?;
    let leading = lead(registry.clone(), security.clone(), id.clone(), desire, ControllerPolicy::default(), rates);
    let mut leading = tokio::spawn(leading);
    let offer = directory.map(|directory| Offer { id: id.into(), listener, directory, registry: &args.registry });
    let served = tokio::select! {
        served = serve(&args, security, &model, door, registry.as_ref(), offer, &admin) => served,
        why = office.ended() => Err(why),
        ended = &mut leading => Err(anyhow!("the placement's loop has ended: {ended:?}")),
    };
    leading.abort();
    _ = leading.await;
    registry.farewell().await;
    served
}

/// Serves once there are nodes for all experts.
async fn serve(
    args: &CoordinatorArgs,
    security: Security,
    model: &Model,
    door: Door,
    registry: &dyn Registry,
    offer: Option<Offer<'_>>,
    admin: &Arc<ClusterAdmin>,
) -> anyhow::Result<()> {
    until_held(model, registry).await?;
    let compute = Compute::new(Isa::detect(), args.threads.unwrap_or_else(cores));
    let exchange_metrics = ExchangeMetrics::default();
    let (profile, security_of_nodes) = (model.profile.clone(), security.clone());
    let mut exchange = args.exchange.exchange(&Handle::current(), profile, security_of_nodes, exchange_metrics.clone());
    // The engine looks at the nodes when it first needs them; what has to be set up with them need not wait for that.
    exchange.follow(&registry.watch().current());
    let kv = KvRoom::of(&args.kv);
    let Started { engine, peers, metrics } =
        start_engine(model, compute, kv, exchange, registry.watch(), model.auditing(args.audit)?)?;
    admin.serves(Arc::new(engine.clone()), peers);
    let front = front_door(&model.checkpoint, &model.config, &model.profile, Arc::new(engine.clone()))?;
    door.show(&front, &security, |registry| {
        registry.register_collector(Box::new(EngineCollector(Arc::new(engine.clone()))));
        metrics.register(registry);
        exchange_metrics.register(registry);
        registry.register_collector(Box::new(ClusterCollector(admin.clone())));
    });
    match offer {
        None => door.serve(front, || engine.drain()).await,
        Some(offer) => {
            let offered = offer.begin(&engine, model.profile.clone()).await?;
            offered.until(door.serve(front, || engine.drain())).await
        }
    }
}

fn carrier(name: &str) -> Result<Carrier, String> {
    let names = Carrier::ALL.map(Carrier::name).join(" or ");
    Carrier::named(name).ok_or_else(|| format!("{names} is wanted"))
}
