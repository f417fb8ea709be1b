//! One node on the solver's board: its room, its replicas, how full it is beside others.

use std::collections::BTreeMap;

use super::{NodeRoom, Standing};
use crate::{ExpertId, NodeId};

/// The weight of a node that is as fast as the others together, or whose speed nobody knows.
const AVERAGE: u64 = 4;
/// The largest weight: of four times that speed, or more.
const MAX_WEIGHT: u64 = 16;
/// So that fullness, a whole number, tells all weights apart.
pub(super) const SCALE: u64 = 720_720;

/// Where a replica on the board comes from: moving a new one costs nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// The previous placement has it on this node.
    Kept,
    /// It was put here just now.
    New,
}

/// One node.
pub(super) struct Seat<'p> {
    /// Its node.
    pub(super) id: &'p NodeId,
    /// Zones are counted through.
    pub(super) zone: usize,
    /// Bytes left.
    pub(super) free: u64,
    /// Whether it neither gets nor gives.
    pub(super) cordoned: bool,
    /// Its share of the work, in parts of [`AVERAGE`].
    pub(super) weight: u64,
    /// What it has.
    pub(super) replicas: BTreeMap<ExpertId, Origin>,
    /// How full one replica more makes it.
    pub(super) next: u64,
}

impl Seat<'_> {
    /// How full `replicas` make it, beside others.
    pub(super) fn fullness(&self, replicas: usize) -> u64 {
        replicas as u64 * SCALE / self.weight
    }

    /// Whether one replica fewer here and one more there makes the two more even.
    pub(super) fn should_give_to(&self, to: &Self) -> bool {
        let (from, there) = (self.replicas.len() as u64, to.replicas.len() as u64);
        // What a move changes in Σ replicas² ÷ weight; that sum falls with each, so moving ends.
        (2 * from).saturating_sub(1) * to.weight > (2 * there + 1) * self.weight
    }

    /// Replicas of one layer.
    pub(super) fn of_layer(&self, layer: u32) -> usize {
        self.replicas.range(ExpertId::new(layer, 0)..=ExpertId::new(layer, u32::MAX)).count()
    }
}

/// The weight of a node by its speed, beside the known speeds of all that take experts.
pub(super) fn weights(nodes: &[NodeRoom]) -> impl Fn(u32) -> u64 {
    let known = || nodes.iter().filter(|n| n.standing == Standing::Open && n.speed > 0).map(|n| u64::from(n.speed));
    let (sum, count) = (known().sum::<u64>(), known().count() as u64);
    move |speed| match (speed, sum) {
        (0, _) | (_, 0) => AVERAGE,
        // Rounded to parts of the average: experts are not moved for less.
        (speed, sum) => ((2 * AVERAGE * u64::from(speed) * count + sum) / (2 * sum)).clamp(1, MAX_WEIGHT),
    }
}
