//! How fast a cluster can be at most, by what it has to read, to compute and to send; and what it holds. Pure.
//!
//! A step waits for its coordinator's reading (or arithmetic, whichever takes longer), then, layer by layer, for the wire and for the
//! busiest node. Nothing overlaps here, and nobody waits for a lock, a queue or a straggler: these are bounds, not promises.

use serde::Serialize;
use tramontane_kernels::KvType;
use tramontane_router::RowFormat;

use super::subject::Subject;
use crate::cost::{Group, kv_bytes, kv_position_bytes};

/// What a machine gives the engine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    /// Bytes a second read.
    pub(super) bandwidth: f64,
    /// Operations a second.
    pub(super) operations: f64,
    /// Bytes a second sent, and as many received.
    pub(super) nic: f64,
    /// Seconds from a layer's dispatch to its answer, beside computing.
    pub(super) latency: f64,
    pub(super) watts: f64,
}

/// How the work is shared out.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// One process on one machine.
    Embedded,
    /// A machine for each of them.
    Cluster { nodes: usize, coordinators: usize },
}

impl Shape {
    fn coordinators(self) -> usize {
        match self {
            Self::Embedded => 1,
            Self::Cluster { coordinators, .. } => coordinators,
        }
    }

    /// Machines that share out a layer's experts.
    fn sharing(self, experts: f64) -> f64 {
        match self {
            Self::Embedded => 1.0,
            Self::Cluster { nodes, .. } => experts.min(nodes as f64),
        }
    }

    pub(super) fn machines(self) -> usize {
        match self {
            Self::Embedded => 1,
            Self::Cluster { nodes, coordinators } => nodes + coordinators,
        }
    }
}

/// Where the time of a step goes, in seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Step {
    pub(super) attention: f64,
    pub(super) experts: f64,
    pub(super) wire: f64,
}

impl Step {
    fn seconds(self) -> f64 {
        self.attention + self.experts + self.wire
    }
}

/// A kind of work, and how fast it goes.
#[derive(Debug, Serialize)]
pub(super) struct Rate {
    /// Its name, as `bench engine` has it.
    pub(super) case: String,
    /// Of all coordinators.
    pub(super) tokens_per_second: f64,
    pub(super) step_seconds: Step,
    pub(super) joules_per_token: f64,
}

/// A model on machines.
pub(super) struct Estimator<'a> {
    pub(super) subject: &'a Subject,
    pub(super) machine: Machine,
    pub(super) shape: Shape,
    pub(super) kv_type: KvType,
}

impl Estimator<'_> {
    /// Every coordinator decodes a token of each of `batch` sequences, which have `depth` positions.
    pub(super) fn decode(&self, batch: usize, depth: usize) -> Rate {
        let weights = &self.subject.weights;
        let kv = batch as f64 * kv_bytes(&self.subject.config, self.kv_type, depth, 1);
        let attention = weights.attention();
        // Nodes merge what all coordinators send.
        let all = batch * self.shape.coordinators();
        let sharing = self.shape.sharing(weights.experts);
        // Of a layer's experts a node reads its share, and one at least.
        let read = weights.column().times((weights.distinct(all) / sharing).max(1.0)).bytes;
        let computed = weights.column().times(all as f64 * weights.experts_per_token / sharing);
        let step = Step {
            attention: self.takes(attention.bytes + kv, 2.0 * batch as f64 * attention.weights),
            experts: self.takes(read, 2.0 * computed.weights),
            wire: self.wire(batch),
        };
        self.rate(format!("tg x {batch} @ d{depth}"), all as f64, step)
    }

    /// Every coordinator computes a prompt of `tokens` tokens.
    pub(super) fn prefill(&self, tokens: usize) -> Rate {
        let weights = &self.subject.weights;
        let (attention, experts) = weights.prefill_parts(tokens);
        let coordinators = self.shape.coordinators();
        let sharing = self.shape.sharing(weights.experts);
        let read = weights.column().times((weights.distinct(tokens * coordinators) / sharing).max(1.0)).bytes;
        let step = Step {
            attention: self.takes(weights.attention().bytes, attention),
            experts: self.takes(read, experts * coordinators as f64 / sharing),
            wire: self.wire(tokens),
        };
        self.rate(format!("pp{tokens}"), (tokens * coordinators) as f64, step)
    }

    /// Seconds to read and to compute, which go on at the same time.
    fn takes(&self, bytes: f64, operations: f64) -> f64 {
        (bytes / self.machine.bandwidth).max(operations / self.machine.operations)
    }

    /// Seconds that `rows` rows are on a coordinator's wire in all layers.
    fn wire(&self, rows: usize) -> f64 {
        match self.shape {
            Shape::Embedded => 0.0,
            Shape::Cluster { .. } => {
                let latency = self.subject.weights.layers.len() as f64 * self.machine.latency;
                latency + rows as f64 * self.wire_bytes() / self.machine.nic
            }
        }
    }

    /// Bytes that a token sends, or has sent back, whichever is more, in all layers: a row for each of its experts.
    pub(super) fn wire_bytes(&self) -> f64 {
        let width = self.subject.config.hidden;
        let (out, back) = match self.subject.quantized {
            true => (RowFormat::Q8, RowFormat::Bf16),
            false => (RowFormat::F32, RowFormat::F32),
        };
        let row = out.row_bytes(width).max(back.row_bytes(width));
        (row * self.subject.config.experts_per_token * self.subject.config.layers) as f64
    }

    fn rate(&self, case: String, tokens: f64, step: Step) -> Rate {
        let tokens_per_second = tokens / step.seconds();
        let joules_per_token = self.machine.watts * self.shape.machines() as f64 / tokens_per_second;
        Rate { case, tokens_per_second, step_seconds: step, joules_per_token }
    }

    /// Tokens a second that the network lets through, whatever the machines could do.
    pub(super) fn network(&self) -> Option<Network> {
        let Shape::Cluster { nodes, coordinators } = self.shape else { return None };
        let bytes_per_token = self.wire_bytes();
        let one = self.machine.nic / bytes_per_token;
        Some(Network {
            bytes_per_token,
            coordinator_tokens_per_second: one,
            coordinators_tokens_per_second: one * coordinators as f64,
            nodes_tokens_per_second: one * nodes as f64,
        })
    }

    /// What is held where, `replicas` times, on nodes with room for `node_memory` bytes of experts.
    pub(super) fn memory(&self, replicas: usize, node_memory: u64, kv_memory: u64) -> Memory {
        let weights = &self.subject.weights;
        let expert = weights.column().times(1.0 / weights.layers.len() as f64);
        let experts = weights.column().times(weights.experts).bytes;
        let (nodes, replicas) = match self.shape {
            Shape::Embedded => (1, 1),
            Shape::Cluster { nodes, .. } => (nodes, replicas.min(nodes)),
        };
        let kv_position = kv_position_bytes(&self.subject.config, self.kv_type);
        Memory {
            expert_bytes: whole(expert),
            experts_bytes: experts as u64,
            node_bytes: (experts * replicas as f64 / nodes as f64).ceil() as u64,
            node_memory,
            replicas,
            replicas_that_fit: ((nodes as f64 * node_memory as f64 / experts) as usize).min(nodes),
            nodes_needed: (experts / node_memory as f64).ceil() as usize,
            attention_bytes: whole(weights.attention()),
            kv_bytes_per_token: kv_position as u64,
            kv_tokens: kv_memory / kv_position as u64,
        }
    }
}

fn whole(group: Group) -> u64 {
    group.bytes as u64
}

/// Tokens a second by the network alone.
#[derive(Debug, Serialize)]
pub(super) struct Network {
    /// In the busier direction.
    pub(super) bytes_per_token: f64,
    pub(super) coordinator_tokens_per_second: f64,
    pub(super) coordinators_tokens_per_second: f64,
    pub(super) nodes_tokens_per_second: f64,
}

/// What is held where.
#[derive(Debug, Serialize)]
pub(super) struct Memory {
    /// One expert's; the mean.
    pub(super) expert_bytes: u64,
    /// All experts', once.
    pub(super) experts_bytes: u64,
    /// A node's.
    pub(super) node_bytes: u64,
    /// What it has room for.
    pub(super) node_memory: u64,
    pub(super) replicas: usize,
    pub(super) replicas_that_fit: usize,
    /// To hold every expert once.
    pub(super) nodes_needed: usize,
    /// A coordinator's weights.
    pub(super) attention_bytes: u64,
    pub(super) kv_bytes_per_token: u64,
    /// Tokens that a coordinator keeps the keys and values of.
    pub(super) kv_tokens: u64,
}

#[cfg(test)]
mod tests {
    use tramontane_model::tools::{Like, Recipe};

    use super::*;
    use crate::cost::ModelWeights;

    fn mixtral() -> Subject {
        let config = Like::Mixtral8x7b.config();
        let weights = ModelWeights::by_recipe(&config, Recipe::Q8_0);
        Subject { name: "m".to_owned(), types: "q8_0".to_owned(), config, weights, quantized: true }
    }

    fn estimator(subject: &Subject, shape: Shape) -> Estimator<'_> {
        let machine = Machine { bandwidth: 1e11, operations: 1e12, nic: 1e9, latency: 1e-4, watts: 100.0 };
        Estimator { subject, machine, shape, kv_type: KvType::F16 }
    }

    #[test]
    fn one_sequence_on_one_machine_reads_what_a_token_meets() {
        let subject = mixtral();
        let rate = estimator(&subject, Shape::Embedded).decode(1, 99);
        let bytes = subject.weights.decode_bytes() + 100.0 * 131_072.0;
        assert!((rate.tokens_per_second * bytes / 1e11 - 1.0).abs() < 1e-9, "{rate:?}");
        // A machine of 100 W.
        assert!((rate.joules_per_token * rate.tokens_per_second - 100.0).abs() < 1e-6);
    }

    #[test]
    fn nodes_read_at_the_same_time_but_one_expert_each_at_least() {
        let subject = mixtral();
        let experts = |nodes, batch| {
            let mut estimator = estimator(&subject, Shape::Cluster { nodes, coordinators: 1 });
            estimator.machine.operations = f64::INFINITY;
            estimator.decode(batch, 0).step_seconds.experts
        };
        let one = subject.weights.column().bytes / 1e11;
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-9;
        assert!(near(experts(1, 1), 2.0 * one) && near(experts(2, 1), one) && near(experts(8, 1), one));
        // 64 tokens meet all 8 experts, and a node more than there are experts has nothing to do.
        assert!(near(experts(4, 64), subject.weights.distinct(64) / 4.0 * one));
        assert_eq!(experts(8, 64).to_bits(), experts(100, 64).to_bits());
    }

    #[test]
    fn large_batches_are_bound_by_arithmetic() {
        let subject = mixtral();
        let shape = Shape::Embedded;
        let rate = estimator(&subject, shape).decode(4096, 0);
        let operations = 2.0 * 4096.0 * subject.weights.column().times(2.0).weights;
        assert!((rate.step_seconds.experts * 1e12 / operations - 1.0).abs() < 1e-9, "{rate:?}");
    }

    #[test]
    fn the_wire_carries_a_row_for_each_expert_of_a_token() {
        let subject = mixtral();
        let shape = Shape::Cluster { nodes: 4, coordinators: 3 };
        let network = estimator(&subject, shape).network().expect("a cluster");
        // 32 layers, 2 experts, 4096 values of bf16 back.
        assert_eq!(network.bytes_per_token, 32.0 * 2.0 * 8192.0);
        assert_eq!(network.coordinators_tokens_per_second, 3.0 * 1e9 / 524_288.0);
        assert!(estimator(&subject, Shape::Embedded).network().is_none());
    }

    #[test]
    fn what_fits_is_counted_in_whole_replicas() {
        let subject = mixtral();
        let shape = Shape::Cluster { nodes: 4, coordinators: 1 };
        let all = subject.weights.column().times(8.0).bytes as u64;
        let memory = |room: u64| estimator(&subject, shape).memory(2, room, 1 << 30);
        let half = memory(all / 2 + 1);
        assert_eq!((half.node_bytes, half.replicas_that_fit, half.nodes_needed), (all / 2, 2, 2));
        let little = memory(all / 5);
        assert_eq!((little.replicas_that_fit, little.nodes_needed), (0, 6));
        assert_eq!((half.kv_bytes_per_token, half.kv_tokens), (131_072, 8192));
    }
}
