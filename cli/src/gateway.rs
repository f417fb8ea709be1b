//! The role `gateway`: a front door to all engines of a cluster. It keeps nothing but what runs through it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use tramontane_cluster::registry::directory::{EngineRecord, EngineWatch};
use tramontane_cluster::tls::Role;
use tramontane_gateway::fleet::{Fleet, follow};
use tramontane_model::config::ModelConfig;

use crate::args::ServeArgs;
use crate::door::{Announce, Door, front_door};
use crate::metrics::MetricsArgs;
use crate::model::open_checkpoint;
use crate::registry::{RegistryArgs, open_accounts, open_directory};
use crate::telemetry::TraceArgs;
use crate::tls::CertificateArgs;

const GATEWAY_EXAMPLES: &str = "\
Examples:
  tramontane gateway --registry etcd://127.0.0.1:2379 --http 127.0.0.1:8000
  tramontane gateway --registry etcd://10.0.0.1:2379,10.0.0.2:2379 --cluster prod --model ./Mixtral-8x7B-v0.1 \\
    --http 10.0.1.9:8080 --grpc 10.0.1.9:9090 --api-keys-file /etc/tramontane/keys";

/// Runs a front door to all coordinators of a cluster. It keeps nothing: when a coordinator is gone, another takes its requests up
/// where they were, and clients notice nothing.
#[derive(Debug, Args)]
#[command(before_help = GATEWAY_EXAMPLES)]
pub(crate) struct GatewayArgs {
    #[command(flatten)]
    pub(crate) registry: RegistryArgs,
    /// The coordinators' model, for its tokenizer and chat template: folder of a checkpoint in Hugging Face's layout, a GGUF file, a model that was pulled (ORG/NAME[@COMMIT][:TYPE], in TRAMONTANE_MODELS_DIR), or the word `demo` [default: the demo model, which is in this binary]
    #[arg(long, env = "TRAMONTANE_MODEL", value_name = "PATH", help_heading = "Model", value_parser = crate::model::named)]
    pub(crate) model: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    #[command(flatten)]
    pub(crate) metrics: MetricsArgs,
    #[command(flatten)]
    pub(crate) traces: TraceArgs,
    #[command(flatten)]
    pub(crate) tls: CertificateArgs,
    /// Print one JSON object with the addresses once it serves
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Runs until a signal comes.
pub(crate) async fn run(args: GatewayArgs) -> anyhow::Result<()> {
    // What cannot be served is found out first.
    let mut door = Door::open(&args.serve, &args.metrics, Announce::json(args.json)).await?;
    let security = args.tls.open(Role::Gateway)?;
    let (name, checkpoint) = open_checkpoint(args.model.as_deref())?;
    let config = checkpoint.config()?;
    let directory = open_directory(&args.registry).await?;
    let directory =
        directory.with_context(|| format!("{}: a gateway finds engines in etcd", args.registry.registry))?;
    if let Some(accounts) = open_accounts(&args.registry).await? {
        door.look_after(accounts);
    }
    let EngineRecord { info, profile, .. } = first(directory.watch(), &name, &config).await?;
    let fleet = Arc::new(Fleet::new(info));
    let front = front_door(&checkpoint, &config, &profile, fleet.clone())?;
    door.show(&front, &security, |_| {});
    tokio::select! {
        served = door.serve(front, || fleet.drain()) => served,
        Err(lost) = follow(directory.watch(), &security, fleet.members()) => Err(lost.into()),
    }
}

/// Waits for an engine of the model `name`: what one serves, all of them must.
async fn first(mut watch: EngineWatch, name: &str, config: &ModelConfig) -> anyhow::Result<EngineRecord> {
    let mut others = BTreeSet::new();
    let of_model = |record: &&EngineRecord| record.info.model.as_str() == name;
    loop {
        let engines = watch.changed().await?;
        if let Some(record) = engines.values().find(of_model) {
            check(record, config)?;
            return Ok(record.clone());
        }
        for other in engines.values().map(|record| record.info.model.clone()) {
            if others.insert(other.clone()) {
                tracing::warn!("a coordinator serves {other}; waiting for one that serves {name}");
            }
        }
    }
}

/// Whether `record` is of the very model that has `config`.
fn check(record: &EngineRecord, config: &ModelConfig) -> anyhow::Result<()> {
    let (theirs, ours) = ((record.info.context, record.info.vocab), (config.context, config.vocab));
    if theirs == ours {
        return Ok(());
    }
    bail!(
        "coordinator {} serves another {}: its context is {} tokens and its vocabulary {}, here they are {} and {}",
        record.id,
        record.info.model,
        theirs.0,
        theirs.1,
        ours.0,
        ours.1
    )
}
