//! Starts an engine: a thread of its own that computes what front doors ask of it.

use std::thread;

use anyhow::anyhow;
use tokio::sync::watch;
use tramontane_cluster::engine::{InProcessEngine, in_process};
use tramontane_cluster::exchange::Exchange;
use tramontane_cluster::registry::Watch;
use tramontane_coordinator::metrics::EngineMetrics;
use tramontane_coordinator::{Auditing, EngineLoop, EngineOptions, KV_BLOCK, Limits, PeerReport, Vocabulary};
use tramontane_kernels::{Compute, KvType};
use tramontane_model::tokenizer::Tokenizer;

use crate::args::KvArgs;
use crate::model::Model;
use crate::up::assemble::{forward, kv_block_bytes};

/// The engine's bounds.
const LIMITS: Limits = Limits { max_running: 64, step_tokens: 512, chunk: 256, max_waiting: 256 };
/// Requests between the front door and the engine, which looks there after every step: as many as find places when it does.
const ENGINE_QUEUE: usize = LIMITS.max_running + LIMITS.max_waiting;

/// An engine that runs.
pub(crate) struct Started {
    pub(crate) engine: InProcessEngine,
    /// What it holds against nodes.
    pub(crate) peers: watch::Receiver<PeerReport>,
    pub(crate) metrics: EngineMetrics,
}

/// What the KV cache is made of.
pub(crate) struct KvRoom {
    ty: KvType,
    memory: u64,
}

impl KvRoom {
    pub(crate) fn of(args: &KvArgs) -> Self {
        Self { ty: args.kv_type.into(), memory: args.kv_memory }
    }
}

/// An engine for `model` that reaches the experts over `exchange`, by the views that `watch` shows, and has so much computed twice.
pub(crate) fn start_engine(
    model: &Model,
    compute: Compute,
    kv: KvRoom,
    exchange: Box<dyn Exchange>,
    watch: Watch,
    auditing: Auditing,
) -> anyhow::Result<Started> {
    let config = &model.config;
    let block = kv_block_bytes(config, kv.ty);
    let enough = LIMITS.max_running * config.context.div_ceil(KV_BLOCK);
    let blocks = u32::try_from((kv.memory / block).min(enough as u64)).unwrap_or(u32::MAX);
    if blocks == 0 {
        return Err(anyhow!("--kv-memory {}: one block of keys and values has {block} bytes", kv.memory));
    }
    let forward = forward(model, compute, kv.ty, blocks, exchange, watch)?.auditing(auditing);
    let peers = forward.peers();
    let (engine, inbox) = in_process(model.engine_info(kv.ty), ENGINE_QUEUE);
    let mut engine_loop = EngineLoop::new(inbox, forward, EngineOptions { limits: LIMITS, kv_blocks: blocks })?;
    let metrics = EngineMetrics::default();
    engine_loop = engine_loop.counted_by(metrics.clone());
    let tokenizer = Tokenizer::of(&model.checkpoint)?;
    match Vocabulary::of(&tokenizer, config.vocab, &config.eos) {
        Ok(vocabulary) => engine_loop = engine_loop.with_vocabulary(vocabulary),
        Err(error) => tracing::warn!(%error, "requests with constraints will be refused"),
    }
    thread::Builder::new().name("engine".to_owned()).spawn(move || engine_loop.run())?;
    Ok(Started { engine, peers, metrics })
}
