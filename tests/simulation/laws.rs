//! What must be true of the coordinator after every step, and of everything in the end.

use std::collections::{BTreeMap, BTreeSet};

use tramontane_coordinator::{Dispatcher, KV_BLOCK, KvPool, Scheduler, SequenceId, StepPlan};
use tramontane_router::NodeId;

use super::node::Node;
use super::trace::{Broken, Law};
use super::world::World;

/// Every used block is somebody's, and nobody writes one that another holds.
pub(crate) fn blocks(
    scheduler: &Scheduler,
    pool: &KvPool,
    here: impl Iterator<Item = SequenceId>,
    plan: &StepPlan,
) -> Result<(), Broken> {
    let mut holders: BTreeMap<u32, usize> = BTreeMap::new();
    for sequence in here.filter_map(|id| scheduler.get(id)) {
        sequence.blocks().iter().for_each(|block| *holders.entry(block.index()).or_default() += 1);
    }
    if holders.len() != pool.used() {
        let what = format!("{} blocks are somebody's, {} are used", holders.len(), pool.used());
        return Err(Broken::new(Law::Blocks, what));
    }
    for chunk in &plan.chunks {
        let table = scheduler.get(chunk.sequence).map(|sequence| sequence.block_table()).unwrap_or_default();
        let written = chunk.start / KV_BLOCK..(chunk.start + chunk.len).div_ceil(KV_BLOCK);
        if let Some(block) = table[written].iter().find(|block| holders.get(block) != Some(&1)) {
            let what = format!("{} writes block {block}, which others hold", chunk.sequence);
            return Err(Broken::new(Law::Blocks, what));
        }
    }
    Ok(())
}

/// Whether the dispatcher takes no answer of `node`.
pub(crate) fn is_quarantined(dispatcher: &Dispatcher, node: &NodeId) -> bool {
    dispatcher.report().borrow().quarantined.contains_key(node)
}

/// Whether two others can say of everything that `liar` holds that it is wrong.
pub(crate) fn can_be_found_out(dispatcher: &Dispatcher, world: &World, liar: usize) -> bool {
    let honest = |node: &&Node| node.runs() && node.id != world.nodes[liar].id && !is_quarantined(dispatcher, &node.id);
    let held = world.nodes[liar].held.iter();
    held.into_iter().all(|expert| world.nodes.iter().filter(honest).filter(|n| n.held.contains(expert)).count() >= 2)
}

/// Only who has answered wrongly is quarantined.
pub(crate) fn quarantine(dispatcher: &Dispatcher, world: &World) -> Result<(), Broken> {
    let report = dispatcher.report();
    let report = report.borrow();
    match report.quarantined.keys().find(|node| !world.suspicious.contains(*node)) {
        Some(node) => Err(Broken::new(Law::Quarantine, format!("{node} is quarantined, and answered rightly"))),
        None => Ok(()),
    }
}

/// What is not yet as it should be when all is calm.
pub(crate) fn unsettled(world: &World) -> Option<String> {
    let view = &world.registry.view;
    let Some(placement) = &view.placement else { return Some("nothing is placed".into()) };
    let alive: BTreeSet<&NodeId> = world.nodes.iter().filter(|node| node.runs()).map(|node| &node.id).collect();
    if let Some(missing) = alive.iter().find(|id| !view.nodes.contains_key(**id)) {
        return Some(format!("{missing} is not in the registry"));
    }
    for expert in world.script.model.all() {
        let nodes = placement.replicas.get(&expert).map(Vec::as_slice).unwrap_or_default();
        let holders = view.holders(expert).count();
        if nodes.is_empty() || holders < nodes.len() {
            return Some(format!("{expert} is placed on {nodes:?}, {holders} hold it"));
        }
    }
    let seen = world.registry.views.borrow();
    (seen.placement != view.placement).then(|| "the coordinator has not seen the placement".into())
}
