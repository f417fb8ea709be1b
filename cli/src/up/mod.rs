//! `up`: a whole cluster on this machine. The parent is front door, coordinator and registry; expert nodes are threads' work in
//! this process, or processes of their own.

pub(crate) mod assemble;
mod complete;
pub(crate) mod nodes;
mod processes;

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use assemble::default_nodes;
use nodes::Nodes;
use tramontane_cluster::tls::Security;
use tramontane_gateway::metrics::EngineCollector;
use tramontane_kernels::{Compute, Isa};
use tramontane_router::placement::ControllerPolicy;

use crate::args::UpArgs;
use crate::door::{Announce, Door, front_door};
use crate::engine::{KvRoom, Started, start_engine};
use crate::expert_node::cores;
use crate::model::Model;
use crate::placing::{Rates, desire, lead, place_once, until_held};
use crate::telemetry::LogArgs;

/// Nodes that hold each expert, unless it is told how many.
const DEFAULT_REPLICAS: usize = 1;

/// Starts the cluster; completes the prompt, or serves until it is told to stop; and stops it.
pub(crate) async fn run(args: UpArgs, log: &LogArgs) -> anyhow::Result<()> {
    if args.serve.require_api_keys && args.serve.api_keys_file.is_none() {
        bail!("--require-api-keys: `up` has no keys but those of --api-keys-file");
    }
    let work = match &args.prompt.prompt {
        Some(_) => None,
        // What cannot be served is found out before a model is loaded for minutes.
        None => Some(Door::open(&args.serve, &args.metrics, Announce::json(args.prompt.json)).await?),
    };
    let model = Model::open(&args.model)?;
    let work = match (work, &args.prompt.prompt) {
        (Some(door), _) => Work::Serve(door),
        (None, text) => {
            Work::Complete(complete::Prompt::prepare(text.as_deref().unwrap_or_default(), &args.prompt, &model)?)
        }
    };
    let count = args.expert_nodes.unwrap_or_else(|| default_nodes(&model));
    let threads = args.threads.unwrap_or_else(cores);
    let compute = Compute::new(Isa::detect(), threads);
    let mut nodes = if args.processes {
        let threads = args.threads.unwrap_or_else(|| (cores() / count).max(1));
        let telemetry = [log.arguments(), args.traces.arguments()].concat();
        processes::start(&model, &args.model, count, threads, telemetry).await?
    } else {
        nodes::start(&model, count, &compute).await?
    };
    let outcome = work_on(&mut nodes, &args, &model, work, compute).await;
    nodes.stop().await;
    outcome
}

/// What the cluster is for.
enum Work {
    Complete(complete::Prompt),
    Serve(Door),
}

/// Does the work on nodes that have joined.
async fn work_on(nodes: &mut Nodes, args: &UpArgs, model: &Model, work: Work, compute: Compute) -> anyhow::Result<()> {
    let registry = nodes.registry.clone();
    if args.processes {
        // They may die and be started again, so somebody has to see to their experts.
        let policy = ControllerPolicy { settle: Duration::ZERO, ..ControllerPolicy::default() };
        let replicas = args.replicas.unwrap_or(DEFAULT_REPLICAS);
        let desire = desire(model, replicas);
        let leading = lead(registry.clone(), Security::Plaintext, "up".to_owned(), desire, policy, Rates::default());
        nodes.beside("the placement's loop", leading);
    } else {
        place_once(model, registry.as_ref()).await?;
    }
    nodes.until(until_held(model, registry.as_ref())).await?;
    nodes.settled();
    let kv = KvRoom::of(&args.kv);
    let auditing = model.auditing(args.audit)?;
    let Started { engine, metrics, .. } =
        start_engine(model, compute, kv, nodes.exchange(), registry.watch(), auditing)?;
    match work {
        Work::Complete(prompt) => {
            let completion = nodes.until(complete::run(&args.prompt, prompt, &engine)).await?;
            complete::report(&args.prompt, model, completion, nodes).await
        }
        Work::Serve(door) => {
            let front = front_door(&model.checkpoint, &model.config, &model.profile, Arc::new(engine.clone()))?;
            door.show(&front, &Security::Plaintext, |registry| {
                registry.register_collector(Box::new(EngineCollector(Arc::new(engine.clone()))));
                metrics.register(registry);
            });
            nodes.until(door.serve(front, || engine.drain())).await
        }
    }
}
