//! What an embedded cluster is put together from, whoever runs it: `up` serves with it, `bench` measures it.

use tramontane_cluster::exchange::Exchange;
use tramontane_cluster::registry::Watch;
use tramontane_coordinator::{Dispatcher, Forward, KV_BLOCK};
use tramontane_kernels::{Compute, KvType};
use tramontane_model::config::ModelConfig;
use tramontane_model::decoder;
use tramontane_router::flight::Policy;
use tramontane_router::{NodeId, RowFormat};

use crate::cost::kv_position_bytes;
use crate::model::Model;

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

/// Bytes of one block of keys and values in all layers.
pub(crate) fn kv_block_bytes(config: &ModelConfig, ty: KvType) -> u64 {
    (kv_position_bytes(config, ty) * KV_BLOCK) as u64
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
    let room = (kv_type, kv_blocks as usize);
    let checkpoint = model.checkpoint.clone();
    let decoder = decoder::load(&model.device, compute.clone(), model.cache.clone(), checkpoint, &model.config, room)?;
    let dispatcher = Dispatcher::new(model.id.clone(), exchange, watch, Policy::default());
    let encoding = if model.experts.quantized { RowFormat::Q8 } else { RowFormat::F32 };
    Ok(Forward::new(decoder, compute, dispatcher, encoding))
}
