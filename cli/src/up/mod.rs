//! `up`: a whole cluster on this machine. The parent is coordinator and registry; expert nodes are threads' work in this
//! process, or processes of their own.

mod complete;
mod nodes;
mod processes;

use std::thread;

use anyhow::{Context, anyhow};
use nodes::Nodes;
use tramontane_cluster::engine::{InProcessEngine, in_process};
use tramontane_cluster::exchange::Exchange;
use tramontane_cluster::registry::{Registry, Watch};
use tramontane_coordinator::{Dispatcher, EngineLoop, EngineOptions, Forward, KV_BLOCK, Limits};
use tramontane_kernels::{Compute, Isa, KvType};
use tramontane_model::decoder::Decoder;
use tramontane_router::flight::Policy;
use tramontane_router::placement::{ExpertSize, NodeRoom, Problem, solve};
use tramontane_router::{ClusterView, NodeId, NodeRecord, RowFormat};

use crate::args::UpArgs;
use crate::expert_node::cores;
use crate::model::Model;
use crate::progress::Progress;

/// Expert nodes of an embedded cluster, unless it is told how many.
const DEFAULT_MAX_NODES: usize = 8;
/// Requests between the front door and the engine.
const ENGINE_QUEUE: usize = 64;
/// The engine's bounds.
const LIMITS: Limits = Limits { max_running: 64, step_tokens: 512, chunk: 256, max_waiting: 256 };

/// Starts the cluster, completes the prompt, and stops it.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<()> {
    let model = Model::open(&args.model)?;
    let prompt = complete::Prompt::prepare(&args.prompt, &model)?;
    let count = args.expert_nodes.unwrap_or(model.config.experts.min(DEFAULT_MAX_NODES));
    let threads = args.threads.unwrap_or_else(cores);
    let compute = Compute::new(Isa::detect(), threads);
    let mut nodes = if args.processes {
        let threads = args.threads.unwrap_or_else(|| (cores() / count).max(1));
        processes::start(&model, &args.model, count, threads).await?
    } else {
        nodes::start(&model, count, &compute).await?
    };
    let outcome = complete_on(&mut nodes, &args, &model, prompt, compute).await;
    nodes.stop().await;
    outcome
}

/// Completes the prompt on nodes that have joined.
async fn complete_on(
    nodes: &mut Nodes,
    args: &UpArgs,
    model: &Model,
    prompt: complete::Prompt,
    compute: Compute,
) -> anyhow::Result<()> {
    let registry = nodes.registry.clone();
    nodes.until(place(model, registry.as_ref())).await?;
    let kv = KvRoom { ty: args.kv_type.into(), memory: args.kv_memory };
    let engine = start_engine(model, compute, kv, nodes.exchange(), registry.watch())?;
    let completion = nodes.until(complete::run(&args.prompt, prompt, &engine)).await?;
    complete::report(&args.prompt, model, completion, nodes).await
}

/// Places the model's experts on the nodes, and waits until they hold them.
async fn place(model: &Model, registry: &dyn Registry) -> anyhow::Result<()> {
    let bytes = model.expert_bytes();
    let view = registry.watch().current();
    let room = |n: &NodeRecord| NodeRoom { id: n.id.clone(), capacity: n.capacity, draining: n.draining };
    let problem = Problem {
        model: model.id.clone(),
        experts: model.expert_ids().map(|id| ExpertSize { id, bytes }).collect(),
        nodes: view.nodes.values().map(room).collect(),
        replicas: 1,
    };
    let failed = || format!("the experts do not fit on {} nodes", view.nodes.len());
    let placement = solve(&problem, None).with_context(failed)?;
    registry.propose(placement).await?;
    let total = model.config.layers * model.config.experts;
    let progress = Progress::start("loading experts", total as u64);
    let mut watch = registry.watch();
    let all_held = |view: &ClusterView| {
        let held: usize = view.nodes.values().map(|node| node.held.len()).sum();
        progress.set(held as u64);
        held >= total
    };
    watch.until(all_held).await?;
    Ok(())
}

/// What the KV cache is made of.
struct KvRoom {
    ty: KvType,
    memory: u64,
}

fn start_engine(
    model: &Model,
    compute: Compute,
    kv: KvRoom,
    exchange: Box<dyn Exchange>,
    watch: Watch,
) -> anyhow::Result<InProcessEngine> {
    let decoder = Decoder::load(&compute.pool, model.checkpoint.clone(), &model.config)?;
    let config = &model.config;
    let block = config.layers * config.kv_heads * config.head_dim * KV_BLOCK * 2 * kv.ty.bytes();
    let enough = LIMITS.max_running * config.context.div_ceil(KV_BLOCK);
    let blocks = u32::try_from((kv.memory / block as u64).min(enough as u64)).unwrap_or(u32::MAX);
    if blocks == 0 {
        return Err(anyhow!("--kv-memory {}: one block of keys and values has {block} bytes", kv.memory));
    }
    let dispatcher = Dispatcher::new(model.id.clone(), exchange, watch, Policy::default());
    let encoding = if model.experts.quantized { RowFormat::Q8 } else { RowFormat::F32 };
    let forward = Forward::new(decoder, compute, kv.ty, blocks as usize, dispatcher, encoding);
    let (engine, inbox) = in_process(ENGINE_QUEUE);
    let engine_loop = EngineLoop::new(inbox, forward, EngineOptions { limits: LIMITS, kv_blocks: blocks })?;
    thread::Builder::new().name("engine".to_owned()).spawn(move || engine_loop.run())?;
    Ok(engine)
}

/// The name of the embedded cluster's node `i`.
pub(crate) fn node_id(i: usize) -> NodeId {
    NodeId::from(format!("node-{i}"))
}
