//! The solver: from experts, nodes and the previous placement to the next one. Balanced, within capacity, moving little.

use std::collections::BTreeMap;

use super::Placement;
use super::board::Board;
use crate::{ClusterView, Epoch, ExpertId, ModelId, NodeId};

/// An expert to place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertSize {
    /// The expert.
    pub id: ExpertId,
    /// Bytes that one replica takes.
    pub bytes: u64,
}

/// A node to place experts on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoom {
    /// The node.
    pub id: NodeId,
    /// Bytes of experts it may hold.
    pub capacity: u64,
    /// Its speed beside others', in any unit; 0 where it is not known, which counts as the average.
    pub speed: u32,
    /// What may be placed on it.
    pub standing: Standing,
}

/// What may be placed on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Anything that fits.
    Open,
    /// What is placed there already, and nothing new.
    Cordoned,
    /// Nothing: it is leaving.
    Leaving,
}

impl NodeRoom {
    /// A node that takes what fits, of unknown speed.
    pub const fn open(id: NodeId, capacity: u64) -> Self {
        Self { id, capacity, speed: 0, standing: Standing::Open }
    }

    /// The nodes of `view`.
    pub fn all(view: &ClusterView) -> Vec<Self> {
        let room = |node: &crate::NodeRecord| Self {
            id: node.id.clone(),
            capacity: node.capacity,
            speed: node.speed,
            standing: view.standing(node),
        };
        view.nodes.values().map(room).collect()
    }
}

/// What is to be placed, and where it may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The model.
    pub model: ModelId,
    /// Its experts, each once, in any order.
    pub experts: Vec<ExpertSize>,
    /// The live nodes, each once, in any order.
    pub nodes: Vec<NodeRoom>,
    /// Nodes that should hold each expert, at least 1; where fewer may, all of them do.
    pub replicas: usize,
}

/// Why there is no placement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SolveError {
    /// Ask for at least one replica.
    #[error("no replicas asked for")]
    NoReplicas,
    /// Wait for nodes.
    #[error("no node that takes experts")]
    NoNodes,
    /// Give the placement of the problem's own model as the previous one.
    #[error("the previous placement is of model {previous}, not {model}")]
    OtherModel {
        /// The previous placement's model.
        previous: ModelId,
        /// The problem's.
        model: ModelId,
    },
    /// Add nodes or capacity, or ask for fewer replicas.
    #[error("no node has room for replica {copy} of {replicas} of {expert} ({bytes} bytes)")]
    NoRoom {
        /// The expert.
        expert: ExpertId,
        /// Its size.
        bytes: u64,
        /// Which of its replicas, from 1.
        copy: usize,
        /// How many each expert should have.
        replicas: usize,
    },
}

/// Places every expert on `min(replicas, nodes)` distinct nodes that are not draining, within their capacities, so that no
/// node has two replicas more than another if capacities permit; where speeds are known, replicas in proportion to them.
///
/// - Without a previous placement the i-th expert goes to the i-th node, round and round: each layer is spread evenly, and
///   8 experts on 8 nodes give each node one column. Second replicas are shifted by 1, 2, … from layer to layer, so that
///   what one lost node held has its second replicas on all the others.
/// - With one, what is placed stays, but for what balance needs: a node that joins n others takes at most
///   ⌈replicas in all ÷ (n + 1)⌉, and nothing else moves; when one leaves, its replicas alone find new nodes, unless distinct
///   nodes for the replicas of an expert leave no other way to balance.
/// - A cordoned node keeps what is placed on it, neither gets nor gives, and is no node for an expert it does not have.
/// - Idempotent: where nothing would change, the previous placement is returned as it is, with its epoch. Else the epoch is
///   one after the previous one, which is the parent; the first placement is epoch 1 with parent 0.
///
/// # Errors
/// [`SolveError`]. `NoRoom` may also come where sizes differ and a cleverer packing would fit.
pub fn solve(problem: &Problem, previous: Option<&Placement>) -> Result<Placement, SolveError> {
    solve_with(problem, &Wishes::default(), previous)
}

/// What is wanted beyond a [`Problem`]: it is honoured where there is room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// What each node shares its fate with; nodes left out share theirs. An expert's replicas stand in different zones.
    pub zones: BTreeMap<NodeId, String>,
    /// Replicas that an expert should have on top of the problem's.
    pub extra: BTreeMap<ExpertId, usize>,
}

/// As [`solve`], with `wishes`. Replicas are spread over zones before they are balanced over nodes, so that zones of
/// unequal size may leave nodes unequal.
///
/// # Errors
/// As [`solve`]; wishes that cannot be met are no error.
pub fn solve_with(problem: &Problem, wishes: &Wishes, previous: Option<&Placement>) -> Result<Placement, SolveError> {
    if problem.replicas == 0 {
        return Err(SolveError::NoReplicas);
    }
    if let Some(other) = previous.filter(|p| p.model != problem.model) {
        return Err(SolveError::OtherModel { previous: other.model.clone(), model: problem.model.clone() });
    }
    let mut board = Board::new(problem, &wishes.zones);
    let nodes = board.len();
    if nodes == 0 {
        return Err(SolveError::NoNodes);
    }
    let experts = board.experts();
    for (&expert, nodes) in previous.iter().flat_map(|previous| &previous.replicas) {
        nodes.iter().for_each(|node| board.keep(expert, node));
    }
    let extra = |expert| wishes.extra.get(&expert).copied().unwrap_or(0);
    if experts.iter().any(|&expert| board.reach(expert) == 0) {
        return Err(SolveError::NoNodes);
    }
    let copies = |expert: ExpertId| {
        let reach = board.reach(expert);
        ((problem.replicas + extra(expert)).min(reach), problem.replicas.min(reach))
    };
    let wanted: Wanted = experts.iter().map(|&expert| (expert, copies(expert))).collect();
    for &expert in &experts {
        for _ in wanted[&expert].0..board.copies(expert) {
            board.drop_one(expert);
        }
    }
    fill(&mut board, problem, &wanted)?;
    board.spread();
    board.balance();

    let replicas = board.experts().into_iter().map(|expert| (expert, board.holders(expert))).collect();
    let parent = previous.map_or(Epoch::default(), |p| p.epoch);
    Ok(match previous {
        Some(previous) if previous.replicas == replicas => previous.clone(),
        _ => Placement { model: problem.model.clone(), epoch: parent.next(), parent, replicas },
    })
}

/// How many replicas each expert should have, and how many of them it must have.
type Wanted = BTreeMap<ExpertId, (usize, usize)>;

/// Places what is missing, layer by layer; in a layer first replicas first, so that second ones go beside a finished round.
fn fill(board: &mut Board<'_>, problem: &Problem, wanted: &Wanted) -> Result<(), SolveError> {
    let nodes = board.len();
    let places: Vec<(usize, ExpertId)> = board.experts().into_iter().enumerate().collect();
    for layer in places.chunk_by(|(_, a), (_, b)| a.layer == b.layer) {
        let most = layer.iter().map(|(_, expert)| wanted[expert].0).max().unwrap_or(0);
        for (copy, &(i, expert)) in (0..most).flat_map(|copy| layer.iter().map(move |place| (copy, place))) {
            let (wanted, needed) = wanted[&expert];
            if board.copies(expert) > copy || copy >= wanted {
                continue;
            }
            // Different copies of an expert have different shifts, all below the number of nodes.
            let shift = if copy == 0 { 0 } else { 1 + (expert.layer as usize + copy - 1) % (nodes - 1) };
            if !board.place(expert, i + shift) && copy < needed {
                let bytes = problem.experts.iter().find(|e| e.id == expert).map_or(0, |e| e.bytes);
                return Err(SolveError::NoRoom { expert, bytes, copy: copy + 1, replicas: needed });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
