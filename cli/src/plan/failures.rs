//! What a cluster survives, and how. Pure.

use serde::Serialize;

use super::estimate::Memory;

/// Something that is lost, and what comes of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Failure {
    pub(super) lost: String,
    pub(super) outcome: Outcome,
}

/// What comes of a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// Other holders compute the missing rows within the layer.
    Unnoticed,
    /// Survivors load the experts that nobody holds any more, while requests wait.
    Loaded,
    /// There is no room for all experts: requests wait 30 s, and fail.
    Down,
    /// Gateways take the streams up at another coordinator, with the next token.
    TakenUp,
    /// The streams of what was lost end.
    StreamsEnd,
    /// Serving goes on; nothing moves until it is back.
    Frozen,
}

impl Outcome {
    /// For people.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Unnoticed => "other holders answer within the layer; no request notices",
            Self::Loaded => "survivors load what nobody holds any more; requests wait for that",
            Self::Down => "no room for all experts: requests wait 30 s, and fail",
            Self::TakenUp => "its streams go on at another one, with the next token",
            Self::StreamsEnd => "its streams end",
            Self::Frozen => "serving goes on; nothing joins, leaves or moves until it is back",
        }
    }
}

/// What a cluster of `nodes` nodes, in racks of `rack_size`, and `coordinators` coordinators survives.
pub(super) fn failures(nodes: usize, rack_size: usize, coordinators: usize, memory: &Memory) -> Vec<Failure> {
    // Replicas beyond what has room are not there.
    let replicas = memory.replicas.min(memory.replicas_that_fit);
    let after = |lost: usize, kept: bool| match nodes.saturating_sub(lost) {
        left if left < memory.nodes_needed || left == 0 || replicas == 0 => Outcome::Down,
        _ if kept => Outcome::Unnoticed,
        _ => Outcome::Loaded,
    };
    let failure = |lost: String, outcome| Failure { lost, outcome };
    let mut all = vec![failure("a node".to_owned(), after(1, replicas > 1))];
    if replicas > 2 {
        all.push(failure(format!("{} nodes at once", replicas - 1), after(replicas - 1, true)));
    }
    all.push(failure(format!("{} nodes at once", replicas.max(2)), after(replicas.max(2), false)));
    // Replicas stand in different racks where there are as many.
    let racks = nodes.div_ceil(rack_size);
    all.push(failure(format!("a rack of {}", rack_size.min(nodes)), after(rack_size, replicas > 1 && racks > 1)));
    let outcome = if coordinators > 1 { Outcome::TakenUp } else { Outcome::StreamsEnd };
    all.push(failure("a coordinator behind a gateway".to_owned(), outcome));
    all.push(failure("a gateway".to_owned(), Outcome::StreamsEnd));
    all.push(failure("etcd".to_owned(), Outcome::Frozen));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(replicas: usize, replicas_that_fit: usize, nodes_needed: usize) -> Memory {
        Memory {
            expert_bytes: 1,
            experts_bytes: 1,
            node_bytes: 1,
            node_memory: 1,
            replicas,
            replicas_that_fit,
            nodes_needed,
            attention_bytes: 1,
            kv_bytes_per_token: 1,
            kv_tokens: 1,
        }
    }

    fn outcome(all: &[Failure], lost: &str) -> Outcome {
        all.iter().find(|failure| failure.lost == lost).map(|failure| failure.outcome).expect(lost)
    }

    #[test]
    fn replicas_carry_over_nodes_and_racks() {
        let all = failures(80, 40, 2, &memory(2, 3, 4));
        assert_eq!(outcome(&all, "a node"), Outcome::Unnoticed);
        assert_eq!(outcome(&all, "2 nodes at once"), Outcome::Loaded);
        assert_eq!(outcome(&all, "a rack of 40"), Outcome::Unnoticed);
        assert_eq!(outcome(&all, "a coordinator behind a gateway"), Outcome::TakenUp);
        let three = failures(80, 40, 1, &memory(3, 3, 4));
        assert_eq!(outcome(&three, "2 nodes at once"), Outcome::Unnoticed);
        assert_eq!(outcome(&three, "3 nodes at once"), Outcome::Loaded);
        assert_eq!(outcome(&three, "a coordinator behind a gateway"), Outcome::StreamsEnd);
    }

    #[test]
    fn what_has_no_room_is_no_replica() {
        // One rack: replicas cannot stand elsewhere. Two replicas wanted, room for one.
        let all = failures(4, 40, 1, &memory(2, 1, 3));
        assert_eq!(outcome(&all, "a node"), Outcome::Loaded);
        assert_eq!(outcome(&all, "2 nodes at once"), Outcome::Down);
        assert_eq!(outcome(&all, "a rack of 4"), Outcome::Down);
        assert_eq!(outcome(&failures(4, 40, 1, &memory(1, 0, 6)), "a node"), Outcome::Down);
    }
}
