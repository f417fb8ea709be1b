//! What an embedded cluster is put together from, whoever runs it: `up` serves with it, `bench` measures it.

use anyhow::Context;
use tramontane_cluster::exchange::Exchange;
use tramontane_cluster::registry::{Registry, Watch};
use tramontane_coordinator::{Dispatcher, Forward, KV_BLOCK};
use tramontane_kernels::{Compute, KvType};
use tramontane_model::config::ModelConfig;
use tramontane_model::decoder::Decoder;
use tramontane_model::weights::Packing;
use tramontane_router::flight::Policy;
use tramontane_router::placement::{ExpertSize, NodeRoom, Problem, solve};
use tramontane_router::{ClusterView, NodeId, NodeRecord, RowFormat};

use crate::model::Model;
use crate::progress::Progress;

/// Expert nodes of an embedded cluster, unless it is told how many.
const DEFAULT_MAX_NODES: usize = 8;

/// How many expert nodes an embedded cluster for `model` has when nothing is said.
pub(crate) fn default_nodes(model: &Model) -> usize {
    model.config.experts.min(DEFAULT_MAX_NODES)
}

/// The name of the embedded cluster's node `i`.
pub(crate) fn node_id(i: usize) -> NodeId {
    NodeId::from(format!("node-{i}"))
}

/// Places the model's experts on the nodes, and waits until they hold them.
pub(crate) async fn place(model: &Model, registry: &dyn Registry) -> anyhow::Result<()> {
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

/// Bytes of one block of keys and values in all layers.
pub(crate) fn kv_block_bytes(config: &ModelConfig, ty: KvType) -> u64 {
    (config.layers * config.kv_heads * config.head_dim * KV_BLOCK * 2 * ty.bytes()) as u64
}

/// The model's forward pass: its decoder on `compute`, room for `kv_blocks` blocks of keys and values, and the way to its
/// experts over `exchange`, by the views that `watch` shows.
pub(crate) fn forward(
    model: &Model,
    compute: Compute,
    kv_type: KvType,
    kv_blocks: u32,
    exchange: Box<dyn Exchange>,
    watch: Watch,
) -> anyhow::Result<Forward> {
    let packing = Packing { pool: compute.pool.clone(), cache: model.cache.clone() };
    let decoder = Decoder::load(&packing, model.checkpoint.clone(), &model.config)?;
    let dispatcher = Dispatcher::new(model.id.clone(), exchange, watch, Policy::default());
    let encoding = if model.experts.quantized { RowFormat::Q8 } else { RowFormat::F32 };
    Ok(Forward::new(decoder, compute, kv_type, kv_blocks as usize, dispatcher, encoding))
}
