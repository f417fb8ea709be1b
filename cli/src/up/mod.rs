//! `up`: a whole cluster on this machine. The parent is front door, coordinator and registry; expert nodes are threads' work in
//! this process, or processes of their own.

pub(crate) mod assemble;
mod complete;
pub(crate) mod nodes;
mod processes;
mod serve;

use std::thread;

use anyhow::anyhow;
use assemble::{default_nodes, forward, kv_block_bytes, place};
use nodes::Nodes;
use tramontane_cluster::engine::{InProcessEngine, in_process};
use tramontane_cluster::exchange::Exchange;
use tramontane_cluster::registry::Watch;
use tramontane_coordinator::{EngineLoop, EngineOptions, KV_BLOCK, Limits, Vocabulary};
use tramontane_kernels::{Compute, Isa, KvType};
use tramontane_model::tokenizer::Tokenizer;

use crate::args::UpArgs;
use crate::expert_node::cores;
use crate::model::Model;

/// Requests between the front door and the engine.
const ENGINE_QUEUE: usize = 64;
/// The engine's bounds.
const LIMITS: Limits = Limits { max_running: 64, step_tokens: 512, chunk: 256, max_waiting: 256 };

/// Starts the cluster; completes the prompt, or serves until it is told to stop; and stops it.
pub(crate) async fn run(args: UpArgs) -> anyhow::Result<()> {
    let work = match &args.prompt.prompt {
        Some(_) => None,
        // What cannot be served is found out before a model is loaded for minutes.
        None => Some(serve::Door::open(&args)?),
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
        processes::start(&model, &args.model, count, threads).await?
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
    Serve(serve::Door),
}

/// Does the work on nodes that have joined.
async fn work_on(nodes: &mut Nodes, args: &UpArgs, model: &Model, work: Work, compute: Compute) -> anyhow::Result<()> {
    let registry = nodes.registry.clone();
    nodes.until(place(model, registry.as_ref())).await?;
    let kv = KvRoom { ty: args.kv_type.into(), memory: args.kv_memory };
    let engine = start_engine(model, compute, kv, nodes.exchange(), registry.watch())?;
    match work {
        Work::Complete(prompt) => {
            let completion = nodes.until(complete::run(&args.prompt, prompt, &engine)).await?;
            complete::report(&args.prompt, model, completion, nodes).await
        }
        Work::Serve(door) => nodes.until(door.serve(model, engine)).await,
    }
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
    let config = &model.config;
    let block = kv_block_bytes(config, kv.ty);
    let enough = LIMITS.max_running * config.context.div_ceil(KV_BLOCK);
    let blocks = u32::try_from((kv.memory / block).min(enough as u64)).unwrap_or(u32::MAX);
    if blocks == 0 {
        return Err(anyhow!("--kv-memory {}: one block of keys and values has {block} bytes", kv.memory));
    }
    let forward = forward(model, compute, kv.ty, blocks, exchange, watch)?;
    let (engine, inbox) = in_process(model.engine_info(kv.ty), ENGINE_QUEUE);
    let mut engine_loop = EngineLoop::new(inbox, forward, EngineOptions { limits: LIMITS, kv_blocks: blocks })?;
    let tokenizer = Tokenizer::of(&model.checkpoint)?;
    match Vocabulary::of(&tokenizer, config.vocab, &config.eos) {
        Ok(vocabulary) => engine_loop = engine_loop.with_vocabulary(vocabulary),
        Err(error) => tracing::warn!(%error, "requests with constraints will be refused"),
    }
    thread::Builder::new().name("engine".to_owned()).spawn(move || engine_loop.run())?;
    Ok(engine)
}
